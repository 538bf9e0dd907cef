"""What leaves together: a head and what follows it. uvicorn's protocol over a transport that notes every write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from stepladder.gateway.protocol import ConnectionLimits, guarded

ASKED = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport over nothing."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written: list[bytes] = []
        self.changed = asyncio.Event()
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written.append(bytes(data))
        self.changed.set()

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


def opened(app: ASGIApp) -> tuple[Any, Wire]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, interface="asgi3")
    config.load()
    wire = Wire()
    made: Callable[..., Any] = guarded(ConnectionLimits())
    protocol = made(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(wire)
    return protocol, wire


async def heard(app: ASGIApp, data: bytes = ASKED) -> Wire:
    """What is written until nothing more is at work."""
    protocol, wire = opened(app)
    protocol.data_received(data)
    await asyncio.gather(*protocol.tasks)
    await asyncio.sleep(0)
    while protocol.tasks:
        await asyncio.gather(*protocol.tasks)
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return wire


def sends(*messages: dict[str, Any]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send({**message, "type": f"http.response.{message['type']}"})

    return app


def start(status: int = 200, **headers: str) -> dict[str, Any]:
    told = [(name.encode().replace(b"_", b"-"), value.encode()) for name, value in headers.items()]
    return {"type": "start", "status": status, "headers": told}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "body", "body": data, "more_body": more}


async def test_a_whole_reply_leaves_in_one_piece() -> None:
    wire = await heard(sends(start(content_length="4"), body(b"four")))
    (piece,) = wire.written
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b"\r\n\r\nfour")


async def test_a_stream_s_head_leaves_with_its_first_piece_and_its_end_with_the_last() -> None:
    wire = await heard(sends(start(), body(b"one", more=True), body(b"two", more=True), body(b"three")))
    assert len(wire.written) == 3
    assert wire.written[0].endswith(b"\r\n\r\n3\r\none\r\n")
    assert wire.written[1:] == [b"3\r\ntwo\r\n", b"5\r\nthree\r\n0\r\n\r\n"]


async def test_a_connection_is_closed_behind_what_was_written() -> None:
    wire = await heard(sends(start(content_length="2", connection="close"), body(b"ok")))
    assert wire.closed
    assert wire.written[0].endswith(b"ok")


async def test_nothing_follows_the_head_that_head_asks_for() -> None:
    wire = await heard(sends(start(content_length="2"), body(b"ok")), ASKED.replace(b"GET", b"HEAD"))
    (piece,) = wire.written
    assert piece.endswith(b"content-length: 2\r\n\r\n")


async def test_requests_at_once_are_answered_in_their_order() -> None:
    numbers = iter(b"12")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sends(start(content_length="1"), body(bytes([next(numbers)])))(scope, receive, send)

    wire = await heard(app, ASKED * 2)
    assert [piece[-1:] for piece in wire.written] == [b"1", b"2"]


@pytest.mark.parametrize("fails", [True, False])
async def test_a_head_that_nothing_follows_was_never_sent(fails: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sends(start(content_length="2"))(scope, receive, send)
        if fails:
            raise ValueError("mine")

    wire = await heard(app)
    assert b"".join(wire.written).startswith(b"HTTP/1.1 500 ")
    assert b"200 OK" not in b"".join(wire.written)
    assert "ASGI" in caplog.text


async def test_what_uvicorn_refuses_is_still_refused(caplog: pytest.LogCaptureFixture) -> None:
    wire = await heard(sends(start(content_length="2", x_bad="a\r\nb: c"), body(b"ok")))
    assert wire.closed
    assert not wire.written
    assert "Invalid HTTP header value" in caplog.text


async def test_a_client_that_takes_nothing_is_waited_for() -> None:
    protocol, wire = opened(sends(start(content_length="2"), body(b"ok")))
    protocol.pause_writing()
    protocol.data_received(ASKED)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not wire.written
    protocol.resume_writing()
    await asyncio.gather(*protocol.tasks)
    assert b"".join(wire.written).endswith(b"\r\n\r\nok")
    protocol.connection_lost(None)
