"""Traces kept in memory: for scripts and tests that want no file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

from stepladder.types import Outcome, Trace


class MemoryTraceStore:
    """A ``TraceStore`` that forgets when the process ends; keeps the newest ``limit`` traces. Safe from any thread."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._traces: dict[str, Trace] = {}
        self._outcomes: dict[tuple[str, str, str | None], Outcome] = {}

    def append(self, trace: Trace) -> None:
        with self._lock:
            self._traces[trace.id] = trace
            if len(self._traces) > self.limit:
                del self._traces[next(iter(self._traces))]

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

    def close(self) -> None:
        """Nothing to close."""
