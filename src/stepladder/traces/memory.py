"""Traces kept in memory: for scripts and tests that want no file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import fields, replace
from itertools import islice
from math import inf
from typing import NamedTuple

from stepladder.traces.codec import decode, encode
from stepladder.traces.keeping import KEEP_ALL, Keeping
from stepladder.traces.packing import answer_stage, packed, unpacked
from stepladder.traces.privacy import SALT_BYTES, Veil, veiled
from stepladder.traces.weight import weigh, without_raw
from stepladder.types import Change, Outcome, Receipt, StoreCounts, Stored, Trace

KEEP_ROWS = 10_000
KEEP_FEEDBACK = 100_000

_KEPT = 512  # bytes that a kept trace takes beside its body

Slot = tuple[str, str, str | None, str | None]
"""What makes an outcome the same again: decision, source, and its key, or else its stage."""


class _Kept(NamedTuple):
    """A trace as it is kept: its bytes, or itself where JSON cannot hold it; ``weight`` in bytes of memory."""

    seq: int
    created_at: float
    stage: str | None
    body: bytes | Trace
    weight: int

    def trace(self) -> Trace:
        return self.body if isinstance(self.body, Trace) else unpacked(self.body)


class MemoryTraceStore:
    """A ``TraceStore`` that forgets when the process ends. Safe from any thread.

    Keeps the newest traces: ``keeping.keep_rows`` of them, or 10,000, fewer where they are too old or weigh more than
    ``keeping.queue_bytes`` together, but always the last; and the newest 100,000 outcomes. They are kept as a file
    would hold them, without the raw wire replies, and made anew when they are read: that takes a fraction of the
    memory, and leaves the collector of garbage nothing to look through. ``clock`` gives seconds since the epoch,
    ``chance`` the key of hashes.
    """

    def __init__(
        self,
        keeping: Keeping = KEEP_ALL,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.keeping = keeping
        self._veil = None if keeping.prompts == "full" else Veil(keeping.prompts, chance(SALT_BYTES))
        self._clock = clock
        self._rows = KEEP_ROWS if keeping.keep_rows is None else keeping.keep_rows
        self._bytes = self._last = 0
        self._lock = threading.Lock()
        self._traces: dict[str, _Kept] = {}
        self._outcomes: dict[Slot, tuple[float, Outcome]] = {}  # those told last at the end
        self._slots: dict[str, dict[Slot, None]] = {}  # by decision, in the same order
        self._counts = {each.name: 0 for each in fields(StoreCounts)}

    def append(self, trace: Trace) -> None:
        body, weight = self._body(trace)
        stage = answer_stage(trace)
        with self._lock:
            self._forget(trace.id)
            self._last += 1
            self._traces[trace.id] = _Kept(self._last, trace.created_at, stage, body, weight)
            self._bytes += weight
            counts = self._counts
            counts["appended"] += 1
            counts["written"] += 1
            counts["pruned"] += self._prune()

    def report(self, outcome: Outcome) -> Future[Receipt]:
        """``outcome``, as a future that is done."""
        done: Future[Receipt] = Future()
        done.set_result(self.outcome(outcome))
        return done

    def outcome(self, outcome: Outcome) -> Receipt:
        """Keep a measured quality, as ``SqliteTraceStore.report`` does."""
        slot = (outcome.decision_id, outcome.source, outcome.key, None if outcome.key is not None else outcome.stage)
        if self._veil is not None:
            outcome = replace(outcome, comment=self._veil.comment(outcome.comment))
        with self._lock:
            before = self._outcomes.get(slot)
            change = _change(None if before is None else before[1], outcome)
            if change in ("added", "replaced"):
                self._forget_outcome(slot)
                self._outcomes[slot] = self._clock(), outcome
                self._slots.setdefault(outcome.decision_id, {})[slot] = None
                self._prune_outcomes()
            self._counts["feedback_refused" if change == "conflict" else "feedback_accepted"] += 1
            return Receipt(change, outcome.decision_id in self._traces)

    def get(self, trace_id: str) -> Trace | None:
        found = self._traces.get(trace_id)
        return None if found is None else found.trace()

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        kept = sorted(self._kept(), key=lambda each: (each.created_at, each.seq))
        return islice((each.trace() for each in kept if each.created_at >= since), limit)

    def scan(
        self, *, after: int = 0, since: float = 0.0, until: float = inf, stage: str | None = None, limit: int = 256
    ) -> tuple[Stored, ...]:
        """The next traces behind number ``after``, as ``SqliteTraceStore.scan``."""
        later = (each for each in self._kept() if each.seq > after and since <= each.created_at < until)
        found = islice((each for each in later if stage is None or each.stage == stage), limit)
        return tuple(Stored(each.seq, each.trace()) for each in found)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        with self._lock:
            return tuple(self._outcomes[slot][1] for slot in self._slots.get(trace_id, ()))

    def counts(self) -> StoreCounts:
        """What was done so far."""
        with self._lock:
            return StoreCounts(**self._counts)

    def close(self) -> None:
        """Nothing to close."""

    def _body(self, trace: Trace) -> tuple[bytes | Trace, int]:
        """What is kept of a trace, and what that weighs."""
        veil = self._veil
        try:
            body = packed(trace, veil)
        except TypeError:  # a script may ask with values that no file could hold
            lean = without_raw(trace) if veil is None else decode(veiled(encode(trace), veil))
            return lean, weigh(lean, self.keeping.queue_bytes)
        return body, len(body) + _KEPT

    def _kept(self) -> list[_Kept]:
        with self._lock:
            return list(self._traces.values())

    def _prune(self) -> int:
        """Forget what is too much or too old, the oldest first; how many were forgotten."""
        traces, keep_s = self._traces, self.keeping.keep_s
        oldest = -inf if keep_s is None else self._clock() - keep_s
        before = len(traces)
        while len(traces) > 1:
            first = next(iter(traces))
            too_much = len(traces) > self._rows or self._bytes > self.keeping.queue_bytes
            if not too_much and traces[first].created_at >= oldest:
                break
            self._forget(first)
        return before - len(traces)

    def _prune_outcomes(self) -> None:
        keep_s = self.keeping.keep_feedback_s
        oldest = -inf if keep_s is None else self._clock() - keep_s
        while self._outcomes:
            slot, (at, _) = next(iter(self._outcomes.items()))
            if len(self._outcomes) <= KEEP_FEEDBACK and at >= oldest:
                return
            self._forget_outcome(slot)

    def _forget_outcome(self, slot: Slot) -> None:
        self._outcomes.pop(slot, None)
        slots = self._slots.get(slot[0], {})
        slots.pop(slot, None)
        if not slots:
            self._slots.pop(slot[0], None)

    def _forget(self, trace_id: str) -> None:
        found = self._traces.pop(trace_id, None)
        if found is not None:
            self._bytes -= found.weight


def _change(before: Outcome | None, told: Outcome) -> Change:
    if before is None:
        return "added"
    if before == told:
        return "same"
    return "replaced" if told.key is None else "conflict"
