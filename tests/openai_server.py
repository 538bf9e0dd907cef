"""A server in the test's own process that speaks OpenAI's API, well or badly, on a free port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class FakeServer:
    """``handler`` answers every POST; what was asked, and which calls were cut off, is kept."""

    handler: Handler
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    peers: list[Any] = field(default_factory=list)
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    most_at_once: int = 0
    _now: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        self.peers.append(request.transport.get_extra_info("peername") if request.transport else None)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self.handler(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.cut.set()
            raise
        finally:
            self._now -= 1


@asynccontextmanager
async def serving(handler: Handler) -> AsyncGenerator[FakeServer, None]:
    fake = FakeServer(handler)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{tail:.*}", fake.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()


def reply(text: str = "four", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"id": "x", "choices": [choice], "usage": usage, **more}


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


USAGE_CHUNK = {"id": "x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
CHUNKS = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "fo"}),
    chunk({"content": "ür"}),
    chunk({}, "stop"),
)


def sse(events: Iterable[dict[str, Any]], *, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


async def good(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """What a server should answer, streamed or not, with the usage chunk if it is asked for."""
    if not body.get("stream"):
        return web.json_response(reply())
    extra = [USAGE_CHUNK] if (body.get("stream_options") or {}).get("include_usage") else []
    return web.Response(body=sse([*CHUNKS, *extra]), headers={"Content-Type": "text/event-stream"})


def says(data: bytes, content_type: str = "text/event-stream", status: int = 200, **headers: str) -> Handler:
    """A handler that always answers with these bytes."""

    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=data, status=status, headers={"Content-Type": content_type, **headers})

    return handler


def stalls(data: bytes) -> Handler:
    """A handler that streams these bytes and then nothing, for as long as somebody waits."""

    async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(data)
        await asyncio.Event().wait()
        return response

    return handler
