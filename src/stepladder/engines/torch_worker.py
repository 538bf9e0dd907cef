"""The thread in which the models of a ``torch`` engine run, and the answers it has at work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stepladder.decoding.batch import Batch, Job

Done = Callable[[Job], None]


@dataclass(slots=True, eq=False)
class Task:
    """An answer handed to the worker. ``make`` builds its job, in the thread; ``done`` is told of its end there.

    A task that was cancelled is dropped between two passes, and ``done`` is not called.
    """

    make: Callable[[], Job]
    done: Done
    failed: Callable[[BaseException], None]
    job: Job | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One thread, one batch. ``submit`` and ``stop`` may be called from any thread; nothing runs before ``start``."""

    def __init__(self, batch: Batch, *, name: str = "stepladder-torch") -> None:
        self._batch = batch
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._tasks: list[Task] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def rows(self) -> int:
        """Answers at work now."""
        return max(1, len(self._tasks))

    def submit(self, task: Task) -> None:
        """Hand in an answer to be written."""
        self._inbox.put(task)

    def stop(self) -> None:
        """Drop what is at work after the pass that it is in, and wait for the thread's end."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._take():
            self._drop_cancelled()
            for job in self._batch.step():
                self._finish(job)
        for task in self._tasks:
            if task.job is not None:
                self._batch.remove(task.job)

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
            if task.job is not None:
                self._batch.remove(task.job)

    def _finish(self, job: Job) -> None:
        task = next(task for task in self._tasks if task.job is job)
        self._tasks.remove(task)
        task.done(job)
