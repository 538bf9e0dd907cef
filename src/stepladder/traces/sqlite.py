"""Traces and outcomes in one SQLite file (WAL), written by a thread of its own: no request waits for the disk."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

from stepladder.errors import TraceError
from stepladder.traces.keeping import KEEP_ALL, Keeping
from stepladder.traces.packing import unpacked
from stepladder.traces.privacy import Veil, salt_beside
from stepladder.traces.schema import KEYED, connect, is_busy, prepare
from stepladder.traces.writer import Writer
from stepladder.types import Outcome, Receipt, StoreCounts, Stored, Trace

FLUSH_LIMIT_S = 10.0
"""How long a reader waits for what was appended before it; then it is told that the disk does not keep up."""

PAGE_ROWS = 256
PAGE_BYTES = 4 * 1024 * 1024
"""What is held of the file at once while it is read from end to end."""

_ALIVE_CHECK_S = 0.1

_SCAN = (
    "SELECT seq, created_at, body FROM traces "
    "WHERE seq > ? AND created_at >= ? AND created_at < ? AND (? IS NULL OR stage = ?) ORDER BY seq LIMIT ?"
)
_READ = "SELECT seq, created_at, body FROM traces WHERE (created_at, seq) > (?, ?) ORDER BY created_at, seq LIMIT ?"


class SqliteTraceStore:
    """A ``TraceStore`` in a file.

    ``append`` returns at once; ``get``, ``read`` and ``scan`` first wait for what was appended before them. What was
    told by ``report`` is on the disk once its future is done. Raises TraceError for a file that is no trace store or
    comes from a newer version, and from every method that cannot do its work, also because the store was closed;
    ``append`` counts and logs instead. ``keeping`` says what is kept and how much may wait; ``clock`` gives seconds
    since the epoch.
    """

    def __init__(
        self, path: Path | str, keeping: Keeping = KEEP_ALL, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.keeping = keeping
        self._lock = threading.Lock()  # one use of the reader's connection at a time
        with self._telling("cannot be opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer = self._open(clock)
        try:
            veil = None if keeping.prompts == "full" else Veil(keeping.prompts, self._salt())
            with self._telling("cannot be opened"):
                self._reader = connect(self.path, read_only=True)
        except BaseException:  # re-raised: no connection is left behind
            writer.close()
            raise
        self._writer = Writer(writer, self.path, keeping, veil, clock)

    def append(self, trace: Trace) -> None:
        """Hand a trace over to the writer; where too many wait already it is dropped and counted as shed."""
        self._writer.append(trace)

    def report(self, outcome: Outcome) -> Future[Receipt]:
        """Keep a measured quality. The future is done once it is on the disk, or raises TraceError where it is not.

        The same outcome again changes nothing. Another under the same ``key`` is a conflict and the first one stays;
        without a key another of the same decision, source and stage replaces it. A future that is cancelled before its
        turn is not written.
        """
        return self._writer.report(outcome)

    def outcome(self, outcome: Outcome) -> Receipt:
        """``report``, and wait until it is done."""
        return self.report(outcome).result()

    def get(self, trace_id: str) -> Trace | None:
        """One trace by its decision id, None where there is none."""
        self.flush()
        with self._using() as db:
            row = db.execute("SELECT body FROM traces WHERE id = ?", (trace_id,)).fetchone()
        return None if row is None else unpacked(row[0])

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        """Traces in the order they were made, from ``since`` (seconds since the epoch) on; a page at a time."""
        self.flush()
        return self._read(since, limit)

    def scan(
        self,
        *,
        after: int = 0,
        since: float = 0.0,
        until: float = inf,
        stage: str | None = None,
        limit: int = PAGE_ROWS,
    ) -> tuple[Stored, ...]:
        """The next traces behind number ``after``, in the order they were written: at most ``limit``, or a few MB.

        Those made from ``since`` on and before ``until``, and of ``stage`` where its answer was kept. None are left
        where there are none; a reader goes on from the last ``seq``, and misses nothing that was written meanwhile.
        """
        self.flush()
        with self._telling("cannot be used"), closing(connect(self.path, read_only=True)) as db:
            first = after or (_before(db, since) if since > 0 else 0)
            rows = _page(db.execute(_SCAN, (first, since, until, stage, stage, limit)))
        return tuple(Stored(seq, unpacked(body)) for seq, _, body in rows)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        """All measured qualities of one decision, in the order they were told."""
        query = "SELECT score, source, stage, comment, slot FROM outcomes WHERE decision_id = ? ORDER BY seq"
        with self._using() as db:
            rows = db.execute(query, (trace_id,)).fetchall()
        return tuple(
            Outcome(
                trace_id, score, source, stage, comment, slot.removeprefix(KEYED) if slot.startswith(KEYED) else None
            )
            for score, source, stage, comment, slot in rows
        )

    def counts(self) -> StoreCounts:
        """What was done so far, and what waits."""
        return self._writer.counts()

    def flush(self, limit_s: float = FLUSH_LIMIT_S) -> None:
        """Wait until everything appended so far was written. Raises TraceError where that takes too long."""
        done = self._writer.mark()
        last = time.monotonic() + limit_s
        while not done.wait(_ALIVE_CHECK_S):
            if not self._writer.is_alive:
                raise TraceError("the trace store has stopped writing; the log says why")
            if time.monotonic() >= last:
                raise TraceError(f"the trace store did not write within {limit_s:g} s; try again")

    def close(self) -> None:
        """Write what waits, then close. Safe to call twice."""
        self._writer.close()
        with self._lock:
            self._reader.close()

    # ── the file ─────────────────────────────────────────────────────────────

    def _read(self, since: float, limit: int | None) -> Iterator[Trace]:
        place, left = (since, -1), limit
        while left is None or left > 0:
            with self._using() as db:
                rows = _page(db.execute(_READ, (*place, PAGE_ROWS if left is None else min(left, PAGE_ROWS))))
            if not rows:
                return
            for _, _, body in rows:
                yield unpacked(body)
            seq, created_at, _ = rows[-1]
            place = (created_at, seq)
            left = None if left is None else left - len(rows)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._writer.closed:
                raise TraceError(f"traces.path: the store '{self.path}' was closed")
            with self._telling("cannot be used"):
                yield self._reader

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise TraceError(f"traces.path: '{self.path}' {what}: {error}") from error

    def _open(self, clock: Callable[[], float]) -> sqlite3.Connection:
        db = connect(self.path)
        try:
            prepare(db, self.path, clock)
        except sqlite3.DatabaseError as error:
            db.close()
            what = "is in use" if is_busy(error) else "is no trace store"
            raise TraceError(f"traces.path: '{self.path}' {what}: {error}") from error
        except TraceError:
            db.close()
            raise
        return db

    def _salt(self) -> bytes:
        return salt_beside(self.path) if self.keeping.prompts == "hash" else b""


def _before(db: sqlite3.Connection, since: float) -> int:
    """The number just below that of every trace made from ``since`` on, or the last where there is none.

    The plus has SQLite look in the index by time; for the bare column's minimum it would walk through the table.
    """
    query = "SELECT coalesce(min(+seq) - 1, (SELECT max(seq) FROM traces), 0) FROM traces WHERE created_at >= ?"
    (first,) = db.execute(query, (since,)).fetchone()
    return int(first)


def _page(rows: sqlite3.Cursor) -> list[tuple[int, float, bytes]]:
    """Rows until their bodies, which come last, are a page's worth; one at the least where there is one."""
    page: list[tuple[int, float, bytes]] = []
    size = 0
    for row in rows:
        page.append(row)
        size += len(row[-1])
        if size >= PAGE_BYTES:
            break
    rows.close()
    return page
