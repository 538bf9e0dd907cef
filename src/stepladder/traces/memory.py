"""Traces kept in memory: for scripts and tests that want no file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from math import inf

from stepladder.traces.codec import decode, encode
from stepladder.traces.keeping import KEEP_ALL, Keeping
from stepladder.traces.privacy import SALT_BYTES, Veil, veiled
from stepladder.traces.weight import weigh, without_raw
from stepladder.types import Change, Outcome, Receipt, StoreCounts, Stored, Trace

KEEP_ROWS = 10_000
KEEP_FEEDBACK = 100_000

Slot = tuple[str, str, str | None, str | None]
"""What makes an outcome the same again: decision, source, and its key, or else its stage."""


class MemoryTraceStore:
    """A ``TraceStore`` that forgets when the process ends. Safe from any thread.

    Keeps the newest traces: ``keeping.keep_rows`` of them, or 10,000, fewer where they are too old or weigh more than
    ``keeping.queue_bytes`` together, but always the last; and the newest 100,000 outcomes. The raw wire replies are not
    kept, as in every other store. ``clock`` gives seconds since the epoch, ``chance`` the key of hashes.
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
        self._weights: dict[str, int] = {}
        self._traces: dict[str, Stored] = {}
        self._outcomes: dict[Slot, tuple[float, Outcome]] = {}  # those told last at the end
        self._slots: dict[str, dict[Slot, None]] = {}  # by decision, in the same order
        self._counts = StoreCounts()

    def append(self, trace: Trace) -> None:
        trace = without_raw(trace)
        weight = weigh(trace, self.keeping.queue_bytes)
        kept = trace if self._veil is None else decode(veiled(encode(trace), self._veil))
        with self._lock:
            self._forget(trace.id)
            self._last += 1
            self._traces[trace.id] = Stored(self._last, kept)
            self._weights[trace.id] = weight
            self._bytes += weight
            counts = self._counts
            pruned = counts.pruned + self._prune()
            self._counts = replace(counts, appended=counts.appended + 1, written=counts.written + 1, pruned=pruned)

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
            counts, refused = self._counts, change == "conflict"
            self._counts = replace(
                counts,
                feedback_accepted=counts.feedback_accepted + (not refused),
                feedback_refused=counts.feedback_refused + refused,
            )
            return Receipt(change, outcome.decision_id in self._traces)

    def get(self, trace_id: str) -> Trace | None:
        found = self._traces.get(trace_id)
        return None if found is None else found.trace

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        kept = sorted(self._kept(), key=lambda stored: (stored.trace.created_at, stored.seq))
        return islice((stored.trace for stored in kept if stored.trace.created_at >= since), limit)

    def scan(
        self, *, after: int = 0, since: float = 0.0, until: float = inf, stage: str | None = None, limit: int = 256
    ) -> tuple[Stored, ...]:
        """The next traces behind number ``after``, as ``SqliteTraceStore.scan``."""
        later = (each for each in self._kept() if each.seq > after and since <= each.trace.created_at < until)
        return tuple(islice((each for each in later if stage is None or _kept_stage(each.trace) == stage), limit))

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        with self._lock:
            return tuple(self._outcomes[slot][1] for slot in self._slots.get(trace_id, ()))

    def counts(self) -> StoreCounts:
        """What was done so far."""
        return self._counts

    def close(self) -> None:
        """Nothing to close."""

    def _kept(self) -> list[Stored]:
        with self._lock:
            return list(self._traces.values())

    def _prune(self) -> int:
        """Forget what is too much or too old, the oldest first; how many were forgotten."""
        oldest = -inf if self.keeping.keep_s is None else self._clock() - self.keeping.keep_s
        before = len(self._traces)
        while len(self._traces) > 1:
            first = next(iter(self._traces.values())).trace
            too_much = len(self._traces) > self._rows or self._bytes > self.keeping.queue_bytes
            if not too_much and first.created_at >= oldest:
                break
            self._forget(first.id)
        return before - len(self._traces)

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
        self._traces.pop(trace_id, None)
        self._bytes -= self._weights.pop(trace_id, 0)


def _change(before: Outcome | None, told: Outcome) -> Change:
    if before is None:
        return "added"
    if before == told:
        return "same"
    return "replaced" if told.key is None else "conflict"


def _kept_stage(trace: Trace) -> str | None:
    return None if trace.answer_index is None else trace.attempts[trace.answer_index].stage
