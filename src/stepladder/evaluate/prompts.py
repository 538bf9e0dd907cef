"""The prompts that stages are asked for outcomes: from a file of JSON lines, or from graded tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from stepladder.errors import UsageError
from stepladder.evaluate.records import Record, read_lines
from stepladder.evaluate.tasks import Task
from stepladder.types import Request

ALIKE = 0.8
"""difflib's likeness from which an unknown key is taken for a slip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One query. ``reference`` is the right answer and ``grader`` who compares with it, where there are such.

    ``where`` says in a message where it came from; the other fields go into the outcomes table as they are.
    """

    query_id: str
    messages: tuple[Mapping[str, Any], ...]
    reference: str | None = None
    grader: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    group_id: str | None = None
    family: str | None = None
    level: str | None = None
    where: str = ""

    @property
    def text(self) -> str:
        """The question."""
        return Request("", messages=self.messages).text

    @property
    def is_plain(self) -> bool:
        """True where the question is all that is sent."""
        return self.messages == ({"role": "user", "content": self.text},)


def from_tasks(tasks: Iterable[Task], dataset: str) -> list[Prompt]:
    """Graded tasks as prompts."""
    return [
        Prompt(
            query_id=task.query_id,
            messages=_said(task.prompt),
            reference=task.answer,
            grader=task.grader,
            dataset=dataset,
            subset=task.family,
            split=task.split,
            group_id=task.group_id,
            family=task.family,
            level=task.level,
            where=f"task {task.query_id}",
        )
        for task in tasks
    ]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from JSON lines; raises UsageError that names the first bad line by number.

    Keys: ``prompt`` or ``messages``, and if wanted ``query_id`` (default: a hash of the messages), ``reference``,
    ``grader``, ``dataset``, ``subset``, ``split``, ``group_id``, ``family``, ``level``; others are ignored, unless they
    look like one of these: a split or a group that is lost by a slip would let training see what is judged.
    """
    return gathered(path, read_lines(path), _prompt, id_name="the query", what="prompts")


def gathered(
    path: str | Path, records: Iterable[Record], make: Callable[[Record], Prompt], *, id_name: str, what: str
) -> list[Prompt]:
    """A prompt of every record.

    Raises UsageError where an id comes twice (``id_name`` is what it is called there), or there is none of ``what``.
    """
    found: list[Prompt] = []
    known: dict[str, Record] = {}
    for record in records:
        prompt = make(record)
        first = known.setdefault(prompt.query_id, record)
        if first is not record:
            place = first.place if first.path == record.path else f"{first.place} of {first.path}"
            raise UsageError(f"{record.where}: {id_name} '{prompt.query_id}' stands on {place} already")
        found.append(prompt)
    if not found:
        raise UsageError(f"{path}: holds no {what}")
    return found


def _said(text: str) -> tuple[Mapping[str, Any], ...]:
    return ({"role": "user", "content": text},)


def _prompt(record: Record) -> Prompt:
    values, where = record.values, record.where
    _refuse_slips(values, where)
    messages = _messages(values, where)
    texts = {name: _text(values, name, where) for name in _TEXTS}
    query_id = texts.pop("query_id") or f"q-{blake2b(orjson.dumps(messages), digest_size=6).hexdigest()}"
    return Prompt(query_id=query_id, messages=messages, where=where, **texts)


def _refuse_slips(keys: Iterable[str], where: str) -> None:
    known = ("prompt", "messages", *_TEXTS)
    for key in keys:
        close = () if key in known else get_close_matches(key, known, n=1, cutoff=ALIKE)
        if close:
            raise UsageError(f"{where}: there is no key '{key}'; did you mean '{close[0]}'?")


_TEXTS = ("query_id", "reference", "grader", "dataset", "subset", "split", "group_id", "family", "level")


def _text(values: Mapping[str, Any], name: str, where: str) -> str | None:
    """A text that may be missing; a bare number is as good."""
    value = values.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UsageError(f"{where}: {name} should be a text, not {value!r}")


def _messages(values: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    prompt, messages = values.get("prompt"), values.get("messages")
    if (prompt is None) == (messages is None):
        raise UsageError(f"{where}: needs either 'prompt' or 'messages'")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(f"{where}: prompt should be a text that is not empty, not {prompt!r}")
        return _said(prompt)
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UsageError(f"{where}: messages should be a list of objects that is not empty")
    return tuple(messages)
