"""``stepladder serve``: the OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from typing import Any

from starlette.applications import Starlette

from stepladder.build import build, problems
from stepladder.cli import options
from stepladder.config import Settings, named_dials
from stepladder.errors import ConfigError, UsageError
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.logs import Log
from stepladder.gateway.reload import Houses
from stepladder.gateway.server import Drain, serve
from stepladder.gateway.watch import Watch
from stepladder.router import Router

LOG = logging.getLogger("stepladder.gateway")

RELOADED = frozenset({"model_name", "max_body_bytes", "write_idle_s", "baseline"})
"""Keys of [gateway] that a reload reads; the others, and all of [traces], stay as they were at the start."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser, positional=True)
    parser.add_argument("--host", help="address to bind (default: the ladder's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (default: the ladder's, 8080)")


def run(args: argparse.Namespace) -> int:
    for key in ("host", "port"):
        if getattr(args, key) is not None:
            args.overrides.append(f"gateway.{key}={getattr(args, key)}")
    settings = options.read_settings(args)
    told = settings.gateway
    with Log(told.log, told.log_level) as log:
        watch = Watch(tell=log.tell)
        watch.metrics.refreshers.append(log.refresh)
        kitchen = Kitchen(args, settings, watch)
        houses = Houses(kitchen.first(), kitchen.again, watch)
        try:
            serve(
                houses,
                told.host,
                told.port,
                drain=Drain(told.drain_s, told.drain_notice_s),
                ready=lambda url: _greet(settings, url, log),
                watch=watch,
                hangup=houses.ask_reload,
            )
        except OSError as error:
            place = f"{told.host}:{told.port}"
            raise UsageError(f"gateway.host and port: {place} cannot be bound: {error.strerror or error}") from error
        log.event("ended")
    return 0


class Kitchen:
    """Makes what is served: once at the start, and again whenever the configuration is to be read anew."""

    def __init__(self, args: argparse.Namespace, settings: Settings, watch: Watch) -> None:
        self._args = args
        self._at_start = settings
        self._watch = watch

    def first(self) -> tuple[Router, Starlette]:
        """Raises as ``build`` does."""
        return self._served(self._at_start, build(self._at_start))

    def again(self, old: Router) -> tuple[Router, Starlette]:
        """What the configuration says now. Raises ConfigError with all that is wrong, and as ``build`` does."""
        settings = options.read_settings(self._args)
        found = problems(settings)
        if found:
            raise ConfigError(settings.source, found)
        made = self._served(settings, build(settings, reuse=old))
        for key in unread(self._at_start, settings):
            LOG.warning("%s has changed, but is read at the start only: it stays as it was until a restart", key)
        return made

    def _served(self, settings: Settings, router: Router) -> tuple[Router, Starlette]:
        return router, create_app(router, gateway_settings(settings), watch=self._watch)


def unread(before: Settings, now: Settings) -> Iterator[str]:
    """Keys that differ and that a reload does not read."""
    for section, kept in (("gateway", RELOADED), ("traces", frozenset[str]())):
        old, new = getattr(before, section), getattr(now, section)
        for key in type(old).model_fields:
            if key not in kept and getattr(old, key) != getattr(new, key):
                yield f"{section}.{key}"


def _greet(settings: Settings, url: str, log: Log) -> None:
    if settings.gateway.log == "json":  # whoever reads JSON reads nothing else
        stages: Any = [stage.name for stage in settings.stages]
        log.event("serving", url=f"{url}/v1", stages=stages, ladder=settings.ladder.name, config=settings.version)
        return
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
