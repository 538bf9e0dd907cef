"""What goes back over ASGI: one body, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Send

from stepladder.gateway.report import Headers
from stepladder.gateway.watch import note_stalled
from stepladder.gateway.wire import dumps
from stepladder.patience import Patience
from stepladder.types import RouterEvent

log = logging.getLogger("stepladder.gateway")

WRITE_IDLE_S = 30.0

_JSON = b"application/json"
_EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


DONE = b"data: [DONE]\n\n"


class Sendable(Protocol):
    """Anything that can be sent as the reply to one HTTP request."""

    async def __call__(self, send: Send) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole body, JSON unless it says otherwise."""

    status: int
    body: bytes
    headers: Headers = ()
    content_type: bytes = _JSON

    async def __call__(self, send: Send) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        headers = [(b"content-type", self.content_type), length, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class EventStream:
    """Frames sent one by one as they come. Whichever way it ends, the router's events are closed with it.

    A client that takes nothing for ``write_idle_s`` seconds is given up: what it holds (a stage's place, above all)
    others wait for.
    """

    frames: AsyncGenerator[bytes, None]
    events: AsyncGenerator[RouterEvent, None]
    headers: Headers = ()
    write_idle_s: float = WRITE_IDLE_S

    async def __call__(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)
        patience = Patience(self.write_idle_s, lambda: limit.reschedule(loop.time()))
        try:
            async with limit:
                await self._send_all(send, patience)
        except TimeoutError:
            if not patience.is_over:
                raise
            # The reply stays unfinished, so the server closes the connection.
            note_stalled()
            log.warning("a client took nothing of its stream for %g s and was given up", self.write_idle_s)
        finally:
            patience.cancel()

    async def _send_all(self, send: Send, patience: Patience) -> None:
        patience.begin()
        async with aclosing(self.events), aclosing(self.frames):
            await send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *self.headers]})
            patience.end()
            more = True
            async for frame in self.frames:
                more = not frame.endswith(DONE)  # what ends with it is the last
                patience.begin()
                await send({"type": "http.response.body", "body": frame, "more_body": more})
                patience.end()
        if more:
            patience.begin()
            await send({"type": "http.response.body", "body": b""})
            patience.end()


def json_reply(value: Any, headers: Headers = (), status: int = 200) -> Reply:
    """A value as a JSON reply."""
    return Reply(status, dumps(value), headers)
