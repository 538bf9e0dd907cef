"""Every way to fail, as the client sees it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any, get_args

import pytest

from gateway_fakes import ask, attempt, chunk, fault, get, plays, post, world
from stepladder.errors import AnswerError, EngineError, PluginError, RequestError, TraceError
from stepladder.gateway.app import GatewaySettings
from stepladder.gateway.faults import error_reply, fault_status
from stepladder.types import Delta, EngineEvent, Fault, FaultKind, Request, Stage, Trace, Versions

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2+2?"}], "model": "large"}
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}

STATUSES = {
    "timeout": 504,
    "connect": 502,
    "rate_limit": 429,
    "bad_request": 400,
    "context": 400,
    "auth": 502,
    "server": 502,
    "protocol": 502,
    "crash": 503,
    "cancelled": 503,
    "unavailable": 503,
}


def test_every_kind_of_fault_has_a_status() -> None:
    assert set(STATUSES) == set(get_args(FaultKind))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
async def test_an_upstream_fault_keeps_its_meaning(kind: str, status: int, stream: bool) -> None:
    made = world(plays(fault("large", kind, "no luck", retry_after=0.2 if kind == "rate_limit" else None)))
    got = await post(made.app, CHAT, {**QUESTION, "stream": stream})
    assert got.status == status
    assert got.error["message"] == "stage 'large': no luck"
    assert set(got.error) == {"message", "type", "param", "code"}
    assert got.headers.get("retry-after") == ("1" if kind == "rate_limit" else None)
    assert got.headers["x-stepladder-decision-id"] == made.store.traces[0].id


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (Fault("server", "", status=500), 502),
        (Fault("server", "", status=503), 503),
        (Fault("bad_request", "", status=422), 422),
        (Fault("bad_request", "", status=404), 400),
        (Fault("context", "", status=413), 400),
        (Fault("auth", "", status=401), 502),
        (Fault("rate_limit", "", status=503), 429),
    ],
)
def test_an_upstreams_own_status_is_kept_where_it_tells_more(told: Fault, status: int) -> None:
    assert fault_status(told) == status


@pytest.mark.parametrize(("wait", "told"), [(0.0, "0"), (-3.0, "0"), (1.5, "2"), (30, "30"), (float("inf"), None)])
def test_retry_after_is_whole_seconds(wait: float, told: str | None) -> None:
    trace = Trace("dec-1", 0.0, Request("r"), "l", ("a",), "p", "route", "relative", Versions())
    reply = error_reply(AnswerError(Fault("rate_limit", "slow down", retry_after=wait), trace))
    assert dict(reply.headers).get(b"retry-after", b"").decode() == (told or "")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("x"), 400),
        (PluginError("x"), 400),
        (EngineError("x"), 503),
        (TraceError("x"), 503),
        (ValueError("secret"), 500),
    ],
)
def test_other_errors(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    reply = error_reply(error)
    assert reply.status == status
    assert b"secret" not in reply.body
    assert bool(caplog.records) == (status >= 500)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_defect_is_logged_and_not_shown(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        raise ZeroDivisionError("secret")
        yield attempt(stage.name)

    got = await post(world(broken).app, CHAT, {**QUESTION, "stream": stream})
    assert got.status == 500
    assert got.error["type"] == "server_error"
    assert b"secret" not in got.body
    assert b"Traceback" not in got.body
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


async def test_a_defect_after_the_first_byte_is_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield chunk("Fo")
        raise ZeroDivisionError("secret")

    made = world(broken)
    got = await post(made.app, CHAT, {**QUESTION, "stream": True})
    assert got.status == 200
    assert got.events[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in got.events
    assert b"secret" not in got.body
    assert caplog.records
    assert made.store.traces


async def test_text_that_is_no_unicode_is_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    made = world(plays(Delta("\ud800"), attempt("large", "\ud800", first_token_s=0.1)))
    got = await post(made.app, CHAT, {**QUESTION, "stream": True})
    assert got.events[-1]["error"]["type"] == "server_error"
    assert caplog.records


async def test_no_climb_after_a_tool_call_was_sent() -> None:
    call = chunk(None, role="assistant")
    call.raw["choices"][0]["delta"]["tool_calls"] = [{"index": 0, "id": "c"}]  # type: ignore[index]

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield call
        yield fault(stage.name, "protocol")

    made = world(script)
    got = await post(made.app, CHAT, {**QUESTION, "model": "stepladder", "stream": True})
    assert "error" in got.events[-1]
    assert "[DONE]" not in got.events
    assert {name for name, _ in made.engine.calls} == {"small"}


async def test_a_stage_that_only_announced_itself_is_replaced() -> None:
    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield chunk("", role="assistant")
        if stage.name == "small":
            yield fault(stage.name, "connect")
        else:
            yield chunk("4")
            yield attempt(stage.name, "4", first_token_s=0.1)

    got = await post(world(script).app, CHAT, {**QUESTION, "model": "stepladder", "stream": True})
    assert got.headers["x-stepladder-stage"] == "medium"
    assert {event["model"] for event in got.events[:-1]} == {"medium"}
    assert got.events[-1] == "[DONE]"


async def test_several_prompts_are_refused_where_no_stage_can_take_them() -> None:
    made = world()
    for prompt in (["a", "b"], [1, 2]):
        got = await post(made.app, "/v1/completions", {"prompt": prompt})
        assert got.status == 400
        assert "small: cannot do prompts" in got.error["message"]
    assert made.engine.calls == []


async def test_a_body_too_deep_to_be_written_again_is_refused() -> None:
    made = world()
    deep = b'{"messages": [{"role": "user", "content": "hi"}], "metadata": ' + b"[" * 300 + b"]" * 300 + b"}"
    got = await post(made.app, CHAT, deep)
    assert got.status == 400
    assert "100 levels" in got.error["message"]
    assert made.engine.calls == []


# ── requests that do not get that far ────────────────────────────────────────


async def test_bounds_and_needs_are_refused_by_the_router() -> None:
    made = world(able=frozenset({"stream"}))
    block = {"min_stage": "large", "max_stage": "small"}
    bounds = await post(made.app, CHAT, {"messages": QUESTION["messages"], "stepladder": block})
    unknown = await post(made.app, CHAT, {"messages": QUESTION["messages"], "stepladder": {"min_stage": "larg"}})
    tools = await post(made.app, CHAT, {**QUESTION, "tools": [{}]})
    budget = await post(made.app, CHAT, {**QUESTION, "stepladder": {"max_cost": 0.01}})
    assert [got.status for got in (bounds, unknown, tools, budget)] == [400] * 4
    assert bounds.error["param"] == "min_stage"
    assert "did you mean 'large'?" in unknown.error["message"]
    assert "cannot do tools" in tools.error["message"]
    assert "max_cost" in budget.error["message"]
    assert made.engine.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_404(stream: bool) -> None:
    got = await post(world().app, CHAT, {**QUESTION, "model": "gpt-4", "stream": stream})
    assert (got.status, got.error["code"], got.error["param"]) == (404, "model_not_found", "model")
    assert "valid: stepladder, small, medium, large" in got.error["message"]


async def test_bodies_that_are_too_large() -> None:
    made = world(settings=GatewaySettings(max_body_bytes=100))
    announced = await ask(made.app, "POST", CHAT, [b"{}"], {**JSON, "content-length": "101"})
    counted = await ask(made.app, "POST", CHAT, [b" " * 60, b" " * 60, b"{}"], JSON)
    at_once = await ask(made.app, "POST", CHAT, [b" " * 101], JSON)
    just_fits = await ask(made.app, "POST", CHAT, [b" " * 100], JSON)
    assert [got.status for got in (announced, counted, at_once, just_fits)] == [413, 413, 413, 400]
    assert announced.error["code"] == "request_too_large"
    assert "100 bytes" in announced.error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 400),
        ({"content-type": "application/json; charset=utf-8"}, 400),
        ({"content-type": "application/vnd.api+JSON"}, 400),
        ({**JSON, "content-encoding": "identity"}, 400),
        ({}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "text/plain; as=application/json"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({**JSON, "content-encoding": "gzip"}, 415),
    ],
)
async def test_only_plain_json_is_read(headers: dict[str, str], status: int) -> None:
    got = await ask(world().app, "POST", CHAT, [b"not json"], headers)
    assert got.status == status
    assert got.error["type"] == "invalid_request_error"


async def test_the_cure_of_a_missing_content_type_is_told() -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    got = await ask(world().app, "POST", CHAT, [body])
    assert (got.status, got.error["code"]) == (415, "unsupported_media_type")
    assert got.error["message"] == (
        "cannot read a body without content-type; send the header 'content-type: application/json'"
    )


async def test_addresses_that_are_none() -> None:
    app = world().app
    unknown, wrong_method, slash = (
        await get(app, "/v1/chat"),
        await get(app, CHAT),
        await post(app, CHAT + "/", QUESTION),
    )
    assert [got.status for got in (unknown, wrong_method, slash)] == [404, 405, 404]
    assert wrong_method.headers["allow"] == "POST"
    assert wrong_method.error["code"] == "method_not_allowed"
    assert unknown.error["message"] == "no such address here: GET /v1/chat"


async def test_a_client_that_leaves_while_it_sends_is_no_error() -> None:
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    door = next(route.app for route in world().app.routes if getattr(route, "path", "") == CHAT)
    headers = [(b"content-type", b"application/json")]
    await door({"type": "http", "method": "POST", "headers": headers}, receive, send)
    assert sent == []
