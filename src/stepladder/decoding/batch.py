"""Runs many answers at once: what their generators ask of one stage goes through it in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from stepladder.decoding.models import Feed
from stepladder.decoding.sequence import Ask, Sequence


class Reader(Protocol):
    """What a batch needs of a model (``models.LanguageModel``)."""

    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def forward(self, feeds: Row[Feed]) -> list[Tensor]: ...


OnPass = Callable[[int, int, int, float], None]
"""(stage, tokens read by the widest row, rows, seconds)"""


@dataclass(slots=True, eq=False)
class Job:
    """One answer at work: its generator, and what it waits for.

    ``result`` is what the generator returned, ``error`` what ended it otherwise; both None while it runs. ``passes``
    counts the passes it took part in, by stage, ``waited`` those that went to others since it asked. ``owner`` is
    whatever the caller knows it by.
    """

    asking: Generator[Ask, Tensor, Any]
    answer: Sequence
    ask: Ask | None = None
    result: Any = None
    error: BaseException | None = None
    passes: dict[int, int] = field(default_factory=dict)
    owner: str = ""
    waited: int = 0

    @property
    def is_over(self) -> bool:
        """True once there is nothing left to ask."""
        return self.ask is None


PATIENCE = 16
"""Passes of lower stages that an answer waits through: about a longest draft of all others."""


class Batch:
    """Answers at work over ``models``. A pass goes to the lowest stage that anybody waits for.

    So drafters finish before anybody verifies, and the verifications of all answers share a pass. An answer that has
    waited through ``PATIENCE`` passes goes first, so that a busy lower stage does not keep a higher one from work. Not
    safe for more than one thread. ``on_pass`` is told of every pass; ``timer`` gives monotonic seconds.
    """

    def __init__(self, models: Row[Reader], *, timer: Callable[[], float], on_pass: OnPass | None = None) -> None:
        self._models = models
        self._timer = timer
        self._on_pass = on_pass
        self.jobs: list[Job] = []

    def add(self, job: Job) -> None:
        """Take an answer in and run it up to what it first asks."""
        self.jobs.append(job)
        self._advance(job, None)

    def remove(self, job: Job) -> None:
        """Let go of an answer, wherever it is, and of its cache rows."""
        if job in self.jobs:
            self.jobs.remove(job)
        job.ask = None
        job.asking.close()
        self._let_go(job)

    def step(self) -> list[Job]:
        """One pass for those that wait for the lowest stage; returns the answers that it brought to an end.

        What goes wrong in a pass is the error of every answer in it; the others go on.
        """
        waiting = [job for job in self.jobs if job.ask is not None]
        if not waiting:
            return self._ended()
        stage = _next_stage(waiting)
        served = [job for job in waiting if job.ask is not None and job.ask.stage == stage]
        for job in waiting:
            job.waited = 0 if job in served else job.waited + 1
        try:
            logits = self._pass(stage, served)
        except Exception as error:  # noqa: BLE001 - whatever a model raises ends the answers in the pass, not the engine
            for job in served:
                job.error, job.ask = error, None
            return self._ended()
        for job, told in zip(served, logits, strict=True):
            self._advance(job, told)
        return self._ended()

    def owners(self, stage: int) -> dict[str, int]:
        """Whose answers wait for a stage, and how many: within ``on_pass``, those that the pass was for."""
        return Counter(job.owner for job in self.jobs if job.ask is not None and job.ask.stage == stage)

    def _pass(self, stage: int, served: list[Job]) -> list[Tensor]:
        feeds = [self._feed(stage, job) for job in served]
        started = self._timer()
        logits = self._models[stage].forward(feeds)
        if self._on_pass is not None:
            widest = max(len(feed.tokens) for feed in feeds)
            self._on_pass(stage, widest, len(feeds), self._timer() - started)
        for job in served:
            job.answer.read[stage] = len(job.answer.tokens)
            job.passes[stage] = job.passes.get(stage, 0) + 1
        return logits

    def _feed(self, stage: int, job: Job) -> Feed:
        assert job.ask is not None  # noqa: S101 - only those that wait are served
        answer, start = job.answer, job.ask.start
        if stage not in answer.slots:
            answer.slots[stage] = self._models[stage].open()
        return Feed(answer.slots[stage], start, answer.tokens[start:], job.ask.want)

    def _advance(self, job: Job, logits: Tensor | None) -> None:
        try:
            job.ask = next(job.asking) if logits is None else job.asking.send(logits)
        except StopIteration as stopped:
            job.ask, job.result = None, stopped.value
        except Exception as error:  # noqa: BLE001 - one answer's mistake must not end the others
            job.ask, job.error = None, error

    def _ended(self) -> list[Job]:
        over = [job for job in self.jobs if job.is_over]
        for job in over:
            self.jobs.remove(job)
            self._let_go(job)
        return over

    def _let_go(self, job: Job) -> None:
        for stage, slot in job.answer.slots.items():
            self._models[stage].close(slot)
        job.answer.slots.clear()
        job.answer.read.clear()


def _next_stage(waiting: list[Job]) -> int:
    longest = max(waiting, key=lambda job: job.waited)
    if longest.waited >= PATIENCE and longest.ask is not None:
        return longest.ask.stage
    return min(job.ask.stage for job in waiting if job.ask is not None)
