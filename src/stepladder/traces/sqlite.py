"""Traces in one SQLite file (WAL), written by a thread of their own so that no request waits for the disk."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from stepladder.errors import TraceError
from stepladder.traces.codec import decode, encode
from stepladder.traces.weight import MAX_BYTES, weigh, without_raw
from stepladder.types import Outcome, StoreCounts, Trace

log = logging.getLogger("stepladder.traces")

STORE_SCHEMA = 1
BATCH = 256
QUEUE_LIMIT = 20_000
"""Traces that may wait for the disk. Past it new ones are dropped and counted in ``shed``: memory stays bounded."""

FLUSH_LIMIT_S = 10.0
"""How long a reader waits for what was appended before it; then it is told that the disk does not keep up."""

BUSY_S = 5.0
"""How long SQLite itself waits for another process that writes to the same file."""

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses between tries to write while the file stays locked; after the last one the batch is given up."""

_ALIVE_CHECK_S = 0.1
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

Row = tuple[str, float, str | None, float, float, bytes]
Item = tuple[Trace, int] | threading.Event | None
"""What the writer is handed: a trace and its weight, an event to set once all before it is written, or the end."""

_TABLES = """
CREATE TABLE IF NOT EXISTS traces (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, stage TEXT, cost REAL NOT NULL, seconds REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS traces_by_time ON traces (created_at);
CREATE TABLE IF NOT EXISTS outcomes (
    decision_id TEXT NOT NULL, source TEXT NOT NULL, stage TEXT, score REAL NOT NULL, comment TEXT,
    PRIMARY KEY (decision_id, source, stage)
);
"""


class SqliteTraceStore:
    """A ``TraceStore`` in a file.

    ``append`` returns at once; ``get`` and ``read`` first wait for what was appended before them. ``outcome`` returns
    only once it is on disk. Raises TraceError for a file that is no trace store or comes from a newer version, and
    from every method that cannot do its work, also because the store was closed; ``append`` counts and logs instead.
    Traces that wait for the disk weigh ``max_bytes`` at the most.
    """

    def __init__(self, path: Path | str, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.shed = 0
        self._waiting = self._waiting_bytes = 0  # traces that were appended and neither written nor given up
        self._closed = False
        self._hurry = threading.Event()  # set by ``close``: one try more and no pauses
        self._gate = threading.Lock()  # never held for long: ``append`` waits for it
        self._lock = threading.Lock()  # one use of the file at a time
        self._db = self._open()
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_forever, name="stepladder-traces", daemon=True)
        self._writer.start()

    def append(self, trace: Trace) -> None:
        """Hand a trace over to the writer; where too many wait already it is dropped and counted in ``shed``."""
        trace = without_raw(trace)
        weight = weigh(trace, self.max_bytes)
        with self._gate:
            closed = self._closed
            room = not closed and self._has_room(weight)
            if room:
                self._waiting += 1
                self._waiting_bytes += weight
                self._queue.put((trace, weight))
        if not room:
            self._shed(1)
        if closed:
            log.error("trace %r came after the store was closed and is lost", trace.id)

    def _has_room(self, weight: int) -> bool:
        """True also for a trace that is too heavy, where it is the only one: it is in memory anyway."""
        fits = self._waiting < QUEUE_LIMIT and self._waiting_bytes + weight <= self.max_bytes
        return fits or not self._waiting

    def outcome(self, outcome: Outcome) -> None:
        """Keep a measured quality; the same decision, source and stage again replaces the earlier score."""
        row = (outcome.decision_id, outcome.source, outcome.stage or "", outcome.score, outcome.comment)
        query = "INSERT OR REPLACE INTO outcomes (decision_id, source, stage, score, comment) VALUES (?, ?, ?, ?, ?)"
        with self._using() as db, db:
            db.execute(query, row)

    def get(self, trace_id: str) -> Trace | None:
        """One trace by its decision id, None where there is none."""
        self.flush()
        with self._using() as db:
            row = db.execute("SELECT body FROM traces WHERE id = ?", (trace_id,)).fetchone()
        return None if row is None else decode(orjson.loads(row[0]))

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        """Traces in the order they were made, from ``since`` (seconds since the epoch) on."""
        self.flush()
        query = "SELECT body FROM traces WHERE created_at >= ? ORDER BY created_at, rowid LIMIT ?"
        with self._using() as db:
            rows = db.execute(query, (since, -1 if limit is None else limit)).fetchall()
        return (decode(orjson.loads(row[0])) for row in rows)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        """All measured qualities of one decision."""
        query = "SELECT score, source, stage, comment FROM outcomes WHERE decision_id = ? ORDER BY rowid"
        with self._using() as db:
            rows = db.execute(query, (trace_id,)).fetchall()
        return tuple(Outcome(trace_id, score, source, stage or None, comment) for score, source, stage, comment in rows)

    def counts(self) -> StoreCounts:
        """What was done so far, and what waits."""
        with self._gate:
            return StoreCounts(shed=self.shed, waiting=self._waiting, waiting_bytes=self._waiting_bytes)

    def flush(self, limit_s: float = FLUSH_LIMIT_S) -> None:
        """Wait until everything appended so far was written. Raises TraceError where that takes too long."""
        done = threading.Event()
        with self._gate:
            self._check_open()
            self._queue.put(done)
        last = time.monotonic() + limit_s
        while not done.wait(_ALIVE_CHECK_S):
            if not self._writer.is_alive():
                raise TraceError("the trace store has stopped writing; the log says why")
            if time.monotonic() >= last:
                raise TraceError(f"the trace store did not write within {limit_s:g} s; try again")

    def close(self) -> None:
        """Write what waits, then close. Safe to call twice."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)  # the last: nothing is put in after ``_closed``
        self._hurry.set()
        self._writer.join()
        with self._lock:
            self._db.close()

    # ── the file ─────────────────────────────────────────────────────────────

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._check_open()
            try:
                yield self._db
            except sqlite3.Error as error:
                raise TraceError(f"traces.path: '{self.path}' cannot be used: {error}") from error

    def _check_open(self) -> None:
        if self._closed:
            raise TraceError(f"traces.path: the store '{self.path}' was closed")

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, check_same_thread=False, timeout=BUSY_S)
        except (OSError, sqlite3.Error) as error:
            raise TraceError(f"traces.path: '{self.path}' cannot be opened: {error}") from error
        try:
            self._prepare(db)
        except sqlite3.DatabaseError as error:
            db.close()
            what = "is in use" if _is_busy(error) else "is no trace store"
            raise TraceError(f"traces.path: '{self.path}' {what}: {error}") from error
        except TraceError:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > STORE_SCHEMA:
            raise TraceError(
                f"traces.path: '{self.path}' has schema {found}, written by a newer Stepladder; "
                f"this one reads up to {STORE_SCHEMA}"
            )
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version={STORE_SCHEMA}")
        db.commit()

    # ── the writer's thread ──────────────────────────────────────────────────

    def _write_forever(self) -> None:
        while True:
            batch = self._next_batch()
            traces = [item for item in batch if isinstance(item, tuple)]
            rows = [row for trace, _ in traces if (row := self._encoded(trace)) is not None]
            if rows:
                self._write(rows)
            with self._gate:
                self._waiting -= len(traces)
                self._waiting_bytes -= sum(weight for _, weight in traces)
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if None in batch:
                return

    def _next_batch(self) -> list[Item]:
        batch = [self._queue.get()]
        while len(batch) < BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _encoded(self, trace: Trace) -> Row | None:
        try:
            return _row(trace)
        except Exception:  # a trace holds what clients and plug-ins put in; none may end the thread
            self._shed(1)
            log.exception("trace %r could not be encoded", trace.id)
            return None

    def _write(self, rows: list[Row]) -> None:
        for pause in (*RETRY_S, None):
            try:
                with self._lock, self._db:
                    self._db.executemany("INSERT OR REPLACE INTO traces VALUES (?, ?, ?, ?, ?, ?)", rows)
            except Exception as error:  # a full disk must not stop the gateway; what is lost is counted and said
                if pause is None or self._hurry.is_set() or not _is_busy(error):
                    self._shed(len(rows))
                    log.exception("%d traces could not be written to %s", len(rows), self.path)
                    return
                self._hurry.wait(pause)
            else:
                return

    def _shed(self, count: int) -> None:
        with self._gate:
            self.shed += count


def _is_busy(error: Exception) -> bool:
    """True where another process or connection holds the file; extended codes keep the plain one in their low byte."""
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES


def _row(trace: Trace) -> Row:
    index = trace.answer_index
    stage = None if index is None else trace.attempts[index].stage
    body = orjson.dumps(encode(trace), option=orjson.OPT_SERIALIZE_NUMPY)
    return trace.id, trace.created_at, stage, trace.cost, trace.seconds, body
