"""Traces kept in memory: for scripts and tests that want no file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from stepladder.types import Outcome, Trace


class MemoryTraceStore:
    """A ``TraceStore`` that forgets when the process ends; keeps the newest ``limit`` traces."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self._traces: dict[str, Trace] = {}
        self._outcomes: dict[tuple[str, str, str | None], Outcome] = {}

    def append(self, trace: Trace) -> None:
        self._traces[trace.id] = trace
        if len(self._traces) > self.limit:
            del self._traces[next(iter(self._traces))]

    def outcome(self, outcome: Outcome) -> None:
        self._outcomes[outcome.decision_id, outcome.source, outcome.stage] = outcome

    def get(self, trace_id: str) -> Trace | None:
        return self._traces.get(trace_id)

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        return islice((trace for trace in list(self._traces.values()) if trace.created_at >= since), limit)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        return tuple(outcome for key, outcome in self._outcomes.items() if key[0] == trace_id)

    def close(self) -> None:
        """Nothing to close."""
