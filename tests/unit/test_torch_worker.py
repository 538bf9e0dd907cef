"""The thread that decodes: what it takes in, drops, and outlives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any

from stepladder.decoding.batch import Batch, Job
from stepladder.decoding.sequence import Ask, Sequence
from stepladder.engines.torch_worker import StoppedError, Task, Worker
from torch_fakes import FakeModel

WAIT_S = 20


def asks(answer: Sequence, rounds: int) -> Generator[Ask, Any, int]:
    for _ in range(rounds):
        yield Ask(0, answer, 1)
        answer.append(1)
    return rounds


def task(told: SimpleQueue[Any], rounds: int = 3, *, done: Callable[[Job], None] | None = None) -> Task:
    def make() -> Job:
        answer = Sequence([1])
        return Job(asks(answer, rounds), answer)

    return Task(make, done or (lambda job: told.put(job.error or job.result)), told.put)


def worker(model: FakeModel, **settings: Any) -> Worker:
    return Worker(Batch([model], timer=lambda: 0.0), name="stepladder-test", **settings)


def threads() -> int:
    return sum(thread.name == "stepladder-test" for thread in threading.enumerate())


def test_answers_come_and_the_thread_ends() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    said: list[str] = []
    model = FakeModel("")
    at_work = worker(model, first=lambda: said.append(threading.current_thread().name))
    assert threads() == 0
    at_work.submit(task(told, 5))
    at_work.start()
    assert told.get(timeout=WAIT_S) == 5
    for rounds in (1, 2):
        at_work.submit(task(told, rounds))
        assert told.get(timeout=WAIT_S) == rounds
    at_work.stop()
    assert (said, threads(), model.rows) == (["stepladder-test"], 0, {})


def test_what_is_cancelled_is_dropped_and_nobody_is_told() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    model = FakeModel("")
    at_work = worker(model)
    at_work.start()
    model.gate.clear()
    gone, stays, never = task(told, 1000), task(told, 2), task(told, 7)
    for each in (gone, stays):
        at_work.submit(each)
    never.cancelled.set()
    at_work.submit(never)
    gone.cancelled.set()
    model.gate.set()
    assert told.get(timeout=WAIT_S) == 2
    at_work.stop()
    assert told.empty()
    assert model.rows == {}


def test_whoever_is_at_work_or_waits_when_it_stops_is_told() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    model = FakeModel("")
    at_work = worker(model)
    at_work.start()
    model.gate.clear()
    at_work.submit(task(told, 10**6))
    stopping = threading.Thread(target=at_work.stop)
    stopping.start()
    while at_work._inbox.empty() and stopping.is_alive() and threads() and not model.rows:
        pass
    at_work.submit(task(told, 1))
    model.gate.set()
    stopping.join(WAIT_S)
    first = told.get(timeout=WAIT_S)
    assert isinstance(first, StoppedError)
    assert model.rows == {}
    assert threads() == 0


def test_an_answer_that_cannot_begin_and_one_that_cannot_be_told_of() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    at_work = worker(FakeModel(""))
    at_work.start()
    at_work.submit(Task(lambda: 1 / 0, told.put, told.put))  # type: ignore[arg-type, return-value]
    assert isinstance(told.get(timeout=WAIT_S), ZeroDivisionError)
    at_work.submit(task(told, 2, done=lambda job: {}["nobody"]))
    assert isinstance(told.get(timeout=WAIT_S), KeyError)
    at_work.submit(task(told, 2))
    assert told.get(timeout=WAIT_S) == 2
    at_work.stop()


class Breaking(Batch):
    """Raises where nothing should: from the step itself, and when an answer is taken out."""

    broken = 0

    def step(self) -> list[Job]:
        if self.broken:
            self.broken -= 1
            raise MemoryError("the batch")
        return super().step()

    def remove(self, job: Job) -> None:
        super().remove(job)
        raise KeyError("rows")


def test_a_batch_that_breaks_ends_those_at_work_and_not_the_thread() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    batch = Breaking([FakeModel("")], timer=lambda: 0.0)
    batch.broken = 1
    at_work = Worker(batch, name="stepladder-test")
    for _ in range(2):
        at_work.submit(task(told))
    at_work.start()
    assert {type(told.get(timeout=WAIT_S)) for _ in range(2)} == {MemoryError}
    at_work.submit(task(told, 4))
    assert told.get(timeout=WAIT_S) == 4
    at_work.stop()
    assert threads() == 0
