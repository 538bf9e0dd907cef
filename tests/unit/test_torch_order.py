"""What the ``torch`` engine reads of a request; refusals are tested with the engine."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from stepladder.engines.torch_order import NEUTRAL, STOPS, plain_messages, plain_prompt, read_order
from stepladder.engines.wire import WireError
from stepladder.types import Request


def chat(**params: Any) -> Request:
    return Request("r", ({"role": "user", "content": "hi"},), params=params)


def refused(request: Request) -> str:
    with pytest.raises(WireError) as raised:
        read_order(request)
    assert raised.value.fault.kind == "bad_request"
    return raised.value.fault.message


def test_what_is_not_said() -> None:
    order = read_order(chat())
    assert (order.sampling.temperature, order.sampling.top_k, order.sampling.top_p) == (1.0, 0, 1.0)
    assert (order.most, order.stops, order.seed, order.top_logprobs, order.streamed) == (None, (), None, None, False)
    nothing = dict.fromkeys(("temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "logprobs", *NEUTRAL))
    assert read_order(chat(**nothing)) == order


def test_what_is_said() -> None:
    order = read_order(
        chat(temperature=0, top_k=5, top_p=0.5, max_tokens=7.0, stop="x", seed=-3, stream=True, logprobs=True)
    )
    assert (order.sampling.temperature, order.sampling.top_k, order.sampling.top_p) == (0.0, 5, 0.5)
    assert (order.most, order.stops, order.seed, order.top_logprobs, order.streamed) == (7, ("x",), -3, 0, True)
    assert read_order(chat(max_tokens=9, max_completion_tokens=4)).most == 4
    assert read_order(chat(top_k=-1)).sampling.top_k == 0
    assert read_order(chat(stop=["a", "b"])).stops == ("a", "b")
    assert read_order(chat(logprobs=True, top_logprobs=20)).top_logprobs == 20
    assert read_order(chat(logprobs=False)).top_logprobs is None


@pytest.mark.parametrize(("logprobs", "asked"), [(None, None), (0, 0), (3, 3), (True, 1), (False, None)])
def test_log_probabilities_of_completions(logprobs: Any, asked: int | None) -> None:
    assert read_order(Request("r", prompt="x", params={"logprobs": logprobs})).top_logprobs == asked


@pytest.mark.parametrize("key", NEUTRAL)
def test_what_is_not_done_is_refused_unless_it_changes_nothing(key: str) -> None:
    for value in NEUTRAL[key]:
        read_order(chat(**{key: value}))
    told = refused(chat(**{key: ["something"]}))
    assert told.startswith(f"{key}: the engine 'torch' cannot do ['something']; leave it out")


@pytest.mark.parametrize(("key", "told"), [("temprature", "did you mean 'temperature'"), ("frobnicate", "valid: ")])
def test_what_nobody_knows_is_refused_and_not_passed_over(key: str, told: str) -> None:
    said = refused(chat(**{key: 0.5}))
    assert said.startswith(f"{key}: the engine 'torch' does not know it (0.5): leave it out; {told}")
    assert read_order(chat(**{key: None})) == read_order(chat())


def test_what_says_nothing_of_the_text_is_let_through() -> None:
    told = {"user": "u", "metadata": {"a": "b"}, "store": False, "stream_options": {"include_usage": True}}
    assert read_order(chat(**told)) == read_order(chat())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, "1", True, [1]])
@pytest.mark.parametrize("key", ["temperature", "top_p", "top_k", "max_tokens", "seed"])
def test_numbers_that_are_none(key: str, value: Any) -> None:
    assert refused(chat(**{key: value})).startswith(f"{key}: ")


def test_seeds_of_any_size() -> None:
    for seed in (0, -1, 2**63, 2**200, int(sys.float_info.max)):
        assert read_order(chat(seed=seed)).seed == seed


def test_stops() -> None:
    assert len(read_order(chat(stop=[str(n) for n in range(STOPS)])).stops) == STOPS
    for wrong in ([str(n) for n in range(STOPS + 1)], [""], "", {"a": 1}, ["a", 5]):
        if wrong == "":
            continue
        assert refused(chat(stop=wrong)).startswith("stop: ")


def test_messages_as_a_template_wants_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = Request("r", ({"role": "system", "content": "s"}, {"content": parts}, {"role": "user", "content": None}))
    assert plain_messages(request) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"},
        {"role": "user", "content": ""},
    ]
    assert plain_prompt("naïve 🧗") == "naïve 🧗"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"type": "image_url"}, {"type": "input_audio"}], "reads text, not image_url, input_audio"),
        ("\ud83e", "half a"),
    ],
)
def test_messages_that_are_no_text(content: Any, told: str) -> None:
    with pytest.raises(WireError, match=told):
        plain_messages(Request("r", ({"role": "user", "content": content},)))
    with pytest.raises(WireError, match="half a surrogate"):
        plain_prompt("\udd17")
