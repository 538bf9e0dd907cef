"""Live answers for the experiment: one call at a time, stage after stage, so that a latency is that of a call alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from stepladder.contracts import CostModel, Engine
from stepladder.evaluate import collect as core
from stepladder.evaluate.collect import Collected, Means, Plan, Progress
from stepladder.evaluate.journal import Journal
from stepladder.evaluate.outcomes import OutcomeRow, as_json
from stepladder.evaluate.prompts import Prompt
from stepladder.predictors.complexity import PAPER_PROMPTS

TEN = "stepladder-paper-"
"""Begins the query ids of the paper's ten prompts."""


def paper_prompts() -> list[Prompt]:
    """The paper's ten prompts (§3.3). None has a right answer to compare with, so none gets a quality.

    The grader is there since collecting grades whatever it asked; ``ten_lines`` leaves its verdict out.
    """
    return [
        Prompt(
            query_id=f"{TEN}{number}",
            messages=({"role": "user", "content": text},),
            reference="",
            grader="exact",
            dataset="paper",
            level=level,
            where=f"the paper's prompt {number}",
        )
        for number, (text, level) in enumerate(PAPER_PROMPTS, start=1)
    ]


def is_paper(row: OutcomeRow) -> bool:
    """True for an answer to one of the ten."""
    return row.query_id.startswith(TEN)


def ten_lines(rows: Sequence[OutcomeRow]) -> list[dict[str, Any]]:
    """The ten prompts' answers as a table's columns, without quality and metric: no grader applies."""
    return [
        {name: value for name, value in as_json(row).items() if name not in ("quality", "metric")}
        for row in rows
        if is_paper(row)
    ]


def ten_table(rows: Sequence[OutcomeRow]) -> bytes:
    """``ten_lines`` as JSON lines."""
    return b"".join(orjson.dumps(line, default=dict, option=orjson.OPT_APPEND_NEWLINE) for line in ten_lines(rows))


async def ask_in_turn(
    plan: Plan,
    engines: Mapping[str, Engine],
    costs: CostModel,
    journal: str | Path,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Collected:
    """``evaluate.collect.collect`` with the stages one after the other, whatever their engines; ``plan.at_once`` holds.

    What the journal has is not asked again. Raises what ``collect`` raises; a cost above the cap, or a journal of other
    prompts or settings, before the first call of any stage.
    """
    with Journal(journal) as kept:
        waiting = core.missing(core.answer_jobs(plan, engines), _answered(kept)[0])
        spent = sum(entry.cost for entry in kept.entries)
        core.refuse_above_cap(core.estimate(plan, costs, waiting, {}), spent, len(waiting), plan)
    calls = 0
    for stage in plan.stages:

        def told(progress: Progress, before: int = calls) -> None:
            tell(Progress(before + progress.done, len(waiting), progress.spent))

        with Journal(journal) as kept:
            means = Means(engines=engines, costs=costs, journal=kept, tell=told)
            found = await core.collect(replace(plan, stages=(stage,)), means)
        calls += found.calls
        if found.hit_cap:
            break
    with Journal(journal) as kept:
        whole = core.table(plan, *_answered(kept))
        spent = sum(entry.cost for entry in kept.entries)
    return Collected(*whole, calls, spent, found.hit_cap)


def _answered(journal: Journal) -> tuple[dict[core.Called, Any], dict[core.Called, str]]:
    answers: dict[core.Called, Any] = {}
    faults: dict[core.Called, str] = {}
    for entry in journal.entries:
        key = core.called(entry)
        if entry.fault is None:
            answers[key] = entry
        else:
            faults[key] = entry.fault
    return answers, faults
