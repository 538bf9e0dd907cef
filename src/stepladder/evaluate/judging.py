"""How answers get their quality where they are collected: by reference, by a judge, or by agreement between stages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepladder.errors import UsageError, nearest
from stepladder.evaluate.graders import GRADERS, exact, grade
from stepladder.evaluate.prompts import Prompt
from stepladder.predictors.history import final_answer

TOP_GRADE = 10.0
_GRADE = re.compile(r"(?<![\d.,-])(\d+(?:\.\d+)?)(?![\d,]|\.\d|\s*%)")


def check_gradable(prompts: Iterable[Prompt], grader: str | None) -> None:
    """Raise UsageError naming the first prompt whose answers could not be graded by reference.

    ``grader`` is the one for all prompts, None where each names its own.
    """
    for prompt in prompts:
        if prompt.reference is None:
            raise UsageError(
                f"{prompt.where}: the query '{prompt.query_id}' has no reference answer to grade by; "
                "give one, or --judge STAGE, or --agreement"
            )
        name = grader or prompt.grader
        if name is None:
            known = ", ".join(GRADERS)
            raise UsageError(f"{prompt.where}: names no grader; name one there or give --grader NAME ({known})")
        if name not in GRADERS:
            raise UsageError(f"{prompt.where}: there is no grader '{name}'; {nearest(name, tuple(GRADERS))}")
        try:
            grade(name, "", prompt.reference)
        except ValueError as error:
            raise UsageError(f"{prompt.where}: the grader '{name}' cannot use it: {error}") from error


def by_reference(prompt: Prompt, answer: str, grader: str | None) -> tuple[float, str]:
    """(quality, grader's name) of an answer to a prompt that passed ``check_gradable``."""
    name = grader or prompt.grader or ""
    return grade(name, answer, prompt.reference or ""), name


def by_agreement(prompt: Prompt, answer: str, others: Sequence[str]) -> float | None:
    """Share of the other answers whose final answer is the same; None where there is no other."""
    if not others:
        return None
    return sum(_agree(final_answer(answer), final_answer(other), prompt.grader) for other in others) / len(others)


def _agree(left: str, right: str, grader: str | None) -> bool:
    if exact(left, right) == 1.0:
        return True
    if grader not in GRADERS:
        return False
    try:
        return grade(grader, left, right) == 1.0 == grade(grader, right, left)
    except ValueError:  # the grader finds in one of them nothing to compare with
        return False


def judge_messages(prompt: Prompt, answer: str) -> tuple[Mapping[str, Any], ...]:
    """What a judge is asked about one answer."""
    question = "\n\n".join(f"[{message.get('role', 'user')}] {_content(message)}" for message in prompt.messages)
    parts = [
        "Judge how well the answer serves the question: 10 is right and complete, 0 is wrong or useless.",
        f"Question:\n{prompt.text if prompt.is_plain else question}",
        *([] if prompt.reference is None else [f"The right answer, for comparison:\n{prompt.reference}"]),
        f"Answer to be judged:\n{answer}",
        "Reply with one number from 0 to 10 and nothing else.",
    ]
    return ({"role": "user", "content": "\n\n".join(parts)},)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else str(content)


def parse_grade(text: str) -> float | None:
    """Quality in [0, 1] from a judge's reply ("7", "Grade: 8.5", "9/10"); None where it holds no grade from 0 to 10."""
    found = _GRADE.search(text)
    if found is None or float(found[1]) > TOP_GRADE:
        return None
    return float(found[1]) / TOP_GRADE
