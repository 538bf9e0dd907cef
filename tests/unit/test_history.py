"""Signals of the answers so far: one block of columns a stage, whatever is known of them."""

from __future__ import annotations

from math import log1p, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.predictors.history import (
    SIGNALS,
    UNKNOWN,
    UNTOLD,
    answered,
    final_answer,
    names,
    normal,
    numbers,
)
from stepladder.types import Attempt, Fault, Usage

STAGES = ("a", "b", "c")


def line(*attempts: Attempt) -> dict[str, float]:
    return dict(zip(names(3), numbers(answered(attempts, STAGES), 3), strict=True))


def test_columns_by_hand() -> None:
    told = line(
        Attempt("a", "so\nThe answer is **1,234**.\n", Usage(9, 7), logprobs=(-1.0, -2.0), finish_reason="length"),
        Attempt("c", "= 1234", Usage(9, 0)),
    )
    assert [told[f"answered {i}"] for i in range(3)] == [1, 0, 1]
    assert (told["tokens 0"], told["tokens 1"], told["tokens 2"]) == (log1p(7), UNKNOWN, UNKNOWN)
    assert (told["logprob 0"], told["logprob 1"], told["logprob 2"]) == (-1.5, UNTOLD, UNTOLD)
    assert (told["parsed 0"], told["length 0"], told["cut 0"]) == (1, log1p(len("The answer is **1,234**.")), 1)
    assert [told[f"agreement {i}"] for i in range(3)] == [1, UNKNOWN, 1]
    assert (told["cut 2"], told["refusal 2"], told["answers"]) == (0, 0, 2)


def test_agreement_is_a_share_of_the_others_and_nothing_agrees_with_nothing() -> None:
    three = line(Attempt("a", "4"), Attempt("b", "5"), Attempt("c", "4"))
    assert [three[f"agreement {i}"] for i in range(3)] == [0.5, 0, 0.5]
    assert line(Attempt("a", "4"))["agreement 0"] == UNKNOWN
    empty = line(Attempt("a", " \n"), Attempt("b", ""))
    assert (empty["agreement 0"], empty["parsed 0"], empty["length 0"]) == (0, 0, 0)


def test_what_failed_or_is_not_on_the_ladder_did_not_answer() -> None:
    failed = Attempt("a", "half an ans", fault=Fault("timeout", "too late"))
    assert answered((failed, Attempt("z", "4")), STAGES) == {}
    assert line(failed, Attempt("b", "4"))["answered 0"] == 0
    assert answered((Attempt("a", "4"), Attempt("a", "5")), STAGES)[0].final == "5"


@pytest.mark.parametrize("told", [(), (nan,), (-1.0, float("-inf"))])
def test_log_probabilities_that_are_none(told: tuple[float, ...]) -> None:
    assert line(Attempt("a", "4", logprobs=told))["logprob 0"] == UNTOLD


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but that is beyond me.", True),
        ("I cannot answer this.", True),
        ("As an AI, I have no opinion.", True),
        ("I don't know.", True),
        ("The can cannot hold it.", False),
        ("42", False),
    ],
)
def test_refusals(text: str, refused: bool) -> None:
    assert line(Attempt("b", text))["refusal 1"] == refused


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("11+3=14; 14*3=42", "42"),
        ("The answer is (D).", "d"),
        ("Answer: **Paris**", "paris"),
        ("$1,234,567.", "1234567"),
        ("-5", "-5"),
        ("  Two   words ", "two words"),
        ("", ""),
        ("3 =", ""),
    ],
)
def test_final_answers_are_compared_by_what_they_say(text: str, compared: str) -> None:
    assert normal(final_answer(text)) == compared


@given(st.lists(st.sampled_from(STAGES), unique=True), st.text(max_size=300), st.data())
def test_any_history_has_all_columns_in_their_ranges(stages: list[str], text: str, data: st.DataObject) -> None:
    made = [Attempt(stage, text, Usage(0, data.draw(st.integers(0, 99)))) for stage in stages]
    told = line(*made)
    assert len(told) == 3 * len(SIGNALS) + 1
    assert told["answers"] == len(stages)
    assert all(value == UNKNOWN or value >= 0 for value in told.values())
    assert told == line(*reversed(made))
