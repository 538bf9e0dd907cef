"""One call's time, from the moment it was asked for: waiting for a place is part of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from stepladder.engines.wire import WireError
from stepladder.types import Fault

OPTION = "total_timeout_s"
NO_ANSWER = "no whole answer"


@dataclass(frozen=True, slots=True)
class Deadline:
    """``total_s`` seconds from when it was made, for one stage's call."""

    stage: str
    total_s: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds until it is over; below 0 once it is."""
        return self.total_s - (time.perf_counter() - self.started)

    def over(self, missing: str = NO_ANSWER) -> WireError:
        """The fault that its end means."""
        return timed_out(f"{missing} of stage '{self.stage}'", self.total_s, OPTION)

    @asynccontextmanager
    async def waiting(self, missing: str) -> AsyncIterator[None]:
        """Wait inside the block for what comes before the call. Raises WireError (timeout) at the end."""
        try:
            async with asyncio.timeout(self.left):
                yield
        except TimeoutError as error:
            raise self.over(missing) from error

    @asynccontextmanager
    async def within(self, missing: str, seconds: float, option: str) -> AsyncIterator[None]:
        """Wait inside the block until the end, and for ``seconds`` (set by ``option``) at most.

        Raises WireError (timeout) naming the option that set the limit. Never put it around a yield of a generator,
        where the time would be its reader's.
        """
        left = self.left
        if left <= 0:
            raise self.over()
        try:
            async with asyncio.timeout(min(seconds, left)):
                yield
        except TimeoutError as error:
            if left < seconds:
                raise self.over() from error
            raise timed_out(f"{missing} of stage '{self.stage}'", seconds, option) from error

    def at_end(self, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Do something when it is over, unless the handle was cancelled before."""
        return asyncio.get_running_loop().call_later(max(0.0, self.left), action)

    def let_go(self, held: ExitStack) -> None:
        """Let go of what is held when it is over, also where the call's reader has stopped reading."""
        held.callback(self.at_end(held.close).cancel)


def timed_out(missing: str, seconds: float, option: str) -> WireError:
    """The fault of a wait that took too long."""
    return WireError(Fault("timeout", f"{missing} within {seconds:g} s ({option})"))
