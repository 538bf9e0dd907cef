"""The one thread that writes to a SQLite store: traces in batches, outcomes with the disk's word for it.

Outcomes that arrive while a commit is under way share the next one (group commit), which is flushed to the disk before
any of them is told so. Traces gather for ``PAUSE_S`` unless somebody waits, and are committed without a flush: a
process that is killed loses those of the last pause, a machine that loses power those of the last seconds. Only this
thread writes, so nothing here waits for a lock of ours.

A trace becomes bytes where it is handed over. That costs less than to weigh it would, it frees the request at once, and
this thread hardly ever needs the interpreter: to wake it for each trace cost more than all the rest.
"""

from __future__ import annotations

import atexit
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

from stepladder.errors import TraceError
from stepladder.traces import retention
from stepladder.traces.keeping import Keeping
from stepladder.traces.packing import answer_stage, packed
from stepladder.traces.privacy import Veil
from stepladder.traces.schema import is_busy, slot, transaction
from stepladder.types import Outcome, Receipt, StoreCounts, Trace

log = logging.getLogger("stepladder.traces")

BATCH = 256
"""What is handled at once; where as much waits, nothing more is waited for."""

ROWS = 32
"""Traces in one statement. SQLite works on a statement without the interpreter, which others may have meanwhile."""

PAUSE_S = 0.05
"""How long traces gather before they are written together."""

MAX_REPORTS = 2_000
"""Outcomes that may wait for the disk; past it further ones are refused."""

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses between tries to write traces while the file stays locked; after the last one the batch is given up."""

PRUNE_EVERY_S = 30.0

_INSERT = "INSERT OR REPLACE INTO traces (id, created_at, stage, cost, seconds, body) VALUES "
_VALUES = "(?, ?, ?, ?, ?, ?)"
_ONE_ROWS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, ValueError)
"""Errors that a single row can be the cause of: no number where there has to be one, no text that UTF-8 can hold."""

Row = tuple[str, float, str | None, float, float, bytes]
_ROW = 512  # bytes that a row takes beside its body while it waits


@dataclass(slots=True)
class Report:
    """An outcome on its way, and where to tell what became of it."""

    outcome: Outcome
    told_at: float
    done: Future[Receipt] = field(default_factory=Future)


Item = Row | Report | threading.Event | None
"""A trace, an outcome, an event to set once all before it is written, or the end."""


class Writer:
    """Takes traces and outcomes from any thread and writes them to ``db``, which it closes at the end."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        keeping: Keeping,
        veil: Veil | None,
        clock: Callable[[], float],
    ) -> None:
        self.closed = False
        self._db = db
        self._path = path
        self._keeping = keeping
        self._veil = veil
        self._clock = clock
        self._gate = threading.Lock()  # never held for long: ``append`` waits for it
        self._counts = {each.name: 0 for each in fields(StoreCounts)}
        self._hurry = threading.Event()  # set by ``close``: one try more and no pauses
        self._prune_at = time.monotonic() if keeping.prunes else None
        self._items: deque[Item] = deque()
        self._woken = threading.Event()  # something waits
        self._urged = threading.Event()  # and is not to wait for more to come
        self._flushes = True  # what "PRAGMA synchronous" says of commits, FULL where nobody has said anything
        self._thread = threading.Thread(target=self._run, name="stepladder-traces", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a script that ends without a word still keeps what has not been written yet

    @property
    def is_alive(self) -> bool:
        """False where the thread has ended."""
        return self._thread.is_alive()

    def counts(self) -> StoreCounts:
        """What was done so far, and what waits."""
        with self._gate:
            return StoreCounts(**self._counts)

    def append(self, trace: Trace) -> None:
        """Take a trace, or drop and count it where too much waits already or the store was closed."""
        row = self._row(trace)
        with self._gate:
            counts, closed = self._counts, self.closed
            counts["appended"] += 1
            if closed or row is None or not self._has_room(weight := _weight(row)):
                counts["shed"] += 1
            else:
                counts["waiting"] += 1
                counts["waiting_bytes"] += weight
                self._put(row, urgent=self._fills())
        if closed:
            log.error("trace %r came after the store was closed and is lost", trace.id)

    def _row(self, trace: Trace) -> Row | None:
        try:
            body = packed(trace, self._veil)
            return trace.id, trace.created_at, answer_stage(trace), trace.cost, trace.seconds, body
        except Exception:  # a trace holds what clients and plug-ins put in; none may fail its request
            log.exception("trace %r could not be encoded", trace.id)
            return None

    def _has_room(self, weight: int) -> bool:
        """True also for a trace that is too heavy, where it is the only one: it is in memory anyway."""
        counts, keeping = self._counts, self._keeping
        fits = counts["waiting"] < keeping.queue_rows and counts["waiting_bytes"] + weight <= keeping.queue_bytes
        return fits or not counts["waiting"]

    def _fills(self) -> bool:
        """True where so much waits that it is better written now."""
        counts, keeping = self._counts, self._keeping
        most = min(BATCH, keeping.queue_rows / 2)
        return counts["waiting"] >= most or counts["waiting_bytes"] > keeping.queue_bytes / 2

    def _put(self, item: Item, *, urgent: bool) -> None:
        """Add to what waits. An event that is set already wakes nobody: most traces cost no switch of threads."""
        self._items.append(item)
        if urgent and not self._urged.is_set():
            self._urged.set()
        if not self._woken.is_set():
            self._woken.set()

    def report(self, outcome: Outcome) -> Future[Receipt]:
        """Take an outcome; raises TraceError where the store was closed or too many wait."""
        report = Report(outcome, self._clock())
        with self._gate:
            self._check_open()
            if self._counts["feedback_waiting"] >= MAX_REPORTS:
                self._count(feedback_failed=1)
                raise TraceError(f"{MAX_REPORTS} outcomes wait for the disk; try again")
            self._count(feedback_waiting=1)
            self._put(report, urgent=True)
        return report.done

    def mark(self) -> threading.Event:
        """An event that is set once everything taken before it was written; raises TraceError after ``close``."""
        done = threading.Event()
        with self._gate:
            self._check_open()
            self._put(done, urgent=True)
        return done

    def close(self) -> None:
        """Write what waits, then end. Safe to call twice, and from two threads at once."""
        with self._gate:
            if not self.closed:
                self.closed = True
                self._put(None, urgent=True)  # the last: nothing is put in after ``closed``
        self._hurry.set()
        self._thread.join()
        atexit.unregister(self.close)

    def _check_open(self) -> None:
        if self.closed:
            raise TraceError(f"traces.path: the store '{self._path}' was closed")
        if not self._thread.is_alive():
            raise TraceError("the trace store has stopped writing; the log says why")

    def _count(self, **more: int) -> None:
        """Add to counters. The gate is held."""
        for name, added in more.items():
            self._counts[name] += added

    # ── the thread ───────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                self._handle(batch)
                if None in batch:
                    return
                self._prune_if_due()
        finally:
            self._db.close()

    def _next_batch(self) -> list[Item]:
        """What waits, up to a batch; nothing where something has to be pruned first."""
        if not self._woken.wait(self._idle_s()):
            return []
        self._urged.wait(PAUSE_S)
        self._woken.clear()  # both before anything is taken: what comes from here on sets them again
        self._urged.clear()
        items = self._items
        batch = [items.popleft() for _ in range(min(len(items), BATCH))]
        if items:
            self._woken.set()
            self._urged.set()
        return batch

    def _idle_s(self) -> float | None:
        """How long there is nothing to do but to wait."""
        return None if self._prune_at is None else max(0.0, self._prune_at - time.monotonic())

    def _handle(self, batch: Sequence[Item]) -> None:
        rows = [item for item in batch if isinstance(item, tuple)]
        reports = [item for item in batch if isinstance(item, Report)]
        if reports:  # before the traces: somebody waits for them
            self._report(reports, {row[0] for row in rows})
        if rows:
            self._append(rows)
        for item in batch:
            if isinstance(item, threading.Event):
                item.set()

    def _append(self, rows: Sequence[Row]) -> None:
        written = self._write(rows)
        with self._gate:
            self._count(
                written=written,
                shed=len(rows) - written,
                waiting=-len(rows),
                waiting_bytes=-sum(map(_weight, rows)),
            )

    def _write(self, rows: Sequence[Row]) -> int:
        """Write these, or those of them that can be; how many were."""
        for pause in (*RETRY_S, None):
            try:
                self._insert(rows)
            except _ONE_ROWS as error:
                if len(rows) > 1:
                    return sum(self._write([row]) for row in rows)
                log.error("trace %r could not be written to %s: %s", rows[0][0], self._path, error)  # noqa: TRY400
                return 0
            except Exception as error:  # a full disk must not stop the gateway; what is lost is counted and said
                if pause is None or self._hurry.is_set() or not is_busy(error):
                    log.exception("%d traces could not be written to %s", len(rows), self._path)
                    return 0
                self._hurry.wait(pause)
            else:
                return len(rows)
        return 0

    def _insert(self, rows: Sequence[Row]) -> None:
        self._do_not_flush()
        with transaction(self._db):
            for first in range(0, len(rows), ROWS):
                some = rows[first : first + ROWS]
                self._db.execute(_insertion(len(some)), [value for row in some for value in row])

    def _do_not_flush(self) -> None:
        """Commits from here on are not flushed to the disk."""
        if self._flushes:
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._flushes = False

    # ── outcomes ─────────────────────────────────────────────────────────────

    def _report(self, reports: Sequence[Report], coming: set[str]) -> None:
        """Commit outcomes and only then tell that they are kept; ``coming`` are traces that are about to be written."""
        wanted = [report for report in reports if report.done.set_running_or_notify_cancel()]
        with self._gate:
            self._count(feedback_waiting=len(wanted) - len(reports))
        self._commit(wanted, coming)

    def _commit(self, reports: Sequence[Report], coming: set[str]) -> None:
        try:
            self._db.execute("PRAGMA synchronous=FULL")  # said each time: what is promised rests on no memory of ours
            self._flushes = True
            with transaction(self._db):
                receipts = [self._keep(report, coming) for report in reports]
        except Exception as error:  # noqa: BLE001 - told to whoever waits; the thread goes on for the others
            if len(reports) > 1 and not isinstance(error, sqlite3.OperationalError):
                for report in reports:  # one of them cannot be kept at all, and the others did nothing
                    self._commit([report], coming)
            else:
                self._fail(reports, error)
            return
        refused = sum(receipt.change == "conflict" for receipt in receipts)
        with self._gate:
            self._count(
                feedback_accepted=len(receipts) - refused,
                feedback_refused=refused,
                feedback_waiting=-len(reports),
            )
        for report, receipt in zip(reports, receipts, strict=True):
            report.done.set_result(receipt)

    def _fail(self, reports: Sequence[Report], error: Exception) -> None:
        log.error("%d outcomes could not be written to %s: %s", len(reports), self._path, error)
        with self._gate:
            self._count(feedback_failed=len(reports), feedback_waiting=-len(reports))
        told = f"the outcome could not be written: {error}; try again"
        for report in reports:
            report.done.set_exception(TraceError(told))

    def _keep(self, report: Report, coming: set[str]) -> Receipt:
        outcome, veil = report.outcome, self._veil
        comment = outcome.comment if veil is None else veil.comment(outcome.comment)
        told = (outcome.stage, outcome.score, comment)
        place = (outcome.decision_id, outcome.source, slot(outcome.key, outcome.stage))
        query = "SELECT stage, score, comment FROM outcomes WHERE decision_id = ? AND source = ? AND slot = ?"
        before = self._db.execute(query, place).fetchone()
        found = outcome.decision_id in coming or self._has_trace(outcome.decision_id)
        if before == told:
            return Receipt("same", found)
        if before is not None and outcome.key is not None:
            return Receipt("conflict", found)
        self._db.execute(
            "INSERT OR REPLACE INTO outcomes (decision_id, source, slot, stage, score, comment, told_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*place, *told, report.told_at),
        )
        return Receipt("added" if before is None else "replaced", found)

    def _has_trace(self, trace_id: str) -> bool:
        return self._db.execute("SELECT 1 FROM traces WHERE id = ?", (trace_id,)).fetchone() is not None

    # ── retention ────────────────────────────────────────────────────────────

    def _prune_if_due(self) -> None:
        if self._prune_at is None or time.monotonic() < self._prune_at:
            return
        try:
            self._do_not_flush()
            traces, outcomes = retention.prune_batch(self._db, self._keeping, self._clock())
        except sqlite3.Error as error:  # what is too old stays a while longer
            log.warning("old traces could not be pruned from %s: %s", self._path, error)
            traces = outcomes = 0
        with self._gate:
            self._count(pruned=traces)
        more = retention.BATCH in (traces, outcomes)
        self._prune_at = time.monotonic() + (retention.PAUSE_S if more else PRUNE_EVERY_S)


def _weight(row: Row) -> int:
    return len(row[-1]) + _ROW


@lru_cache(maxsize=ROWS)
def _insertion(rows: int) -> str:
    """The statement for so many traces; the connection keeps what it made of each text."""
    return _INSERT + ", ".join([_VALUES] * rows)
