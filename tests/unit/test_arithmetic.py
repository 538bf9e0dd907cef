"""What can be checked of an answer that calculates."""

from __future__ import annotations

import time
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.predictors.arithmetic import LONGEST, checked, numbers

SIGNS = "0123456789.,$%+-*/x×÷() =\n"


@pytest.mark.parametrize(
    ("answer", "equations", "wrong"),
    [
        ("200 * 1.45 = 290", 1, 0),
        ("200*1.45=<<200*1.45=290>>291", 1, 0),
        ("2 + 2 = 5", 1, 1),
        ("(600 / 3) * 200 = 40,000 calories", 1, 0),
        ("$1,200 - $200 = $1,000\nand 10% of that: 1000 * 10% = 100", 2, 0),
        ("1 / 3 = 0.33", 1, 0),
        ("-(3 - 5) = 2", 1, 0),
        ("x = 7", 0, 0),
        ("7 = 7", 0, 0),
        ("5 / 0 = 5", 0, 0),
        ("((1 + 2) = 3", 0, 0),
        ("no numbers here", 0, 0),
    ],
)
def test_equations_are_worked_out(answer: str, equations: int, wrong: int) -> None:
    found = checked(answer, "")
    assert (found.equations, found.wrong) == (equations, wrong)


def test_numbers_of_the_question_that_an_answer_uses() -> None:
    found = checked("3 boxes of 12 make 36", "Ann has 3 boxes of 12 pens and 5 friends.")
    assert (found.unused, found.used) == (1, 2 / 3)
    assert checked("anything", "no number").used == 1


def test_the_last_number() -> None:
    assert checked("so 7.5", "").whole == 0
    assert checked("so 7.0 or 1,024.", "").whole == 1
    assert checked("so 1,024.", "").size == 4
    assert checked("none", "") == (0, 0, 0, 1, 0, 0)
    assert numbers("1,024 and 3.5 and 2") == [1024, 3.5, 2]


@given(st.text(st.sampled_from(SIGNS), max_size=300) | st.text(max_size=300), st.text(max_size=60))
def test_any_text_has_finite_figures(answer: str, prompt: str) -> None:
    found = checked(answer, prompt)
    assert all(isfinite(value) and value >= 0 for value in found)
    assert found.wrong <= found.equations
    assert found.used <= 1


@pytest.mark.parametrize(
    "answer",
    [
        "1" * 667 + "=" + " " * 1332 + "z",
        "1" * LONGEST,
        "(" * LONGEST,
        " " * LONGEST,
        "1" + "-" * (LONGEST - 10) + "1=1",
        "1=" * (LONGEST // 2),
        "1+" * 900 + "1=2",
        "(" * 900 + "1" + ")" * 900 + "=1",
    ],
)
def test_no_answer_takes_long(answer: str) -> None:
    """Against an ordinary answer of the same length, so that it holds on any machine."""

    def took(text: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            checked(text, "1 2 3")
            times.append(time.perf_counter() - began)
        return min(times)

    ordinary = ("She has 3 * 4 = 12 apples and eats 2 of them, so 12 - 2 = 10. " * 40)[: len(answer)]
    assert took(answer) < 20 * took(ordinary)
