"""Bodies and headers → requests: what is kept, what wins, what is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines.wire import body as engine_body
from stepladder.errors import RequestError
from stepladder.gateway.wire import Names, dumps, models_body, needs, parse_object, read_request, usage_body
from stepladder.types import EMPTY, Dials, Request, Usage

NAMES = Names("stepladder", ("small", "medium", "large"), ("route", "cascade", "fixed"))
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
OWN = {"messages", "prompt", "model", "stepladder", "stream", "stream_options", "response_format"}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.text(max_size=12).filter(lambda key: key not in OWN), json_values, max_size=5)
prices = st.floats(min_value=0, max_value=1e9)


def read(headers: dict[str, str] | None = None, **body: Any) -> Request:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return read_request({"messages": QUESTION, **body}, NAMES, pairs, "chat")


def refusal(headers: dict[str, str] | None = None, **body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(headers, **body)
    return caught.value


# ── what is kept ─────────────────────────────────────────────────────────────


@given(fields)
def test_fields_that_nobody_here_knows_survive(more: dict[str, Any]) -> None:
    body = parse_object(orjson.dumps({**more, "messages": QUESTION, "model": "stepladder"}))
    request = read_request(body, NAMES, endpoint="chat")
    assert orjson.loads(dumps(request.params)) == more
    assert list(request.messages) == QUESTION


@given(fields, st.text(min_size=1).filter(str.strip))
def test_completion_fields_survive(more: dict[str, Any], prompt: str) -> None:
    request = read_request({**more, "prompt": prompt}, NAMES, endpoint="completion")
    assert request.prompt == prompt
    assert dict(request.params) == more


def test_messages_are_kept_as_they_came() -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "name": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "4"}]},
        {"role": "critic"},
    ]
    assert list(read(messages=messages).messages) == messages


def test_each_request_has_an_id_of_its_own() -> None:
    assert read().id != read().id


@given(st.binary(max_size=40))
def test_no_bytes_upset_the_reader(data: bytes) -> None:
    with suppress(RequestError):
        read_request(parse_object(data), NAMES)


# ── model ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": "stepladder"}])
def test_own_name_or_none_leaves_it_to_the_policy(model: dict[str, Any]) -> None:
    assert read(**model).dials == Dials()


@given(*[st.none() | st.floats(0, 9)] * 3)
def test_body_over_headers_over_preset(block: float | None, header: float | None, preset: float | None) -> None:
    names = replace(NAMES, presets={"x": {} if preset is None else {"lambda": preset}})
    headers = [] if header is None else [(b"x-stepladder-lambda", repr(header).encode())]
    body = {"messages": QUESTION, "model": "stepladder/x", "stepladder": {"lambda": block}}
    found = read_request(body, names, headers, "chat").dials.lam
    assert found == next((value for value in (block, header, preset) if value is not None), None)


def test_a_preset_sets_what_it_names_and_nothing_else() -> None:
    names = replace(NAMES, presets={"x": {"mode": "cascade", "stream_mode": "hold-back", "hold_back": 8}})
    body = {"messages": QUESTION, "model": "stepladder/x", "stepladder": {"mode": "route"}}
    assert read_request(body, names).dials == Dials(mode="route", stream_mode="hold-back", hold_back=8)


def test_a_stage_name_allows_that_stage_alone() -> None:
    dials = read(model="medium", stepladder={"lambda": 2, "max_cost": 9}).dials
    assert dials == Dials(lam=2.0, mode="fixed", min_stage="medium", max_stage="medium", max_cost=9.0)


def test_a_stage_name_wins_over_headers() -> None:
    dials = read({"x-stepladder-mode": "cascade", "x-stepladder-min-stage": "large"}, model="small").dials
    assert dials == Dials(mode="fixed", min_stage="small", max_stage="small")


@pytest.mark.parametrize("name", ["x-stepladder-mode", "x-stepladder-min-stage", "x-stepladder-max-stage"])
@pytest.mark.parametrize("body", [{"model": "small"}, {"stepladder": {"max_stage": "small"}}, {}])
@pytest.mark.parametrize("value", ["", "smal"])
def test_headers_that_name_nothing_are_refused_also_where_they_give_way(name, body, value):
    refused = refusal({name: value}, **body)
    assert refused.param == name
    assert f"'{value}'" in str(refused)


def test_a_stage_name_may_be_said_twice() -> None:
    assert read(model="small", stepladder={"mode": "fixed", "max_stage": "small"}).dials.max_stage == "small"


@pytest.mark.parametrize("block", [{"mode": "route"}, {"min_stage": "large"}, {"max_stage": "medium"}])
def test_a_block_that_contradicts_the_stage_name_is_refused(block: dict[str, Any]) -> None:
    error = refusal(model="small", stepladder=block)
    assert error.param == f"stepladder.{next(iter(block))}"
    assert "contradicts" in str(error)


def test_an_unknown_model_is_told_with_the_nearest() -> None:
    error = refusal(model="meduim")
    assert (error.param, error.code) == ("model", "model_not_found")
    assert "did you mean 'medium'?" in str(error)


# ── the block and the headers ────────────────────────────────────────────────


@given(prices, prices)
def test_the_body_wins_over_the_header(header: float, body: float) -> None:
    assert read({"x-stepladder-lambda": repr(header)}, stepladder={"lambda": body}).dials.lam == body
    assert read({"x-stepladder-lambda": repr(header)}).dials.lam == header
    assert read({"x-stepladder-lambda": repr(header)}, stepladder={"lambda": None}).dials.lam == header


def test_precedence_holds_key_by_key() -> None:
    headers = {"x-stepladder-mode": "cascade", "x-stepladder-max-stage": "medium", "x-stepladder-explain": "TRUE"}
    dials = read(headers, stepladder={"mode": "route", "max_cost": 3}).dials
    assert dials == Dials(mode="route", max_stage="medium", max_cost=3.0, explain=True)


@pytest.mark.parametrize("value", [-1, -0.5, True, "5", [], {}, float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["lambda", "max_cost"])
def test_a_number_must_be_one(key: str, value: Any) -> None:
    assert refusal(stepladder={key: value}).param == f"stepladder.{key}"


@pytest.mark.parametrize("value", ["much", "", "nan", "inf", "-inf", "-1"])
def test_a_header_must_hold_a_number(value: str) -> None:
    assert refusal({"x-stepladder-lambda": value}).param == "x-stepladder-lambda"


def test_lambda_may_be_nothing_but_a_budget_may_not() -> None:
    assert read(stepladder={"lambda": 0}).dials.lam == 0.0
    assert "more than 0" in str(refusal(stepladder={"max_cost": 0}))


@pytest.mark.parametrize(
    ("block", "param", "told"),
    [
        ({"lamda": 1}, "stepladder.lamda", "did you mean 'lambda'?"),
        ({"mode": "cascde"}, "stepladder.mode", "did you mean 'cascade'?"),
        ({"mode": 3}, "stepladder.mode", "must be a string, not a number"),
        ({"min_stage": ["small"]}, "stepladder.min_stage", "must be a string, not a list"),
        ({"explain": 1}, "stepladder.explain", "must be true or false"),
        ({"report": "yes"}, "stepladder.report", "must be true or false"),
        ({"stream_mode": "holdback"}, "stepladder.stream_mode", "did you mean 'hold-back'?"),
        ({"hold_back": 0}, "stepladder.hold_back", "from 1 to 4096, not 0"),
        ({"hold_back": 2.5}, "stepladder.hold_back", "a whole number"),
        ({"hold_back": 5000}, "stepladder.hold_back", "from 1 to 4096"),
        ({"session": ""}, "stepladder.session", "1 to 256 characters long, not 0"),
        ({"session": "x" * 257}, "stepladder.session", "not 257"),
        ("cheap", "stepladder", "must be an object, not a string"),
        ([], "stepladder", "must be an object, not a list"),
    ],
)
def test_what_the_block_may_not_hold(block: Any, param: str, told: str) -> None:
    error = refusal(stepladder=block)
    assert error.param == param
    assert told in str(error)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("x-stepladder-lamda", "1", "did you mean 'x-stepladder-lambda'?"),
        ("x-stepladder-explain", "perhaps", "true or false"),
        ("x-stepladder-mode", "quick", "valid: route, cascade, fixed"),
    ],
)
def test_what_a_header_may_not_hold(name: str, value: str, told: str) -> None:
    assert told in str(refusal({name: value}))


def test_other_headers_are_none_of_ours() -> None:
    assert read({"authorization": "Bearer x", "x-request-id": "1"}).dials == Dials()


# ── what is refused ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        ({"role": "user"}, "messages"),
        (["hello"], "messages[0]"),
        ([QUESTION[0], {"content": "x"}], "messages[1].role"),
        ([{"role": 1, "content": "x"}], "messages[0].role"),
        ([{"role": "", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 4}], "messages[0].content"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content"),
    ],
)
def test_messages_that_are_none(messages: Any, param: str) -> None:
    assert refusal(messages=messages).param == param


@pytest.mark.parametrize(
    "content", [{}, *({"content": value} for value in (None, "", " \n", [], [{"type": "text", "text": ""}], [{}]))]
)
def test_a_user_must_say_something(content: dict[str, Any]) -> None:
    error = refusal(messages=[QUESTION[0], {"role": "user", **content}])
    assert error.param == "messages[1].content"
    assert "messages[1].content is empty" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": ""},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "tool", "tool_call_id": "1", "content": []},
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"text": "x"}]},
    ],
)
def test_messages_that_may_say_little(message: dict[str, Any]) -> None:
    assert list(read(messages=[*QUESTION, message]).messages) == [*QUESTION, message]


@pytest.mark.parametrize(
    ("prompt", "text", "several"),
    [
        ("a", "a", False),
        (["a"], "a", False),
        (["a", "b"], "a\nb", True),
        (["a", ""], "a", True),
        ([5, 70, 0], "5 70 0", True),
        ([[5, 70], [1]], "5 70\n1", True),
        ([[5, 70]], "5 70", True),
        (["a", [1, 2]], "a\n1 2", True),
    ],
)
def test_prompts_in_every_shape(prompt: Any, text: str, several: bool) -> None:
    request = read_request({"prompt": prompt, "echo": True, "best_of": 2, "suffix": "!"}, NAMES, endpoint="completion")
    assert request.prompt == text
    assert request.needs == ({"prompts"} if several else set())
    sent = orjson.loads(engine_body(request, "m", ask_usage=False))
    assert sent["prompt"] == (prompt if several else text)
    assert (sent["echo"], sent["best_of"], sent["suffix"]) == (True, 2, "!")


def test_a_prompt_beside_messages_is_a_field_that_nobody_here_knows() -> None:
    request = read(prompt=["x", "y"])
    assert request.needs == set()
    assert request.params["prompt"] == ["x", "y"]


def test_hold_back_and_report_come_by_header_too() -> None:
    headers = {"x-stepladder-hold-back": "16", "x-stepladder-report": "true", "x-stepladder-stream-mode": "restart"}
    assert read(headers).dials == Dials(hold_back=16, report=True, stream_mode="restart")
    assert "a number" in str(refusal({"x-stepladder-hold-back": "some"}))


@pytest.mark.parametrize(
    "prompt", [None, "", " \n\t", [], ["a", 1], [1, 2.5], [-1], [True], [[]], [[1], "a", 2], 4, {}, [""], ["", " "]]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt") as caught:
        read_request({"prompt": prompt}, NAMES, endpoint="completion")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("body", "param"),
    [({"stream": "yes"}, "stream"), ({"stream": 1}, "stream"), ({"stream_options": []}, "stream_options")],
)
def test_stream_is_a_flag(body: dict[str, Any], param: str) -> None:
    assert refusal(**body).param == param


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"1", b"\xff", b"[" * 2000])
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(RequestError, match="body") as caught:
        parse_object(body)
    assert caught.value.code == "invalid_json"


def nested(levels: int) -> bytes:
    """An object that is ``levels`` deep, itself the first."""
    return b'{"messages": [], "metadata": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_bodies_may_be_a_hundred_levels_deep() -> None:
    parse_object(nested(100))
    parse_object(b'{"messages": [' + b'{"content": "[[[[[[[["},' * 300 + b"{}]}")  # wide, and deep in its text alone
    for levels in (101, 300, 1000):
        with pytest.raises(RequestError, match="more than 100 levels deep") as caught:
            parse_object(nested(levels))
        assert caught.value.code == "invalid_json"


# ── what a request needs ─────────────────────────────────────────────────────

IMAGE = (
    {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "x"}}]},
)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, set()),
        ({"stream": False, "tools": [], "logprobs": False, "response_format": {"type": "text"}}, set()),
        ({"stream": None, "logprobs": None, "top_logprobs": 0, "response_format": "json"}, set()),
        ({"stream": True}, {"stream"}),
        ({"tools": [{}]}, {"tools"}),
        ({"functions": [{}]}, {"tools"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"logprobs": 0}, {"logprobs"}),
        ({"top_logprobs": 2}, {"logprobs"}),
        ({"response_format": {"type": "json_object"}}, {"json"}),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, {"json"}),
    ],
)
def test_needs(params: dict[str, Any], expected: set[str]) -> None:
    assert needs(params) == expected
    assert needs(params, IMAGE) == expected | {"images"}


# ── the way back ─────────────────────────────────────────────────────────────


def test_usage_has_openais_names() -> None:
    assert usage_body(Usage(3, 4)) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert usage_body(Usage(3, 4, 2))["prompt_tokens_details"] == {"cached_tokens": 2}


def test_models_name_who_serves_them() -> None:
    models = models_body(NAMES, {"small": "llama"}, created=9)["data"]
    assert [(model["id"], model["owned_by"]) for model in models][:2] == [
        ("stepladder", "stepladder"),
        ("small", "llama"),
    ]
    assert {model["created"] for model in models} == {9}


def test_read_only_values_are_written() -> None:
    assert dumps({"a": EMPTY, "b": frozenset("ba")}) == b'{"a":{},"b":["a","b"]}'
    with pytest.raises(TypeError):
        dumps(object())
