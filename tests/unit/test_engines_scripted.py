from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines.scripted import Line, ScriptedEngine, _words
from stepladder.errors import ConfigError, UsageError
from stepladder.types import Attempt, Delta, Drafting, Fault, Request, Speculation, Stage, Usage

STAGE = Stage("small", "scripted", "m")
FAULT = Fault("server", "boom")


def request(text: str = "one two three", **params: Any) -> Request:
    return Request("r", ({"role": "user", "content": text},), params=params)


async def say(line: Line | None = None, *, stage: Stage = STAGE, **params: Any) -> list[Delta | Attempt]:
    engine = ScriptedEngine((stage,), None if line is None else {"small": line})
    return [event async for event in engine.generate(request(**params), stage)]


async def test_echoes_without_a_script() -> None:
    assert await say() == [Attempt("small", "one two three", Usage(3, 3), finish_reason="stop")]
    *deltas, attempt = await say(stream=True)
    assert [delta.text for delta in deltas] == ["one", " two", " three"]
    assert isinstance(attempt, Attempt)
    assert attempt.first_token_s == 0.0


async def test_lines_of_every_kind() -> None:
    whole = Attempt("small", "as it is", seconds=3.0)
    assert await say(whole) == [whole]
    assert (await say("four"))[0].text == "four"
    (faulty,) = await say(FAULT, stream=True)
    assert isinstance(faulty, Attempt)
    assert (faulty.fault, faulty.first_token_s) == (FAULT, None)
    *deltas, broken = await say(["a", "b", FAULT, "c"], stream=True)
    assert [delta.text for delta in deltas] == ["a", "b"]
    assert isinstance(broken, Attempt)
    assert (broken.text, broken.fault, broken.first_token_s) == ("ab", FAULT, 0.0)


async def test_script_as_a_function_and_the_calls_it_saw() -> None:
    engine = ScriptedEngine((STAGE,), lambda stage, asked: f"{stage}: {asked.text}")
    draft = Attempt("tiny", "x")
    events = [event async for event in engine.generate(request("hi"), STAGE, draft)]
    assert events[-1].text == "small: hi"
    assert engine.calls == [("small", request("hi"), draft)]


async def test_delay_is_slept_and_reported() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    stage = Stage("small", "scripted", "m", gpus=2, options={"delay_s": 2.5, "reply": "yes"})
    engine = ScriptedEngine((stage,), sleep=sleep)
    (attempt,) = [event async for event in engine.generate(request(), stage)]
    assert isinstance(attempt, Attempt)
    assert (slept, attempt.seconds, attempt.text) == ([2.5], 2.5, "yes")
    cost = engine.expected_cost(stage, 1, 1)
    assert cost is not None
    assert (cost.seconds, cost.device_s) == (2.5, 5.0)


async def no_wait(seconds: float) -> None:
    """Seconds are reported and not spent."""


async def test_plays_at_speculating() -> None:
    plain = {"token_s": 0.5, "reply": "a b c d e f g h"}
    draft = Attempt("tiny", "a b c d", Usage(1, 4))
    for more, seconds, told in (
        ({}, 4.0, None),
        ({"speedup": 4}, 1.0, Speculation(("ngram", "small"), (Drafting("ngram", "small", 6, 6),), {"small": 2})),
        ({"keeps": 0.5}, 3.0, Speculation(("small",), (), {"small": 6}, 4, 2, 1.0)),
    ):
        stage = Stage("small", "scripted", "m", options={**plain, **more})
        engine = ScriptedEngine((stage,), sleep=no_wait)
        (attempt,) = [event async for event in engine.generate(request(), stage, draft)]
        assert isinstance(attempt, Attempt)
        assert (attempt.seconds, attempt.speculation) == (seconds, told)
        cost = engine.expected_cost(stage, 3, 8, draft)
        assert cost is not None
        assert cost.seconds == seconds
        assert (engine.expected_cost(stage, 3, 8) or cost).seconds == (1.0 if "speedup" in more else 4.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speedup": 0.5}, "speedup: must be a number from 1, not 0.5"),
        ({"speedup": float("inf")}, "speedup: must be a number from 1, not inf"),
        ({"keeps": 2}, "keeps: must be a number from 0 to 1, not 2"),
        ({"keeps": True}, "keeps: must be a number from 0 to 1, not True"),
        ({"token_s": 0}, "token_s: must be a positive number of seconds, not 0"),
    ],
)
def test_a_pace_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ScriptedEngine((Stage("small", "scripted", "m", options=options),))


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'small'"):
        ScriptedEngine((STAGE,), {"smal": "x"})
    with pytest.raises(ConfigError, match="did you mean 'reply'"):
        ScriptedEngine((Stage("small", "scripted", "m", options={"replay": "x"}),))
    with pytest.raises(ConfigError, match="delay_s: must be"):
        ScriptedEngine((Stage("small", "scripted", "m", options={"delay_s": "x"}),))


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(_words(text)) == text
