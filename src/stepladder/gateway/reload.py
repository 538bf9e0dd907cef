"""What is served can be replaced while it is served: no request is refused, cut or moved from one to the other.

``Turnstile`` stands between the server and the application in force. A request belongs to the application that was in
force when it came, whatever comes after. ``Houses`` makes a new one from what the configuration says now, and closes
the one before once its last request has left. Engines that did not change are handed on, not loaded twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from stepladder.contracts import Engine
from stepladder.errors import StepladderError
from stepladder.gateway.collector import settle_again
from stepladder.gateway.faults import error_body
from stepladder.gateway.replies import json_reply
from stepladder.gateway.watch import Watch
from stepladder.router import Router

LOG = logging.getLogger("stepladder.gateway")

_RETRY = ((b"retry-after", b"1"),)


class Turnstile:
    """An ASGI application in front of whichever is in force; until there is one it answers 503, and 200 for /health."""

    def __init__(self) -> None:
        self.app: ASGIApp = not_yet

    @property
    def is_open(self) -> bool:
        """Whether anything is in force."""
        return self.app is not not_yet

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.app(scope, receive, send)


async def not_yet(scope: Scope, receive: Receive, send: Send) -> None:
    """What is said while models load: this process lives, and takes no request yet."""
    if scope["path"] == "/health":
        await json_reply({"status": "ok"})(send)
    elif scope["path"] == "/ready":
        await json_reply({"status": "starting"}, _RETRY, 503)(send)
    else:
        LOG.info("a request came while the first start was under way; it was answered 503")
        body = error_body("the server is starting; try again", "server_error", code="starting")
        await json_reply(body, _RETRY, 503)(send)


@dataclass(slots=True, eq=False)
class House:
    """A router and the application before it, and how many requests are in it.

    ``take_over`` is called when all of it has started, right before requests come in. What it shares with the house
    before changes there and nowhere earlier, so that a house that is refused changes nothing. It too may refuse.
    """

    router: Router
    app: Starlette
    take_over: Callable[[], None] = lambda: None
    visitors: int = 0
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    lifespan: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def engines(self) -> dict[int, Engine]:
        """By identity: stages may share one, and so may houses."""
        return {id(engine): engine for engine in self.router.engines()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.visitors += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.visitors -= 1
            if not self.visitors:
                self.empty.set()

    async def emptied(self) -> None:
        """Wait until nobody is in it; nobody comes in any more."""
        while self.visitors:
            self.empty.clear()
            await self.empty.wait()


Make = Callable[[Router], House]
"""Reads the configuration and makes what it says, with the parts of the router in force that did not change.

It runs in a thread of its own. Raises StepladderError or OSError for what cannot be used."""


class Houses:
    """The house in force, and those before it that still have somebody in. One for each served process.

    ``first`` is served first, and ``make`` makes what comes after it; ``turnstile`` is what a server is to serve.
    """

    def __init__(self, first: House, make: Make, watch: Watch) -> None:
        self.turnstile = Turnstile()
        self._make = make
        self._watch = watch
        self._first = first
        self._alive: list[House] = []
        self._asked = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        watch.state = "starting"

    @property
    def now(self) -> House:
        """The house in force. Raises IndexError before there is one."""
        return self._alive[-1]

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None, None]:
        """Start the first house, reload when asked to, and at the end close all of them.

        Raises what starting an engine raises; then nothing is left running.
        """
        async with AsyncExitStack() as ending:  # to its end, even where something cannot be closed
            ending.callback(self._first.router.parts.store.close)
            ending.push_async_callback(self._close_all)
            await self._enter(self._first)
            self._watch.state = "serving"
            reloads = asyncio.create_task(self._reload_forever())
            try:
                yield
            finally:
                await _cancelled(reloads, *self._leaving)

    def ask_reload(self) -> None:
        """Reload soon. However often it is asked for before one begins, there is one."""
        self._asked.set()

    async def reload(self) -> bool:
        """Serve what the configuration says now; False where that cannot be used, and what was served goes on."""
        old = self.now
        try:
            house = await asyncio.to_thread(self._make, old.router)
            await self._enter(house)
        except (StepladderError, OSError) as error:
            return self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - parts are anybody's code; what serves now must outlive their faults
            return self._refuse(f"{type(error).__name__}: {error}", error)
        leaving = asyncio.create_task(self._leave(old))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._watch.metrics.reloads.add(("done",))
        kept = house.engines.keys() & old.engines.keys()
        LOG.info(
            "reloaded: configuration %s in place of %s; %d of %d engines go on as they are%s",
            house.router.parts.versions.config,
            old.router.parts.versions.config,
            len(kept),
            len(house.engines),
            "" if len(kept) == len(old.engines) else "; the others of before are held until their last request is over",
        )
        return True

    def _refuse(self, reason: str, error: Exception | None = None) -> bool:
        self._watch.metrics.reloads.add(("refused",))
        LOG.error("not reloaded, what was in force stays so: %s", reason, exc_info=error)
        return False

    async def _reload_forever(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.reload()

    async def _enter(self, house: House) -> None:
        """Start what does not run yet, then let requests in."""
        running = {key for each in self._alive for key in each.engines}
        async with AsyncExitStack() as started:
            for key, engine in house.engines.items():
                if key not in running:  # a start that fails would end an engine that others still use
                    await engine.start()
                    started.push_async_callback(engine.close)
            await house.lifespan.enter_async_context(house.app.router.lifespan_context(house.app))
            started.push_async_callback(house.lifespan.aclose)
            house.take_over()
            started.pop_all()
        self._alive.append(house)
        self.turnstile.app = house

    async def _leave(self, house: House) -> None:
        await house.emptied()
        try:
            await self._close(house)
            settle_again()
        except Exception:  # engines are anybody's code; it is tried once more at the end
            LOG.exception("what was in force before could not be closed")

    async def _close_all(self) -> None:
        async with AsyncExitStack() as closing:
            for house in self._alive:
                closing.push_async_callback(self._close, house)

    async def _close(self, house: House) -> None:
        """Close a house, and its engines but for those that another still uses."""
        await house.lifespan.aclose()
        used = {key for each in self._alive if each is not house for key in each.engines}
        async with AsyncExitStack() as closing:  # all of them, even where one raises
            for key, engine in house.engines.items():
                if key not in used:
                    closing.push_async_callback(engine.close)
        self._alive.remove(house)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
