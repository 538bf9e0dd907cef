"""Graders: what counts as right, and what may never happen whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.evaluate.graders import GRADERS, choice, exact, grade, numeric, rouge_l

TEXTS = st.text(max_size=60)
WORDS = st.lists(st.sampled_from(["a", "red", "bird", "that", "sings"]), max_size=12).map(" ".join)


@pytest.mark.parametrize("text", ["Paris", " paris.", '"PARIS"', "Paris !"])
def test_exact_folds_case_space_and_stops(text: str) -> None:
    assert exact(text, "Paris") == 1.0


def test_exact_is_not_a_search() -> None:
    assert exact("It is Paris", "Paris") == 0.0
    assert exact("", "Paris") == 0.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("1,000", "1000"),
        (".5", "0.50"),
        ("12+7=19; 19*3=57", "57"),
        ("57", "12+7=19; 19*3=57"),
        ("9-5=4", "4"),
        ("the result is -3.", "-3"),
        ("9-5", "5"),
        ("12, 13", "13"),
    ],
)
def test_numeric_takes_the_last_number(text: str, reference: str) -> None:
    assert numeric(text, reference) == 1.0


@pytest.mark.parametrize(("text", "reference"), [("3.14", "3.1416"), ("no idea", "4"), ("", "4"), ("-3", "3")])
def test_numeric_rejects(text: str, reference: str) -> None:
    assert numeric(text, reference) == 0.0


def test_numeric_needs_a_number_to_compare_with() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        numeric("4", "four")


@pytest.mark.parametrize("text", ["B", "b", "(B)", "B. Paris", "B) Paris", "The answer is B", "Option: b", "answer B."])
def test_choice_reads_the_letter(text: str) -> None:
    assert choice(text, "B") == 1.0


@pytest.mark.parametrize("text", ["A", "Berlin", "", "I would answer C", "The answer is be"])
def test_choice_rejects(text: str) -> None:
    assert choice(text, "B") == 0.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A car needs fuel, so B is wrong.\n\nAnswer: C", "C"),
        ("A. is wrong, since it floats.\nThe correct answer is **(D)**.", "D"),
        ("I think that it is so. The answer is J", "J"),
        ("The answer is B. Option A is too small.", "B"),
        ("First answer: A. On second thoughts,\nfinal answer: option B", "B"),
        ("Answer:\nE", "E"),
        ("It is a matter of taste; choice F", "F"),
        ("A Paris", "A"),
    ],
)
def test_choice_reads_reasoning_that_ends_in_a_letter(text: str, letter: str) -> None:
    assert choice(text, letter) == 1.0


@pytest.mark.parametrize("text", ["A car needs fuel.", "I would not know", "The answer is a matter of taste."])
def test_articles_and_pronouns_are_no_options(text: str) -> None:
    assert choice(text, "A") == choice(text, "I") == 0.0


def test_choice_needs_a_letter_to_compare_with() -> None:
    with pytest.raises(ValueError, match="names no option letter"):
        choice("B", "Berlin")


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a that sings": 3 of 4 and 3 of 5 words.
    assert rouge_l("a bird that sings", "A thing that sings loudly.") == pytest.approx(2 * 3 / (4 + 5))
    assert rouge_l("", "a bird") == 0.0
    assert rouge_l("...", "") == 1.0


def test_unknown_grader_is_named_with_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'rouge'.*bleu, choice, chrf, exact, humaneval, mbpp, meteor.*numeric, rouge_l"
    ):
        grade("rouge", "a", "b")


@given(text=TEXTS, reference=TEXTS)
def test_open_graders_stay_in_the_unit_interval(text: str, reference: str) -> None:
    for name in ("exact", "rouge_l"):
        assert 0.0 <= grade(name, text, reference) <= 1.0


@given(text=TEXTS, number=st.integers(-(10**9), 10**9))
def test_numeric_accepts_the_number_after_any_text(text: str, number: int) -> None:
    assert numeric(f"{text} = {number}", str(number)) == 1.0
    assert numeric(text, str(number)) in {0.0, 1.0}


@given(text=TEXTS)
def test_equal_texts_are_right(text: str) -> None:
    assert exact(text, text) == 1.0
    assert rouge_l(text, text) == 1.0


@given(left=WORDS, right=WORDS)
def test_rouge_l_is_symmetric(left: str, right: str) -> None:
    assert rouge_l(left, right) == rouge_l(right, left)


@given(letter=st.sampled_from("ABCD"), text=TEXTS)
def test_choice_never_fails_on_text(letter: str, text: str) -> None:
    assert choice(text, letter) in {0.0, 1.0}
    assert choice(f"{letter}) {text}", letter) == 1.0


def test_every_grader_is_reachable_by_name() -> None:
    by_code, by_words = {"humaneval", "mbpp"}, {"meteor", "meteor_exact_stem"}
    assert all(grade(name, "B 7", "B 7") == 1.0 for name in set(GRADERS) - by_code - by_words)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_graders_of_code_want_tests_as_reference(name: str) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        grade(name, "B 7", "B 7")
