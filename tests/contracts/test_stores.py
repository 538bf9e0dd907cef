"""Every trace store keeps the stores' contract; and the check notices those that do not."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from stepladder.testing import check_store
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Outcome, Receipt, Trace


def test_memory() -> None:
    check_store(MemoryTraceStore, durable=False)


def test_sqlite(tmp_path: Path) -> None:
    check_store(lambda: SqliteTraceStore(tmp_path / "t.sqlite3"))


@pytest.mark.parametrize("prompts", ["hash", "omit"])
def test_private_ones(tmp_path: Path, prompts) -> None:
    keeping = Keeping(prompts=prompts)
    check_store(lambda: MemoryTraceStore(keeping), durable=False, private=True)
    check_store(lambda: SqliteTraceStore(tmp_path / "t.sqlite3", keeping), private=True)


class Forgetful(MemoryTraceStore):
    """Writes later than it says."""

    def get(self, trace_id: str) -> Trace | None:
        return None


class Repeating(MemoryTraceStore):
    """Starts every page at the beginning."""

    def scan(self, *, after: int = 0, **wanted):
        return super().scan(after=0 if after < 3 else after, **wanted)


class Pliant(MemoryTraceStore):
    """Lets a later outcome under the same key replace an earlier one."""

    def outcome(self, outcome: Outcome) -> Receipt:
        for slot in [slot for slot in self._outcomes if slot[0] == outcome.decision_id and slot[2] is not None]:
            if slot[2] == outcome.key and self._outcomes[slot][1] != outcome:
                self._forget_outcome(slot)
        return super().outcome(outcome)


class Hasty(MemoryTraceStore):
    """Says that an outcome is kept and forgets it."""

    def report(self, outcome: Outcome) -> Future[Receipt]:
        done: Future[Receipt] = Future()
        done.set_result(Receipt("added", found=True))
        return done


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (Forgetful, "just appended is not there"),
        (Repeating, "gave what is not behind it"),
        (Pliant, "not conflict"),
        (Hasty, "then not found by it"),
    ],
)
def test_the_check_notices(broken, told) -> None:
    with pytest.raises(AssertionError, match=told):
        check_store(broken, durable=False)


def test_the_check_notices_a_store_that_does_not_last(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="does not raise TraceError"):
        check_store(MemoryTraceStore)
    places = iter("ab")
    with pytest.raises(AssertionError, match="does not hold what it held"):
        check_store(lambda: SqliteTraceStore(tmp_path / next(places)))
