"""Outcomes from traces: what stages answered to real requests, with the quality that was recorded for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from stepladder.errors import UsageError
from stepladder.evaluate.collect import Plan, called, confidence, table, token_logprobs
from stepladder.evaluate.journal import Entry
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.prompts import Prompt
from stepladder.types import Attempt, CostUnit, Outcome, Request, Trace


@dataclass(slots=True)
class Harvest:
    """The prompts of traces, the answers to them, and the (quality, source) of those that somebody measured.

    ``private`` traces were left out: hashes and marks stand in the place of their prompts.
    """

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[Entry] = field(default_factory=list)
    scores: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    cost_unit: CostUnit | None = None
    private: int = 0


def harvest(
    traces: Iterable[Trace],
    outcomes: Callable[[str], Sequence[Outcome]],
    stages: Collection[str] | None = None,
) -> Harvest:
    """Every answered attempt, of ``stages`` alone where they are given; a stage's last answer to a request counts.

    An outcome without a stage is that of the answer which was kept; of several for one answer the last counts. Queries
    of equal text share a ``group_id``. Raises UsageError where costs are in different units.
    """
    found = Harvest()
    for trace in traces:
        if trace.private is not None:
            found.private += 1
            continue
        answered = {a.stage: a for a in trace.attempts if a.is_answer and (stages is None or a.stage in stages)}
        if answered:
            _add(found, trace, answered)
            for outcome in outcomes(trace.id):
                stage = outcome.stage or _kept(trace)
                if stage in answered:
                    found.scores[trace.id, stage] = outcome.score, outcome.source
    return found


def recorded(found: Harvest) -> list[OutcomeRow]:
    """The outcomes table of what was harvested: a row for every answer that somebody measured."""
    plan = Plan(
        prompts=found.prompts,
        stages=(),
        method="recorded",
        cost_unit=found.cost_unit,
        recorded=found.answers,
        scores=found.scores,
    )
    return table(plan, {called(each): each for each in found.answers}, {})[0]


def _add(found: Harvest, trace: Trace, answered: dict[str, Attempt]) -> None:
    if found.cost_unit not in (None, trace.cost_unit):
        raise UsageError(f"trace {trace.id}: its costs are in {trace.cost_unit}, those before in {found.cost_unit}")
    found.cost_unit = trace.cost_unit
    found.prompts.append(_prompt(trace))
    found.answers += [_entry(trace.id, attempt) for attempt in answered.values()]


def _kept(trace: Trace) -> str:
    return "" if trace.answer_index is None else trace.attempts[trace.answer_index].stage


def _prompt(trace: Trace) -> Prompt:
    request: Request = trace.request
    messages = request.messages or ({"role": "user", "content": request.text},)
    group = blake2b(request.text.encode(), digest_size=6).hexdigest()
    return Prompt(
        query_id=trace.id, messages=messages, dataset="traces", group_id=f"text:{group}", where=f"trace {trace.id}"
    )


def _entry(query_id: str, attempt: Attempt) -> Entry:
    return Entry(
        kind="answer",
        query_id=query_id,
        stage=attempt.stage,
        digest="",
        text=attempt.text,
        prompt_tokens=attempt.usage.prompt_tokens,
        output_tokens=attempt.usage.output_tokens,
        seconds=attempt.seconds,
        cost=attempt.cost,
        confidence=confidence(attempt),
        logprobs=token_logprobs(attempt),
    )
