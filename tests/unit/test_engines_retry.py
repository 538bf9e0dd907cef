"""When a server is asked again: only where it did nothing yet, and never for long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from openai_server import CHUNKS, Handler, good, serving, sse
from stepladder.engines import http
from stepladder.engines.openai import OpenAIEngine
from stepladder.errors import ConfigError
from stepladder.types import Attempt, EngineEvent, Request, Stage, Usage

CHAT = Request("r", ({"role": "user", "content": "What is 2+2?"},))
STREAM = Request("r", CHAT.messages, params={"stream": True})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_S", 0.001)


@asynccontextmanager
async def engine_at(url: str, **options: Any) -> AsyncGenerator[tuple[OpenAIEngine, Stage], None]:
    where = Stage("small", "openai", "m", options={"base_url": url, **options})
    engine = OpenAIEngine((where,), environ={}, chance=lambda: 0.5)
    try:
        yield engine, where
    finally:
        await engine.close()


async def ask(url: str, request: Request = CHAT, **options: Any) -> list[EngineEvent]:
    async with engine_at(url, **options) as (engine, where), aclosing(engine.generate(request, where)) as events:
        return [event async for event in events]


def last(events: list[EngineEvent]) -> Attempt:
    assert isinstance(events[-1], Attempt)
    return events[-1]


def refuses(times: int, status: int, **headers: str) -> tuple[Handler, list[float]]:
    """A server that refuses so many calls and then is good; and when it was called."""
    called: list[float] = []

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        called.append(time.monotonic())
        if len(called) <= times:
            return web.json_response({"error": {"message": "not now"}}, status=status, headers=headers)
        return await good(request, body)

    return handler, called


@pytest.mark.parametrize("request_", [CHAT, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(("status", "headers"), [(502, {}), (503, {}), (429, {"Retry-After": "0"})])
async def test_a_refusal_that_may_pass_is_asked_again_once(
    request_: Request, status: int, headers: dict[str, str]
) -> None:
    handler, called = refuses(1, status, **headers)
    async with serving(handler) as server:
        attempt = last(await ask(server.url, request_))
    assert attempt.is_answer
    assert (attempt.tries, len(called)) == (2, 2)
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (3, 4)])
async def test_it_ends(retries: int, tries: int) -> None:
    handler, called = refuses(100, 503)
    async with serving(handler) as server:
        attempt = last(await ask(server.url, retries=retries))
    assert attempt.fault is not None
    assert (attempt.fault.status, attempt.tries, len(called)) == (503, tries, tries)
    assert attempt.usage == Usage()  # nothing was read or written, so nothing is billed


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (500, {}),
        (504, {}),
        (400, {}),
        (401, {}),
        (408, {}),
        (429, {}),
        (429, {"Retry-After": "30"}),
        (503, {"Retry-After": "30"}),
        (503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}),
    ],
)
async def test_other_refusals_are_not_asked_again(status: int, headers: dict[str, str]) -> None:
    handler, called = refuses(1, status, **headers)
    async with serving(handler) as server:
        attempt = last(await ask(server.url))
    assert (attempt.is_answer, attempt.tries, len(called)) == (False, 1, 1)


@pytest.mark.parametrize("header", [{"Retry-After": "0.3"}, {"Retry-After-Ms": "300", "Retry-After": "30"}])
async def test_the_time_that_the_server_names_is_waited(header: dict[str, str]) -> None:
    handler, called = refuses(1, 429, **header)
    async with serving(handler) as server:
        attempt = last(await ask(server.url))
    assert attempt.is_answer
    assert called[1] - called[0] >= 0.29
    assert attempt.seconds >= 0.29


async def test_nobody_listened_and_then_somebody_does() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    attempt = last(await ask(f"http://127.0.0.1:{port}/v1", retries=2))
    assert attempt.fault is not None
    assert (attempt.fault.kind, attempt.tries) == ("connect", 3)


def breaks(data: bytes, content_type: str) -> Handler:
    async def handler(request: web.Request, _body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        if data:
            await response.write(data)
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


async def hangs(_request: web.Request, _body: Any) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def says_503_in_200(_request: web.Request, _body: Any) -> web.StreamResponse:
    return web.json_response({"error": {"message": "busy", "code": 503}})


async def says_503_midway(request: web.Request, _body: Any) -> web.StreamResponse:
    data = sse([*CHUNKS[:2], {"error": {"message": "busy", "code": 503}}], done=False)  # type: ignore[list-item]
    return web.Response(body=data, headers={"Content-Type": "text/event-stream"})


@pytest.mark.parametrize(
    ("handler", "request_", "options"),
    [
        (breaks(sse(CHUNKS[:2], done=False), "text/event-stream"), STREAM, {}),
        (breaks(b"", "text/event-stream"), STREAM, {}),
        (breaks(b'{"choices"', "application/json"), CHAT, {}),
        (hangs, CHAT, {"first_byte_timeout_s": 0.05, "connect_timeout_s": 0.05}),
        (hangs, STREAM, {"total_timeout_s": 0.1}),
        (says_503_in_200, CHAT, {}),
        (says_503_midway, STREAM, {}),
    ],
    ids=["midway", "after headers", "half a reply", "no byte", "too long", "an error as an answer", "error midway"],
)
async def test_what_was_sent_and_may_have_been_worked_on_is_not_sent_again(
    handler: Handler, request_: Request, options: dict[str, float]
) -> None:
    async with serving(handler) as server:
        attempt = last(await ask(server.url, request_, retries=5, **options))
    assert (attempt.is_answer, attempt.tries, len(server.bodies)) == (False, 1, 1)


async def test_no_pause_goes_beyond_the_deadline() -> None:
    handler, called = refuses(100, 503, **{"Retry-After": "1"})
    async with serving(handler) as server:
        attempt = last(await ask(server.url, retries=10, total_timeout_s=0.5))
    assert (attempt.tries, len(called)) == (1, 1)
    assert attempt.seconds < 0.5


async def test_who_leaves_in_the_pause_leaves() -> None:
    handler, called = refuses(100, 503, **{"Retry-After": "2"})
    async with serving(handler) as server, engine_at(server.url) as (engine, where):
        reading = asyncio.create_task(anext(engine.generate(CHAT, where)))
        while not called:  # noqa: ASYNC110 - the handler is any of these tests
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert len(called) == 1


async def test_a_pause_teaches_nothing_about_the_servers_speed() -> None:
    handler, _ = refuses(1, 503)
    async with serving(handler) as server, engine_at(server.url) as (engine, where):
        for _ in range(3):
            async with aclosing(engine.generate(CHAT, where)) as events:
                assert [event async for event in events]
        assert engine.expected_cost(where, 10, 10) is None  # two of the three count, and three are needed
        async with aclosing(engine.generate(CHAT, where)) as events:
            assert [event async for event in events]
        assert engine.expected_cost(where, 10, 10) is not None


def pauses(chance: float, fault: http.Fault, left: float = 100.0) -> float | None:
    """The pause behind a refusal, without a server."""
    target = http.Target("s", "m", "http://x", retries=1)
    deadline = http.Deadline("s", left)
    call = http._Call(http.new_pool(), target, CHAT, deadline)
    call.was_refused = True
    return call.pause(fault, lambda: chance)


async def test_pauses_are_spread_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_S", 0.1)
    refused = http.Fault("server", "", 503)
    assert pauses(0.0, refused) == pytest.approx(0.1)
    assert pauses(0.999, refused) == pytest.approx(0.3, abs=0.001)
    assert pauses(0.0, refused, left=0.05) is None
    assert pauses(0.0, http.Fault("rate_limit", "", 429, retry_after=http.PATIENCE_S)) == http.PATIENCE_S
    assert pauses(0.0, http.Fault("rate_limit", "", 429, retry_after=http.PATIENCE_S + 0.1)) is None


@pytest.mark.parametrize("retries", [-1, 1.5, 11, "2", True])
def test_options_that_are_wrong(retries: Any) -> None:
    stage = Stage("small", "openai", "m", options={"base_url": "http://127.0.0.1:9/v1", "retries": retries})
    with pytest.raises(ConfigError, match="retries: must be a whole number from 0 to 10"):
        OpenAIEngine((stage,))
