"""Outcomes of a ladder's stages on prompts: ask, keep each answer in a journal as it comes, grade, make the table.

What is asked and what it cost goes through the journal; grading is pure and done at the end, from the journal alone.
So a collection that was cut off goes on where it was, and one that is graded otherwise asks nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import isfinite
from statistics import fmean
from typing import Any, Literal

import orjson

from stepladder.contracts import CostModel, Engine
from stepladder.errors import EngineError, UsageError
from stepladder.evaluate.journal import Entry, Journal
from stepladder.evaluate.judging import by_agreement, by_reference, judge_messages, parse_grade
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.prompts import Prompt
from stepladder.predictors.history import final_answer
from stepladder.tokens import CHARS_PER_TOKEN
from stepladder.types import EMPTY, Attempt, CostUnit, FaultKind, Request, Stage

Method = Literal["reference", "judge", "agreement", "recorded"]
Key = tuple[str, str, int]
"""(query id, stage, number of the sample)"""

Called = tuple[str, str, str, int]
"""(kind of call, query id, stage that the answer is of, number of the sample)"""

LOCAL_ENGINE = "llama"
"""Stages of this engine compute on this machine's cores, so they take turns."""

RETRIED: frozenset[FaultKind] = frozenset({"rate_limit", "timeout", "connect"})
OF_THE_PROMPT: frozenset[FaultKind] = frozenset({"bad_request", "context"})
"""Faults that say nothing about whether the stage can answer the next prompt."""

RETRIES = 4
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
GIVE_UP_AFTER = 20
"""Prompts in a row that a stage may fail at before it is taken for down."""

LOGPROB_DIGITS = 4
JUDGE_PARAMS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 16}
USUAL_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be collected.

    ``grader`` is the one for all prompts (None: each prompt's own); ``judge`` is the stage that judges. ``recorded``
    holds answers that exist already, then no stage is asked for one; ``scores`` their (quality, source) where known.
    ``max_cost`` caps what the whole table may cost, in ``cost_unit``, what its journal has paid for included.
    ``samples`` is how often every stage answers every prompt: further rows of one query and stage, which tell how far
    quality can be known beforehand. ``as_choices`` makes one row of them instead, as if a stage had been asked once for
    so many choices: the first is the answer, the others tell how sure the stage is of it, and all are paid for.
    """

    prompts: Sequence[Prompt]
    stages: tuple[Stage, ...]
    method: Method = "reference"
    params: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    grader: str | None = None
    judge: Stage | None = None
    samples: int = 1
    as_choices: bool = False
    at_once: int = 8
    max_cost: float | None = None
    cost_unit: CostUnit | None = None
    recorded: Sequence[Entry] | None = None
    scores: Mapping[tuple[str, str], tuple[float, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: calls ``done`` in this run of ``total`` in this run; ``spent`` is the whole table's cost."""

    done: int
    total: int
    spent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a collection works with. ``engines`` holds one engine for each stage, which serves that stage alone."""

    engines: Mapping[str, Engine]
    costs: CostModel
    journal: Journal
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    tell: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True, slots=True)
class Collected:
    """The table's rows in the prompts' order, what was left out and why, the calls made and the whole cost."""

    rows: list[OutcomeRow]
    left_out: Mapping[str, int]
    calls: int
    spent: float
    hit_cap: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One call to make: ``stage`` is whose answer it is about, ``asked`` who is called."""

    kind: Literal["answer", "verdict"]
    query_id: str
    stage: str
    asked: Stage
    request: Request
    digest: str
    sample: int = 0

    @property
    def key(self) -> Called:
        """What the journal knows it by."""
        return self.kind, self.query_id, self.stage, self.sample


def called(entry: Entry) -> Called:
    """What an entry of a journal is about."""
    return entry.kind, entry.query_id, entry.stage, entry.sample


async def collect(plan: Plan, means: Means) -> Collected:
    """Make the calls that the journal lacks, within the cap, and grade.

    Raises UsageError before any call where the journal belongs to other prompts or settings, or where the estimate is
    above the cap; EngineError where a stage cannot be started or fails at ``GIVE_UP_AFTER`` prompts in a row. However
    it ends, the journal keeps what was answered.
    """
    run = _Run(plan, means)
    answers = missing(answer_jobs(plan, means.engines), run.kept)
    refuse_above_cap(estimate(plan, means.costs, answers, run.kept), run.spent, len(answers), plan)
    run.total = len(answers) + (0 if plan.judge is None else _possible_verdicts(plan))
    await run.make(answers)
    verdicts = missing(verdict_jobs(plan, run.kept), run.kept)
    run.total = run.calls + len(verdicts)
    await run.make(verdicts)
    rows, left_out = table(plan, run.kept, run.faults)
    hit_cap = run.is_full and run.calls < len(answers) + len(verdicts)
    return Collected(rows, left_out, run.calls, run.spent, hit_cap)


# ── what is to be asked ──────────────────────────────────────────────────────


def answer_jobs(plan: Plan, engines: Mapping[str, Engine]) -> list[Job]:
    """Every stage's calls for every prompt, stage after stage, each prompt once before any is asked again."""
    if plan.recorded is not None:
        return []
    first = [_answer_job(plan, engines, stage, prompt) for stage in plan.stages for prompt in plan.prompts]
    return [replace(job, sample=sample) for sample in range(plan.samples) for job in first]


def _answer_job(plan: Plan, engines: Mapping[str, Engine], stage: Stage, prompt: Prompt) -> Job:
    params = dict(plan.params)
    if "logprobs" in engines[stage.name].capabilities(stage):
        params["logprobs"] = True
    request = Request(prompt.query_id, messages=prompt.messages, params=params)
    return Job("answer", prompt.query_id, stage.name, stage, request, digest(stage, request))


def verdict_jobs(plan: Plan, kept: Mapping[Called, Entry]) -> list[Job]:
    """The judge's call for every answer that there is."""
    if plan.judge is None:
        return []
    prompts = {prompt.query_id: prompt for prompt in plan.prompts}
    return [
        _verdict_job(plan.judge, prompts[entry.query_id], entry.stage, entry.text, entry.sample)
        for entry in _answers(plan, kept)
        if _has_row(plan, entry.sample)
    ]


def _verdict_job(judge: Stage, prompt: Prompt, stage: str, text: str, sample: int = 0) -> Job:
    request = Request(prompt.query_id, messages=judge_messages(prompt, text), params=JUDGE_PARAMS)
    return Job("verdict", prompt.query_id, stage, judge, request, digest(judge, request), sample)


def digest(stage: Stage, request: Request) -> str:
    """A name for what is asked, of which model, with which settings."""
    model = stage.options.get("sha256") or stage.model  # a local file is the same wherever it lies
    asked = orjson.dumps([stage.engine, model, request.messages, dict(request.params)], default=dict)
    return blake2b(asked, digest_size=8).hexdigest()


def missing(jobs: Iterable[Job], kept: Mapping[Called, Entry]) -> list[Job]:
    """The jobs that are not done; raises UsageError where one was done to another prompt or with other settings."""
    found = []
    for job in jobs:
        done = kept.get(job.key)
        if done is None:
            found.append(job)
        elif done.digest != job.digest and job.kind == "answer":
            raise UsageError(
                f"the journal holds the answer of '{job.stage}' to '{job.query_id}' under another prompt, model or "
                "setting; name another --out, or remove the journal to begin anew"
            )
        elif done.digest != job.digest:
            found.append(job)  # another judge, or of an answer that came again
    return found


# ── what it will cost ────────────────────────────────────────────────────────


def estimate(plan: Plan, costs: CostModel, answers: Sequence[Job], kept: Mapping[Called, Entry]) -> float:
    """Expected cost of the calls to come; answers that a judge is still to read count with their usual length."""
    jobs = [*answers, *_expected_verdicts(plan, kept)]
    return sum(costs.expected(job.asked, job.request).resource for job in jobs)


def _expected_verdicts(plan: Plan, kept: Mapping[Called, Entry]) -> list[Job]:
    if plan.judge is None:
        return []
    unread = "x" * (int(CHARS_PER_TOKEN) * (plan.params.get("max_tokens") or USUAL_ANSWER_TOKENS))
    prompts = {prompt.query_id: prompt for prompt in plan.prompts}
    jobs = []
    for query_id, stage, sample in _keys(plan):
        if not _has_row(plan, sample):
            continue
        answer = kept.get(("answer", query_id, stage, sample))
        text = unread if answer is None else answer.text
        jobs.append(_verdict_job(plan.judge, prompts[query_id], stage, text, sample))
    return missing(jobs, kept)


def refuse_above_cap(expected: float, spent: float, calls: int, plan: Plan) -> None:
    """Raise UsageError where what was paid and what is to come together pass the cap."""
    if plan.max_cost is None or spent + expected <= plan.max_cost:
        return
    unit = plan.cost_unit or "cost units"
    before = f" and {spent:.4g} {unit} were paid before" if spent else ""
    judged = " and their judging" if plan.judge is not None else ""
    raise UsageError(
        f"{calls} calls{judged} are estimated at {expected:.4g} {unit}{before}: above --max-cost {plan.max_cost:g}; "
        "raise it, or ask fewer prompts or stages"
    )


def _keys(plan: Plan) -> Iterator[Key]:
    if plan.recorded is not None:
        yield from (called(entry)[1:] for entry in plan.recorded)
    else:
        names, samples = [stage.name for stage in plan.stages], range(plan.samples)
        yield from ((p.query_id, name, sample) for p in plan.prompts for name in names for sample in samples)


def _possible_verdicts(plan: Plan) -> int:
    return sum(_has_row(plan, sample) for *_, sample in _keys(plan))


def _has_row(plan: Plan, sample: int) -> bool:
    """False for the further choices of one call, which stand in the row of the first."""
    return not (plan.as_choices and sample)


# ── asking ───────────────────────────────────────────────────────────────────


class _Run:
    """The state of one collection on its way."""

    def __init__(self, plan: Plan, means: Means) -> None:
        self.plan, self.means = plan, means
        self.kept: dict[Called, Entry] = {}
        self.faults: dict[Called, str] = {}
        self.spent = 0.0
        self.calls = self.total = 0
        self._failed_in_a_row: Counter[str] = Counter()
        for entry in plan.recorded or ():
            self.kept[called(entry)] = entry
        for entry in means.journal.entries:
            self._note(entry)

    @property
    def is_full(self) -> bool:
        """True once what was billed reached the cap."""
        return self.plan.max_cost is not None and self.spent >= self.plan.max_cost

    async def make(self, jobs: Sequence[Job]) -> None:
        """Make these calls: local stages one after the other, all others side by side."""
        by_stage: dict[str, list[Job]] = {}
        for job in jobs:
            by_stage.setdefault(job.asked.name, []).append(job)
        local = [found for found in by_stage.values() if found[0].asked.engine == LOCAL_ENGINE]
        lanes = [local, *([found] for found in by_stage.values() if found[0].asked.engine != LOCAL_ENGINE)]
        await _together(self._lane(lane) for lane in lanes)

    async def _lane(self, stages: Sequence[Sequence[Job]]) -> None:
        for jobs in stages:
            if not self.is_full:
                await self._stage(jobs[0].asked, jobs)

    async def _stage(self, stage: Stage, jobs: Sequence[Job]) -> None:
        engine = self.means.engines[stage.name]
        await engine.start()
        try:
            waiting = iter(jobs)
            places = min(self.plan.at_once, stage.max_concurrency or self.plan.at_once)
            await _together(self._worker(engine, waiting) for _ in range(places))
        finally:
            await engine.close()

    async def _worker(self, engine: Engine, jobs: Iterator[Job]) -> None:
        for job in jobs:
            if self.is_full:
                return
            entry = await self._ask(engine, job)
            self._keep(entry)
            self.calls += 1
            self.means.tell(Progress(self.calls, self.total, self.spent))
            self._watch(job, entry)

    async def _ask(self, engine: Engine, job: Job) -> Entry:
        """Ask until there is an answer or a fault that asking again will not mend."""
        for turn in range(RETRIES + 1):
            attempt = await _call(engine, job)
            entry = _entry(job, attempt, self.means.costs.billed(job.asked, attempt))
            fault = attempt.fault
            if fault is None or fault.kind not in RETRIED or turn == RETRIES or self.is_full:
                break
            if entry.cost:
                self._keep(entry)
            await self.means.sleep(max(fault.retry_after or 0.0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**turn)))
        return entry

    def _keep(self, entry: Entry) -> None:
        self.means.journal.append(entry)
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        self.spent += entry.cost
        key = called(entry)
        if entry.fault is None:
            self.kept[key] = entry
        else:
            self.faults[key] = entry.fault

    def _watch(self, job: Job, entry: Entry) -> None:
        """Raise EngineError where a stage seems to be down: going on would only leave out all that is left."""
        name = job.asked.name
        if entry.fault is None:
            self._failed_in_a_row[name] = 0
        elif entry.fault not in OF_THE_PROMPT:
            self._failed_in_a_row[name] += 1
        if self._failed_in_a_row[name] >= GIVE_UP_AFTER:
            raise EngineError(f"stage '{name}' failed at {GIVE_UP_AFTER} prompts in a row, last by: {entry.text}")


async def _call(engine: Engine, job: Job) -> Attempt:
    found: Attempt | None = None
    async with aclosing(engine.generate(job.request, job.asked)) as events:
        async for event in events:
            if isinstance(event, Attempt):
                found = event
    if found is None:
        raise EngineError(f"stage '{job.asked.name}' ended without an attempt at '{job.query_id}'")
    return found


def _entry(job: Job, attempt: Attempt, cost: float) -> Entry:
    fault = attempt.fault
    return Entry(
        kind=job.kind,
        query_id=job.query_id,
        stage=job.stage,
        digest=job.digest,
        text=attempt.text if fault is None else fault.message,
        prompt_tokens=attempt.usage.prompt_tokens,
        output_tokens=attempt.usage.output_tokens,
        seconds=attempt.seconds,
        cost=cost,
        confidence=confidence(attempt),
        fault=None if fault is None else fault.kind,
        sample=job.sample,
        logprobs=token_logprobs(attempt),
    )


def confidence(attempt: Attempt) -> float | None:
    """Mean log probability of the answer's tokens, None where the engine told none."""
    return fmean(attempt.logprobs) if attempt.logprobs else None


def token_logprobs(attempt: Attempt) -> tuple[float, ...] | None:
    """The tokens' log probabilities to LOGPROB_DIGITS digits, None where some are none that a table can hold."""
    told = attempt.logprobs or ()
    return tuple(round(each, LOGPROB_DIGITS) for each in told) if told and all(map(_is_logprob, told)) else None


def _is_logprob(value: float) -> bool:
    return isfinite(value) and value <= 0


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:  # the first of several stages that failed is told, as a plain error
        raise errors.exceptions[0] from None


# ── grading ──────────────────────────────────────────────────────────────────


def _answers(plan: Plan, kept: Mapping[Called, Entry]) -> list[Entry]:
    """The answers that there are, in the table's order."""
    found = (kept.get(("answer", *key)) for key in _in_order(plan))
    return [entry for entry in found if entry is not None]


def _in_order(plan: Plan) -> list[Key]:
    """The table's order: the prompts', for each the ladder's, and for each of those the samples as they were asked."""
    if plan.recorded is None:
        return list(_keys(plan))
    place = {prompt.query_id: number for number, prompt in enumerate(plan.prompts)}
    return sorted(_keys(plan), key=lambda key: place[key[0]])


def table(
    plan: Plan, kept: Mapping[Called, Entry], faults: Mapping[Called, str]
) -> tuple[list[OutcomeRow], Mapping[str, int]]:
    """The rows of all answers that have a quality, and how many were left out for which reason."""
    prompts = {prompt.query_id: prompt for prompt in plan.prompts}
    texts: dict[tuple[str, int], dict[str, str]] = {}
    for entry in _answers(plan, kept):
        texts.setdefault((entry.query_id, entry.sample), {})[entry.stage] = entry.text
    rows: list[OutcomeRow] = []
    left_out: Counter[str] = Counter()
    for key in _in_order(plan):
        query_id, stage, sample = key
        if not _has_row(plan, sample):
            continue
        answer = kept.get(("answer", *key))
        if answer is None:
            left_out[faults.get(("answer", *key), "not asked")] += 1
            continue
        graded = _graded(plan, prompts[query_id], answer, texts[query_id, sample], kept.get(("verdict", *key)))
        if isinstance(graded, str):
            left_out[graded] += 1
        else:
            row = _row(plan, prompts[query_id], answer, graded)
            rows.append(_with_choices(row, _others(plan, kept, query_id, stage)) if plan.as_choices else row)
    return rows, dict(left_out)


def _others(plan: Plan, kept: Mapping[Called, Entry], query_id: str, stage: str) -> list[Entry]:
    """The answers of a stage to a query besides the first."""
    found = (kept.get(("answer", query_id, stage, sample)) for sample in range(1, plan.samples))
    return [entry for entry in found if entry is not None]


def _with_choices(row: OutcomeRow, others: Sequence[Entry]) -> OutcomeRow:
    """The first answer's row as that of one call for them all: choices are written side by side, so it took as long as
    the slowest."""
    return replace(
        row,
        output_tokens=(row.output_tokens or 0) + sum(entry.output_tokens for entry in others),
        cost=(row.cost or 0.0) + sum(entry.cost for entry in others),
        latency_s=max([row.latency_s or 0.0, *(entry.seconds for entry in others)]),
        other_preds=tuple(final_answer(entry.text) for entry in others),
    )


def _graded(
    plan: Plan, prompt: Prompt, answer: Entry, texts: Mapping[str, str], verdict: Entry | None
) -> tuple[float, str] | str:
    """(quality, metric), or why there is none."""
    match plan.method:
        case "recorded":
            return plan.scores.get((answer.query_id, answer.stage), "no outcome recorded")
        case "agreement":
            others = [text for stage, text in texts.items() if stage != answer.stage]
            share = by_agreement(prompt, answer.text, others)
            return "no other answer to agree with" if share is None else (share, "agreement")
        case "judge":
            return _judged(plan, prompt, answer, verdict)
        case "reference":
            return by_reference(prompt, answer.text, plan.grader)


def _judged(plan: Plan, prompt: Prompt, answer: Entry, verdict: Entry | None) -> tuple[float, str] | str:
    if verdict is None or plan.judge is None:
        return "not judged"
    if verdict.digest != _verdict_job(plan.judge, prompt, answer.stage, answer.text).digest:
        return "not judged"  # the verdict is another judge's, or on an earlier answer
    quality = parse_grade(verdict.text)
    return "no grade in the judge's reply" if quality is None else (quality, f"judge:{plan.judge.name}")


def _row(plan: Plan, prompt: Prompt, answer: Entry, graded: tuple[float, str]) -> OutcomeRow:
    quality, metric = graded
    return OutcomeRow(
        query_id=prompt.query_id,
        model=answer.stage,
        quality=quality,
        dataset=prompt.dataset,
        subset=prompt.subset,
        split=prompt.split,
        prompt=prompt.text,
        messages=None if prompt.is_plain else prompt.messages,
        metric=metric,
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cost=answer.cost,
        cost_unit=plan.cost_unit,
        latency_s=answer.seconds,
        response=answer.text,
        confidence=answer.confidence,
        pred=final_answer(answer.text),
        family=prompt.family,
        level=prompt.level,
        group_id=prompt.group_id,
        token_logprobs=answer.logprobs,
    )
