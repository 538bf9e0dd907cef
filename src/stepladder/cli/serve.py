"""``stepladder serve``: the OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import sys

from stepladder.build import build
from stepladder.cli import options
from stepladder.config import Settings, named_dials
from stepladder.errors import UsageError
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.server import serve


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser, positional=True)
    parser.add_argument("--host", help="address to bind (default: the ladder's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (default: the ladder's, 8080)")


def run(args: argparse.Namespace) -> int:
    for key in ("host", "port"):
        if getattr(args, key) is not None:
            args.overrides.append(f"gateway.{key}={getattr(args, key)}")
    settings = options.read_settings(args)
    router = build(settings)
    app = create_app(router, gateway_settings(settings), manage_router=True)
    try:
        serve(app, settings.gateway.host, settings.gateway.port, ready=lambda url: _greet(settings, url))
    except OSError as error:
        place = f"{settings.gateway.host}:{settings.gateway.port}"
        raise UsageError(f"gateway.host and port: {place} cannot be bound: {error.strerror or error}") from error
    return 0


def _greet(settings: Settings, url: str) -> None:
    sys.stderr.write(f"{greeting(settings, url)}\nCtrl-C ends it.\n")
    sys.stderr.flush()


def gateway_settings(settings: Settings) -> GatewaySettings:
    """What the gateway needs of the settings."""
    return GatewaySettings(
        model_name=settings.gateway.model_name,
        max_body_bytes=settings.gateway.max_body_bytes,
        write_idle_s=settings.gateway.write_idle_s,
        presets=named_dials(settings),
        baseline=settings.gateway.baseline,
    )


def greeting(settings: Settings, url: str) -> str:
    """How to call the server that listens at ``url``, as a line to paste."""
    body = f'{{"model": "{settings.gateway.model_name}", "messages": [{{"role": "user", "content": "What is 2+2?"}}]}}'
    names = " < ".join(stage.name for stage in settings.stages)
    call = f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    return f"serving {names} at {url}/v1\n\n{call}\n"
