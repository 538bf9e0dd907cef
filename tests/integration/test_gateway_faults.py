"""Every way in which a server can misbehave × stream or not × route or cascade × with another stage or without.

Bare sockets behind, the whole gateway between, a client before it. After each case nothing is left over: no task, no
socket, no call in flight. And a client that leaves: the server behind is left at once, and the trace says so.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

import misbehaving
from gateway_fakes import ClimbPolicy
from misbehaving import LARGE, WAYS, Server, sockets, until
from stepladder import config
from stepladder.build import build
from stepladder.gateway.app import create_app
from stepladder.gateway.server import serving
from stepladder.router import Router

HANG_S = 30.0
LEFT_S = 1.0
PATIENT: Mapping[str, Any] = {
    "connect_timeout_s": 10.0,
    "first_byte_timeout_s": 60.0,
    "idle_timeout_s": 60.0,
    "total_timeout_s": 120.0,
    "retries": 0,
}
LIMITS: Mapping[str, Mapping[str, float]] = {
    "never": {"connect_timeout_s": 0.1, "first_byte_timeout_s": 0.1},
    "drips_headers": {"connect_timeout_s": 0.1, "first_byte_timeout_s": 0.1},
    "drips_body": {"total_timeout_s": 0.25},
    "stalls": {"idle_timeout_s": 0.15},
}
"""Only who would be waited for has a short limit, so that a busy machine makes no fault of another kind."""

KINDS: Mapping[str, str | None] = {
    "never": "timeout",
    "drips_headers": "timeout",
    "drips_body": "timeout",
    "resets": "connect",
    "stalls": "timeout",
    "closes": "connect",
    "fails": "server",
    "is_busy": "rate_limit",
    "says_words": "protocol",
    "is_large": None,
    "is_a_page": "protocol",
    "ends_early": "protocol",
    "half_a_chunk": "connect",
}
STATUSES = {"timeout": 504, "connect": 502, "server": 502, "protocol": 502, "rate_limit": 429}
BEGUN = frozenset({"resets", "stalls", "half_a_chunk"})
"""Ways that break off a stream whose first words have come."""


@dataclass
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def events(self) -> list[Any]:
        datas = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [data.decode() if data == b"[DONE]" else orjson.loads(data) for data in datas]

    @property
    def restarts(self) -> list[str]:
        """The stages that a stream turned to."""
        told = [event.get("stepladder", {}).get("restart") for event in self.chunks] if self.is_stream else []
        return [restart["stage"] for restart in told if restart]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        """The answer; what a restart dropped is not in it."""
        if not self.is_stream:
            return str(orjson.loads(self.body)["choices"][0]["message"]["content"])
        text = ""
        for chunk in self.chunks:
            if "restart" in chunk.get("stepladder", {}):
                text = ""
            text += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
        return text

    @property
    def error(self) -> Mapping[str, Any]:
        """The error body, or the error event that a stream ends with."""
        return dict(self.events[-1] if self.is_stream else orjson.loads(self.body))


@dataclass
class Town:
    """A bad server, a good one, and the gateway before both."""

    bad: Server
    good: Server
    router: Router
    url: str

    async def ask(self, **more: Any) -> Got:
        body = {"messages": [{"role": "user", "content": "What is 2+2?"}], **more}
        async with (
            asyncio.timeout(HANG_S),
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/chat/completions", json=body) as response,
        ):
            return Got(response.status, response.headers, await response.read())

    async def trace(self, decision: str) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/v1/decisions/{decision}") as response:
            assert response.status == 200
            return dict(await response.json())

    @property
    def is_at_rest(self) -> bool:
        calls = sum(state.in_flight + state.waiting for state in self.router.snapshot().stages)
        return not (calls or self.bad.at_work or self.good.at_work)

    def tasks(self) -> set[asyncio.Task[Any]]:
        """What runs, but for the servers behind."""
        return asyncio.all_tasks() - self.bad.tasks - self.good.tasks


class Switch:
    """An ASGI application in the place of whichever is tested now: a server takes longer to end than a case does."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@asynccontextmanager
async def house() -> AsyncGenerator[tuple[Switch, str], None]:
    """The server that all cases of a test go through. No socket of it is left."""
    held, switch = sockets(), Switch()
    async with serving(Starlette(routes=[Mount("/", app=switch)])) as url:
        yield switch, url
    await until(lambda: sockets() <= held, lambda: (sockets(), held))


@asynccontextmanager
async def town(
    served: tuple[Switch, str], way: str, mode: str = "route", *, alone: bool = False, on_top: bool = False
) -> AsyncGenerator[Town, None]:
    """The bad server's stage is the lower one, or ``on_top`` of one that every request climbs from.

    Nothing is left of any of it after the block.
    """
    (switch, url), tasks, held = served, asyncio.all_tasks(), sockets()
    async with misbehaving.serving(WAYS[way]) as bad, misbehaving.serving(misbehaving.good) as good:
        stages = [{"name": "bad", "model": "m", "base_url": bad.url, "cost": 1.0, **PATIENT, **LIMITS.get(way, {})}]
        if not alone:
            stages.append({"name": "good", "model": "m", "base_url": good.url, "cost": 2.0, **PATIENT})
        if on_top:
            stages = [{**stage, "cost": price} for price, stage in enumerate(reversed(stages), 1)]
        router = build(config.parse({"stages": stages, "policy": {"mode": mode, "lambda": 5.0}}))
        if on_top:
            router = Router(replace(router.parts, policies={"cascade": ClimbPolicy()}))
        await router.start()
        switch.app = create_app(router)
        place = Town(bad, good, router, url)
        try:
            yield place
            await until(lambda: place.is_at_rest, lambda: (router.snapshot().stages, bad.at_work, good.at_work))
            await until(lambda: place.tasks() <= tasks, lambda: place.tasks() - tasks)
        finally:
            await router.close()
        await until(lambda: not (bad.open or good.open), lambda: (bad.open, good.open))
    await until(lambda: asyncio.all_tasks() <= tasks, lambda: asyncio.all_tasks() - tasks)
    await until(lambda: sockets() <= held, lambda: (sockets(), held))


@contextmanager
def case(*what: object) -> Iterator[None]:
    """Says which case it was that failed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the case: {what}")
        raise


def made(trace: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Who was called, and what came of it."""
    attempts = [step["attempt"] for step in trace["steps"] if step.get("attempt")]
    return [(each["stage"], each["fault"] and each["fault"]["kind"]) for each in attempts]


# ── the matrix ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
async def test_whatever_a_server_does(way: str) -> None:
    async with house() as served:
        for alone, mode, stream in product((True, False), ("route", "cascade"), (False, True)):
            with case("alone" if alone else "with another", mode, "stream" if stream else "whole"):
                async with town(served, way, mode, alone=alone) as place:
                    await expect(place, way, mode, stream=stream, alone=alone)


async def expect(place: Town, way: str, mode: str, *, stream: bool, alone: bool) -> None:
    """The right reply and the right trace."""
    kind = KINDS[way]
    got = await place.ask(stream=stream)
    trace = await place.trace(got.headers["x-stepladder-decision-id"])
    assert len(place.bad.bodies) == 1
    # It streams truly where the call is final: in a route always, in a cascade where nobody stands above.
    if kind is None:
        assert (got.status, got.text, made(trace)) == (200, "x" * LARGE, [("bad", None)])
    elif stream and way in BEGUN and (alone or mode == "route"):
        expect_broken_stream(got, trace, kind)
    elif alone:
        expect_failure(got, trace, kind)
    else:
        assert (got.status, got.text) == (200, "four")
        assert not stream or got.events[-1] == "[DONE]"
        assert made(trace) == [("bad", kind), ("good", None)]
        assert trace["answer_index"] == 1
        assert trace["fault"] is None
    if kind == "timeout":
        await until(lambda: place.bad.left and not place.bad.open, lambda: "the connection to a server given up")


def expect_broken_stream(got: Got, trace: Mapping[str, Any], kind: str) -> None:
    """The words that had come, then an error event and no clean end; nobody else is asked."""
    assert got.status == 200
    assert got.events[0]["choices"][0]["delta"]["content"] == "Fo"
    assert got.error["error"]["code"] == f"upstream_{kind}"
    assert got.error["stepladder"]["decision_id"] == trace["id"]
    assert "[DONE]" not in got.events
    assert made(trace) == [("bad", kind)]
    assert (trace["answer_index"], trace["fault"]["kind"]) == (None, kind)
    (attempt,) = [step["attempt"] for step in trace["steps"] if step.get("attempt")]
    assert attempt["text"] == "Fo"
    assert attempt["cost"] == 1.0


def expect_failure(got: Got, trace: Mapping[str, Any], kind: str) -> None:
    """An error with the fault's own status, and when to come back where the server said so."""
    assert got.status == STATUSES[kind]
    assert got.headers["content-type"] == "application/json"
    assert got.headers.get("retry-after") == ("7" if kind == "rate_limit" else None)
    assert "bad" in got.error["error"]["message"]
    assert "127.0.0.1" not in got.error["error"]["message"]
    assert made(trace) == [("bad", kind)]
    assert (trace["answer_index"], trace["fault"]["kind"]) == (None, kind)
    assert [each["fault"] for each in got.error["stepladder"]["spent"]] == [kind]


def test_there_is_an_expectation_for_each_way() -> None:
    assert set(KINDS) == set(WAYS)


@pytest.mark.parametrize("way", WAYS)
async def test_a_climb_to_a_server_that_misbehaves_loses_no_answer(way: str) -> None:
    """The lower stage has answered: whatever the upper one does, there is an answer, and in a stream a clean end."""
    async with house() as served:
        for stream_mode in (None, "final", "hold-back", "restart"):
            with case(stream_mode):
                async with town(served, way, "cascade", on_top=True) as place:
                    await expect_an_answer(place, way, stream_mode)


async def expect_an_answer(place: Town, way: str, stream_mode: str | None) -> None:
    """The upper stage's where it is good, else the lower one's."""
    kind = KINDS[way]
    block = {"stepladder": {"stream_mode": stream_mode}} if stream_mode else {}
    got = await place.ask(stream=stream_mode is not None, **block)
    trace = await place.trace(got.headers["x-stepladder-decision-id"])
    assert got.status == 200
    assert made(trace) == [("good", None), ("bad", kind)]
    assert trace["answer_index"] == (1 if kind is None else 0)
    if stream_mode is not None:
        assert got.events[-1] == "[DONE]"
    if stream_mode == "restart":
        assert got.restarts[-1] == ("bad" if kind is None else "good")
    else:
        assert not got.restarts
    assert got.text == ("x" * LARGE if kind is None else "four")


# ── clients that leave ───────────────────────────────────────────────────────

TRIES = 6
LEAVING = [
    pytest.param("never", {"mode": "route"}, False, id="route, whole answer"),
    pytest.param("never", {"mode": "route"}, True, id="route, before the stream"),
    pytest.param("stalls", {"mode": "route"}, True, id="route, amid the stream"),
    pytest.param("never", {"mode": "cascade"}, False, id="cascade, whole answer"),
    pytest.param("stalls", {"mode": "cascade"}, False, id="cascade, amid what nobody sees"),
    pytest.param("never", {"mode": "cascade", "stream_mode": "hold-back"}, True, id="hold-back, before the stream"),
    pytest.param("stalls", {"mode": "cascade", "stream_mode": "hold-back"}, True, id="hold-back, while held"),
    pytest.param("never", {"mode": "cascade", "stream_mode": "restart"}, True, id="restart, before the stream"),
    pytest.param("stalls", {"mode": "cascade", "stream_mode": "restart"}, True, id="restart, amid the stream"),
]


@pytest.mark.parametrize(("way", "block", "stream"), LEAVING)
async def test_a_client_that_leaves_takes_the_call_along(
    way: str, block: dict[str, Any], stream: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(LIMITS, way, {})  # type: ignore[arg-type]  # only the client ends it
    reads = stream and way == "stalls" and block.get("stream_mode") != "hold-back"
    took: list[float] = []
    async with house() as served, town(served, way) as place:
        traces: list[Any] = []
        place.router.watch(traces.append)
        for number in range(TRIES):
            took.append(await leave(place, {"stream": stream, "stepladder": block}, reads=reads))
            await until(lambda number=number: len(traces) > number, lambda: "no trace")  # type: ignore[misc]
        for trace in traces:
            assert trace.fault.kind == "cancelled"
            (attempt,) = trace.attempts
            assert (attempt.stage, attempt.fault.kind) == ("bad", "cancelled")
            begun = stream and way == "stalls"
            assert (attempt.text, attempt.usage.output_tokens) == (("Fo", 1) if begun else ("", 0))
            assert attempt.cost == (1.0 if begun else 0.0)
        assert not place.good.bodies
    told = " ".join(f"{1000 * each:.1f}" for each in sorted(took))
    sys.stdout.write(f"\n{request.node.callspec.id}: ms until the server was left: {told}\n")
    assert max(took) < LEFT_S


async def leave(place: Town, more: dict[str, Any], *, reads: bool) -> float:
    """Ask, leave once the server is at work (and its first words have come), and see when it knows: seconds."""
    before, left = len(place.bad.bodies), len(place.bad.left)
    data = orjson.dumps({"messages": [{"role": "user", "content": "What is 2+2?"}], **more})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(place.url.rpartition(":")[2]))
    async with asyncio.timeout(HANG_S):
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + data)
        if reads:
            await reader.readuntil(b'"Fo"')
        await until(lambda: len(place.bad.bodies) > before, lambda: "it was not asked")
        await asyncio.sleep(0.02)  # whatever is under way comes to rest
        began = time.monotonic()
        writer.close()
        await until(lambda: len(place.bad.left) > left, lambda: "the server was not left")
        return place.bad.left[-1] - began
