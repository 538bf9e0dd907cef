"""The paper's features."""

from __future__ import annotations

from math import log1p, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.features.conversation import NAMES, conversation
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


def test_values_are_worked_out_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("stepladder.features.paper.entropy", lambda text: asked.append(text) or 2.5)
    values = PaperFeatures().features(make_request("why?")).values
    assert not asked
    assert (values.get("entropy"), values["length"], dict(values)) == (2.5, 0.04, {"entropy": 2.5, "length": 0.04})
    assert (len(values), repr(values)) == (2, "{'entropy': 2.5, 'length': 0.04}")
    assert values == {"entropy": 2.5, "length": 0.04}
    assert len(asked) == 1


def test_attempts_are_handed_on() -> None:
    history = (make_attempt("small"),)
    assert PaperFeatures().features(make_request(), history).attempts == history


# ── what went before ─────────────────────────────────────────────────────────


def said(*messages: str, first: str = "user") -> dict[str, float]:
    """Values of messages that take turns."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    told = tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(messages))
    return dict(PaperFeatures().features(Request("r", messages=told)).values)


def test_one_question_has_nothing_before_it() -> None:
    assert set(said("why?")) == {"entropy", "length"}
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"})
    assert set(PaperFeatures().features(Request("r", messages=messages)).values) == {"entropy", "length"}
    assert conversation(Request("r", prompt="why?")) == {}


def test_turns_and_what_they_hold() -> None:
    told = said("why is it so?", "because", "and how?")
    assert (told["earlier turns"], told["earlier length"]) == (1, log1p(len("why is it so?because")))
    assert (told["corrected"], told["refused"]) == (0, 0)
    assert said("a", "b", "c", "d", "e")["earlier turns"] == 2


@pytest.mark.parametrize(
    ("question", "corrected"),
    [
        *[
            ("No, that's 12", 1),
            ("that is wrong.", 1),
            ("Are you sure?", 1),
            ("I meant the river", 1),
            ("Try again", 1),
        ],
        *[("Now the next one", 0), ("North or south?", 0), ("And why is that wrong?", 0), ("Thanks!", 0)],
    ],
)
def test_corrections(question: str, corrected: int) -> None:
    assert said("7 + 5?", "13", question)["corrected"] == corrected


@pytest.mark.parametrize(("answer", "refused"), [("I'm sorry, but I can't help.", 1), ("As an AI, no.", 1), ("12", 0)])
def test_refusals_before(answer: str, refused: int) -> None:
    assert said("7 + 5?", answer, "why?")["refused"] == refused


def test_without_an_answer_before_nothing_was_corrected() -> None:
    told = (*({"role": "user", "content": text} for text in ("7 + 5?", "No, 7 + 6?")),)
    assert PaperFeatures().features(Request("r", messages=told)).values["corrected"] == 0


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(("user", "assistant", "system", "tool")), "content": st.none() | st.text()}
        ),
        max_size=60,
    )
)
def test_any_messages_have_numbers_in_their_ranges(messages: list[dict[str, object]]) -> None:
    told = conversation(Request("r", messages=tuple(messages)))
    assert set(told) in (set(), set(NAMES))
    assert all(0 <= value < 50 for value in told.values())
