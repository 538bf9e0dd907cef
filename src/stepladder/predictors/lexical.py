"""A text as a row of numbers that trees can split on: sizes, digits, signs, and how common its words are."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import log1p
from typing import NamedTuple
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


def packed(counts: NDArray[np.float64]) -> Sequence[float]:
    """The counts for ``numbers``, which looks up some dozens at places far apart: side by side they lie in a quarter of
    the memory of a list's numbers, and are looked up as quickly."""
    return array("d", counts.tolist())


def numbers(text: str, counts: Sequence[float], *, known: bool = False) -> list[float]:
    """One value for each of NAMES. ``counts`` is ``word_counts`` as a list, or ``packed``.

    ``known`` says that the text's group is one of those that were counted: its words then count once less, so that a
    fit sees of its texts what serving sees of new ones.
    """
    read = excerpt(text)
    found = _plain(read, counts) if read.isascii() else _any(read, counts)
    logs = found.logs
    if known:
        logs = {word: _less_one(log) for word, log in logs.items()}
    words, drawn = found.words, found.drawn
    rare = [word for word in words if logs[word] < RARE]
    first = rare[:_OF_RARE]
    signs = found.signs if len(text) == len(read) else text
    return [
        float(len(text)),
        float(found.tokens),
        float(len(words)),
        float(len(drawn)),
        float(found.capitals),
        float(len(logs)),
        float(found.tokens - found.different),
        *(_digits(drawn) if drawn else _NO_DIGITS),
        *_words(words, rare),
        *map(signs.count, SIGNS),
        *(_drawn(drawn) if drawn else _NONE_DRAWN),
        *map(len, first),
        *_MISSING[len(first) : _OF_RARE],
        *[logs[word] for word in first],
        *_MISSING[len(first) : _OF_RARE],
        *_commonness(sorted(logs.values())),
    ]


class _Found(NamedTuple):
    """What an excerpt is made of: its ``words`` in small letters (bytes where it is ASCII) and the log count of each;
    the values of its numbers; its single signs; how many ``tokens`` and how many ``different`` ones these are; and how
    many capital letters it has."""

    words: Sequence[str | bytes]
    logs: Mapping[str | bytes, float]
    drawn: list[int]
    signs: str
    tokens: int
    different: int
    capitals: int


def _plain(read: str, counts: Sequence[float]) -> _Found:
    """Of ASCII: tables that map each character to another do what ``_any`` does by a pattern, and much quicker."""
    data = read.encode("ascii")
    small = data.lower()
    words = small.translate(_LETTERS_ALONE).split()
    drawn = small.translate(_DIGITS_ALONE).split()
    signs = small.translate(None, _NO_SIGNS)
    logs: dict[str | bytes, float] = {word: counts[crc32(word) & _MASK] for word in set(words)}
    return _Found(
        words,
        logs,
        [int(number[:_LONGEST_NUMBER]) for number in drawn],
        signs.decode("ascii"),
        len(words) + len(drawn) + len(signs),
        len(logs) + len(set(drawn)) + len(set(signs)),
        len(data) - len(data.translate(None, _CAPITALS)),
    )


def _any(read: str, counts: Sequence[float]) -> _Found:
    found = _TOKEN.findall(read.lower())
    words = [token for token in found if token[0].isalpha()]
    return _Found(
        words,
        {word: counts[place(word)] for word in set(words)},
        [int(token[:_LONGEST_NUMBER]) for token in found if token[0].isdecimal()],
        read,
        len(found),
        len(set(found)),
        sum(map(str.isupper, read)),
    )


def _only(kept: bytes) -> bytes:
    """A table that makes spaces of all bytes but these."""
    return bytes(code if code in kept else 32 for code in range(256))


_MASK, _MISSING = WORDS - 1, (_NONE,) * _FIRST
_CAPITALS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS_ALONE, _DIGITS_ALONE = _only(b"abcdefghijklmnopqrstuvwxyz"), _only(b"0123456789")
_NO_SIGNS = bytes(code for code in range(128) if chr(code).isalnum() or chr(code).isspace() or code == ord("_"))
_NO_DIGITS, _NONE_DRAWN = (_NONE, _NONE, 0.0, 0.0, 0.0, 0.0, 0.0), (_NONE,) * (2 * _FIRST + _LAST)
_NO_WORDS = (0.0,) * 6
_NO_COMMONNESS = [_COMMON] * (_SMALLEST + 1) + [0.0, 0.0]


def _less_one(log_count: float) -> float:
    return log1p(max(float(np.expm1(log_count)) - 1.0, 0.0))


def _digits(drawn: list[int]) -> tuple[float, ...]:
    digits = [len(str(number)) for number in drawn]
    last = [number % 10 for number in drawn]
    carries = sum(one + other >= 10 for one, other in pairwise(last))
    return tuple(map(float, (max(drawn), min(drawn), sum(drawn), max(digits), sum(digits), sum(last), carries)))


def _drawn(drawn: list[int]) -> list[int | float]:
    last = [number % 10 for number in drawn[:_FIRST]]
    return [*_places(drawn, _FIRST), *_places(last, _FIRST), *_places(drawn[: -_LAST - 1 : -1], _LAST)]


def _words(words: Sequence[str | bytes], rare: Sequence[str | bytes]) -> tuple[float, ...]:
    if not words:
        return _NO_WORDS
    lengths, last = list(map(len, words)), rare[-1] if rare else ""
    return (
        sum(lengths) / len(lengths),
        float(max(lengths)),
        float(len(rare)),
        float(sum(map(len, rare))),
        float(len(last)),
        float(len(set(last))),
    )


def _commonness(logs: list[float]) -> list[float]:
    """Of sorted logs."""
    if not logs:
        return _NO_COMMONNESS
    smallest = (logs[:_SMALLEST] + [_COMMON] * _SMALLEST)[:_SMALLEST]
    return [*smallest, sum(logs) / len(logs), float(bisect_left(logs, 0.5)), float(bisect_left(logs, 4.0))]


def _places(values: Sequence[int], count: int) -> list[int | float]:
    return [*values[:count], *_MISSING[min(len(values), count) : count]]
