"""Signals of the answers so far: one block of columns a stage, whatever is known of them."""

from __future__ import annotations

from dataclasses import replace
from math import log1p, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.errors import ArtifactError
from stepladder.predictors.history import (
    _REFUSAL,
    ALL_SIGNALS,
    BANDS,
    OPENINGS,
    SIGNALS,
    UNKNOWN,
    UNTOLD,
    Signals,
    _refuses,
    answered,
    band,
    begun,
    counted,
    cut_to,
    final_answer,
    is_partial,
    known_signals,
    names,
    normal,
    numbers,
    read,
    unended,
)
from stepladder.types import Attempt, Fault, Usage

STAGES = ("a", "b", "c")


def answer(stage: str, text: str, *more: Any, finish_reason: str | None = "stop", **others: Any) -> Attempt:
    return Attempt(stage, text, *more, finish_reason=finish_reason, **others)


def line(*attempts: Attempt) -> dict[str, float]:
    return dict(zip(names(3), numbers(answered(attempts, STAGES), 3), strict=True))


def test_columns_by_hand() -> None:
    told = line(
        answer("a", "so\nThe answer is **1,234**.\n", Usage(9, 7), logprobs=(-1.0, -2.0), finish_reason="length"),
        answer("c", "= 1234", Usage(9, 0)),
    )
    assert [told[f"answered {i}"] for i in range(3)] == [1, 0, 1]
    assert (told["tokens 0"], told["tokens 1"], told["tokens 2"]) == (log1p(7), UNKNOWN, UNKNOWN)
    assert (told["logprob 0"], told["logprob 1"], told["logprob 2"]) == (-1.5, UNTOLD, UNTOLD)
    assert (told["parsed 0"], told["length 0"], told["cut 0"]) == (1, log1p(len("The answer is **1,234**.")), 1)
    assert [told[f"agreement {i}"] for i in range(3)] == [1, UNKNOWN, 1]
    assert (told["cut 2"], told["refusal 2"], told["answers"]) == (0, 0, 2)


def test_agreement_is_a_share_of_the_others_and_nothing_agrees_with_nothing() -> None:
    three = line(answer("a", "4"), answer("b", "5"), answer("c", "4"))
    assert [three[f"agreement {i}"] for i in range(3)] == [0.5, 0, 0.5]
    assert line(answer("a", "4"))["agreement 0"] == UNKNOWN
    empty = line(answer("a", " \n"), answer("b", ""))
    assert (empty["agreement 0"], empty["parsed 0"], empty["length 0"]) == (0, 0, 0)


def test_what_failed_or_is_not_on_the_ladder_did_not_answer() -> None:
    failed = answer("a", "half an ans", fault=Fault("timeout", "too late"))
    assert answered((failed, answer("z", "4")), STAGES) == {}
    assert line(failed, answer("b", "4"))["answered 0"] == 0
    assert answered((answer("a", "4"), answer("a", "5")), STAGES)[0].final == "5"


@pytest.mark.parametrize("told", [(), (nan,), (-1.0, float("-inf"))])
def test_log_probabilities_that_are_none(told: tuple[float, ...]) -> None:
    assert line(answer("a", "4", logprobs=told))["logprob 0"] == UNTOLD


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
    assert line(answer("b", text))["refusal 1"] == refused


WORDS = ["i", "I", "'m", "am", "sorry", "afraid", "can", "'t", "not", "cannot", "ſ", "K", "İ", ".", "answer", "help"]


@given(st.lists(st.sampled_from([*WORDS, "unable to", "as an ai"]), max_size=9))
def test_openings_that_are_looked_through_quickly_read_the_same(parts: list[str]) -> None:
    opening = " ".join(parts).replace(" '", "'")
    assert _refuses(opening) == (_REFUSAL.search(opening) is not None)


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
    made = [answer(stage, text, Usage(0, data.draw(st.integers(0, 99)))) for stage in stages]
    told = line(*made)
    assert len(told) == 3 * len(SIGNALS) + 1
    assert told["answers"] == len(stages)
    assert all(value == UNKNOWN or value >= 0 for value in told.values())
    assert told == line(*reversed(made))


# ── more signals ─────────────────────────────────────────────────────────────


def more(text: str, prompt: str | None = None, **made: Any) -> Signals:
    return read(answer("a", text, **made), ALL_SIGNALS, prompt=prompt)


def test_log_probabilities_of_tokens() -> None:
    told = (-9.0, *(-1.0,) * 4, *(-0.5,) * 8)
    found = more("4", usage=Usage(3, 13), logprobs=told)
    assert (found.min_logprob, found.tail_logprob) == (-9.0, -0.5)
    assert found.logprob == pytest.approx(sum(told) / 13)
    mean = more("4", usage=Usage(3, 13), logprobs=(-0.5,))
    assert (mean.logprob, mean.min_logprob, mean.tail_logprob) == (-0.5, UNTOLD, UNTOLD)
    one = more("4", usage=Usage(3, 1), logprobs=(-0.5,))
    assert (one.min_logprob, one.tail_logprob) == (-0.5, -0.5)
    assert more("4", usage=Usage(3, 2), logprobs=(-1.0, float("-inf"))).min_logprob == UNTOLD


@pytest.mark.parametrize(
    ("text", "share"), [("", 0), ("1234", 1), ("a1", 0.5), ("ten", 0), ("é1\ud8001", 0.5), ("٣", 0)]
)
def test_digits(text: str, share: float) -> None:
    assert more(text).digits == share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("one two three", 0),
        ("yes\nno\nyes\n\nyes", 0.5),
        ("a b c d a b c d", 0.2),
        ("again " * 104, 1 - 1 / 97),
    ],
)
def test_repeats(text: str, share: float) -> None:
    assert more(text).repeats == pytest.approx(share)


def test_overlap_with_the_prompt() -> None:
    assert more("What is 2+2? four", "what IS 2+2?").same_as_prompt == 0.75
    assert more("", "what").same_as_prompt == 0
    assert more("what").same_as_prompt == UNKNOWN


@pytest.mark.parametrize(
    ("text", "parses"),
    [
        ("Here:\n```python\ndef f(x):\n    return x\n```\nDone.", 1),
        ("```\nx = 1\n```", 1),
        ("```py title\nx = (1\n```", 0),
        ("```js\nlet x = 1\n```", UNKNOWN),
        ("def f(x):\n    return x\n", 1),
        ("import of goods rose", 0),
        ("The answer is 4.", UNKNOWN),
        ("```python\nx = '\\d'", 1),
        ("```python\nx = (", 0),
        ("```python\n" + "x = 1\n" * 400 + "```", UNKNOWN),
        ("." * 1990 + "```python\nx = (1,\n 2)\n```", UNKNOWN),
    ],
)
def test_code(text: str, parses: float) -> None:
    assert more(text).code == parses


def test_consistency_of_choices() -> None:
    def said(*texts: str) -> Any:
        return {"choices": [{"index": n, "message": {"content": text}} for n, text in enumerate(texts)]}

    assert more("so 4", raw=said("so 4", "= 4", "5")).consistency == 0
    assert more("= 4", raw=said("= 4", "it is\n= 4", "5")).consistency == 0.5
    assert more("", raw=said("", "")).consistency == 0
    for alone in (None, said("4"), {"choices": "odd"}):
        assert more("4", raw=alone).consistency == UNKNOWN


def test_agreement_with_each_higher_stage() -> None:
    made = (answer("a", "4"), answer("c", "= 4"))
    told = dict(zip(names(3, ("agree_up",)), numbers(answered(made, STAGES), 3, ("agree_up",)), strict=True))
    assert told == {"agree_up 0 1": UNKNOWN, "agree_up 0 2": 1, "agree_up 1 2": UNKNOWN, "answers": 2}
    assert numbers(answered((answer("a", ""), answer("b", "")), STAGES), 2, ("agree_up",))[0] == 0
    assert numbers(answered((answer("a", "4"), answer("b", "5")), STAGES), 2, ("agree_up",))[0] == 0


@pytest.mark.parametrize("signals", [None, [], "tokens", ["tokens", "tokens"], ["tokens", 3], [["tokens"]]])
def test_lists_of_signals_that_are_none(signals: object) -> None:
    with pytest.raises(ArtifactError, match="signal"):
        known_signals(signals)


def test_a_signal_of_another_version_is_named() -> None:
    assert known_signals(list(ALL_SIGNALS)) == ALL_SIGNALS
    with pytest.raises(ArtifactError, match="'min_logprobs'.*min_logprob.*train"):
        known_signals([*SIGNALS, "min_logprobs"])


# ── the beginning of an answer ───────────────────────────────────────────────


def test_a_prefix_is_cut_where_the_tokens_end() -> None:
    tokens = [{"token": "fo"}, {"token": "ur"}, {"token": "teen"}]
    raw = {"choices": [{"index": 1, "text": "x"}, {"index": 0, "logprobs": {"content": tokens}}]}
    made = answer("a", "fourteen", Usage(9, 3), 1.0, finish_reason="length", logprobs=(-1.0, -2.0, -3.0), raw=raw)
    found = cut_to(made, 2)
    assert (found.text, found.usage, found.logprobs, found.finish_reason) == ("four", Usage(9, 2), (-1.0, -2.0), None)
    older = replace(made, raw={"choices": [{"logprobs": {"tokens": ["fo", "ur", "teen"]}}]})
    assert cut_to(older, 1).text == "fo"
    assert cut_to(made, 3) is made
    assert (is_partial(found), is_partial(made), read(found).cut, read(made).cut) == (True, False, 0, 1)


@pytest.mark.parametrize("raw", [None, {"choices": []}, {"choices": [{"logprobs": {"content": ["odd"]}}]}])
def test_a_prefix_of_unknown_tokens_is_as_long_as_the_stages_usual_ones(raw: Any) -> None:
    made = answer("a", "fourteen", Usage(9, 5), logprobs=(-1.0,), raw=raw)
    assert [cut_to(made, tokens, 1.5).text for tokens in (1, 3, 4, 5)] == ["fo", "fourt", "fourte", "fourteen"]
    assert cut_to(made, 3).text == "fourteen"  # 4 characters each, where nobody says more
    assert (cut_to(made, 3).logprobs, cut_to(made, 5).logprobs) == (None, (-1.0,))
    assert cut_to(replace(made, usage=Usage(9, 0)), 1).text == "fourteen"


def test_a_beginning_tells_nothing_of_time_and_money() -> None:
    made = answer("a", "fourteen", Usage(9, 4), 3.0, cost=7.0, first_token_s=0.1)
    assert cut_to(made, 2) == Attempt("a", "fourteen", Usage(9, 2), first_token_s=0.1)
    assert unended(made) == Attempt("a", "fourteen", Usage(9, 4), first_token_s=0.1)


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_prefix_of_no_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"{tokens} tokens"):
        cut_to(answer("a", "4"), tokens)


def test_what_has_not_ended_is_no_answer_but_a_beginning() -> None:
    made = (answer("a", "4"), Attempt("b", "fou", Usage(9, 0)), Attempt("c", "x", fault=Fault("timeout", "late")))
    assert set(answered(made, STAGES)) == {0}
    found = begun(made, STAGES, ("tokens", "partial"), (1.0, 1.5, 1.0))
    assert {stage: told.partial for stage, told in found.items()} == {0: 0.0, 1: 1.0}
    assert found[1].tokens == log1p(2)


@pytest.mark.parametrize(
    ("told", "tokens"), [(Attempt("a", "12345678"), 2), (Attempt("a", "12345678", logprobs=(-1.0,) * 5), 5)]
)
def test_tokens_so_far_are_reckoned_where_nobody_counted(told: Attempt, tokens: int) -> None:
    assert counted(told, 4.0).usage.output_tokens == tokens
    assert counted(replace(told, usage=Usage(1, 9)), 4.0).usage.output_tokens == 9
    ended = replace(told, finish_reason="stop")
    assert counted(ended, 4.0) is ended


@pytest.mark.parametrize(
    ("text", "place"),
    [(" ", 0), ("\n42", 1), ("The", 2), ("so", 3), ("```py", 4), ("- one", 5), ("# One", 5), ("(a)", 6), ("!", 7)],
)
def test_what_an_answer_opens_with(text: str, place: int) -> None:
    assert read(Attempt("a", text), ("opens",)).opens == place
    assert place < len(OPENINGS)


def test_log_probabilities_of_a_beginning() -> None:
    told = (-0.5, -3.0, -0.1, -2.0, -0.2, -0.3)
    found = read(Attempt("a", "x", Usage(1, 6), logprobs=told), ("first_logprob", "low_logprob", "min_logprob"))
    assert (found.first_logprob, found.low_logprob, found.min_logprob) == (-0.5, -2.5, -3.0)


@pytest.mark.parametrize(("tokens", "number"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (127, 6), (128, 7), (9999, 7)])
def test_bands_double(tokens: int, number: int) -> None:
    part = read(Attempt("a", "x", Usage(1, tokens)))
    assert band({0: part, 1: read(answer("b", "y", Usage(1, 1)))}) == number < BANDS
