"""How a question is put, by hand, and for any text."""

from __future__ import annotations

from math import isfinite, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.predictors.structure import MOST_OPTIONS, NAMES, READ_CHARS, structure

QUESTION = "Which of these is NOT a prime?\n(A) 2\n(B) 15\n(C) 7 is prime\n(D) none of the above"


def of(text: str) -> dict[str, float]:
    return dict(zip(NAMES, structure(text), strict=True))


@given(st.one_of(st.text(max_size=300), st.sampled_from(["", " ", "1" * 9000, "A. x\n" * 200, "\udc80(A) \x00"])))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_finite_numbers(text):
    found = structure(text)
    assert len(found) == len(NAMES) == len(set(NAMES))
    assert all(isfinite(value) for value in found)
    shares = ("option numeric", "option variety", "digits share", "capitals share", "signs share")
    assert all(0.0 <= of(text)[name] <= 1.0 for name in shares)
    assert of(text)["options"] <= MOST_OPTIONS


def test_a_question_with_options():
    found = of(QUESTION)
    assert found["options"] == 4
    assert (found["option min"], found["option max"]) == (1, len("none of the above"))
    assert found["option mean"] == pytest.approx((1 + 2 + 10 + 17) / 4)
    assert found["option numeric"] == pytest.approx(2 / 4)
    assert found["stem words"] == len({"which", "of", "these", "is", "not", "a", "prime"})
    assert (found["questions"], found["lines"], found["negations"], found["all above"]) == (1, 4, 1, 1)
    assert (found["asks which"], found["asks how"]) == (1, 0)
    assert found["largest number"] == pytest.approx(log1p(15))


def test_without_options():
    found = of("def add(a, b):\n    return a + b  # 50 % of __ is $7")
    assert found["options"] == 0
    assert found["option mean"] == 0
    assert found["code"] >= 2
    assert (found["percent"], found["dollar"], found["blank"]) == (1, 1, 1)


def test_only_the_beginning_of_a_long_text_is_read():
    assert structure("y " * READ_CHARS) == structure("y " * READ_CHARS + "\n(A) one\n(B) two ???")
