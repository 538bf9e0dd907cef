"""Keeps the compute threads of all local models together within the machine's cores."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Active:
    threads: int
    users: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    stage: str
    threads: int
    admitted: asyncio.Future[None]


class ThreadBudget:
    """At most ``cores`` threads at once, shared out first come, first served.

    A stage holds its threads from its first request in flight to the end of its last. Further requests to a stage
    that holds them share them (the model serves them as one batch), unless someone waits: then they queue too, so
    that a busy stage cannot starve the others. For one event loop.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._active: dict[str, _Active] = {}
        self._queue: deque[_Waiter] = deque()

    @property
    def used(self) -> int:
        """Threads held now."""
        return sum(active.threads for active in self._active.values())

    @asynccontextmanager
    async def hold(self, stage: str, threads: int) -> AsyncGenerator[None, None]:
        """Wait for the stage's threads (never more than there are cores) and hold them inside the block."""
        await self.acquire(stage, threads)
        try:
            yield
        finally:
            self.release(stage)

    async def acquire(self, stage: str, threads: int) -> None:
        """What ``hold`` begins with, for who cannot hold them in a block; ``release`` is to follow, once."""
        waiter = _Waiter(stage, min(threads, self.cores), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._admit()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._admit()  # the ones behind may fit where this one did not
            else:
                self.release(stage)
            raise

    def release(self, stage: str) -> None:
        """Give back what ``acquire`` got."""
        active = self._active[stage]
        active.users -= 1
        if not active.users:
            del self._active[stage]
        self._admit()

    def _admit(self) -> None:
        """Let the head of the queue in for as long as it fits; nobody overtakes it."""
        while self._queue and self._fits(self._queue[0]):
            waiter = self._queue.popleft()
            self._active.setdefault(waiter.stage, _Active(waiter.threads)).users += 1
            if not waiter.admitted.done():
                waiter.admitted.set_result(None)

    def _fits(self, waiter: _Waiter) -> bool:
        return waiter.stage in self._active or self.used + waiter.threads <= self.cores


def available_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every POSIX system has it
        return os.cpu_count() or 1
