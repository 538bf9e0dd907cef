"""RouterBench's table of eleven models on mixed tasks (Hu et al. 2024, arXiv 2403.12031), with what each answer cost.

One row a prompt: ``sample_id, prompt, eval_name``, and for each model its score in a column of its name, its answer in
``MODEL|model_response`` and its cost in usd in ``MODEL|total_cost``. It is published as a pickle, which is not read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from math import isnan
from pathlib import Path
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.grouping import BY_GROUP, question_hash
from stepladder.evaluate.importers.common import Gathering, Imported, cell, number, require
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.records import Record, files_of, read_records

WHAT = "RouterBench"
RESPONSE, COST = "|model_response", "|total_cost"


def read(paths: Iterable[str | Path], drop: frozenset[str] = frozenset(), split: str = BY_GROUP) -> Imported:
    """The outcomes in the files, CSV or Parquet; arguments and errors as ``routellm.read``.

    A model without a score for a prompt has no row there; how many these were is in ``left_out``.
    """
    found = Gathering(drop, split)
    files = [file for path in paths for file in files_of(path)]
    for file in files:
        for record in read_records(file):
            _read_row(record, found)
    return found.finish(", ".join(map(str, files)))


def _read_row(record: Record, found: Gathering) -> None:
    require(record, ("sample_id", "prompt", "eval_name"), WHAT)
    query_id = cell(record, "sample_id", "query_id", lambda value: str(value) if isinstance(value, int) else value)
    prompt = cell(record, "prompt", "prompt", _unlisted)
    if found.is_dropped(query_id, prompt):
        found.left_out["dropped"] += 1
        return
    for model in _models(record):
        if _is_missing(record.values[model]):
            found.left_out["no score"] += 1
            continue
        cost = _optional(record, f"{model}{COST}", "cost", number)
        row = OutcomeRow(
            query_id=query_id,
            model=model,
            quality=cell(record, model, "quality", number),
            dataset="routerbench",
            subset=cell(record, "eval_name", "subset"),
            prompt=prompt,
            metric="routerbench",
            cost=cost,
            cost_unit=None if cost is None else "usd",
            response=_optional(record, f"{model}{RESPONSE}", "response", _unlisted),
            group_id=question_hash(prompt),
        )
        found.add(row, record)


def _models(record: Record) -> list[str]:
    """The columns that a response or a cost stands beside."""
    names = [name for name in record.values if f"{name}{RESPONSE}" in record.values or f"{name}{COST}" in record.values]
    if not names:
        raise UsageError(f"{record.path}: is no table of {WHAT}: no model has a column MODEL{RESPONSE} or MODEL{COST}")
    return names


def _optional(record: Record, column: str, as_column: str, convert: Any) -> Any:
    return None if _is_missing(record.values.get(column)) else cell(record, column, as_column, convert)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and isnan(value))


def _unlisted(value: Any) -> Any:
    """The text in a list that was written as text ("['How …?']"), parts on lines of their own; else as it is."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        parts = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a text that only begins like a list
        return value
    is_texts = isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts)
    return "\n\n".join(parts) if is_texts else value
