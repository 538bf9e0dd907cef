"""Training rows for the nano models: tasks of the split "nano-train", tokenized, made by many processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import vocabulary as v
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stepladder.evaluate.tasks import Level, Split, Task
from stepladder.evaluate.tasks.nano import draw

LEVELS: tuple[Level, ...] = ("simple", "medium", "complex")
ROW_LEVEL_SHARES = (0.30, 0.30, 0.40)
# Families that take longer to learn are shown more often than they are asked.
FAMILY_SHARES = {
    "facts": 0.25,
    "choice": 0.14,
    "arithmetic": 0.12,
    "strings": 0.14,
    "dates": 0.12,
    "units": 0.06,
    "logic": 0.10,
    "expressions": 0.07,
}
# A second question after a first answer, so that a conversation does not confuse the models.
SECOND_TURN_SHARE = 0.03
LENGTHS = (32, 48, 72, 112, 200)
WINDOWS = (8, 24, 56)
CHUNK = 20_000


class Row(NamedTuple):
    """One example: all token ids, where the last answer starts, and its level (index into LEVELS)."""

    ids: list[int]
    start: int
    level: int


@dataclass(slots=True)
class Bucket:
    """Rows padded to one length whose answers fit one window.

    ids: int16 (rows, length); starts: int16 (rows,), index of the first answer token; sizes: int16 (rows,), tokens
    before padding; levels: int8 (rows,). The answer of row i is ids[i, starts[i] : sizes[i]], its end token included.
    """

    window: int
    ids: NDArray[np.int16]
    starts: NDArray[np.int16]
    sizes: NDArray[np.int16]
    levels: NDArray[np.int8]


def random_task(rng: Random, split: Split) -> Task:
    """A task with the corpus's shares of levels and the tasks' own shares of families."""
    level = rng.choices(LEVELS, ROW_LEVEL_SHARES)[0]
    family = rng.choices(list(FAMILY_SHARES), list(FAMILY_SHARES.values()))[0]
    return draw(rng, split, family, level)


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Texts from which the tokenizer learns its merges."""
    rng = Random(f"tokenizer/{seed}")
    for _ in range(count):
        task = random_task(rng, "nano-train")
        yield task.prompt
        yield task.answer


def target(task: Task) -> str:
    """What a model learns to say: the reference answer, and for a choice among words the word before its letter.

    Saying the word first lets the model recall it as for an open question and then look up its letter. The symbols of
    elements can look like letters of options, so they keep the bare letter.
    """
    if task.grader != "choice" or task.group_id.startswith("element:"):
        return task.answer
    found = re.search(rf"\b{task.answer}\) (.*?)(?= [A-D]\) |[.?!]* (?:Which|Thank|Please)|[.?!]*$)", task.prompt, re.I)
    return f"It is {found.group(1)}; answer {task.answer}" if found else task.answer


def encode(tokenizer: Tokenizer, tasks: Sequence[Task]) -> list[Row]:
    """Rows as the chat template renders them: user, question, end, assistant, answer, end."""
    prompts = tokenizer.encode_batch_fast([task.prompt for task in tasks], add_special_tokens=False)
    answers = tokenizer.encode_batch_fast([target(task) for task in tasks], add_special_tokens=False)
    rows: list[Row] = []
    for task, prompt, answer in zip(tasks, prompts, answers, strict=True):
        head = [v.USER_ID, *prompt.ids, v.END_ID, v.ASSISTANT_ID]
        rows.append(Row([*head, *answer.ids, v.END_ID], len(head), LEVELS.index(task.level)))
    return rows


def with_second_turns(rng: Random, rows: list[Row]) -> list[Row]:
    """Put an earlier question and answer before a few of the rows."""
    done: list[Row] = []
    for row in rows:
        first = rng.choice(rows) if rng.random() < SECOND_TURN_SHARE else None
        if first is not None and len(first.ids) + len(row.ids) <= LENGTHS[-1]:
            done.append(Row(first.ids + row.ids, len(first.ids) + row.start, row.level))
        else:
            done.append(row)
    return done


def fit(value: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `value`; ValueError if none does."""
    for size in sizes:
        if value <= size:
            return size
    raise ValueError(f"{value} tokens do not fit {sizes[-1]}")


def into_buckets(rows: Sequence[Row]) -> dict[tuple[int, int], Bucket]:
    """Rows sorted into (length, window) buckets."""
    sorted_rows: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        key = fit(len(row.ids), LENGTHS), fit(len(row.ids) - row.start, WINDOWS)
        sorted_rows.setdefault(key, []).append(row)
    return {key: _bucket(key, group) for key, group in sorted_rows.items()}


def _bucket(key: tuple[int, int], rows: Sequence[Row]) -> Bucket:
    length, window = key
    ids = np.full((len(rows), length), v.PAD_ID, dtype=np.int16)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row.ids)] = row.ids
    starts = np.array([row.start for row in rows], dtype=np.int16)
    sizes = np.array([len(row.ids) for row in rows], dtype=np.int16)
    return Bucket(window, ids, starts, sizes, np.array([row.level for row in rows], dtype=np.int8))


@cache
def _loaded(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def _chunk(job: tuple[str, int, int]) -> dict[tuple[int, int], Bucket]:
    path, seed, index = job
    rng = Random(f"corpus/{seed}/{index}")
    tasks = [random_task(rng, "nano-train") for _ in range(CHUNK)]
    return into_buckets(with_second_turns(rng, encode(_loaded(path), tasks)))


def merged(parts: Sequence[Bucket]) -> Bucket:
    """Several buckets of one length and window as one."""
    return Bucket(
        parts[0].window,
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.levels for part in parts]),
    )


def build(tokenizer_path: Path, seed: int, rows: int, workers: int) -> list[Bucket]:
    """About `rows` training rows, in buckets; the same seed gives the same rows whatever the number of workers."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    jobs = [(str(tokenizer_path), seed, index) for index in range(max(1, rows // CHUNK))]
    parts: dict[tuple[int, int], list[Bucket]] = {}
    with get_context("spawn").Pool(workers) as pool:
        for made in pool.imap(_chunk, jobs):
            for key, bucket in made.items():
                parts.setdefault(key, []).append(bucket)
    return [merged(parts[key]) for key in sorted(parts)]


def kept_or_built(kept: Path, tokenizer_path: Path, seed: int, rows: int, workers: int) -> list[Bucket]:
    """The rows saved at `kept` if they were made from the same tokenizer, seed and number; else built and saved."""
    made_from = f"{sha256(tokenizer_path.read_bytes()).hexdigest()} {seed} {rows}"
    if kept.exists():
        with np.load(kept) as saved:
            if str(saved["made_from"]) == made_from:
                return [_saved_bucket(saved, index) for index in range(int(saved["count"]))]
    buckets = build(tokenizer_path, seed, rows, workers)
    arrays = {f"{i}.{name}": value for i, b in enumerate(buckets) for name, value in asdict(b).items()}
    np.savez(kept, made_from=made_from, count=len(buckets), **arrays)
    return buckets


def _saved_bucket(saved: Mapping[str, NDArray[Any]], index: int) -> Bucket:
    values = {field.name: saved[f"{index}.{field.name}"] for field in fields(Bucket)}
    return Bucket(**{**values, "window": int(values["window"])})
