"""The circuit breaker of one stage: after failures in a row it is left in peace, then tried by one call at a time."""

from __future__ import annotations

from collections.abc import Callable

from stepladder.types import Attempt, BreakerState

WINDOW = 20
"""Calls that are looked back on: half of them failed, and the breaker opens although some succeeded between."""

LONGEST = 32.0
"""The pause doubles with every probe that fails, up to so many times the first one."""

JITTER = 0.25
"""A pause is longer by up to this share, by chance: processes that lost a server together do not return together."""

PROBE_S = 1.0
"""When to come again while a probe is out: it may be back at any time."""

SPEAK_ILL = frozenset({"timeout", "connect", "server", "protocol", "crash"})
SPEAK_WELL = frozenset({"bad_request", "context", "rate_limit", "auth"})


def health(attempt: Attempt | None) -> bool | None:
    """Whether an attempt says that its stage is well; None where it says nothing of it.

    Refusals that a server sent (it has a status) show that it is there, whatever it thinks of the request. A key that
    is not accepted (401) is no request's doing and stays wrong until somebody mends it, so it counts as ill; 403 may be
    about what was asked. A timeout after 0 seconds was the wait for a place: the server was never asked.
    """
    if attempt is None:
        return None
    fault = attempt.fault
    if fault is None:
        return True
    if fault.kind in SPEAK_ILL:
        return None if fault.kind == "timeout" and attempt.seconds == 0 else False
    if fault.kind in SPEAK_WELL and fault.status is not None:
        return fault.status != 401
    return None


class Breaker:
    """Closed, calls pass. It opens after ``failures`` in a row, or when half of the last 20 failed; 0 never opens it.

    Open, none pass for a pause: ``pause_s`` first, twice as long after each failed probe, up to 32 times; each is
    longer by up to a quarter, by ``chance`` (a number in [0, 1)). Then it is half open: one call at a time passes, the
    probe, and the first that succeeds closes it. ``clock`` gives monotonic seconds. Every step takes constant time.

    Source: M. Nygard, "Release It!", Pragmatic Bookshelf 2007, ch. 5.2 (Circuit Breaker).
    """

    def __init__(
        self, failures: int, pause_s: float, *, clock: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        self.opened = 0
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._chance = chance
        self._row = self._history = self._seen = 0
        self._factor = 1.0
        self._until: float | None = None
        self._probing = False
        self._round = 0

    @property
    def state(self) -> BreakerState:
        """What it does now."""
        if not self._failures:
            return "off"
        if self._until is None:
            return "closed"
        return "half_open" if self._clock() >= self._until else "open"

    @property
    def is_closed(self) -> bool:
        """True where calls pass; known without a look at the clock."""
        return self._until is None

    def wait(self) -> float:
        """Seconds until a call may begin; 0 where one may now."""
        if self._until is None:
            return 0.0
        left = self._until - self._clock()
        if left > 0:
            return left
        return PROBE_S if self._probing else 0.0

    def begin(self) -> int:
        """A call begins, where ``wait`` said 0; returns what ``end`` is to be told."""
        self._probing = self._until is not None
        return self._round

    def end(self, begun: int, healthy: bool | None) -> None:
        """A call is over (or its answer has begun to come). One from before the last change of state says nothing."""
        if begun != self._round or not self._failures:
            return
        if self._until is None:
            self._count(healthy)
            return
        self._probing = False
        if healthy:
            self._close()
        elif healthy is False:
            self._factor = min(2 * self._factor, LONGEST)
            self._open()

    def _count(self, healthy: bool | None) -> None:
        if healthy is None:
            return
        self._row = 0 if healthy else self._row + 1
        self._history = (self._history << 1 | (not healthy)) & ((1 << WINDOW) - 1)
        self._seen = min(self._seen + 1, WINDOW)
        mostly = self._seen == WINDOW and 2 * self._history.bit_count() >= WINDOW
        if not healthy and (self._row >= self._failures or mostly):
            self._open()

    def _open(self) -> None:
        pause = self._pause_s * self._factor * (1.0 + JITTER * self._chance())
        self._until = self._clock() + pause
        self._round += 1
        self.opened += 1

    def _close(self) -> None:
        self._until = None
        self._row = self._history = self._seen = 0
        self._factor = 1.0
        self._round += 1
