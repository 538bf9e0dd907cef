"""What the answers so far tell of quality: one fixed block of columns for every stage of a ladder.

A signal that is not known has a value of its own, outside of the range that known ones have (UNKNOWN, and UNTOLD for
log probabilities, which are never above 0), rather than NaN. One split of a tree then sets it apart, on the side that
suits, and trees need no bit in every node that says where a missing number goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite, log1p
from typing import NamedTuple

from stepladder.types import Attempt

UNKNOWN = -1.0
"""A length, a count or a share that is not known."""

UNTOLD = 1.0
"""A mean log probability that is not known."""

LONGEST_FINAL = 200
"""Characters of a final answer that are kept, from its end."""

SIGNALS = ("answered", "tokens", "logprob", "parsed", "length", "cut", "refusal", "agreement")
"""Columns of one stage: answered (0 or 1), log(1 + output tokens), mean log probability of the tokens, whether there is
a final answer, log(1 + its characters), ended by the length limit, reads like a refusal, and the share of the other
stages that answered whose final answer is the same."""

_ABSENT = (0.0, UNKNOWN, UNTOLD, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
_OPENING = 200
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able|not sure)|i (?:can(?:no|')t|do(?: not|n't) know|won't|will not)"
    r"|as an ai\b|unable to (?:answer|help|assist)|cannot (?:answer|help|assist|be determined))",
    re.IGNORECASE,
)
_STATED = re.compile(r"\b(?:answer|option|choice|result)\b(?:\s+is)?\s*:?\s*(\S.*)$")
_EDGES = " \t\"'`*_.,;:!?()[]{}$\\"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class Signals(NamedTuple):
    """What one answer says by itself, in the order of SIGNALS, and ``final``, by which answers are compared."""

    tokens: float
    logprob: float
    parsed: float
    length: float
    cut: float
    refusal: float
    final: str


def names(stages: int) -> tuple[str, ...]:
    """The columns of ``numbers``: SIGNALS of every stage, then how many stages answered."""
    return (*(f"{signal} {stage}" for stage in range(stages) for signal in SIGNALS), "answers")


def answered(attempts: Sequence[Attempt], stages: Sequence[str]) -> dict[int, Signals]:
    """Signals of the answers by number of their stage.

    Attempts that failed, and stages that are not on the ladder, count as if nobody had asked. Of several answers of one
    stage the last counts.
    """
    place = {stage: number for number, stage in enumerate(stages)}
    good = (attempt for attempt in attempts if attempt.fault is None and attempt.stage in place)
    return {place[attempt.stage]: read(attempt) for attempt in good}


def read(attempt: Attempt) -> Signals:
    """What an answer says by itself. No output tokens, like no log probabilities, means that nobody counted them."""
    final, count = final_answer(attempt.text), attempt.usage.output_tokens
    return Signals(
        tokens=log1p(count) if count > 0 else UNKNOWN,
        logprob=_mean_logprob(attempt.logprobs),
        parsed=float(bool(final)),
        length=log1p(len(final)),
        cut=float(attempt.finish_reason == "length"),
        refusal=float(_REFUSAL.search(attempt.text, 0, _OPENING) is not None),
        final=normal(final),
    )


def _mean_logprob(told: Sequence[float] | None) -> float:
    mean = sum(told) / len(told) if told else UNTOLD
    return min(mean, 0.0) if told and isfinite(mean) else UNTOLD


def numbers(found: Mapping[int, Signals], stages: int) -> list[float]:
    """One value for each of ``names(stages)``. ``found`` maps a stage's number to the signals of its answer."""
    line: list[float] = []
    for stage in range(stages):
        signals = found.get(stage)
        line += _ABSENT if signals is None else (1.0, *signals[:-1], _agreement(stage, found))
    return [*line, float(len(found))]


def _agreement(stage: int, found: Mapping[int, Signals]) -> float:
    """Share of the other answers that are the same, UNKNOWN where there is no other. Nothing agrees with nothing."""
    if len(found) < 2:
        return UNKNOWN
    mine = found[stage].final
    same = sum(bool(mine) and other.final == mine for number, other in found.items() if number != stage)
    return same / (len(found) - 1)


def final_answer(text: str) -> str:
    """The last line that is not empty, where answers usually put what they came to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-LONGEST_FINAL:] if lines else ""


def normal(final: str) -> str:
    """A final answer as it is compared: what follows "answer is" or the last "=", in small letters, without the spaces,
    thousands commas, quotes and stops that say nothing."""
    plain = " ".join(final.casefold().split())
    stated = _STATED.search(plain)
    plain = (stated[1] if stated else plain).rpartition("=")[2]
    return _THOUSANDS.sub("", plain.strip(_EDGES))
