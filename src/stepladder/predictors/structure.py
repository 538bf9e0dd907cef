"""How a question is put, as numbers: its options, its kind, its code and mathematics. Nothing of what it is about."""

from __future__ import annotations

import re
from collections import Counter
from math import log1p, log2
from statistics import fmean, pstdev

READ_CHARS = 4000
MOST_OPTIONS = 30

_OPTION = re.compile(r"(?m)^[ \t]*\(?([A-J])[.):][ \t]+(.*)$")
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
_NO_LETTERS = re.compile(r"[\W\d_]*")
_NEGATIONS = ("no", "not", "never", "cannot", "none", "neither", "except", "least", "false")
_CODE = ("def ", "return ", "class ", "import ", "print(", "==", "->", "=>", ";\n", "{\n")
_QUESTION = ("what", "which", "how", "why", "who", "when", "where", "if", "find", "write", "calculate", "true")
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DIGITS, _CAPITALS = b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SIGNS = bytes(code for code in range(33, 127) if not chr(code).isalnum())
_LONGEST_NUMBER = 15

NAMES: tuple[str, ...] = (
    *("options", "option mean", "option max", "option min", "option spread", "option echo", "option variety"),
    *("option numeric", "option numbers", "stem words", "stem chars"),
    *("lines", "questions", "latex", "code", "negations", "percent", "dollar", "blank", "not ascii", "digits share"),
    *("capitals share", "signs share", "word length", "variety", "entropy", "numbers", "largest number", "all above"),
    *(f"asks {word}" for word in _QUESTION),
)
"""The columns of ``structure``. Lengths are in characters, shares in [0, 1], entropy in bits a word."""


def structure(text: str) -> list[float]:
    """One value for each of NAMES, of the first READ_CHARS characters."""
    read = text[:READ_CHARS]
    found = _OPTION.findall(read)[:MOST_OPTIONS] if "\n" in read else []
    stem = _OPTION.split(read, maxsplit=1)[0] if found else read
    stem_words = _WORD.findall(stem.lower())
    words = set(stem_words)
    return [
        *_options([option for _, option in found], words),
        *(float(len(words)), float(len(stem))),
        *_signs(read, stem, stem_words),
        *_words(read),
        *(float(word in words) for word in _QUESTION),
    ]


def _options(options: list[str], stem: set[str]) -> tuple[float, ...]:
    if not options:
        return (0.0,) * 9
    lengths = [float(len(option)) for option in options]
    words = [set(_WORD.findall(option.lower())) for option in options]
    mean = fmean(lengths)
    total = sum(map(len, words))
    numbers = [float(number[:_LONGEST_NUMBER]) for number in _NUMBER.findall(" ".join(options))[:MOST_OPTIONS]]
    return (
        float(len(options)),
        mean,
        max(lengths),
        min(lengths),
        pstdev(lengths) / (1 + mean),
        fmean(len(each & stem) / (1 + len(each)) for each in words),
        len(set().union(*words)) / (1 + total),
        fmean(_NO_LETTERS.fullmatch(option) is not None for option in options),
        log1p(pstdev(numbers)) if numbers else -1.0,
    )


def _signs(read: str, stem: str, stem_words: list[str]) -> tuple[float, ...]:
    return (
        float(read.count("\n")),
        float(read.count("?")),
        float(read.count("\\") + read.count("$")),
        float(sum(map(read.count, _CODE))),
        float(sum(map(stem_words.count, _NEGATIONS)) + stem.count("n't")),
        float("%" in read),
        float("$" in read),
        float("__" in read),
    )


def _words(read: str) -> tuple[float, ...]:
    data, lower = read.encode("utf-8", "replace"), read.lower()
    size = max(len(data), 1)
    words = lower.split()
    count = max(len(words), 1)
    many = Counter(words).values()
    numbers = [float(number[:_LONGEST_NUMBER]) for number in _PLAIN_NUMBER.findall(read)[:MOST_OPTIONS]]
    return (
        float(len(data) - len(read)),
        *(1 - len(data.translate(None, letters)) / size for letters in (_DIGITS, _CAPITALS, _SIGNS)),
        sum(map(len, words)) / count,
        len(many) / count,
        log2(count) - sum(times * log2(times) for times in many if times > 1) / count,
        float(len(numbers)),
        log1p(max(numbers, default=0.0)),
        float("all of the above" in lower or "none of the above" in lower),
    )
