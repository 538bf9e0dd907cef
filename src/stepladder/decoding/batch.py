"""Runs many answers at once: what their generators ask of one stage goes through it in one pass, or in one round."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from stepladder.decoding.models import Feed
from stepladder.decoding.sequence import Ask, RoundAsk, Sequence


class Reader(Protocol):
    """What a batch needs of a model (``models.LanguageModel``)."""

    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def forward(self, feeds: Row[Feed]) -> list[Tensor]: ...


class Runner(Protocol):
    """What a batch needs of whoever runs whole rounds (``rounds.AllRounds``)."""

    def ready(self, asks: Row[RoundAsk]) -> float: ...
    def run(self, asks: Row[RoundAsk]) -> Row[Any]: ...
    def passes(self, ask: RoundAsk) -> Row[tuple[int, int, int]]: ...


OnPass = Callable[[int, int, int, float], None]
"""(stage, tokens read by each row, rows, seconds); told only of passes whose rows are about as wide as each other"""

CHUNK = 512
"""Tokens of one answer that are read in one pass: others, and an end, wait no longer than that."""

ALIKE = 2
"""Times that the widest row of a pass may be as wide as the narrowest, for the pass to say how long such rows take."""


@dataclass(frozen=True, slots=True)
class Took:
    """What a pass was to one of its answers: ``read`` tokens for ``want`` logits beside ``rows`` − 1 others.

    Of a whole round ``passes`` tells (stage, width, how many), and ``captured_s`` the seconds before it in which its
    graph was made.
    """

    stage: int
    read: int
    want: int
    rows: int
    seconds: float
    passes: Row[tuple[int, int, int]] = ()
    captured_s: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """One answer at work: its generator, and what it waits for since when.

    ``result`` is what the generator returned, ``error`` what ended it otherwise; both None while it runs. ``passes``
    counts the passes it took part in, by stage; ``told`` hears of each.
    """

    asking: Generator[Ask | RoundAsk, Any, Any]
    answer: Sequence
    ask: Ask | RoundAsk | None = None
    result: Any = None
    error: BaseException | None = None
    passes: dict[int, int] = field(default_factory=dict)
    told: Callable[[Took], None] | None = None
    since: float = 0.0

    @property
    def is_over(self) -> bool:
        """True once there is nothing left to ask."""
        return self.ask is None


class Batch:
    """Answers at work over ``models``. A pass goes to the lowest stage that anybody waits for.

    So drafters finish before anybody verifies, and the verifications of all answers share a pass. But who has waited
    for longer than a pass of its stage takes goes first: a busy lower stage leaves a higher one half of the time. Not
    safe for more than one thread. ``on_pass`` is told of passes; ``timer`` gives monotonic seconds. A pass reads at
    most ``chunk`` tokens of an answer. ``usual`` are seconds of a pass by stage, where known before the first.
    ``rounds`` runs whole rounds, where answers ask for them.
    """

    def __init__(
        self,
        models: Row[Reader],
        *,
        timer: Callable[[], float],
        on_pass: OnPass | None = None,
        chunk: int = CHUNK,
        usual: Mapping[int, float] | None = None,
        rounds: Runner | None = None,
    ) -> None:
        self._models = models
        self._rounds = rounds
        self._timer = timer
        self._on_pass = on_pass
        self._chunk = chunk
        self._lasts = dict(usual or {})
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
        stage = self._next_stage(waiting)
        served = _alike([job for job in waiting if job.ask is not None and job.ask.stage == stage])
        try:
            found = self._round(served) if isinstance(served[0].ask, RoundAsk) else self._pass(stage, served)
        except Exception as error:  # noqa: BLE001 - whatever a model raises ends the answers in the pass, not the engine
            for job in served:
                job.error, job.ask = error, None
            return self._ended()
        for job, told in zip(served, found, strict=True):
            if isinstance(job.ask, RoundAsk) or (job.ask is not None and job.answer.read[stage] == job.ask.end):
                self._advance(job, told)
            else:
                job.since = self._timer()
        return self._ended()

    def _next_stage(self, waiting: list[Job]) -> int:
        """The lowest stage that is asked, or that of whoever waits for longest beyond a pass of its own."""
        now = self._timer()
        beyond = [
            (now - job.since - self._lasts.get(job.ask.stage, 0.0), job.ask.stage)
            for job in waiting
            if job.ask is not None
        ]
        longest, stage = max(beyond, key=lambda each: (each[0], -each[1]))
        return stage if longest > 0 else min(stage for _, stage in beyond)

    def _pass(self, stage: int, served: list[Job]) -> list[Tensor]:
        feeds = [self._feed(stage, job) for job in served]
        started = self._timer()
        logits = self._models[stage].forward(feeds)
        seconds = self._timer() - started
        self._lasts[stage] = seconds
        widths = [len(feed.tokens) for feed in feeds]
        if self._on_pass is not None and max(widths) <= ALIKE * min(widths):
            self._on_pass(stage, max(widths), len(feeds), seconds)
        for job, feed in zip(served, feeds, strict=True):
            job.answer.read[stage] = feed.start + len(feed.tokens)
            job.passes[stage] = job.passes.get(stage, 0) + 1
            if job.told is not None:
                job.told(Took(stage, len(feed.tokens), feed.want, len(feeds), seconds))
        return logits

    def _round(self, served: list[Job]) -> Row[Any]:
        """A round of answers whose asks are alike."""
        asks = [job.ask for job in served if isinstance(job.ask, RoundAsk)]
        assert self._rounds is not None  # noqa: S101 - who asks for rounds was given what runs them
        for ask in asks:
            for stage in ask.chain:
                self._hold(stage, ask.sequence)
        captured_s, started = self._rounds.ready(asks), self._timer()
        found = self._rounds.run(asks)
        seconds = self._lasts[asks[0].stage] = self._timer() - started
        for job, ask in zip(served, asks, strict=True):
            passes = self._rounds.passes(ask)
            for stage, _, count in passes:
                job.passes[stage] = job.passes.get(stage, 0) + count
            if job.told is not None:
                job.told(Took(ask.stage, 1, 1, len(asks), seconds, passes, captured_s))
        return found

    def _hold(self, stage: int, answer: Sequence) -> None:
        """See to it that an answer has a cache row of a stage."""
        if stage not in answer.slots:
            answer.slots[stage] = self._models[stage].open()
            answer.read[stage] = 0

    def _feed(self, stage: int, job: Job) -> Feed:
        """What the answer asks for, or the next chunk of what has to be read before."""
        assert isinstance(job.ask, Ask)  # noqa: S101 - rounds are served apart
        answer, start = job.answer, job.ask.start
        self._hold(stage, answer)
        tokens, want = answer.tokens[start : job.ask.end], job.ask.want
        if len(tokens) > max(self._chunk, want):
            tokens, want = tokens[: min(self._chunk, len(tokens) - want)], 0
        return Feed(answer.slots[stage], start, tokens, want, job.ask.rough)

    def _advance(self, job: Job, found: Any) -> None:
        """Send an answer what it asked for: logits, or what a round wrote; None at its beginning."""
        job.since = self._timer()
        try:
            job.ask = next(job.asking) if found is None else job.asking.send(found)
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


def _alike(jobs: list[Job]) -> list[Job]:
    """Those that can be served with the one that has waited for longest: in one pass, or in one round."""

    def kind(job: Job) -> tuple[object, ...] | None:
        return job.ask.kind if isinstance(job.ask, RoundAsk) else None

    first = kind(min(jobs, key=lambda job: job.since))
    return [job for job in jobs if kind(job) == first]
