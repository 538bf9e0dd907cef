"""Laws of what is read of answers: for any text, whatever the signals, whole or only the beginning."""

from __future__ import annotations

from math import ceil, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.predictors.history import (
    ALL_SIGNALS,
    SIGNALS,
    UNKNOWN,
    UNTOLD,
    answered,
    begun,
    counted,
    cut_to,
    names,
    numbers,
    own_tokens,
    read,
    without_logprobs,
)
from stepladder.types import Attempt, Usage

STAGES = ("a", "b", "c")
CHARS = (2.0, 2.0, 2.0)
PIECES = st.sampled_from(
    ("4", " 42", "so", "\n", " so it is", "```python\n", "def f(x):\n", "```", "\\d'", "\x00", "\ud800")
)
TEXTS = st.text(max_size=80) | st.lists(PIECES, max_size=12).map("".join)
LOGPROBS = st.floats(-20, 0) | st.sampled_from((float("-inf"), float("nan")))
SOME_SIGNALS = st.lists(st.sampled_from(ALL_SIGNALS), unique=True, min_size=1)


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """Attempts as engines make them, with their tokens in the wire reply or without; and as tables tell of them."""
    pieces = draw(st.lists(TEXTS, max_size=12))
    text, count = "".join(pieces), draw(st.just(len(pieces)) | st.integers(0, 20))
    told = draw(
        st.none() | st.lists(LOGPROBS, min_size=len(pieces), max_size=len(pieces)) | st.lists(LOGPROBS, max_size=1)
    )
    choices = [{"text": draw(TEXTS)} for _ in range(draw(st.integers(1, 3)))]
    first = {"index": 0, "text": text, "logprobs": {"content": [{"token": piece} for piece in pieces]}}
    raw = draw(st.sampled_from((None, {}, {"choices": None}, {"choices": [first, *choices]}, {"choices": ["odd", 3]})))
    return Attempt(
        draw(st.sampled_from(STAGES)),
        text,
        Usage(3, count),
        finish_reason=draw(st.sampled_from(("stop", "length", None))),
        logprobs=None if told is None else tuple(told),
        raw=raw,
    )


def histories() -> st.SearchStrategy[list[Attempt]]:
    return st.lists(attempts(), unique_by=lambda attempt: attempt.stage, max_size=3)


@given(histories(), TEXTS | st.none(), st.integers(1, 8) | st.none(), SOME_SIGNALS)
def test_any_answer_has_every_column_in_its_range(
    made: list[Attempt], prompt: str | None, prefix: int | None, signals: list[str]
) -> None:
    cut = made if prefix is None else [cut_to(each, prefix) for each in made]
    found = begun(cut, STAGES, signals, CHARS, prompt=prompt)
    assert {n for n, told in found.items() if not told.partial} == set(answered(cut, STAGES))
    line = numbers(found, len(STAGES), signals)
    columns = names(len(STAGES), signals)
    assert len(line) == len(columns) == len(set(columns))
    for column, value in zip(columns, line, strict=True):
        name = column.split()[0]
        assert isfinite(value)
        if name.endswith("logprob"):
            assert value <= 0 or value == UNTOLD
        elif name in ("tokens", "length", "answers", "letter", "equations", "wrong", "unused", "size", "opens"):
            assert value == UNKNOWN or value >= 0
        else:
            assert value == UNKNOWN or 0 <= value <= 1


@given(histories(), TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_the_history_does_not_matter(made: list[Attempt], prompt: str, chance) -> None:
    mixed = list(made)
    chance.shuffle(mixed)
    one, other = (
        numbers(begun(each, STAGES, ALL_SIGNALS, CHARS, prompt=prompt), 3, ALL_SIGNALS) for each in (made, mixed)
    )
    assert one == other


@given(attempts(), TEXTS, SOME_SIGNALS)
def test_a_signal_is_the_same_whichever_others_are_read(made: Attempt, prompt: str, signals: list[str]) -> None:
    few, all_of_them = (numbers({1: read(made, each, prompt=prompt)}, 3, each) for each in (signals, ALL_SIGNALS))
    known = dict(zip(names(3, ALL_SIGNALS), all_of_them, strict=True))
    assert few == [known[column] for column in names(3, signals)]


@given(attempts())
def test_the_first_signals_are_those_that_artifacts_of_old_were_fitted_on(made: Attempt) -> None:
    known = dict(zip(names(3, ALL_SIGNALS), numbers({0: read(made, ALL_SIGNALS)}, 3, ALL_SIGNALS), strict=True))
    assert numbers({0: read(made)}, 3) == [known[column] for column in names(3)]
    assert names(1) == (*(f"{signal} 0" for signal in SIGNALS), "answers")


@given(histories(), TEXTS, st.integers(1, 8))
def test_a_batch_is_one_by_one(made: list[Attempt], prompt: str, prefix: int) -> None:
    cut = [counted(cut_to(each, prefix), CHARS[0]) for each in made]
    together = begun(cut, STAGES, ALL_SIGNALS, CHARS, prompt=prompt)
    for attempt in cut:
        alone = read(attempt, ALL_SIGNALS, prompt=prompt)
        assert together[STAGES.index(attempt.stage)] == alone


@given(attempts(), TEXTS)
def test_without_log_probabilities_is_as_if_none_had_been_told(made: Attempt, prompt: str) -> None:
    silent = Attempt(made.stage, made.text, made.usage, finish_reason=made.finish_reason, raw=made.raw)
    seen, unseen = (read(each, ALL_SIGNALS, prompt=prompt) for each in (made, silent))
    assert without_logprobs(seen) == unseen


@given(attempts(), st.integers(1, 20), st.integers(1, 20), st.floats(0.3, 9))
def test_a_prefix_of_a_prefix_is_the_shorter_one(made: Attempt, one: int, other: int, chars: float) -> None:
    twice = cut_to(cut_to(made, one, chars), other, chars)
    assert own_tokens(twice) == min(own_tokens(made), one, other)
    assert made.text.startswith(twice.text) or made.raw is not None
    assert cut_to(made, max(one, own_tokens(made))) is made


@given(
    st.lists(TEXTS, min_size=5, max_size=9),
    *(st.lists(TEXTS, min_size=1, max_size=9),) * 2,
    st.integers(1, 4),
    st.booleans(),
    st.floats(0.3, 9),
)
def test_what_is_cut_off_does_not_matter(
    first: list[str], one: list[str], other: list[str], prefix: int, told: bool, chars: float
) -> None:
    """Neither where the tokens are told, nor where the text is cut by the stage's usual length of a token."""

    def made(rest: list[str]) -> Attempt:
        pieces = [*first[:prefix], *rest]
        tokens = [{"token": piece} for piece in pieces]
        raw = {"choices": [{"index": 0, "logprobs": {"content": tokens}}]}
        probabilities = tuple(-float(len(piece)) for piece in pieces)
        shared = "".join(first[:prefix]).ljust(ceil(prefix * chars), "x")
        text = "".join(pieces) if told else shared + "".join(rest)
        usage, seconds = Usage(3, len(pieces)), float(len(rest))
        return Attempt(
            "a", text, usage, seconds, finish_reason="stop", logprobs=probabilities, raw=raw if told else None
        )

    a, b = (cut_to(made(rest), prefix, chars) for rest in (one, other))
    assert a == b
    assert read(a, ALL_SIGNALS) == read(b, ALL_SIGNALS)


@pytest.mark.parametrize(
    "source",
    [
        *("-" * 990 + "1", "(" * 990, "not " * 240 + "x", "a." * 490 + "a", "lambda:" * 140 + "1"),
        *("[" * 490 + "]" * 490, "f'{" * 300, "a" + "[a" * 450, "x=1;" * 240, "é" * 900),
        *("\x00", "\ud800", "1if 2else 3", "'\\d'", "0_7", "return", "x is 1", "assert (1, 2)"),
        "if 1:\n" + "".join(" " * depth + "if 1:\n" for depth in range(1, 38)),
    ],
)
@pytest.mark.filterwarnings("default")
def test_code_of_any_kind_can_be_read_without_a_warning(source: str, recwarn: pytest.WarningsRecorder) -> None:
    assert read(Attempt("a", f"```python\n{source}\n```"), ("code",)).code in (0.0, 1.0)
    assert not recwarn.list
