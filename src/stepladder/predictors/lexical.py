"""A text as a row of numbers that trees can split on: sizes, digits, signs, and how common its words are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log1p
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stepladder.predictors.grams import excerpt

WORDS_BITS = 14
WORDS = 1 << WORDS_BITS
"""Places of the table of word counts; two words that share one count as one."""

RARE = 4.6
"""Words with a smaller log count (about 100 groups of texts) are what a question is about rather than how it is put."""

SIGNS = "(),?+-*/"
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_FIRST, _LAST, _OF_RARE, _SMALLEST = 6, 2, 4, 3
_LONGEST_NUMBER = 9
_NONE, _COMMON = -1.0, 12.0

NAMES: tuple[str, ...] = (
    *("chars", "tokens", "words", "numbers", "capitals", "distinct_words", "repeated_tokens"),
    *("number_max", "number_min", "number_sum", "digits_max", "digits_sum", "last_digits", "carries"),
    *("word_mean", "word_max", "rare", "rare_chars", "rare_last", "rare_last_letters"),
    *(f"sign {sign}" for sign in SIGNS),
    *(f"number {i}" for i in range(_FIRST)),
    *(f"last digit {i}" for i in range(_FIRST)),
    *(f"number -{i}" for i in range(1, _LAST + 1)),
    *(f"rare length {i}" for i in range(_OF_RARE)),
    *(f"rare count {i}" for i in range(_OF_RARE)),
    *(f"count {i}" for i in range(_SMALLEST)),
    *("count_mean", "unseen", "seldom"),
)
"""The columns of ``numbers``. Lengths are in characters; counts are logs of the number of training groups that hold a
word, the smallest first."""


def place(word: str) -> int:
    """Where a word's count stands in the table."""
    return crc32(word.encode("utf-8", "surrogatepass")) & (WORDS - 1)


def tokens(text: str) -> list[str]:
    """Words, numbers and single signs of the excerpt of a text, in small letters."""
    return _TOKEN.findall(excerpt(text).lower())


def word_counts(groups: Iterable[Iterable[str]]) -> NDArray[np.float32]:
    """log(1 + number of groups of texts that hold a word), (WORDS,), by the words' places."""
    counts = np.zeros(WORDS)
    for texts in groups:
        counts[list({place(token) for text in texts for token in tokens(text) if token[0].isalpha()})] += 1
    return np.log1p(counts).astype(np.float32)


def numbers(text: str, counts: Sequence[float], *, known: bool = False) -> list[float]:
    """One value for each of NAMES. ``counts`` is ``word_counts`` as a list.

    ``known`` says that the text's group is one of those that were counted: its words then count once less, so that a
    fit sees of its texts what serving sees of new ones.
    """
    found = tokens(text)
    words = [token for token in found if token[0].isalpha()]
    drawn = [int(token[:_LONGEST_NUMBER]) for token in found if token[0].isdecimal()]
    logs = {word: _seen(counts[place(word)], known) for word in set(words)}
    rare = [word for word in words if logs[word] < RARE]
    return [
        *_sizes(text, found, words, drawn),
        *_digits(drawn),
        *_words(words, rare),
        *(float(text.count(sign)) for sign in SIGNS),
        *_places([float(number) for number in drawn], _FIRST),
        *_places([float(number % 10) for number in drawn], _FIRST),
        *_places([float(number) for number in drawn[::-1]], _LAST),
        *_places([float(len(word)) for word in rare], _OF_RARE),
        *_places([logs[word] for word in rare], _OF_RARE),
        *_commonness(sorted(logs.values())),
    ]


def _seen(log_count: float, known: bool) -> float:
    return log1p(max(float(np.expm1(log_count)) - 1.0, 0.0)) if known else log_count


def _sizes(text: str, found: list[str], words: list[str], drawn: list[int]) -> tuple[float, ...]:
    capitals = sum(character.isupper() for character in excerpt(text))
    sizes = (len(text), len(found), len(words), len(drawn), capitals, len(set(words)), len(found) - len(set(found)))
    return tuple(map(float, sizes))


def _digits(drawn: list[int]) -> tuple[float, ...]:
    digits = [len(str(number)) for number in drawn]
    last = [number % 10 for number in drawn]
    carries = sum(one + other >= 10 for one, other in pairwise(last))
    largest, smallest = (max(drawn), min(drawn)) if drawn else (_NONE, _NONE)
    return tuple(map(float, (largest, smallest, sum(drawn), max(digits, default=0), sum(digits), sum(last), carries)))


def _words(words: list[str], rare: list[str]) -> tuple[float, ...]:
    lengths = [len(word) for word in words]
    last = rare[-1] if rare else ""
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    longest = max(lengths, default=0)
    return tuple(map(float, (mean, longest, len(rare), sum(map(len, rare)), len(last), len(set(last)))))


def _commonness(logs: list[float]) -> list[float]:
    smallest = (logs + [_COMMON] * _SMALLEST)[:_SMALLEST]
    mean = sum(logs) / len(logs) if logs else _COMMON
    return [*smallest, mean, float(sum(log < 0.5 for log in logs)), float(sum(log < 4.0 for log in logs))]


def _places(values: list[float], count: int) -> list[float]:
    return (values + [_NONE] * count)[:count]
