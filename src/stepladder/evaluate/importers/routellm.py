"""RouteLLM's released answers of two models to MMLU and GSM8K (Ong et al. 2024, arXiv 2406.18665).

Its CSV files have a column ``prompt`` and for each model one of True and False; those of GSM8K also the answers' texts
in ``MODEL_response``. MMLU's are one a subject, which their names say (``mmlu_anatomy.csv``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stepladder.errors import UsageError
from stepladder.evaluate.grouping import BY_GROUP, Numbering, question_hash
from stepladder.evaluate.importers.common import Gathering, Imported, cell, require, truth
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.records import Record, files_of, read_records

WHAT = "RouteLLM"
RESPONSE = "_response"
_OPTIONS = "\nA. "
_ASKED = "\nAnswer:"


def read(paths: Iterable[str | Path], drop: frozenset[str] = frozenset(), split: str = BY_GROUP) -> Imported:
    """The outcomes in the files and folders. ``drop`` holds ids or prompts to leave out, ``split`` as in ``Gathering``.

    Ids and groups are those that ``loaders`` gives the same questions. Raises UsageError naming file, line, column and
    value, and what would be right.
    """
    found = Gathering(drop, split)
    files = [file for path in paths for file in files_of(path)]
    for file in files:
        numbering = Numbering()  # MMLU holds some questions twice, within one subject
        for record in read_records(file):
            _read_row(record, found, numbering)
    return found.finish(", ".join(map(str, files)))


def _read_row(record: Record, found: Gathering, numbering: Numbering) -> None:
    require(record, ("prompt",), WHAT)
    prompt = cell(record, "prompt", "query_id")
    query_id, question, subject = _identity(record.path, prompt)
    query_id = numbering.unique(query_id)
    if found.is_dropped(query_id, prompt):
        found.left_out["dropped"] += 1
        return
    for model in _models(record):
        answered = f"{model}{RESPONSE}" in record.values
        row = OutcomeRow(
            query_id=query_id,
            model=model,
            quality=cell(record, model, "quality", truth),
            dataset="routellm_mmlu" if subject else "routellm_gsm8k",
            subset=subject or "gsm8k",
            prompt=prompt,
            metric="exact_match_5shot" if subject else "exact_match_8shot_cot",
            response=cell(record, f"{model}{RESPONSE}", "response") if answered else None,
            group_id=question_hash(question),
        )
        found.add(row, record)


def _models(record: Record) -> list[str]:
    names = [name for name in record.values if name != "prompt" and not name.endswith(RESPONSE)]
    if not names:
        raise UsageError(f"{record.path}: is no table of {WHAT}: no column but prompt names a model")
    return names


def _identity(file: Path, prompt: str) -> tuple[str, str, str | None]:
    """(id, bare question, MMLU's subject) of a prompt; MMLU's ask for an answer, GSM8K's are the question alone."""
    if not prompt.endswith(_ASKED):
        return f"gsm8k:{question_hash(prompt)}", prompt, None
    listed, subject = prompt.removesuffix(_ASKED), file.stem.removeprefix("mmlu_")
    return f"mmlu:{subject}:{question_hash(listed)}", listed.partition(_OPTIONS)[0], subject
