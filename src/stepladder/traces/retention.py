"""Deleting what is too old or too much, a few rows at a time, so that nobody who writes waits for long."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from stepladder.errors import TraceError
from stepladder.traces.keeping import Keeping
from stepladder.traces.schema import connect, prepare, transaction

BATCH = 500
PAUSE_S = 0.02
"""Between two batches where one did not do, so that what arrives is written in between."""

_OLD_TRACES = (
    "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces WHERE created_at < ? ORDER BY created_at LIMIT ?)"
)
_OLD_OUTCOMES = (
    "DELETE FROM outcomes WHERE seq IN (SELECT seq FROM outcomes WHERE told_at < ? ORDER BY told_at LIMIT ?)"
)
_FIRST_TRACES = "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces ORDER BY seq LIMIT ?)"


def prune(
    path: Path,
    keeping: Keeping,
    *,
    shrink: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, int]:
    """Delete from the store at ``path`` all that ``keeping`` does not keep; how many traces, and how many outcomes.

    A gateway may go on writing meanwhile. The room in the file is used again by what comes; with ``shrink`` the file is
    written anew without it, and whoever writes waits for that. Raises TraceError where the file cannot be used.
    """
    traces = outcomes = 0
    try:
        with closing(connect(path)) as db:
            prepare(db, path, clock)
            while True:
                deleted = prune_batch(db, keeping, clock())
                traces, outcomes = traces + deleted[0], outcomes + deleted[1]
                if BATCH not in deleted:
                    break
                sleep(PAUSE_S)
            if shrink:
                db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted leaves the log too, unless somebody reads
    except sqlite3.Error as error:
        raise TraceError(f"traces.path: '{path}' cannot be pruned: {error}") from error
    return traces, outcomes


def prune_batch(db: sqlite3.Connection, keeping: Keeping, now: float) -> tuple[int, int]:
    """Delete up to ``BATCH`` traces, and as many outcomes, that are too old; returns how many of each.

    The oldest go first. Raises sqlite3.Error.
    """
    with transaction(db):
        aged = _delete_older(db, _OLD_TRACES, keeping.keep_s, now)
        traces = aged + _delete_beyond(db, keeping.keep_rows, BATCH - aged)
        outcomes = _delete_older(db, _OLD_OUTCOMES, keeping.keep_feedback_s, now)
    return traces, outcomes


def _delete_older(db: sqlite3.Connection, statement: str, keep_s: float | None, now: float) -> int:
    return 0 if keep_s is None else db.execute(statement, (now - keep_s, BATCH)).rowcount


def _delete_beyond(db: sqlite3.Connection, keep_rows: int | None, most: int) -> int:
    if keep_rows is None:
        return 0
    (span,) = db.execute("SELECT (SELECT max(seq) FROM traces) - (SELECT min(seq) FROM traces) + 1").fetchone()
    if (span or 0) <= keep_rows:  # their numbers have gaps, so there are no more than that; to count them all is slower
        return 0
    (rows,) = db.execute("SELECT count(*) FROM traces").fetchone()
    return db.execute(_FIRST_TRACES, (min(max(0, rows - keep_rows), most),)).rowcount
