"""What can be checked of an answer that calculates: whether its equations hold, and which numbers of the question it
used. Nothing is run: sums are worked out here, sign by sign."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 2000
MOST_EQUATIONS = 40
MOST_NUMBERS = 100
CLOSE = 0.006
"""How far a result may lie from the sum, as a share of it or absolutely: answers round to cents."""

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_EQUATION = re.compile(r"(?<![\d.,$%+\-*/x×÷() \t])([\d.,$%+\-*/x×÷() \t]++)=[ \t]*+\$?+[ \t]*+(-?\d[\d,]*(?:\.\d+)?)")
"""Possessive, and never begun within a run of what a sum may hold: no sign is read more than a few times."""

_PIECE = re.compile(r"\d+(?:\.\d+)?|[-+*/()%]")
_PLAIN = str.maketrans({"x": "*", "×": "*", "÷": "/", ",": None, "$": None, " ": None, "\t": None})
_DEEPEST = 20


class Checked(NamedTuple):
    """``equations`` that could be worked out and how many are ``wrong``; ``unused`` numbers of the question, and the
    share ``used``; the answer's last number: is it ``whole``, and its ``size`` (log10, 0 where there is none)."""

    equations: float
    wrong: float
    unused: float
    used: float
    whole: float
    size: float


def checked(answer: str, prompt: str) -> Checked:
    """What the first LONGEST characters of an answer show. The last number is that of the answer's end."""
    read = answer[:LONGEST]
    results = [_holds(left, right) for left, right in _equations(read)]
    told = [holds for holds in results if holds is not None]
    asked, found = set(numbers(prompt)), set(numbers(read))
    last = numbers(answer[-200:])[-1:]
    return Checked(
        equations=float(len(told)),
        wrong=float(told.count(False)),
        unused=float(len(asked - found)),
        used=len(asked & found) / len(asked) if asked else 1.0,
        whole=float(bool(last) and last[0] == int(last[0])),
        size=float(len(str(int(last[0])))) if last else 0.0,
    )


def numbers(text: str) -> list[float]:
    """The numbers of a text, thousands commas aside."""
    return [float(found.replace(",", "")[:18]) for found in _NUMBER.findall(text)[:MOST_NUMBERS]]


def _equations(text: str) -> Iterator[tuple[str, str]]:
    for number, found in enumerate(_EQUATION.finditer(text)):
        if number == MOST_EQUATIONS:
            return
        yield found[1], found[2]


def _holds(left: str, right: str) -> bool | None:
    """Whether a sum comes to what is said; None where it is no sum, or cannot be worked out."""
    pieces = _PIECE.findall(left.translate(_PLAIN))
    if not any(piece in "+-*/" for piece in pieces):
        return None
    try:
        value, rest = _sum(pieces, 0, 0)
    except (ValueError, ZeroDivisionError, IndexError, OverflowError):
        return None
    if rest != len(pieces):
        return None
    said = float(right.replace(",", "")[:18])
    return abs(value - said) <= CLOSE * max(1.0, abs(value))


def _sum(pieces: list[str], at: int, deep: int) -> tuple[float, int]:
    """Value of the sum that begins at a piece, and where it ends."""
    value, at = _product(pieces, at, deep)
    while at < len(pieces) and pieces[at] in "+-":
        term, end = _product(pieces, at + 1, deep)
        value = value + term if pieces[at] == "+" else value - term
        at = end
    return value, at


def _product(pieces: list[str], at: int, deep: int) -> tuple[float, int]:
    value, at = _factor(pieces, at, deep)
    while at < len(pieces) and pieces[at] in "*/":
        factor, end = _factor(pieces, at + 1, deep)
        value = value * factor if pieces[at] == "*" else value / factor
        at = end
    return value, at


def _factor(pieces: list[str], at: int, deep: int) -> tuple[float, int]:
    if pieces[at] == "(":
        if deep == _DEEPEST:
            raise ValueError("brackets within brackets")
        value, at = _sum(pieces, at + 1, deep + 1)
        if pieces[at] != ")":
            raise ValueError("a bracket is left open")
        at += 1
    elif pieces[at] == "-":
        if deep == _DEEPEST:
            raise ValueError("signs upon signs")
        value, at = _factor(pieces, at + 1, deep + 1)
        value = -value
    else:
        value, at = float(pieces[at]), at + 1
    while at < len(pieces) and pieces[at] == "%":
        value, at = value / 100, at + 1
    return value, at
