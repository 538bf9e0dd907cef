"""Traces go when they are too old or too many, a few at a time, and are gone from the file then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.testing import make_trace
from stepladder.traces import retention, schema, writer
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Outcome

DAY = 86_400.0
PATIENCE_S = 20.0


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(writer, "PRUNE_EVERY_S", 0.02)
    monkeypatch.setattr(retention, "BATCH", 10)


def until(true: Callable[[], bool]) -> None:
    last = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < last, "it did not come to that"
        time.sleep(0.01)


def ids(store) -> list[str]:
    return [trace.id for trace in store.read()]


def test_old_traces_go_and_feedback_stays(tmp_path, often) -> None:
    now = [0.0]
    keeping = Keeping(keep_s=DAY)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", keeping, clock=lambda: now[0])) as store:
        for number in range(35):
            store.append(make_trace(f"dec-{number}", number * 3600.0))
        store.outcome(Outcome("dec-0", 1.0, "user"))
        assert len(ids(store)) == 35
        now[0] = 30 * 3600.0
        until(lambda: store.counts().pruned == 6)
        assert ids(store) == [f"dec-{number}" for number in range(6, 35)]
        assert store.outcomes("dec-0") == (Outcome("dec-0", 1.0, "user"),)
        assert store.outcome(Outcome("dec-0", 0.0, "judge")).found is False


def test_old_feedback_goes_by_its_own_bound(tmp_path, often) -> None:
    now = [0.0]
    keeping = Keeping(keep_feedback_s=DAY)
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", keeping, clock=lambda: now[0])) as store:
        store.append(make_trace("dec-0"))
        store.outcome(Outcome("dec-0", 1.0, "user"))
        now[0] = DAY
        store.outcome(Outcome("dec-0", 0.5, "judge"))
        now[0] = DAY + 1
        until(lambda: len(store.outcomes("dec-0")) == 1)
        assert store.outcomes("dec-0") == (Outcome("dec-0", 0.5, "judge"),)
        assert ids(store) == ["dec-0"]


def test_no_more_than_so_many_while_it_is_written(tmp_path, often) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(keep_rows=20))) as store:
        for number in range(200):
            store.append(make_trace(f"dec-{number}", float(number)))
        until(lambda: store.counts().pruned == 180)
        assert ids(store) == [f"dec-{number}" for number in range(180, 200)]
        store.append(make_trace("dec-180", 180.0))  # again: a gap in the numbers, and no trace more
        store.flush()
        time.sleep(0.1)
        assert len(ids(store)) == 20
        assert store.counts().shed == 0


@given(
    ages=st.lists(st.floats(0, 100), max_size=30),
    keep_s=st.none() | st.floats(1, 100),
    keep_rows=st.none() | st.integers(1, 30),
)
@settings(max_examples=30)
def test_the_newest_are_what_is_left(ages, keep_s, keep_rows) -> None:
    """Pruned to its end, a file holds the newest ``keep_rows`` of those that are young enough."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.prepare(db, Path("memory"), lambda: 0.0)
        for number, at in enumerate(sorted(ages)):
            db.execute(
                "INSERT INTO traces (id, created_at, stage, cost, seconds, body) VALUES (?, ?, 'a', 0, 0, x'')",
                (str(number), at),
            )
        keeping = Keeping(keep_s=keep_s, keep_rows=keep_rows)
        while any(retention.prune_batch(db, keeping, 100.0)):
            pass
        left = [at for (at,) in db.execute("SELECT created_at FROM traces ORDER BY seq")]
    young = [at for at in sorted(ages) if keep_s is None or at >= 100.0 - keep_s]
    assert left == (young if keep_rows is None else young[-keep_rows:])


def test_what_was_pruned_is_gone_from_the_file(tmp_path, often) -> None:
    now = [0.0]
    path = tmp_path / "t.sqlite3"
    with closing(SqliteTraceStore(path, Keeping(keep_s=DAY), clock=lambda: now[0])) as store:
        store.append(make_trace("dec-0", text="MARKER-OF-A-PROMPT " * 500))
        store.flush()
        now[0] = 2 * DAY
        until(lambda: store.counts().pruned == 1)
    found = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert found
    assert b"MARKER-OF-A-PROMPT" not in found


def test_a_file_that_cannot_be_pruned_goes_on_writing(tmp_path, often, caplog) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(keep_rows=1))) as store:
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("CREATE TRIGGER no BEFORE DELETE ON traces BEGIN SELECT RAISE(ABORT, 'no'); END")
        for number in range(3):
            store.append(make_trace(f"dec-{number}"))
        until(lambda: "could not be pruned" in caplog.text)
        assert len(ids(store)) == 3


def test_memory_forgets_by_age_and_number() -> None:
    now = [0.0]
    store = MemoryTraceStore(Keeping(keep_s=10.0, keep_feedback_s=10.0), clock=lambda: now[0])
    for at in (0.0, 5.0, 12.0):
        now[0] = at
        store.append(make_trace(f"dec-{at:g}", at))
        store.outcome(Outcome(f"dec-{at:g}", 1.0, "user"))
    assert ids(store) == ["dec-5", "dec-12"]
    assert [bool(store.outcomes(f"dec-{at}")) for at in (0, 5, 12)] == [False, True, True]
    assert store.counts().pruned == 1
