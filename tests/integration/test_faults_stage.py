"""Real servers that misbehave, behind the real router and gateway: who is asked, and who answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from gateway_fakes import post
from openai_server import CHUNKS, FakeServer, Handler, chunk, good, reply, says, serving, sse
from stepladder import config
from stepladder.build import build
from stepladder.engines import http
from stepladder.errors import AnswerError
from stepladder.gateway.app import create_app
from stepladder.guard.breaker import JITTER
from stepladder.guard.gates import GateRules, Gates
from stepladder.router import Router
from stepladder.types import EMPTY, Answer, Dials, Request, StageState, Trace

LIMITS: dict[str, Any] = {
    "connect_timeout_s": 0.5,
    "first_byte_timeout_s": 0.3,
    "idle_timeout_s": 0.3,
    "total_timeout_s": 2.0,
    "breaker_failures": 3,
    "breaker_pause_s": 0.4,
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_S", 0.01)


# ── servers ──────────────────────────────────────────────────────────────────


async def never(_request: web.Request, _body: Any) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def closes(request: web.Request, _body: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stops_midway(request: web.Request, body: Any) -> web.StreamResponse:
    kind = "text/event-stream" if body.get("stream") else "application/json"
    response = web.StreamResponse(headers={"Content-Type": kind})
    await response.prepare(request)
    await response.write(sse(CHUNKS[:2], done=False) if body.get("stream") else b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


error = says(b'{"error": {"message": "no luck"}}', "application/json", 500)
busy = says(b'{"error": {"message": "slow down"}}', "application/json", 429, **{"Retry-After": "7"})
page = says(b"<html>a proxy's page</html>", "text/html")
not_json = says(b"four", "application/json")

BAD: dict[str, tuple[Handler, str]] = {
    "never": (never, "timeout"),
    "500": (error, "server"),
    "429": (busy, "rate_limit"),
    "closes": (closes, "connect"),
    "html": (page, "protocol"),
    "not-json": (not_json, "protocol"),
}


@dataclass
class Town:
    """A ladder of real servers and the router in front of them."""

    router: Router
    servers: dict[str, FakeServer]

    def asked(self, stage: str) -> int:
        return len(self.servers[stage].bodies)

    def state(self, stage: str) -> StageState:
        return next(state for state in self.router.snapshot().stages if state.stage == stage)


@asynccontextmanager
async def town(
    handlers: dict[str, Handler],
    *,
    mode: str = "route",
    clock: Callable[[], float] | None = None,
    policy: Mapping[str, Any] = EMPTY,
    **options: Any,
) -> AsyncGenerator[Town, None]:
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(serving(handler)) for name, handler in handlers.items()}
        stages = [
            {"name": name, "model": "m", "base_url": server.url, "cost": 1.0 + place, **LIMITS, **options}
            for place, (name, server) in enumerate(servers.items())
        ]
        router = build(config.parse({"stages": stages, "policy": {"mode": mode, "lambda": 100.0, **policy}}))
        if clock is not None:
            rules = GateRules(failures=LIMITS["breaker_failures"], pause_s=LIMITS["breaker_pause_s"])
            router = Router(replace(router.parts, guard=Gates(handlers, dict.fromkeys(handlers, rules), clock=clock)))
        await router.start()
        stack.push_async_callback(router.close)
        yield Town(router, servers)


def question(*, stream: bool = False, **dials: Any) -> Request:
    messages = ({"role": "user", "content": "What is 2+2?"},)
    return Request("r", messages=messages, params={"stream": True} if stream else {}, dials=Dials(**dials))


async def ask(router: Router, request: Request) -> tuple[Answer | None, Trace]:
    try:
        answer = await router.answer(request)
    except AnswerError as failed:
        return None, failed.trace
    return answer, answer.trace


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what happens in another task or on a socket
            await asyncio.sleep(0.005)


def made(trace: Trace) -> list[tuple[str, str | None]]:
    return [(attempt.stage, attempt.fault and attempt.fault.kind) for attempt in trace.attempts]


# ── one bad stage ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["route", "cascade", "fixed"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("bad", BAD)
async def test_the_next_stage_answers_where_one_misbehaves(bad: str, stream: bool, mode: str) -> None:
    """λ = 100 makes every mode begin at the largest, the cheapest being worth a try only in a cascade."""
    handler, kind = BAD[bad]
    async with town({"small": good, "large": handler}, mode=mode) as place:
        answer, trace = await ask(place.router, question(stream=stream))
        assert answer is not None
        assert answer.stage == "small"
        assert ("large", kind) in made(trace)
        assert made(trace).count(("large", kind)) == 1
        assert {attempt.cost for attempt in trace.attempts if attempt.stage == "large"} == {0.0}
        if bad == "never":
            await asyncio.wait_for(place.servers["large"].cut.wait(), 5)
        assert [state.in_flight for state in place.router.snapshot().stages] == [0, 0]


async def test_after_the_first_byte_there_is_no_other_stage() -> None:
    async with town({"small": good, "large": stops_midway}) as place:
        answer, trace = await ask(place.router, question(stream=True))
        assert answer is None
        assert made(trace) == [("large", "connect")]
        answer, trace = await ask(place.router, question())
        assert answer is not None
        assert made(trace) == [("large", "connect"), ("small", None)]


async def test_a_stage_named_as_the_model_is_not_replaced() -> None:
    async with town({"small": good, "large": error}) as place:
        answer, trace = await ask(place.router, question(mode="fixed", min_stage="large", max_stage="large"))
        assert answer is None
        assert made(trace) == [("large", "server")]


# ── breakers ─────────────────────────────────────────────────────────────────


async def test_a_breaker_opens_tries_again_and_closes() -> None:
    now = [0.0]
    async with town({"small": good, "large": error}, clock=lambda: now[0]) as place:
        for _ in range(3):
            await ask(place.router, question())
        assert (place.state("large").breaker, place.asked("large")) == ("open", 3)
        for _ in range(5):
            answer, trace = await ask(place.router, question())
            assert answer is not None
            assert made(trace) == [("small", None)]
            assert trace.steps[0].view.absent["large"].kind == "breaker"
        assert place.asked("large") == 3
        now[0] += 0.4 * (1 + JITTER)
        _, trace = await ask(place.router, question())
        assert made(trace) == [("large", "server"), ("small", None)]
        assert (place.state("large").breaker, place.state("large").opened) == ("open", 2)
        place.servers["large"].handler = good
        now[0] += 0.8 * (1 + JITTER)
        _, trace = await ask(place.router, question())
        assert made(trace) == [("large", None)]
        assert (place.state("large").breaker, place.asked("large")) == ("closed", 5)


async def test_a_probe_that_fails_keeps_it_open_for_longer() -> None:
    async with town({"small": good, "large": error}, breaker_failures=1, breaker_pause_s=0.05) as place:
        async with asyncio.timeout(20):
            while place.state("large").opened < 4:
                await ask(place.router, question())
                await asyncio.sleep(0.01)
        assert place.asked("large") == 4
        absence = place.state("large").absence
        assert absence is None or absence.retry_after <= 0.05 * 8 * 1.25


async def test_all_breakers_open_is_503_with_retry_after_and_no_call() -> None:
    async with town({"small": closes, "large": error}, breaker_failures=1, breaker_pause_s=30.0) as place:
        app = create_app(place.router)
        body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "model": "stepladder"}
        first = await post(app, "/v1/chat/completions", body)
        assert first.status == 502
        before = {name: place.asked(name) for name in place.servers}
        got = await post(app, "/v1/chat/completions", body)
        assert got.status == 503
        assert 1 <= int(got.headers["retry-after"]) <= 38
        assert "stage 'small' is left in peace" in got.error["message"]
        assert "stage 'large' is left in peace" in got.error["message"]
        assert {name: place.asked(name) for name in place.servers} == before
        named = await post(app, "/v1/chat/completions", {**body, "model": "large"})
        assert (named.status, "small" in named.error["message"]) == (503, False)


async def test_a_server_that_asks_for_rest_is_left_alone() -> None:
    async with town({"small": good, "large": busy}) as place:
        for _ in range(3):
            answer, _ = await ask(place.router, question())
            assert answer is not None
        assert place.asked("large") == 1
        state = place.state("large")
        assert (state.breaker, state.absence and state.absence.kind) == ("closed", "rate_limit")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("told", ["seconds", "date", "milliseconds"])
async def test_rest_that_every_server_asks_for_is_429_with_the_soonest(told: str, stream: bool) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True)
    header = {
        "seconds": ("Retry-After", "7"),
        "date": ("Retry-After", soon),
        "milliseconds": ("Retry-After-Ms", "6500"),
    }

    async def rests(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.json_response({"error": {"message": "slow down"}}, status=429, headers=dict([header[told]]))

    async with town({"small": rests, "large": rests}) as place:
        app = create_app(place.router)
        body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "model": "stepladder"}
        for _ in range(2):  # the second is not even put to them
            got = await post(app, "/v1/chat/completions", {**body, "stream": stream})
            assert got.status == 429
            assert 1 <= int(got.headers["retry-after"]) <= 7
        assert [place.asked(name) for name in place.servers] == [1, 1]


# ── queues ───────────────────────────────────────────────────────────────────


async def test_full_stages_are_stepped_over_and_all_full_is_429() -> None:
    release = asyncio.Event()

    async def waits(_request: web.Request, _body: Any) -> web.StreamResponse:
        await release.wait()
        return web.json_response(reply())

    slow = {"first_byte_timeout_s": 30.0, "total_timeout_s": 60.0}
    async with town({"small": waits, "large": waits}, max_concurrency=1, max_queue=1, **slow) as place:
        app = create_app(place.router)
        body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "model": "stepladder"}
        waiting = [asyncio.create_task(post(app, "/v1/chat/completions", body)) for _ in range(4)]
        await until(lambda: place.asked("small") + place.asked("large") == 2 and place.state("small").waiting == 1)
        assert [(s.in_flight, s.waiting) for s in place.router.snapshot().stages] == [(1, 1), (1, 1)]
        got = await post(app, "/v1/chat/completions", body)
        assert got.status == 429
        assert int(got.headers["retry-after"]) >= 1
        assert "is full: 1 calls are at work and 1 wait" in got.error["message"]
        release.set()
        answers = await asyncio.gather(*waiting)
        assert [each.status for each in answers] == [200] * 4
        assert sorted(each.json["model"] for each in answers) == ["large", "large", "small", "small"]
        assert place.servers["large"].most_at_once == 1
        assert [(s.in_flight, s.waiting) for s in place.router.snapshot().stages] == [(0, 0), (0, 0)]


# ── conversations ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", [True, False], ids=["by a session", "by its messages"])
async def test_a_conversation_stays_at_its_stage_until_that_is_gone(named: bool) -> None:
    async with town({"small": good, "large": good}, policy={"switch_cost": 1000.0}) as place:
        app = create_app(place.router)
        said = [{"role": "user", "content": "What is 2+2?"}]
        session = {"x-stepladder-session": "s-1"} if named else {}
        answered = (await post(app, "/v1/chat/completions", {"messages": said}, session)).json
        assert answered["model"] == "large"
        follow_up = [*said, answered["choices"][0]["message"], {"role": "user", "content": "And 3+3?"}]
        cheap = {"messages": follow_up, "stepladder": {"lambda": 0, "explain": True}}
        stays = (await post(app, "/v1/chat/completions", cheap, session)).json
        assert stays["model"] == "large"
        (small, large) = stays["stepladder"]["steps"][0]["stages"]
        assert (small["cost"]["switch"], large["cost"]["switch"]) == (1000.0, 0.0)
        assert stays["stepladder"]["cost"] == 2.0
        alone = {**cheap, "messages": [{"role": "user", "content": "What is 5+5?"}]}
        assert (await post(app, "/v1/chat/completions", alone)).json["model"] == "small"
        place.servers["large"].handler = error
        gone = (await post(app, "/v1/chat/completions", cheap, session)).json
        assert gone["model"] == "small"
        assert [each["fault"] for each in gone["stepladder"]["spent"]] == ["server", None]


# ── retries ──────────────────────────────────────────────────────────────────


async def test_a_refusal_that_passes_costs_no_climb() -> None:
    left = [1]

    async def restarts(request: web.Request, body: Any) -> web.StreamResponse:
        if left:
            left.pop()
            return web.Response(status=503)
        return await good(request, body)

    async with town({"small": good, "large": restarts}) as place:
        answer, trace = await ask(place.router, question())
        assert answer is not None
        assert made(trace) == [("large", None)]
        assert answer.attempt.tries == 2
        assert answer.cost == 2.0
        assert place.state("large").retries == 1


async def test_a_first_byte_that_comes_is_enough_for_a_probe() -> None:
    """A stream that goes on for long does not keep the others waiting for the probe's end."""
    go_on = asyncio.Event()

    async def long(request: web.Request, body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse([chunk({"content": "fo"})], done=False))
        await go_on.wait()
        await response.write(sse([chunk({"content": "ur"}, "stop")]))
        return response

    patient = {"breaker_failures": 1, "breaker_pause_s": 0.01, "idle_timeout_s": 30.0, "total_timeout_s": 60.0}
    async with town({"small": good, "large": error}, **patient) as place:
        await ask(place.router, question())
        place.servers["large"].handler = long
        await asyncio.sleep(0.05)
        probe = asyncio.create_task(place.router.answer(question(stream=True)))
        await until(lambda: place.state("large").breaker == "closed")
        assert not probe.done()
        go_on.set()
        answer = await probe
        assert (answer.stage, answer.text) == ("large", "four")
