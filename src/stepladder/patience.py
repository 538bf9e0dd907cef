"""A limit on each of many short waits, at the price of one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Patience:
    """Does ``action`` once where a wait lasts ``seconds``: a stream waits anew for every piece, and a timeout around
    each of them would cost more than all else that is done with it.

    ``begin`` and ``end`` stand around every wait, one at a time; ``action`` is called from the event loop while the
    wait is under way, and has to end it. ``cancel`` when there will be no more. Made on a running event loop.
    """

    __slots__ = ("_action", "_handle", "_loop", "_seconds", "_since", "is_over")

    def __init__(self, seconds: float, action: Callable[[], object]) -> None:
        self.is_over = False
        self._seconds, self._action = seconds, action
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._handle = self._loop.call_later(seconds, self._look)

    def begin(self) -> None:
        """A wait begins."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It is over."""
        self._since = None

    def cancel(self) -> None:
        """No wait is watched any more."""
        self._handle.cancel()

    def _look(self) -> None:
        """Act where the wait has lasted long enough, else come back when it may have."""
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._seconds
        if now < due:
            self._handle = self._loop.call_at(due, self._look)
        else:
            self.is_over = True
            self._action()
