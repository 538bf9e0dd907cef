"""Which questions are one question, and on which side of a split it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha1, sha256

_NOT_WORDS = re.compile(r"[\W_]+")
TRAIN, VALIDATION = 60, 80
"""Percentiles: below the first is train, below the second validation, the rest test."""


def question_hash(question: str) -> str:
    """Twelve hexadecimal digits that questions share which differ in case, white space and punctuation alone.

    As a ``group_id`` it is the same in every table and benchmark that a bare question (no options, no instructions)
    turns up in, so that what is trained on one is not judged on the same question in another.
    """
    return sha1(_NOT_WORDS.sub(" ", question.lower()).strip().encode(), usedforsecurity=False).hexdigest()[:12]


def split_of(group_id: str) -> str:
    """train (60 %), validation (20 %) or test (20 %), drawn from the group: a question is never on two sides."""
    place = int.from_bytes(sha256(group_id.encode()).digest(), "big") % 100
    return "train" if place < TRAIN else "validation" if place < VALIDATION else "test"


BY_GROUP = "by-group"
"""What is given for a split's name where ``split_of`` should choose it."""


def chosen_split(named: str | None) -> Callable[[str, str | None], str | None]:
    """(group, its source's split) -> split: the named one, ``split_of`` for "by-group", the source's where none is."""
    if named == BY_GROUP:
        return lambda group, own: split_of(group)
    return lambda group, own: own if named is None else named


class Numbering:
    """Ids of rows that have none of their own: where an id comes again, "#1", "#2" and so on are put behind it."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """The id, and its number from the second time on."""
        again = self._seen.get(name, -1) + 1
        self._seen[name] = again
        return f"{name}#{again}" if again else name
