"""Ending the work for a client that has left: nobody would read what it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from starlette.types import Receive

LEAVING = "stepladder.leaving"
"""Where a request's scope has its ``Leaving``, under servers that tell of it."""


class Reading(Protocol):
    """What the server reads from, and can stop reading from while it has enough to do."""

    def resume_reading(self) -> None: ...


class Leaving:
    """How a server tells directly that the client of one request has left.

    ASGI tells whoever waits in ``receive``, which takes a task for the waiting and another for the work. With this the
    task of the request itself does the work. Nobody sees a client leave while nothing is read from it, so ``reading``
    goes on once there is work.
    """

    __slots__ = ("_act", "_reading", "is_over")

    def __init__(self, reading: Reading) -> None:
        self.is_over = False
        self._reading = reading
        self._act: Callable[[], object] | None = None

    def tell(self) -> None:
        """It has left: for the server, from the event loop. Only the first time counts."""
        if not self.is_over and self._act is not None:
            self._act()
        self.is_over = True

    def begin(self, act: Callable[[], object]) -> None:
        """Have ``act`` called when it leaves, at once where it has."""
        self._act = act
        self._reading.resume_reading()
        if self.is_over:
            act()

    def end(self) -> None:
        """Of no concern any more."""
        self._act = None


async def until_left(leaving: Leaving, work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work`` to its end in the running task, or cancel it as soon as the client leaves. False where it left."""
    task = cast("asyncio.Task[None]", asyncio.current_task())
    leaving.begin(task.cancel)
    try:
        await work
    except asyncio.CancelledError:
        if leaving.is_over and not task.uncancel():
            return False
        raise  # it was not the client that left, or not only
    finally:
        leaving.end()
    return True


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """The same under any ASGI server."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_gone(receive))
    watcher.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
    try:
        await task
    except asyncio.CancelledError:
        if not watcher.done() or watcher.cancelled():
            raise  # it was not the client that left
        return False
    finally:
        watcher.cancel()
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
