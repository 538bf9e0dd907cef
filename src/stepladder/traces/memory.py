"""Traces kept in memory: for scripts and tests that want no file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

from stepladder.traces.weight import MAX_BYTES, weigh, without_raw
from stepladder.types import Outcome, StoreCounts, Trace


class MemoryTraceStore:
    """A ``TraceStore`` that forgets when the process ends. Safe from any thread.

    Keeps the newest ``limit`` traces, fewer where they weigh more than ``max_bytes`` together, but always the last.
    The raw wire replies are not kept, as in every other store.
    """

    def __init__(self, limit: int = 10_000, *, max_bytes: int = MAX_BYTES) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self._bytes = 0
        self._weights: dict[str, int] = {}
        self._lock = threading.Lock()
        self._traces: dict[str, Trace] = {}
        self._counts = StoreCounts()
        self._outcomes: dict[tuple[str, str, str | None], Outcome] = {}

    def append(self, trace: Trace) -> None:
        trace = without_raw(trace)
        weight = weigh(trace, self.max_bytes)
        with self._lock:
            self._forget(trace.id)
            self._traces[trace.id] = trace
            self._weights[trace.id] = weight
            self._bytes += weight
            while len(self._traces) > self.limit or (self._bytes > self.max_bytes and len(self._traces) > 1):
                self._forget(next(iter(self._traces)))

    def outcome(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[outcome.decision_id, outcome.source, outcome.stage] = outcome

    def get(self, trace_id: str) -> Trace | None:
        return self._traces.get(trace_id)

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        with self._lock:
            kept = list(self._traces.values())
        return islice((trace for trace in kept if trace.created_at >= since), limit)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        with self._lock:
            return tuple(outcome for key, outcome in self._outcomes.items() if key[0] == trace_id)

    def _forget(self, trace_id: str) -> None:
        self._traces.pop(trace_id, None)
        self._bytes -= self._weights.pop(trace_id, 0)

    def counts(self) -> StoreCounts:
        """What was done so far."""
        return self._counts

    def close(self) -> None:
        """Nothing to close."""
