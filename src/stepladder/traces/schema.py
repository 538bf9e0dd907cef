"""The tables of a SQLite store, and how older files come to have them.

Schema 2. A trace has a number ``seq`` that rises in the order in which traces were written and is never given twice, so
that a reader can go on from where it stopped. An outcome has a ``slot``: what makes it the same one again (its key, or
else its stage), and ``told_at``, when it was told.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stepladder.errors import TraceError

STORE_SCHEMA = 2

BUSY_S = 5.0
"""How long SQLite itself waits for another process that writes to the same file."""

_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_TABLES = (
    """CREATE TABLE traces (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, stage TEXT,
    cost REAL NOT NULL, seconds REAL NOT NULL, body BLOB NOT NULL
)""",
    "CREATE INDEX traces_by_time ON traces (created_at)",
    """CREATE TABLE outcomes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, decision_id TEXT NOT NULL, source TEXT NOT NULL, slot TEXT NOT NULL,
    stage TEXT, score REAL NOT NULL, comment TEXT, told_at REAL NOT NULL, UNIQUE (decision_id, source, slot)
)""",
    "CREATE INDEX outcomes_by_time ON outcomes (told_at)",
)

KEYED, STAGED = "key:", "stage:"
"""How slots begin: an outcome with a key of its source's own, or the one of a stage."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection whose transactions are begun and ended by hand, for any thread but one at a time.

    A file that is made is readable by its owner alone, for it will hold what people asked. Raises OSError and
    sqlite3.Error.
    """
    if not read_only and not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, check_same_thread=False, timeout=BUSY_S, isolation_level=None)
    if read_only:
        db.execute("PRAGMA query_only=ON")
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing. It begins as a writer, so that it waits for others before it has done anything."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # re-raised: whatever it was, nothing of the block stays
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def prepare(db: sqlite3.Connection, path: Path, now: Callable[[], float]) -> None:
    """Make the tables, or bring those of an older version up to date; in one step, however many processes try.

    What is deleted over this connection is overwritten: a trace that was pruned is gone from the file.
    Raises TraceError for a file of a newer version, sqlite3.Error for one that is no database.
    """
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA secure_delete=ON")
    if _found(db, path) == STORE_SCHEMA:
        return
    with transaction(db):
        found = _found(db, path)  # once more: another process may have been quicker
        if found == 0:
            _create(db)
        elif found == 1:
            _from_first(db, now())
        db.execute(f"PRAGMA user_version={STORE_SCHEMA}")


def is_busy(error: BaseException) -> bool:
    """True where another process or connection holds the file; extended codes keep the plain one in their low byte."""
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES


def slot(key: str | None, stage: str | None) -> str:
    """What makes an outcome of one source on one decision the same again."""
    return f"{STAGED}{stage or ''}" if key is None else f"{KEYED}{key}"


def _found(db: sqlite3.Connection, path: Path) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    if found > STORE_SCHEMA:
        raise TraceError(
            f"traces.path: '{path}' has schema {found}, written by a newer Stepladder; "
            f"this one reads up to {STORE_SCHEMA}"
        )
    return found


def _create(db: sqlite3.Connection) -> None:
    for statement in _TABLES:
        db.execute(statement)


def _from_first(db: sqlite3.Connection, now: float) -> None:
    """Schema 1 had no numbers, and an outcome for each (decision, source, stage) of an unknown time."""
    db.execute("DROP INDEX traces_by_time")
    db.execute("ALTER TABLE traces RENAME TO traces_1")
    db.execute("ALTER TABLE outcomes RENAME TO outcomes_1")
    _create(db)
    db.execute(
        "INSERT INTO traces (id, created_at, stage, cost, seconds, body) "
        "SELECT id, created_at, stage, cost, seconds, body FROM traces_1 ORDER BY rowid"
    )
    db.execute(
        "INSERT OR REPLACE INTO outcomes (decision_id, source, slot, stage, score, comment, told_at) "
        "SELECT decision_id, source, ? || coalesce(stage, ''), nullif(stage, ''), score, comment, ? "
        "FROM outcomes_1 ORDER BY rowid",
        (STAGED, now),
    )
    db.execute("DROP TABLE traces_1")
    db.execute("DROP TABLE outcomes_1")
