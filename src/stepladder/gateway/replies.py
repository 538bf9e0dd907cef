"""What goes back over ASGI: one body, or a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Send

from stepladder.gateway.report import Headers
from stepladder.gateway.wire import dumps
from stepladder.types import RouterEvent

_JSON = (b"content-type", b"application/json")
_EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Sendable(Protocol):
    """Anything that can be sent as the reply to one HTTP request."""

    async def __call__(self, send: Send) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole JSON body."""

    status: int
    body: bytes
    headers: Headers = ()

    async def __call__(self, send: Send) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        headers = [_JSON, length, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class EventStream:
    """Frames sent one by one as they come. Whichever way it ends, the router's events are closed with it."""

    frames: AsyncGenerator[bytes, None]
    events: AsyncGenerator[RouterEvent, None]
    headers: Headers = ()

    async def __call__(self, send: Send) -> None:
        async with aclosing(self.events), aclosing(self.frames):
            headers = [*_EVENTS, *self.headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for frame in self.frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_reply(value: Any, headers: Headers = (), status: int = 200) -> Reply:
    """A value as a JSON reply."""
    return Reply(status, dumps(value), headers)
