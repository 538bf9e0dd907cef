"""The paper's features."""

from __future__ import annotations

from math import log2

import pytest

from stepladder.features.paper import PaperFeatures, entropy
from stepladder.testing import make_attempt, make_request
from stepladder.types import Request


def test_values_are_the_papers_two_numbers() -> None:
    features = PaperFeatures().features(make_request("abab"))
    assert features.values == {"entropy": 1.0, "length": 0.04}
    assert features.text == "abab"
    assert features.attempts == ()


def test_entropy_reads_the_last_32_characters_and_no_more() -> None:
    text = "zq!? %" * 50 + "a" * 16 + "b" * 16
    assert PaperFeatures().features(make_request(text)).values["entropy"] == 1.0


@pytest.mark.parametrize(
    ("text", "bits"), [("", 0.0), ("aaaa", 0.0), ("abcd", 2.0), ("aab", log2(3) - 2 / 3), ("🪜🧗", 1.0), ("\0a", 1.0)]
)
def test_entropy_in_bits(text: str, bits: float) -> None:
    assert entropy(text) == pytest.approx(bits)


def test_length_counts_characters_of_the_question_in_hundreds() -> None:
    messages = ({"role": "system", "content": "x" * 500}, {"role": "user", "content": "y" * 250})
    assert PaperFeatures().features(Request("r", messages=messages)).values["length"] == 2.5
    assert PaperFeatures().features(Request("r", prompt="z" * 50)).values["length"] == 0.5


def test_attempts_are_handed_on() -> None:
    history = (make_attempt("small"),)
    assert PaperFeatures().features(make_request(), history).attempts == history
