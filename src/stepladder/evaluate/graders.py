"""Graders: pure functions (answer text, reference) -> quality in [0, 1], also reachable by name through `grade`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stepladder.evaluate.code import humaneval, mbpp
from stepladder.evaluate.text_scores import bleu, chrf, meteor, meteor_exact_stem

Grader = Callable[[str, str], float]

# A number with an optional sign, thousands commas and decimals. The sign counts only where no digit or word stands
# before it, so that "9-5" ends in 5, not in -5.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?\.\d+")
_WORD = re.compile(r"\w+")
# An option's letter stands alone. An "a" or "I" that a small word follows is an article or a pronoun, no option.
_ALONE = r"(?![aAiI]\s+[a-z])([A-Za-z])(?:\W|$)"
_LEADING_LETTER = re.compile(rf"^\W*{_ALONE}")
_NAMED_LETTER = re.compile(rf"\b(?i:answer|option|choice)\b(?i:\s+is)?\W*{_ALONE}")
_FINAL_LETTER = re.compile(rf"\b(?i:answer)\b(?i:\s+is)?(?i:\W+(?:option|choice)\b)?\W*{_ALONE}[^\n]*\s*\Z")

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9


def exact(text: str, reference: str) -> float:
    """1.0 if both texts are equal after folding case and white space and dropping quotes and stops at the ends."""
    return float(_plain(text) == _plain(reference))


def numeric(text: str, reference: str) -> float:
    """1.0 if the last number of `text` equals the last number of `reference`.

    Equal means |a - b| <= max(1e-9, 1e-6 * |b|), so 0.5, .50 and 1,000 against 1000 agree, 3.14 and 3.1416 do not.
    A text without a number scores 0.0. Raises ValueError if the reference holds no number.
    """
    expected = _last_number(reference)
    if expected is None:
        raise ValueError(f"the reference holds no number: {reference!r}")
    found = _last_number(text)
    if found is None:
        return 0.0
    return float(abs(found - expected) <= max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * abs(expected)))


def choice(text: str, reference: str) -> float:
    """1.0 if the option letter that `text` gives is the reference's ("B", "(b)", "B. Paris", "The answer is B").

    A letter that the last line names after "answer" counts first, then one at the start that stands alone, then one
    after "answer", "option" or "choice": so both a bare letter and reasoning that ends in "Answer: B" are read.
    Raises ValueError if the reference names no letter.
    """
    expected = _letter(reference)
    if expected is None:
        raise ValueError(f"the reference names no option letter: {reference!r}")
    return float(_letter(text) == expected)


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-cased words (ROUGE-L, Lin 2004, with equal weight on both sides).

    Two texts without any word score 1.0, one without words against one with words 0.0.
    """
    found, expected = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    if not found or not expected:
        return float(found == expected)
    return 2.0 * _common_length(found, expected) / (len(found) + len(expected))


GRADERS: dict[str, Grader] = {
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
    "meteor": meteor,
    "meteor_exact_stem": meteor_exact_stem,
    "humaneval": humaneval,
    "mbpp": mbpp,
}


def grade(name: str, text: str, reference: str) -> float:
    """Quality of `text` under the grader called `name`; ValueError names the valid graders if there is no such one."""
    grader = GRADERS.get(name)
    if grader is None:
        raise ValueError(f"unknown grader {name!r}; the graders are: {', '.join(sorted(GRADERS))}")
    return grader(text, reference)


def _plain(text: str) -> str:
    # Stripping may bare white space at the ends again, hence the second strip in the same set.
    return " ".join(text.casefold().split()).strip(" \"'`.!")


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _letter(text: str) -> str | None:
    found = _FINAL_LETTER.search(text) or _LEADING_LETTER.match(text) or _NAMED_LETTER.search(text)
    return found.group(1).upper() if found else None


def _common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(right) + 1)
    for item in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if item == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
