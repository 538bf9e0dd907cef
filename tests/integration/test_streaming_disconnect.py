"""A client that leaves: the stage's server is told at once, before the answer and amid it, in every stream mode.

Real sockets on both sides. The aim is a tenth of a second from the client's close to the server's notice; the best of a
few tries is held to it, since a busy machine may take its time over any one of them.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from openai_ladder import Ends, before
from openai_server import chunk, sse
from stepladder.gateway.server import serving
from stepladder.types import Call, Decision, Stop, View

AIM_S = 0.1
TRIES = 5


@dataclass
class KeepFrom:
    """Keeps what is whole, or has the word *keep* in it; else climbs."""

    name: str = "keep"

    def decide(self, view: View) -> Decision:
        made = [each for each in view.attempts if each.is_answer]
        if made and (made[-1].finish_reason or "keep" in made[-1].text):
            return Decision(Stop(made[-1]))
        tried = {each.stage for each in view.attempts}
        return Decision(Call(next(stage for stage in view.stages if stage not in tried)))


@dataclass
class First:
    """The first stage for good."""

    name: str = "first"

    def decide(self, view: View) -> Decision:
        return Decision(Call(view.stages[0], final=True))


def writes(*words: str) -> Any:
    """A server that writes these words and then nothing, for as long as somebody waits."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            await response.write(sse([chunk({"content": word})], done=False))
        await asyncio.Event().wait()
        return response

    return handler


async def left(ends: Ends, block: dict[str, Any], *, stream: bool, seen: bytes | None) -> float:
    """Seconds from a client's close until the server behind knows."""
    ends.server.cut.clear()
    ends.made.store.written.clear()
    asked = len(ends.server.bodies)
    async with serving(ends.made.app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        body = {"messages": [{"role": "user", "content": "?"}], "stream": stream, "stepladder": block}
        data = json.dumps(body).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
        writer.write("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data)
        async with asyncio.timeout(20):
            if seen is not None:
                await reader.readuntil(seen)
            while len(ends.server.bodies) == asked:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)  # whatever is under way comes to rest
            writer.close()
            began = time.perf_counter()
            await ends.server.cut.wait()
            took = time.perf_counter() - began
            await ends.made.store.written.wait()
    return took


HELD = {"mode": "cascade", "stream_mode": "hold-back"}
CASES = [
    pytest.param({"mode": "route"}, False, None, id="whole answer"),
    pytest.param({"mode": "cascade"}, False, None, id="whole answer of a cascade"),
    pytest.param({"mode": "route"}, True, b'"one', id="stream"),
    pytest.param({"mode": "cascade"}, True, None, id="final, before anything is sent"),
    pytest.param({"mode": "cascade", "stream_mode": "hold-back", "hold_back": 50}, True, None, id="while held back"),
    pytest.param(
        {"mode": "cascade", "stream_mode": "hold-back", "hold_back": 2}, True, b"keep", id="after it was let out"
    ),
    pytest.param({"mode": "cascade", "stream_mode": "restart"}, True, b'"one', id="amid what may be dropped"),
]


@pytest.mark.parametrize(("block", "stream", "seen"), CASES)
async def test_the_server_behind_learns_that_the_client_left(
    block: dict[str, Any], stream: bool, seen: bytes | None
) -> None:
    async with before(writes("one ", "keep "), {"route": First(), "cascade": KeepFrom()}) as ends:
        took = []
        while len(took) < TRIES and min(took, default=AIM_S) >= AIM_S:
            took.append(await left(ends, block, stream=stream, seen=seen))
        assert min(took) < AIM_S, took
        trace = ends.made.store.traces[-1]
        assert trace.attempts[-1].fault is not None
        assert trace.attempts[-1].fault.kind == "cancelled"
        assert trace.fault is not None
        assert trace.fault.kind == "cancelled"


async def test_an_answer_that_is_dropped_early_is_cut_off_at_its_server() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        words = ["not ", "this ", "one "] if body["model"] == "upstream/small" else ["keep ", "it"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            await response.write(sse([chunk({"content": word})], done=False))
        if body["model"] == "upstream/small":
            await asyncio.Event().wait()
        await response.write(sse([chunk({}, "stop")]))
        return response

    async with before(handler, {"cascade": KeepFrom()}) as ends, serving(ends.made.app) as url:
        block = {"mode": "cascade", "stream_mode": "hold-back", "hold_back": 2}
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True, "stepladder": block}
        async with asyncio.timeout(20), aiohttp.ClientSession() as session:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                data = await response.read()
            await ends.server.cut.wait()
        assert b"not " not in data
        assert b"keep " in data
        assert data.endswith(b"data: [DONE]\n\n")
        small = ends.made.store.traces[0].attempts[0]
        assert (small.stage, small.text) == ("small", "not this ")
        assert small.usage.output_tokens == 2
