"""Benchmarks by name, as prompts to collect outcomes on: from files in the layouts that their authors published.

MMLU (Hendrycks et al. 2021), MMLU-Pro (Wang et al. 2024), GSM8K (Cobbe et al. 2021), HumanEval (Chen et al. 2021) and
MBPP (Austin et al. 2021). Every one is asked zero-shot, in the words that stand here; the grader goes with the task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.graders import numeric
from stepladder.evaluate.grouping import Numbering, chosen_split, question_hash
from stepladder.evaluate.problems import humaneval_prompt, mbpp_prompt
from stepladder.evaluate.prompts import Prompt, gathered
from stepladder.evaluate.records import Record, files_of, read_records

LETTER_TOKENS = 64
REASONING_TOKENS = 1024
CODE_TOKENS = 1024
"""Room for an answer: a letter with a few words around it, some lines of thought, a function."""

MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
"""Of the CSV files as their authors published them, which have no header; the subject is in the file's name."""

MMLU_ASKED = "Answer this multiple-choice question{about}. Reply with the letter of the right option alone."
MMLU_PRO_ASKED = (
    "Answer this multiple-choice question{about}. Think step by step, then end with a line of the form "
    '"Answer: X", where X is the letter of the right option.'
)
GSM8K_ASKED = (
    'Solve this problem step by step, then end with a line of the form "#### N", where N is the final number alone.'
)

_GSM8K_FINAL = re.compile(r"####\s*(\S+)\s*\Z")
_SUBJECT_FILE = re.compile(r"(?P<subject>.+)_(?:test|val|dev)")
_SPLIT_IN_NAME = re.compile(r"(?:^|[_-])(train|test|validation|val|dev)(?:[_.-]|$)")
_SPLIT_NAMES = {"val": "validation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: how a row becomes a prompt, how long an answer may be, and where a hub keeps its files.

    ``file`` names the hub's file with ``{split}`` in it; ``splits`` are those that there are, the usual one first.
    ``columns`` are those of its CSV files without a header; ``id_name`` is the key of its ids, None where it has none.
    """

    make: Callable[[Record], Prompt]
    tokens: int
    repo: str
    file: str
    splits: Sequence[str]
    columns: Sequence[str] | None = None
    id_name: str | None = None

    def hub_file(self, split: str | None) -> str:
        """The file of a split in the repository; raises UsageError for one that there is not."""
        if split is not None and split not in self.splits:
            raise UsageError(f"--split: {self.repo} has no split '{split}'; it has {', '.join(self.splits)}")
        return self.file.format(split=split or self.splits[0])


def load(task: str, path: str | Path, split: str | None = None) -> list[Prompt]:
    """The prompts of a benchmark from a file, or from all files of a folder in the order of their names.

    A prompt's split is ``split``; "by-group" draws it from the question (60/20/20); by default it is what the row or
    the file's name says, else none. Raises UsageError that names the file, the line and the key, MissingExtraError for
    Parquet without the extra [train], KeyError for a task that is not in ``BENCHMARKS``.
    """
    benchmark = BENCHMARKS[task]
    records = (record for file in files_of(path) for record in read_records(file, columns=benchmark.columns))
    make = benchmark.make if benchmark.id_name else _numbered(benchmark.make)
    prompts = gathered(path, records, make, id_name=benchmark.id_name or "the query", what="problems")
    return list(_finished(prompts, split))


def _numbered(make: Callable[[Record], Prompt]) -> Callable[[Record], Prompt]:
    """For benchmarks that hold some questions twice: the second of one id gets "#1" behind it."""
    numbering = Numbering()

    def numbered(record: Record) -> Prompt:
        prompt = make(record)
        return replace(prompt, query_id=numbering.unique(prompt.query_id))

    return numbered


def _finished(prompts: Iterable[Prompt], split: str | None) -> Iterator[Prompt]:
    choose = chosen_split(split)
    for prompt in prompts:
        yield replace(prompt, split=choose(prompt.group_id or prompt.query_id, prompt.split))


# ── MMLU and MMLU-Pro ────────────────────────────────────────────────────────


def mmlu_prompt(record: Record) -> Prompt:
    """One question: ``question, subject, choices, answer`` (0 to 3), or a line of the CSV files without a header."""
    values = record.values
    options = _texts(record, "choices") if "choices" in values else [_option_text(record, key) for key in "ABCD"]
    subject = _subject(record)
    question = _text(record, "question")
    listed = _listed(question, options)
    return Prompt(
        query_id=f"mmlu:{subject or 'any'}:{question_hash(listed)}",
        messages=_said(MMLU_ASKED, subject, listed),
        reference=_option(record, "answer", len(options)),
        grader="choice",
        dataset="mmlu",
        subset=subject,
        split=_split_in_name(record.path),
        group_id=question_hash(question),
        where=record.where,
    )


def mmlu_pro_prompt(record: Record) -> Prompt:
    """One question: ``question_id, question, options, answer, answer_index, category``."""
    number = record.values.get("question_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise _wrong(record, "question_id", "a whole number")
    options = _texts(record, "options")
    while len(options) > 2 and options[-1] == "N/A":  # the authors' filling, where a question has less than ten
        options.pop()
    answer = _option(record, "answer", len(options))
    if record.values.get("answer_index") not in {None, ascii_uppercase.index(answer)}:
        raise UsageError(f"{record.where}: answer is {answer}, answer_index {record.values['answer_index']!r}: not one")
    question, category = _text(record, "question"), _text(record, "category")
    return Prompt(
        query_id=f"mmlupro:{number}",
        messages=_said(MMLU_PRO_ASKED, category, _listed(question, options)),
        reference=answer,
        grader="choice",
        dataset="mmlu_pro",
        subset=category,
        split=_split_in_name(record.path),
        group_id=question_hash(question),
        where=record.where,
    )


def _said(asked: str, subject: str | None, listed: str) -> tuple[Mapping[str, Any], ...]:
    about = f" about {subject.replace('_', ' ')}" if subject and subject != "other" else ""
    return ({"role": "user", "content": f"{asked.format(about=about)}\n\n{listed}"},)


def _listed(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, *(f"{ascii_uppercase[place]}. {option}" for place, option in enumerate(options))])


def _subject(record: Record) -> str | None:
    """The row's, or of the authors' CSV files what the name says."""
    if record.values.get("subject") is not None:
        return _text(record, "subject") or None
    named = _SUBJECT_FILE.fullmatch(record.path.stem)
    return named["subject"] if named else None


def _option(record: Record, key: str, count: int) -> str:
    """The letter of the right option, given as a letter or a number from 0."""
    value = record.values.get(key)
    letters = ascii_uppercase[:count]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        return letters[value]
    if isinstance(value, str) and len(value) == 1 and value in letters:
        return value
    raise _wrong(record, key, f"a letter from A to {letters[-1]} or a number from 0 to {count - 1}")


# ── GSM8K ────────────────────────────────────────────────────────────────────


def gsm8k_prompt(record: Record) -> Prompt:
    """One problem: ``question, answer``, the answer's last line being "#### N"."""
    question, answer = _text(record, "question"), _text(record, "answer")
    final = _GSM8K_FINAL.search(answer)
    if final is None or not _is_number(final[1]):
        raise _wrong(record, "answer", 'a text that ends in "#### N", N a number')
    return Prompt(
        query_id=f"gsm8k:{question_hash(question)}",
        messages=({"role": "user", "content": f"{GSM8K_ASKED}\n\n{question}"},),
        reference=final[1].replace(",", ""),
        grader="numeric",
        dataset="gsm8k",
        split=_split_in_name(record.path),
        group_id=question_hash(question),
        where=record.where,
    )


def _is_number(text: str) -> bool:
    try:
        return numeric(text, text) == 1.0
    except ValueError:
        return False


# ── values ───────────────────────────────────────────────────────────────────


def _split_in_name(path: Path) -> str | None:
    """What a file's name says of its split: "test-00000-of-00001.parquet", "anatomy_val.csv", "train.jsonl"."""
    found = _SPLIT_IN_NAME.search(path.name)
    return _SPLIT_NAMES.get(found[1], found[1]) if found else None


def _text(record: Record, key: str) -> str:
    value = record.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(record, key, "a text that is not empty")
    return value.strip()


def _option_text(record: Record, key: str) -> str:
    if not isinstance(record.values.get(key), str):
        raise _wrong(record, key, "a text")
    return str(record.values[key])


def _texts(record: Record, key: str) -> list[str]:
    value = record.values.get(key)
    if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
        raise _wrong(record, key, "a list of 2 to 26 texts")
    if not all(isinstance(each, str) for each in value):
        raise _wrong(record, key, "a list of texts")
    return list(value)


def _wrong(record: Record, key: str, right: str) -> UsageError:
    if key not in record.values:
        return UsageError(f"{record.where}: has no {key}, which should be {right}")
    told = repr(record.values[key])
    return UsageError(f"{record.where}: {key} should be {right}, not {told if len(told) <= 80 else told[:79] + '…'}")


BENCHMARKS: Mapping[str, Benchmark] = {
    "mmlu": Benchmark(
        make=mmlu_prompt,
        tokens=LETTER_TOKENS,
        repo="cais/mmlu",
        file="all/{split}-00000-of-00001.parquet",
        splits=("test", "validation", "dev"),
        columns=MMLU_COLUMNS,
    ),
    "mmlu_pro": Benchmark(
        make=mmlu_pro_prompt,
        tokens=REASONING_TOKENS,
        repo="TIGER-Lab/MMLU-Pro",
        file="data/{split}-00000-of-00001.parquet",
        splits=("test", "validation"),
        id_name="question_id",
    ),
    "gsm8k": Benchmark(
        make=gsm8k_prompt,
        tokens=REASONING_TOKENS,
        repo="openai/gsm8k",
        file="main/{split}-00000-of-00001.parquet",
        splits=("test", "train"),
    ),
    "humaneval": Benchmark(
        make=humaneval_prompt,
        tokens=CODE_TOKENS,
        repo="openai/openai_humaneval",
        file="openai_humaneval/{split}-00000-of-00001.parquet",
        splits=("test",),
        id_name="task_id",
    ),
    "mbpp": Benchmark(
        make=mbpp_prompt,
        tokens=CODE_TOKENS,
        repo="google-research-datasets/mbpp",
        file="full/{split}-00000-of-00001.parquet",
        splits=("test", "train", "validation", "prompt"),
        id_name="task_id",
    ),
}
