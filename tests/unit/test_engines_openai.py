from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web

from openai_server import CHUNKS, FakeServer, Handler, chunk, good, reply, says, serving, sse, stalls
from stepladder.costs.fixed import FixedCosts
from stepladder.costs.measured import MeasuredCosts, StageTiming
from stepladder.costs.price_list import PriceListCosts
from stepladder.engines.http import Target, exchange, new_pool
from stepladder.engines.openai import OpenAIEngine
from stepladder.errors import ConfigError, EngineError
from stepladder.testing import make_ladder, no_forecast
from stepladder.tokens import usage_of
from stepladder.types import Attempt, Delta, Drafting, EngineEvent, Fault, Request, Speculation, Stage, Usage

CHAT = Request("r", ({"role": "user", "content": "What is 2+2?"},))
STREAM = Request("r", CHAT.messages, params={"stream": True})
RAW = Request("r", prompt="2+2=")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/vllm/replies-0.26.json").read_text())


def stage(url: str = "http://127.0.0.1:9/v1", *, at_once: int | None = None, **options: Any) -> Stage:
    return Stage("small", "openai", "m-7b", max_concurrency=at_once, options={"base_url": url, **options})


async def collect(engine: OpenAIEngine, where: Stage, request: Request) -> list[EngineEvent]:
    async with aclosing(engine.generate(request, where)) as events:
        return [event async for event in events]


@asynccontextmanager
async def setup(
    handler: Handler, *, at_once: int | None = None, **options: Any
) -> AsyncGenerator[tuple[OpenAIEngine, Stage, FakeServer], None]:
    async with serving(handler) as server:
        where = stage(server.url, at_once=at_once, **options)
        engine = OpenAIEngine((where,), environ={"KEY": "sk-secret-123"})
        try:
            yield engine, where, server
        finally:
            await engine.close()


async def ask(handler: Handler, request: Request = CHAT, **options: Any) -> Attempt:
    async with setup(handler, **options) as (engine, where, _):
        attempt = (await collect(engine, where, request))[-1]
        assert isinstance(attempt, Attempt)
        return attempt


async def fault(handler: Handler, request: Request = CHAT, **options: Any) -> Fault:
    attempt = await ask(handler, request, **options)
    assert attempt.fault is not None
    return attempt.fault


# ── what is sent ─────────────────────────────────────────────────────────────


async def test_whole_answer() -> None:
    async with setup(good) as (engine, where, server):
        params = MappingProxyType({"max_tokens": 5, "model": "ignored", "odd": MappingProxyType({"a": [1]})})
        request = Request("r", CHAT.messages, params=params)
        (attempt,) = await collect(engine, where, request)
        assert isinstance(attempt, Attempt)
        assert (attempt.text, attempt.finish_reason, attempt.usage) == ("four", "stop", Usage(9, 3, 4))
        assert attempt.raw == reply()
        assert attempt.first_token_s is None
        assert attempt.seconds > 0
        assert server.paths == ["/v1/chat/completions"]
        sent = {"max_tokens": 5, "odd": {"a": [1]}, "model": "m-7b", "messages": list(CHAT.messages)}
        assert server.bodies == [sent]


async def test_raw_prompt_goes_to_completions() -> None:
    body = {"choices": [{"index": 0, "text": "4", "finish_reason": "stop"}]}
    async with setup(says(json.dumps(body).encode(), "application/json")) as (engine, where, server):
        (attempt,) = await collect(engine, where, RAW)
        assert isinstance(attempt, Attempt)
        assert attempt.text == "4"
        assert (server.paths, server.bodies) == (["/v1/completions"], [{"prompt": "2+2=", "model": "m-7b"}])


@pytest.mark.parametrize("asked", [True, False])
async def test_stream_and_usage(asked: bool) -> None:
    options = {"stream_options": {"include_usage": True, "x": 1}} if asked else {}
    request = Request("r", CHAT.messages, params={"stream": True, **options})
    async with setup(good) as (engine, where, server):
        *deltas, attempt = await collect(engine, where, request)
        assert isinstance(attempt, Attempt)
        assert [delta.text for delta in deltas if isinstance(delta, Delta)] == ["", "fo", "ür", "", *[""] * asked]
        assert deltas[0].raw == CHUNKS[0]
        assert (attempt.text, attempt.finish_reason, attempt.usage) == ("foür", "stop", Usage(9, 3))
        assert attempt.first_token_s is not None
        assert attempt.first_token_s <= attempt.seconds
        assert server.bodies[0]["stream_options"]["include_usage"] is True
        assert server.bodies[0]["stream_options"].get("x") == (1 if asked else None)


async def test_stream_usage_can_be_switched_off() -> None:
    async with setup(good, stream_usage=False) as (engine, where, server):
        await collect(engine, where, STREAM)
        assert "stream_options" not in server.bodies[0]


async def test_key_and_headers_are_sent_and_never_shown() -> None:
    async def refuses(request: web.Request, _body: Any) -> web.StreamResponse:
        told = f"bad key {request.headers['Authorization']} and {request.headers['X-Org']}"
        return web.json_response({"error": {"message": told}}, status=401)

    async with setup(refuses, api_key_env="KEY", headers={"X-Org": "org-private"}) as (engine, where, server):
        (attempt,) = await collect(engine, where, CHAT)
        assert isinstance(attempt, Attempt)
        assert server.headers[0]["Authorization"] == "Bearer sk-secret-123"
        assert attempt.fault == Fault("auth", "HTTP 401: bad key Bearer *** and ***", status=401)
        assert "secret" not in repr(engine.__dict__)


async def test_connections_are_kept_alive() -> None:
    async with setup(good) as (engine, where, server):
        for request in (CHAT, STREAM, STREAM, CHAT):
            await collect(engine, where, request)
        assert len(set(server.peers)) == 1


async def test_connections_closed_without_a_word() -> None:
    async def closes(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await good(request, body)
        await response.prepare(request)
        await response.write_eof()  # type: ignore[attr-defined]
        assert request.transport is not None
        asyncio.get_running_loop().call_later(0.001, request.transport.close)
        return response

    async with setup(closes) as (engine, where, server):
        for request in (CHAT, STREAM) * 5:
            assert (await collect(engine, where, request))[-1].text in ("four", "foür")
        assert len(server.bodies) <= 20


async def test_what_breaks_connections_is_sent_again_only_on_a_new_one() -> None:
    async def breaks(request: web.Request, _body: Any) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with setup(good) as (engine, where, server):
        await collect(engine, where, CHAT)
        server.handler = breaks
        for total in (3, 4):  # twice after the good one, on the kept connection and a new one; then once
            (attempt,) = await collect(engine, where, CHAT)
            assert isinstance(attempt, Attempt)
            assert attempt.fault is not None
            assert (attempt.fault.kind, len(server.bodies)) == ("connect", total)


async def test_a_request_that_json_cannot_hold() -> None:
    for params in ({"x": object()}, {"x": "\ud800"}, {"x": 2**70}):
        found = await fault(good, Request("r", CHAT.messages, params=params))
        assert found.kind == "bad_request"


# ── what comes back ──────────────────────────────────────────────────────────

ERRORS = [
    (400, {"error": {"message": "no", "code": "context_length_exceeded"}}, "context"),
    (400, {"error": {"message": "no", "type": "exceed_context_size_error"}}, "context"),
    (400, {"error": {"message": "This model's maximum context length is 8 tokens"}}, "context"),
    (400, {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}, "context"),
    (400, {"error": "the input length exceeds the context length"}, "context"),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096"}, "context"),
    (400, {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}, "context"),
    (400, {"error": {"message": "temperature"}}, "bad_request"),
    (401, {}, "auth"),
    (403, {}, "auth"),
    (404, {"detail": "Not Found"}, "bad_request"),
    (408, {}, "timeout"),
    (413, {}, "bad_request"),
    (422, {"detail": [{"loc": ["body"]}]}, "bad_request"),
    (429, {}, "rate_limit"),
    (500, {}, "server"),
    (503, [], "server"),
    (302, {}, "protocol"),
]


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS)
async def test_statuses(status: int, body: Any, kind: str) -> None:
    for request in (CHAT, STREAM):
        found = await fault(says(json.dumps(body).encode(), "application/json", status), request)
        assert (found.kind, found.status) == (kind, status)


async def test_an_error_page_is_shown_but_not_whole() -> None:
    found = await fault(says(b"<html>" + b"x" * 9000, "text/html", 502))
    assert (found.kind, found.status) == ("server", 502)
    assert found.message.startswith("HTTP 502: <html>")
    assert len(found.message) < 600


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("-3", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)],
)
async def test_retry_after(value: str, low: float, high: float) -> None:
    headers = {"Retry-After": value}
    found = await fault(says(b"{}", "application/json", 429, **headers))
    assert found.retry_after is not None
    assert low <= found.retry_after <= high


@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", "Wed, 99 Oct 2015"])
async def test_retry_after_that_says_nothing(value: str) -> None:
    assert (await fault(says(b"{}", "application/json", 429, **{"Retry-After": value}))).retry_after is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"not json", "protocol"),
        (b"[1]", "protocol"),
        (b'{"id": 1}', "protocol"),
        (b'{"choices": []}', "protocol"),
        (b'{"error": {"message": "CUDA error", "code": 500}}', "server"),
    ],
)
async def test_bodies_that_are_no_answer(body: bytes, kind: str) -> None:
    assert (await fault(says(body, "application/json"))).kind == kind


async def test_wrong_content_types() -> None:
    assert (await fault(says(b"hello", "text/html"))).kind == "protocol"
    assert (await fault(says(json.dumps(reply()).encode(), "application/json"), STREAM)).kind == "protocol"


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (sse(CHUNKS[:2], done=False), "protocol", "fo"),
        (sse(CHUNKS[:2], done=False) + b"data: {oops\n\n", "protocol", "fo"),
        (sse([*CHUNKS[:2], {"error": {"message": "boom", "code": 500}}]), "server", "fo"),
        (sse(CHUNKS[:2], done=False) + b"event: error\ndata: boom\n\n", "server", "fo"),
        (sse([{"id": 1}]), "protocol", ""),
        (b"", "protocol", ""),
    ],
)
async def test_streams_that_go_wrong_keep_what_came(data: bytes, kind: str, text: str) -> None:
    attempt = await ask(says(data), STREAM)
    assert attempt.fault is not None
    assert (attempt.fault.kind, attempt.text) == (kind, text)
    assert (attempt.first_token_s is not None) == bool(text)


async def test_what_a_broken_stream_wrote_is_counted() -> None:
    """A token a piece, or for four characters of long ones; the prompt by its characters; nothing written, nothing."""

    async def usage(*events: dict[str, Any]) -> Usage:
        attempt = await ask(says(sse(events, done=False)), STREAM)
        assert attempt.fault is not None
        return attempt.usage

    prompt = -(-len(CHAT.text) // 4)
    assert await usage(*CHUNKS[:3]) == Usage(prompt, 2)
    assert await usage(*[chunk({"content": "word "})] * 20) == Usage(prompt, 20)
    assert await usage(chunk({"content": "x" * 41})) == Usage(prompt, 11)
    assert await usage(chunk({"reasoning_content": "hm"}), chunk({"content": "b"}, index=1)) == Usage(prompt, 2)
    call = {"index": 0, "id": "call-0123456789", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert await usage(chunk({"tool_calls": [call]})) == Usage(prompt, 1)
    assert await usage(CHUNKS[0]) == Usage()
    counted = {**CHUNKS[1], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
    assert await usage(counted) == Usage(9, 7)


async def test_a_broken_stream_is_billed_by_every_cost_model() -> None:
    attempt = await ask(says(sse(CHUNKS[:3], done=False)), STREAM)
    stages = make_ladder("small", price_in=1e6, price_out=1e6).stages
    timing = StageTiming(1.0, 1.0, 1.0, prompt_tokens=1, output_tokens=1)
    measured = MeasuredCosts(stages, no_forecast, params={"stages": {"small": timing}}, cost_unit="gpu_s")
    assert attempt.usage == usage_of(STREAM, "foür", 2)
    assert FixedCosts(stages, no_forecast).billed(stages[0], attempt) == stages[0].cost
    assert PriceListCosts(stages, no_forecast).billed(stages[0], attempt) == pytest.approx(3 + 2)
    assert measured.billed(stages[0], attempt) == pytest.approx(1 + 3 + 2)


async def test_a_stream_may_end_with_done_or_with_a_finish_reason() -> None:
    assert (await ask(says(sse(CHUNKS[:3])), STREAM)).fault is None
    assert (await ask(says(sse(CHUNKS, done=False)), STREAM)).fault is None


async def test_tool_calls_count_as_shown_and_other_choices_do_not_mix_in() -> None:
    call = chunk({"tool_calls": [{"index": 0, "id": "t"}]})
    attempt = await ask(says(sse([CHUNKS[0], call, chunk({}, "tool_calls")])), STREAM)
    assert (attempt.text, attempt.finish_reason) == ("", "tool_calls")
    assert attempt.first_token_s is not None
    attempt = await ask(says(sse([chunk({"content": "b"}, "length", index=1), *CHUNKS])), STREAM)
    assert (attempt.text, attempt.finish_reason) == ("foür", "stop")


def choices_of(*texts: str, tokens: int, alone: bool) -> dict[str, Any]:
    """A whole reply; ``alone``: its usage counts the first choice, as llama.cpp's does."""
    choices = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 9, "completion_tokens": tokens}
    return {"choices": choices, "usage": usage, **({"timings": {"predicted_n": tokens}} if alone else {})}


async def test_further_choices_are_counted_where_the_server_counts_one() -> None:
    async def tokens(body: dict[str, Any]) -> int:
        return (await ask(says(json.dumps(body).encode(), "application/json"))).usage.output_tokens

    assert await tokens(choices_of("four", "five to six", tokens=8, alone=False)) == 8
    assert await tokens(choices_of("four", tokens=8, alone=True)) == 8
    assert await tokens(choices_of("four", "five to six", tokens=8, alone=True)) == 8 + 22
    assert await tokens(choices_of("", "five to six", tokens=8, alone=True)) == 8 + 3
    told = choices_of("four", "five", tokens=8, alone=True)
    told["choices"][1]["logprobs"] = {"content": [{"logprob": -1.0}] * 5}
    assert await tokens(told) == 8 + 5


async def test_streams_of_several_choices_are_counted_whole() -> None:
    def count(tokens: int, *, alone: bool) -> dict[str, Any]:
        return choices_of(tokens=tokens, alone=alone)

    async def tokens(*events: dict[str, Any]) -> int:
        return (await ask(says(sse(events)), STREAM)).usage.output_tokens

    both = [*CHUNKS, chunk({"content": "b"}, "stop", index=1)]
    assert await tokens(*both, count(3, alone=True), count(2, alone=True)) == 5
    assert await tokens(*CHUNKS, count(3, alone=True), count(3, alone=True)) == 3  # one choice, counted twice over
    assert await tokens(*both, count(5, alone=False), count(5, alone=False)) == 5


async def test_drafting_is_told_where_the_server_tells_it() -> None:
    def timings(drafted: int, accepted: int, tokens: int = 9) -> dict[str, Any]:
        return {"predicted_n": tokens, "draft_n": drafted, "draft_n_accepted": accepted}

    def whole(told: Any) -> Handler:
        return says(
            json.dumps({**choices_of("four", tokens=9, alone=False), "timings": told}).encode(), "application/json"
        )

    def told(drafted: int, accepted: int) -> Speculation:
        return Speculation(("", "small"), (Drafting("", "small", drafted, accepted),))

    assert (await ask(whole(timings(8, 5)))).speculation == told(8, 5)
    assert (await ask(whole(timings(3, 5)))).speculation == told(3, 3)  # no more than there were
    for silent in (None, "fast", {"predicted_n": 9}, timings(0, 0), {"draft_n": "many"}, {"draft_n": -1}):
        assert (await ask(whole(silent))).speculation is None
    growing = [{**chunk({"content": "x"}), "timings": timings(n, n // 2)} for n in (2, 4, 6)]
    assert (await ask(says(sse([*growing, chunk({}, "stop")])), STREAM)).speculation == told(6, 3)
    both = [*CHUNKS, chunk({"content": "b"}, "stop", index=1)]
    last = [{**chunk({}, "stop", index=i), "timings": timings(4 + i, 2)} for i in (0, 1)]
    assert (await ask(says(sse([*both, *last])), STREAM)).speculation == told(9, 4)


# ── when nothing, or too little, comes ───────────────────────────────────────


async def asked_at(url: str) -> Fault:
    """The fault of asking there, whatever the configuration would have said of the address."""
    target = Target("small", "m", url)
    async with new_pool() as pool, aclosing(exchange(pool, target, CHAT)) as events:
        (attempt,) = [event async for event in events]
    assert isinstance(attempt, Attempt)
    assert attempt.fault is not None
    return attempt.fault


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    """Clients are told the stage and what happened; the address is for the log."""
    async with serving(good) as server:
        url = server.url
    found = await asked_at(url)
    told = "the server of stage 'small' cannot be reached (connection refused); base_url of that stage says where"
    assert found == Fault("connect", told)
    (record,) = caplog.records
    assert (record.name, record.levelname, url in record.getMessage()) == ("stepladder.engines", "WARNING", True)


@pytest.mark.parametrize(
    "url", ["http://", "http://a..b/v1", f"http://{'a' * 70}.com/v1", "http://[::1/v1", "http://h:99999"]
)
async def test_addresses_that_cannot_be_asked_are_faults(url: str) -> None:
    found = await asked_at(url)
    assert found.kind == "connect"
    assert "stage 'small'" in found.message
    assert url not in found.message


@pytest.mark.parametrize("streamed", [True, False])
async def test_reset_midway(streamed: bool) -> None:
    async def resets(request: web.Request, _body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream" if streamed else "application/json"})
        await response.prepare(request)
        await response.write(sse(CHUNKS[:2], done=False))
        await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    attempt = await ask(resets, STREAM if streamed else CHAT)
    assert attempt.fault is not None
    assert (attempt.fault.kind, attempt.text) == ("connect", "fo" if streamed else "")
    assert "127.0.0.1" not in attempt.fault.message


async def test_time_limits() -> None:
    async def silent(_request: web.Request, _body: Any) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    first = await fault(silent, connect_timeout_s=0.05, first_byte_timeout_s=0.05)
    assert (first.kind, "first_byte_timeout_s" in first.message) == ("timeout", True)
    idle = await ask(stalls(sse(CHUNKS[:2], done=False)), STREAM, idle_timeout_s=0.05)
    assert idle.fault is not None
    assert (idle.fault.kind, "idle_timeout_s" in idle.fault.message, idle.text) == ("timeout", True, "fo")
    total = await fault(stalls(b": hello\n\n"), STREAM, total_timeout_s=0.05)
    assert (total.kind, "total_timeout_s" in total.message) == ("timeout", True)


async def test_total_time_limit_of_a_stream_that_drips() -> None:
    async def drips(request: web.Request, _body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(sse([chunk({"content": "x"})], done=False))
            await asyncio.sleep(0.02)

    found = await fault(drips, STREAM, total_timeout_s=0.1)
    assert (found.kind, "total_timeout_s" in found.message) == ("timeout", True)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_cuts_the_connection(how: str) -> None:
    async with setup(stalls(sse(CHUNKS[:2], done=False)), at_once=1) as (engine, where, server):
        events = engine.generate(STREAM, where)
        await anext(events)
        if how == "close":
            await events.aclose()
        else:
            await anext(events)
            task = asyncio.create_task(anext(events))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(server.cut.wait(), 1)
        server.handler = good
        assert (await collect(engine, where, CHAT))[-1].text == "four"


async def test_leaving_before_the_first_byte_cuts_the_connection() -> None:
    reached = asyncio.Event()

    async def silent(_request: web.Request, _body: Any) -> web.StreamResponse:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with setup(silent) as (engine, where, server):
        task = asyncio.create_task(collect(engine, where, CHAT))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cut.wait(), 1)


async def test_places_are_limited() -> None:
    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return await good(request, body)

    async with setup(slow, at_once=2) as (engine, where, server):
        attempts = await asyncio.gather(*(collect(engine, where, CHAT) for _ in range(10)))
        assert server.most_at_once == 2
        assert all(events[-1].text == "four" for events in attempts)


async def test_no_place_within_the_total_time() -> None:
    async with setup(stalls(b": x\n\n"), at_once=1, total_timeout_s=0.08) as (engine, where, _):
        first, second = await asyncio.gather(*(collect(engine, where, STREAM) for _ in range(2)))
        faults = [events[-1].fault for events in (first, second) if isinstance(events[-1], Attempt)]
        assert [found.kind for found in faults if found] == ["timeout", "timeout"]


async def test_the_wait_for_a_place_is_part_of_the_total_time() -> None:
    limit = 0.4
    free = asyncio.Event()

    async def first_waits_then_stalls(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not free.is_set():
            await free.wait()
            return await good(request, body)
        return await stalls(b": x\n\n")(request, body)

    async with setup(first_waits_then_stalls, at_once=1, total_timeout_s=limit) as (engine, where, _):
        calls = asyncio.gather(*(collect(engine, where, STREAM) for _ in range(2)))
        await asyncio.sleep(limit / 2)
        free.set()
        (*_, first), (*_, second) = await calls
        assert isinstance(first, Attempt)
        assert isinstance(second, Attempt)
        assert first.fault is None
        assert second.fault == Fault("timeout", f"no whole answer of stage 'small' within {limit} s (total_timeout_s)")
        assert second.seconds < limit  # what was left of it after the wait


async def test_waiting_too_long_for_a_place_says_so() -> None:
    async with setup(stalls(b": x\n\n"), at_once=1, total_timeout_s=0.05) as (engine, where, server):
        await engine._places["small"].acquire()  # as if another had it for good
        (attempt,) = await collect(engine, where, STREAM)
        assert isinstance(attempt, Attempt)
        assert attempt.fault == Fault("timeout", "no free place of stage 'small' within 0.05 s (total_timeout_s)")
        assert server.bodies == []


async def test_a_call_that_nobody_reads_on_holds_no_place_beyond_its_time() -> None:
    async with setup(stalls(sse(CHUNKS[:2], done=False)), at_once=1, total_timeout_s=0.2) as (engine, where, server):
        unread = engine.generate(STREAM, where)
        await anext(unread)
        await asyncio.wait_for(server.cut.wait(), 5)
        server.handler = good
        assert (await collect(engine, where, CHAT))[-1].text == "four"
        *_, last = [event async for event in unread]
        assert isinstance(last, Attempt)
        assert last.fault is not None
        assert (last.fault.kind, "total_timeout_s" in last.fault.message) == ("timeout", True)
        assert engine._places["small"]._value == 1


async def test_closed_engine_refuses_and_can_be_started_again() -> None:
    async with setup(good) as (engine, where, _):
        await engine.close()
        with pytest.raises(EngineError, match="small"):
            await collect(engine, where, CHAT)
        await engine.start()
        assert (await collect(engine, where, CHAT))[-1].text == "four"


# ── options ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base_urll": "http://x"}, "did you mean 'base_url'"),
        ({}, "base_url: is missing"),
        ({"base_url": "ftp://x"}, "must begin with http"),
        ({"base_url": "http://"}, "base_url: must name a host"),
        ({"base_url": "http://:8000/v1"}, "base_url: must name a host"),
        ({"base_url": "http://a b/v1"}, "base_url: must name a host and hold no spaces"),
        ({"base_url": "http://a\tb/v1"}, "base_url: must name a host and hold no spaces"),
        ({"base_url": "http://host:99999/v1"}, "base_url: is no address that can be asked"),
        ({"base_url": "http://[::1/v1"}, "base_url: is no address that can be asked"),
        ({"base_url": f"http://{'a' * 64}.com/v1"}, "base_url: is no address that can be asked"),
        ({"base_url": "http://a..b/v1"}, "base_url: is no address that can be asked"),
        ({"base_url": "http://\u2028\u2603.com/v1"}, "base_url: is no address that can be asked"),
        ({"base_url": "http://x/v1?key=1"}, "base_url: must not hold a query"),
        ({"base_url": "http://user:pw@x/v1"}, "name it in api_key_env"),
        ({"base_url": "http://x", "idle_timeout_s": 0}, "idle_timeout_s: must be a positive number"),
        ({"base_url": "http://x", "total_timeout_s": "9"}, "total_timeout_s: must be a positive number"),
        ({"base_url": "http://x", "headers": {"a": 1}}, "headers: must be a table of strings"),
        ({"base_url": "http://x", "headers": {"a": "b\r\nc: d"}}, "does not allow"),
        ({"base_url": "http://x", "api_key_env": "NO_KEY"}, "variable NO_KEY is not set"),
        ({"base_url": "http://x", "stream_usage": 1}, "must be true or false"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match="stage 'small'") as caught:
        OpenAIEngine((Stage("small", "openai", "m", options=options),), environ={})
    assert told in str(caught.value)


@pytest.mark.parametrize("url", ["http://user:hunter22@x/v1", "htp://user:hunter22@x", "user:hunter22@[::1/v1"])
def test_a_password_in_base_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        OpenAIEngine((stage(url),))
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://my_host:8000/v1", "http://[::1]:8000/v1", "https://exämple.de", "http://a./v1"]
)
def test_addresses_that_can_be_asked(url: str) -> None:
    OpenAIEngine((stage(url),))


def test_all_problems_are_told_at_once() -> None:
    options = {"base_url": "x", "idle_timeout_s": -1, "colour": 1}
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine((Stage("small", "openai", "m", options=options),))
    assert len(caught.value.problems) == 3


# ── a recorded vLLM ──────────────────────────────────────────────────────────


async def replayed(name: str) -> tuple[list[EngineEvent], Attempt]:
    recorded = GOLDEN[name]
    body = recorded["request"]
    chat = recorded["path"].endswith("chat/completions")
    params = {key: value for key, value in body.items() if key not in ("messages", "prompt")} if name[0] == "c" else {}
    if "text/event-stream" in recorded["content_type"]:
        params["stream"] = True
    request = Request("r", CHAT.messages if chat else (), None if chat else "2+2=", params)
    handler = says(recorded["body"].encode(), recorded["content_type"], recorded["status"])
    async with setup(handler) as (engine, where, _):
        events = await collect(engine, where, request)
        assert isinstance(events[-1], Attempt)
        return events[:-1], events[-1]


@pytest.mark.parametrize("name", ["chat", "chat_logprobs", "chat_stream", "chat_stream_usage_logprobs"])
async def test_vllm_chat(name: str) -> None:
    deltas, attempt = await replayed(name)
    assert (attempt.fault, attempt.text, attempt.finish_reason) == (None, "_{_{_{_{_{_{", "length")
    assert attempt.usage == (Usage() if name == "chat_stream" else Usage(9, 12))
    assert len(attempt.logprobs or ()) == (12 if "logprobs" in name else 0)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) in ("", attempt.text)
    assert bool(deltas) == ("stream" in name)


@pytest.mark.parametrize("name", ["completion_logprobs", "completion_stream"])
async def test_vllm_completion(name: str) -> None:
    _, attempt = await replayed(name)
    assert (attempt.fault, attempt.text, attempt.finish_reason) == (None, "losed\ufffd###\ufffd###", "length")
    assert len(attempt.logprobs or ()) == (6 if "logprobs" in name else 0)


async def test_vllm_two_choices_keep_both_in_raw() -> None:
    _, attempt = await replayed("chat_n2")
    assert attempt.raw is not None
    assert [choice["index"] for choice in attempt.raw["choices"]] == [0, 1]
    assert attempt.text == attempt.raw["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("error")])
async def test_vllm_errors(name: str) -> None:
    _, attempt = await replayed(name)
    assert attempt.fault is not None
    kind = "context" if name == "error_context" else "bad_request"
    assert (attempt.fault.kind, attempt.fault.status) == (kind, GOLDEN[name]["status"])
