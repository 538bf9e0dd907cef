"""A gateway of fakes, but with the real engine for servers of OpenAI's API, in front of a server in the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from gateway_fakes import ALL, STAGES, World, world
from openai_server import FakeServer, Handler, serving
from stepladder.contracts import Policy
from stepladder.engines.openai import OpenAIEngine
from stepladder.gateway.app import GatewaySettings
from stepladder.types import Ladder, Mode, Stage


@dataclass
class Ends:
    """Both ends of a request: the gateway, and the server behind every stage (``upstream/NAME`` is its model there)."""

    made: World
    server: FakeServer


@asynccontextmanager
async def before(
    handler: Handler,
    policies: Mapping[Mode, Policy] | None = None,
    settings: GatewaySettings | None = None,
    **options: Any,
) -> AsyncIterator[Ends]:
    """A gateway whose three stages are one server with this handler; ``options`` are the stages' own."""
    async with serving(handler) as server:
        own = {"base_url": server.url, **options}
        stages = tuple(Stage(name, "openai", f"upstream/{name}", capabilities=ALL, options={**own}) for name in STAGES)
        engine = OpenAIEngine(stages)
        made = world(settings=settings)
        parts = made.router.parts
        made.router.parts = replace(
            parts,
            ladder=Ladder("fakes", stages),
            engines=dict.fromkeys(STAGES, engine),
            policies=parts.policies if policies is None else policies,
        )
        await engine.start()
        try:
            yield Ends(made, server)
        finally:
            await engine.close()
