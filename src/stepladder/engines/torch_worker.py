"""The thread in which the models of a ``torch`` engine run, and the answers it has at work."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stepladder.decoding.batch import Batch, Job
from stepladder.errors import EngineError

LOG = logging.getLogger("stepladder.engines")

Done = Callable[[Job], None]


@dataclass(slots=True, eq=False)
class Task:
    """An answer handed to the worker. ``make`` builds its job, in the thread; ``done`` is told of its end there.

    A task that was cancelled is dropped between two passes, and nobody is told. Any other is told of once: ``failed``
    where it cannot begin, where ``done`` raises, and with ``StoppedError`` where the worker stops before its end.
    """

    make: Callable[[], Job]
    done: Done
    failed: Callable[[BaseException], None]
    job: Job | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class StoppedError(EngineError):
    """The worker was stopped before an answer was whole."""


class Worker:
    """One thread, one batch. ``submit`` and ``stop`` may be called from any thread; nothing runs before ``start``.

    ``first`` is called in the thread before anything else.
    """

    def __init__(
        self, batch: Batch, *, first: Callable[[], object] = lambda: None, name: str = "stepladder-torch"
    ) -> None:
        self._batch = batch
        self._first = first
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._tasks: list[Task] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Hand in an answer to be written."""
        self._inbox.put(task)

    def stop(self) -> None:
        """Drop what is at work after the pass that it is in, and wait for the thread's end."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._first()
        while self._take():
            self._drop_cancelled()
            self._step()
        self._drop_all(StoppedError("the engine was closed"))
        while not self._inbox.empty():  # handed in behind the word to stop
            late = self._inbox.get()
            if late is not None:
                late.failed(StoppedError("the engine was closed"))

    def _step(self) -> None:
        try:
            over = self._batch.step()
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever a batch may raise; those at work do not
            self._drop_all(error)
            return
        for job in over:
            self._finish(job)

    def _drop_all(self, error: BaseException) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            self._remove(task)
            if not task.cancelled.is_set():
                task.failed(error)

    def _take(self) -> bool:
        """Take in what waits, and wait where nothing is at work; False once it is to stop."""
        while True:
            try:
                task = self._inbox.get(block=not self._tasks)
            except queue.Empty:
                return True
            if task is None:
                return False
            self._admit(task)

    def _admit(self, task: Task) -> None:
        if task.cancelled.is_set():
            return
        self._tasks.append(task)
        try:
            task.job = task.make()
            self._batch.add(task.job)
        except Exception as error:  # noqa: BLE001 - one answer that cannot begin must not end the thread
            self._tasks.remove(task)
            task.failed(error)

    def _drop_cancelled(self) -> None:
        for task in [task for task in self._tasks if task.cancelled.is_set()]:
            self._tasks.remove(task)
            self._remove(task)

    def _remove(self, task: Task) -> None:
        if task.job is None:
            return
        try:
            self._batch.remove(task.job)
        except Exception:  # see _step
            LOG.exception("an answer could not be taken out of its batch")

    def _finish(self, job: Job) -> None:
        task = next(task for task in self._tasks if task.job is job)
        self._tasks.remove(task)
        try:
            task.done(job)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be told of must not end the thread
            task.failed(error)
