"""``stepladder serve``: the OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from stepladder.build import build, problems
from stepladder.cli import options
from stepladder.config import Settings, is_loopback, named_dials
from stepladder.errors import ConfigError, UsageError
from stepladder.gateway.access import FreeGate, Gate, KeyGate, LoopbackGate
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.logs import Log
from stepladder.gateway.protocol import ConnectionLimits
from stepladder.gateway.reload import House, Houses
from stepladder.gateway.server import Drain, serve
from stepladder.gateway.watch import Watch
from stepladder.router import Router

LOG = logging.getLogger("stepladder.gateway")

RELOADED = frozenset(
    {"model_name", "max_body_bytes", "write_idle_s", "baseline", "keys", "open", "hosts", "image_urls"}
)
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
                limits=connection_limits(settings),
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
        self._gate: Gate | None = None

    def first(self) -> House:
        """Raises ConfigError with all that is wrong, and as ``build`` does."""
        return self._made(self._at_start)

    def again(self, old: Router) -> House:
        """What the configuration says now. Raises as ``first``."""
        return self._made(options.read_settings(self._args), old)

    def _made(self, settings: Settings, old: Router | None = None) -> House:
        """What ``check`` refuses is refused here too, so that whatever was started can be reloaded."""
        found = problems(settings)
        if found:
            raise ConfigError(settings.source, found)
        return self._served(settings, build(settings, reuse=old))

    def _served(self, settings: Settings, router: Router) -> House:
        gate = make_gate(settings, self._at_start.gateway.host, self._gate)
        app = create_app(router, gateway_settings(settings), watch=self._watch, gate=gate)
        return House(router, app, partial(self._take_over, settings, gate))

    def _take_over(self, settings: Settings, gate: Gate) -> None:
        """Raises ConfigError where the keys no longer fit: their file may have changed while engines started."""
        if gate is self._gate and isinstance(gate, KeyGate):
            gate.use(stage_names(settings))
        self._gate = gate
        for key in unread(self._at_start, settings):
            LOG.warning("%s has changed, but is read at the start only: it stays as it was until a restart", key)


def unread(before: Settings, now: Settings) -> Iterator[str]:
    """Keys that differ and that a reload does not read."""
    for section, kept in (("gateway", RELOADED), ("traces", frozenset[str]())):
        old, new = getattr(before, section), getattr(now, section)
        for key in type(old).model_fields:
            if key not in kept and getattr(old, key) != getattr(new, key):
                yield f"{section}.{key}"


def _greet(settings: Settings, url: str, log: Log) -> None:
    if settings.gateway.log == "json":  # whoever reads JSON reads nothing else
        stages: Any = list(stage_names(settings))
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
        image_urls=settings.gateway.image_urls,
    )


def make_gate(settings: Settings, host: str, before: Gate | None = None) -> Gate:
    """Who is let in at the address that is bound: the gate ``before`` where the file of its keys is the same.

    That one is left as it is; ``KeyGate.use`` is to tell it of the new stages once they are served. Raises ConfigError
    for keys that cannot be read, and where others can reach the address and nothing keeps them out.
    """
    gateway = settings.gateway
    if gateway.keys is not None:
        made = KeyGate(settings.folder / gateway.keys, stage_names(settings))
        return before if isinstance(before, KeyGate) and before.path == made.path else made
    if is_loopback(host):
        return LoopbackGate(gateway.hosts)
    if not gateway.open:
        told = f"are gone, but the bound address '{host}' can be reached by others and gateway.open is not true"
        raise ConfigError(settings.source, [settings.problem(("gateway", "keys"), told)])
    return FreeGate()


def stage_names(settings: Settings) -> tuple[str, ...]:
    """Cheapest first."""
    return tuple(stage.name for stage in settings.stages)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """What a client may send, and in what time."""
    gateway = settings.gateway
    return ConnectionLimits(
        head_bytes=gateway.max_head_bytes,
        headers=gateway.max_headers,
        head_s=gateway.head_timeout_s,
        body_s=gateway.body_timeout_s,
        keep_alive_s=gateway.keep_alive_s,
        connections=gateway.max_connections,
        per_address=gateway.max_connections_per_address,
    )


def greeting(settings: Settings, url: str) -> str:
    """How to call the server that listens at ``url``, as a line to paste."""
    body = f'{{"model": "{settings.gateway.model_name}", "messages": [{{"role": "user", "content": "What is 2+2?"}}]}}'
    names = " < ".join(stage_names(settings))
    call = f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    return f"serving {names} at {url}/v1\n\n{call}\n"
