"""MT-Bench judgements of single answers (Zheng et al. 2023, arXiv 2306.05685), as FastChat and RouteLLM keep them.

``judgements.jsonl`` has ``question_id, model, turn, score``, the judge's 1 to 10; ``question.jsonl`` has ``question_id,
category, turns``. Quality is (score - 1) / 9. A score of -1 says that the judge gave none, which is no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.grouping import BY_GROUP
from stepladder.evaluate.importers.common import Gathering, Imported, cell, require, shown
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.records import Record, read_records

LOWEST, HIGHEST, NO_SCORE = 1, 10, -1


def read(
    paths: Iterable[str | Path], questions: str | Path, drop: frozenset[str] = frozenset(), split: str = BY_GROUP
) -> Imported:
    """The judged turns; the prompt of the second is both turns' words. Arguments and errors as ``routellm.read``."""
    found = Gathering(drop, split)
    asked = _questions(questions)
    files = list(map(str, paths))
    for file in files:
        for record in read_records(file):
            _read_row(record, asked, found)
    return found.finish(", ".join(files))


def _questions(path: str | Path) -> Mapping[int, Record]:
    found: dict[int, Record] = {}
    for record in read_records(path):
        require(record, ("question_id", "turns"), "MT-Bench's questions")
        turns = record.values["turns"]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise UsageError(f"{record.where}: turns should be a list of texts that is not empty: {shown(turns)}")
        found[cell(record, "question_id", "prompt_tokens")] = record
    return found


def _read_row(record: Record, asked: Mapping[int, Record], found: Gathering) -> None:
    require(record, ("question_id", "model", "turn", "score"), "MT-Bench's judgements")
    number = cell(record, "question_id", "prompt_tokens")
    question = asked.get(number)
    if question is None:
        raise UsageError(f"{record.where}: question_id {number} is not among the questions")
    turns, turn = question.values["turns"], record.values["turn"]
    if turn not in range(1, len(turns) + 1):
        raise UsageError(f"{record.where}: turn should lie between 1 and {len(turns)}: {shown(turn)}")
    prompt = "\n\n".join(turns[:turn])
    query_id = f"mt_bench:{number}:t{turn}"
    if found.is_dropped(query_id, prompt):
        found.left_out["dropped"] += 1
    elif record.values["score"] == NO_SCORE:
        found.left_out["no score by the judge"] += 1
    else:
        row = OutcomeRow(
            query_id=query_id,
            model=cell(record, "model", "model"),
            quality=cell(record, "score", "quality", _quality),
            dataset="mt_bench",
            subset=_category(question),
            prompt=prompt,
            metric=_judge(record),
            group_id=f"mt_bench:{number}",
        )
        found.add(row, record)


def _category(question: Record) -> str | None:
    return None if question.values.get("category") is None else str(cell(question, "category", "subset"))


def _judge(record: Record) -> str:
    """Who judged, as ``collect`` names judges; the first word of "judge" is the model, the second its instructions."""
    judge = record.values.get("judge")
    return f"judge:{judge[0]}" if isinstance(judge, list) and judge else "judge"


def _quality(score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not LOWEST <= score <= HIGHEST:
        raise ValueError(f"should be a number from {LOWEST} to {HIGHEST}, or {NO_SCORE} for none")
    return (score - LOWEST) / (HIGHEST - LOWEST)
