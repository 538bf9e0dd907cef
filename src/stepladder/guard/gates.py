"""One gate before each stage: its breaker, the rest its server asked for, and how many calls may wait."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from stepladder.guard.breaker import Breaker, health
from stepladder.types import EMPTY, Absence, AbsenceKind, Attempt, StageState

log = logging.getLogger("stepladder.guard")

MOST_ASIDE_S = 3600.0
"""A server's Retry-After is believed up to here; a call an hour is what it costs to see whether it still holds."""

AGILITY = 0.1
"""How far the mean time of a call follows the newest."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """One stage's limits. ``places`` calls are at work at once (None: any number), ``max_queue`` more may wait.

    ``failures`` in a row open the breaker (0: never), for ``pause_s`` seconds at first.
    """

    places: int | None = None
    max_queue: int = 1000
    failures: int = 5
    pause_s: float = 1.0


class Gates:
    """The gates of a ladder (contract ``Guard``). ``rules`` are by stage; a stage without any has the usual ones.

    Calls are counted here and wait in their engine, which holds its places itself and knows each call's deadline.
    ``clock`` gives monotonic seconds, ``chance`` numbers in [0, 1). One event loop's: nothing here is locked. ``kept``
    are gates that stand already and go on to, with all that they know.
    """

    def __init__(
        self,
        stages: Iterable[str],
        rules: Mapping[str, GateRules],
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        kept: Mapping[str, Gate] = EMPTY,
    ) -> None:
        self._gates = {
            name: kept.get(name) or Gate(name, rules.get(name, GateRules()), clock, chance) for name in stages
        }

    def kept(self, rules: Mapping[str, GateRules]) -> Mapping[str, Gate]:
        """Those of the gates that have just these rules."""
        return {name: gate for name, gate in self._gates.items() if gate.rules == rules.get(name)}

    def absent(self, stages: Iterable[str]) -> Mapping[str, Absence]:
        """Those of the stages that cannot take a call now, and why; each is counted as left out."""
        found = {}
        for name in stages:
            gate = self._gates[name]
            absence = gate.absence()
            if absence is not None:
                gate.left_out[absence.kind] += 1
                found[name] = absence
        return found

    def enter(self, stage: str) -> Entry | Absence:
        """A call begins, unless the stage cannot take one any more; whoever is let in leaves once."""
        return self._gates[stage].enter()

    def states(self) -> tuple[StageState, ...]:
        """Every stage as it stands now."""
        return tuple(gate.state() for gate in self._gates.values())


class Gate:
    """One stage's. All of it takes constant time, and no look at the clock while nothing is wrong."""

    def __init__(self, stage: str, rules: GateRules, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self.rules = rules
        self.left_out: dict[AbsenceKind, int] = {"full": 0, "rate_limit": 0, "breaker": 0}
        self.breaker = Breaker(rules.failures, rules.pause_s, clock=clock, chance=chance)
        self._stage = stage
        self._places = rules.places
        self._most = math.inf if rules.places is None else rules.places + rules.max_queue
        self._clock = clock
        self._aside_until: float | None = None
        self._inside = self._calls = self._failed = self._retries = 0
        self._mean_s = 1.0
        self._last_ill = ""

    def absence(self) -> Absence | None:
        """Why no call can begin now; None where one can."""
        if self._inside < self._most and self._aside_until is None and self.breaker.is_closed:
            return None
        wait = self.breaker.wait()
        if wait > 0:
            return Absence("breaker", f"is left in peace since its calls failed ({self._last_ill})", wait)
        wait = self._aside_for()
        if wait > 0:
            return Absence("rate_limit", "is left alone for a while, as its server asked", wait)
        if self._inside >= self._most:
            told = f"is full: {self._places} calls are at work and {self._inside - (self._places or 0)} wait"
            return Absence("full", told, self._mean_s / (self._places or 1))
        return None

    def enter(self) -> Entry | Absence:
        """Count a call in, or say why not."""
        absence = self.absence()
        if absence is not None:
            self.left_out[absence.kind] += 1
            return absence
        self._inside += 1
        self._calls += 1
        return Entry(self, self.breaker.begin())

    def leave(self, begun: int, attempt: Attempt | None) -> None:
        """Count a call out, and learn from it."""
        self._inside -= 1
        healthy, opened = health(attempt), self.breaker.opened
        if attempt is not None:
            self._retries += attempt.tries - 1
            self._learn(attempt, healthy)
        self.breaker.end(begun, healthy)
        if self.breaker.opened > opened:
            log.warning("stage '%s' is left in peace for a while: its calls failed (%s)", self._stage, self._last_ill)

    def state(self) -> StageState:
        """As it stands now."""
        in_flight = self._inside if self._places is None else min(self._inside, self._places)
        return StageState(
            stage=self._stage,
            breaker=self.breaker.state,
            absence=self.absence(),
            places=self._places,
            in_flight=in_flight,
            waiting=self._inside - in_flight,
            calls=self._calls,
            failures=self._failed,
            opened=self.breaker.opened,
            retries=self._retries,
            left_out=dict(self.left_out),
        )

    def _learn(self, attempt: Attempt, healthy: bool | None) -> None:
        fault = attempt.fault
        if healthy is False and fault is not None:
            self._failed += 1
            self._last_ill = fault.kind
        if fault is None:
            self._mean_s += AGILITY * (attempt.seconds - self._mean_s)
        elif fault.kind in ("rate_limit", "server"):
            self._set_aside(fault.retry_after)

    def _set_aside(self, seconds: float | None) -> None:
        if seconds is not None and seconds > 0:
            until = self._clock() + min(seconds, MOST_ASIDE_S)
            self._aside_until = max(until, self._aside_until or until)

    def _aside_for(self) -> float:
        if self._aside_until is None:
            return 0.0
        left = self._aside_until - self._clock()
        if left <= 0:
            self._aside_until = None
        return left


class Entry:
    """A call that was let in."""

    __slots__ = ("_begun", "_gate")

    def __init__(self, gate: Gate, begun: int) -> None:
        self._gate = gate
        self._begun = begun

    def heard(self) -> None:
        """The answer has begun to come: enough for a probe, which need not wait for the end of a long stream."""
        if self._gate.breaker.state == "half_open":
            self._gate.breaker.end(self._begun, True)

    def leave(self, attempt: Attempt | None) -> None:
        """The call is over; None where nothing came of it that an attempt could tell."""
        self._gate.leave(self._begun, attempt)
