"""Stores of earlier versions open, keep all that they held, and take what is new."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from stepladder.errors import TraceError
from stepladder.testing import make_trace
from stepladder.traces.codec import encode
from stepladder.traces.schema import STORE_SCHEMA
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Outcome

FIRST = """
CREATE TABLE traces (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, stage TEXT, cost REAL NOT NULL, seconds REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX traces_by_time ON traces (created_at);
CREATE TABLE outcomes (
    decision_id TEXT NOT NULL, source TEXT NOT NULL, stage TEXT, score REAL NOT NULL, comment TEXT,
    PRIMARY KEY (decision_id, source, stage)
);
PRAGMA user_version=1;
"""
"""The tables as schema 1 had them, in files that are there."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as the first version wrote it: 600 traces, three outcomes."""
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(FIRST)
        for number in range(600):
            trace = make_trace(f"dec-{number}", float(number % 7))
            row = (trace.id, trace.created_at, "small", trace.cost, trace.seconds, orjson.dumps(encode(trace)))
            db.execute("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?)", row)
        outcomes = [
            ("dec-1", "user", "", 1.0, "good"),
            ("dec-1", "judge", "small", 0.5, None),
            ("x", "user", "", 0, None),
        ]
        db.executemany("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?)", outcomes)
        db.commit()
    return path


def test_a_store_of_schema_1_keeps_all_that_it_held(old: Path) -> None:
    with closing(SqliteTraceStore(old)) as store:
        assert {trace.id for trace in store.read()} == {f"dec-{number}" for number in range(600)}
        assert store.get("dec-5") == make_trace("dec-5", 5.0)
        first = store.scan(limit=2)
        assert [(each.seq, each.trace.id) for each in first] == [(1, "dec-0"), (2, "dec-1")]
        assert store.outcomes("dec-1") == (
            Outcome("dec-1", 1.0, "user", None, "good"),
            Outcome("dec-1", 0.5, "judge", "small"),
        )
        assert store.outcomes("x") == (Outcome("x", 0.0, "user"),)
        assert store.outcome(Outcome("dec-1", 0.0, "user")).change == "replaced"  # what it told before
        assert store.outcome(Outcome("dec-1", 0.5, "judge", "small")).change == "same"
        store.append(replace(make_trace("dec-new"), created_at=9.0))
        assert [each.trace.id for each in store.scan(after=600)] == ["dec-new"]
    with closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (STORE_SCHEMA,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"traces", "outcomes", "sqlite_sequence"}


def test_two_that_open_it_at_once_bring_it_up_to_date_once(old: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(SqliteTraceStore, [old] * 4))
    for store in stores:
        assert len(list(store.read())) == 600
        store.close()


def test_a_move_that_fails_leaves_the_file_as_it_was(old: Path) -> None:
    with closing(sqlite3.connect(old)) as db:
        db.execute("CREATE TABLE traces_1 (x)")  # in the way
        db.commit()
    with pytest.raises(TraceError, match="is no trace store"):
        SqliteTraceStore(old)
    with closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM traces").fetchone() == (600,)


def test_numbers_are_not_given_twice(tmp_path: Path) -> None:
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        for number in range(3):
            store.append(make_trace(f"dec-{number}"))
        assert [each.seq for each in store.scan()] == [1, 2, 3]
    with closing(sqlite3.connect(tmp_path / "t.sqlite3")) as db:
        db.execute("DELETE FROM traces")
        db.commit()
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3")) as store:
        store.append(make_trace("dec-3"))
        assert [each.seq for each in store.scan(after=3)] == [4]
