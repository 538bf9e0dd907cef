"""A server of OpenAI's API that misbehaves in one way, byte by byte, and notices when it is left.

A bare socket: what it does wrong, no HTTP library would do. ``WAYS`` names each way; ``serving`` runs one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

DRIP_S = 0.01
LARGE = 10 * 2**20
CHOICE: Mapping[str, Any] = {"index": 0, "finish_reason": "stop"}


@dataclass
class Caller:
    """One request that was read whole."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def kind(self) -> str:
        """The content type that is due."""
        return "text/event-stream" if self.streams else "application/json"

    @property
    def begun(self) -> bytes:
        """An answer's beginning: the first event of a stream, or the first half of a body."""
        return event("Fo") if self.streams else b'{"choices": [{"message": {"content": "Fo'

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begins(self, length: str = "content-length: 1000000") -> None:
        await self.says(head(200, self.kind, length))

    async def resets(self) -> None:
        """Leave with a reset in place of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def drips(self, data: bytes) -> None:
        """The same few bytes over and over, one at a time."""
        while True:
            for byte in data:
                await self.says(bytes((byte,)))
                await asyncio.sleep(DRIP_S)


Way = Callable[[Caller], Awaitable[bool | None]]
"""Answers one request; False where the connection is over with it."""


@dataclass
class Server:
    """What it is asked, and who is still there."""

    way: Way
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    """Connections that stand."""
    at_work: int = 0
    """Requests that came and were not answered to their end."""
    left: list[float] = field(default_factory=list)
    """When callers left before their answer was whole, on the monotonic clock."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self.one(reader, writer):
                    pass
        finally:
            writer.close()
            self.open -= 1
            self.tasks.discard(task)

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it, unless its caller leaves first."""
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        caller = Caller(reader, writer, json.loads(await reader.readexactly(length)))
        self.bodies.append(caller.body)
        self.at_work += 1
        try:
            return await self.answered(caller)
        finally:
            self.at_work -= 1

    async def answered(self, caller: Caller) -> bool:
        answer = asyncio.create_task(self._goes(caller))
        gone = asyncio.create_task(_gone(caller.reader))
        self.tasks |= {answer, gone}
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            self.left.append(time.monotonic())
            return False
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.wait((answer, gone))
            self.tasks -= {answer, gone}

    async def _goes(self, caller: Caller) -> bool:
        try:
            return await self.way(caller) is not False
        except ConnectionError:  # it left while it was written to
            self.left.append(time.monotonic())
            return False


async def _gone(reader: asyncio.StreamReader) -> None:
    """Wait for the caller's end; it sends nothing behind its request."""
    with suppress(ConnectionError):
        assert not await reader.read(1)


@asynccontextmanager
async def serving(way: Way) -> AsyncGenerator[Server, None]:
    """Misbehave in this way on a free port, while the block lasts."""
    made = Server(way)
    server = await asyncio.start_server(made.connected, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield made
    finally:
        server.close()
        while made.tasks:
            left = tuple(made.tasks)
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        await server.wait_closed()


# ── what is left over ────────────────────────────────────────────────────────


def sockets(process: int | str = "self") -> int:
    """Sockets that a process holds."""
    count = 0
    for path in Path(f"/proc/{process}/fd").iterdir():
        try:
            count += os.readlink(path).startswith("socket:")  # noqa: PTH115 - it leads to no path
        except OSError:
            continue  # closed meanwhile
    return count


async def until(holds: Callable[[], object], told: Callable[[], object]) -> None:
    """Wait until it is so; fails where it takes too long, with what is told then."""
    try:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - what happens in other tasks and on sockets has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"left over: {told()}")


# ── what is said ─────────────────────────────────────────────────────────────


def head(status: int, kind: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", f"content-type: {kind}", *headers, "", ""]).encode()


def whole(status: int, kind: str, data: bytes, *headers: str) -> bytes:
    return head(status, kind, f"content-length: {len(data)}", *headers) + data


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def refusal(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


def reply(text: str, streams: bool) -> bytes:
    """A good answer's body."""
    if streams:
        return event(text) + event("", "stop") + b"data: [DONE]\n\n"
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    choice = {**CHOICE, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode()


# ── the ways ─────────────────────────────────────────────────────────────────


async def good(caller: Caller) -> None:
    """As it should be."""
    await caller.says(whole(200, caller.kind, reply("four", caller.streams)))


async def never(caller: Caller) -> None:
    """Takes the request, and that was it."""
    await asyncio.Event().wait()


async def drips_headers(caller: Caller) -> None:
    """A head without end, a byte at a time."""
    await caller.says(b"HTTP/1.1 200 OK\r\n")
    await caller.drips(b"x-a: b\r\n")


async def drips_body(caller: Caller) -> None:
    """A body that always goes on and never gets anywhere."""
    await caller.begins()
    await caller.says(b"data: " if caller.streams else b"{")
    await caller.drips(b" ")


async def resets(caller: Caller) -> bool:
    """A reset amid the answer."""
    await caller.begins()
    await caller.says(caller.begun)
    await asyncio.sleep(0.02)  # a reset overtakes what was not read
    await caller.resets()
    return False


async def stalls(caller: Caller) -> None:
    """Nothing more amid the answer."""
    await caller.begins()
    await caller.says(caller.begun)
    await asyncio.Event().wait()


async def closes(caller: Caller) -> bool:
    """No word for the request."""
    return False


async def fails(caller: Caller) -> None:
    """500."""
    await caller.says(whole(500, "application/json", refusal("no luck")))


async def is_busy(caller: Caller) -> None:
    """429, with a time to come back."""
    await caller.says(whole(429, "application/json", refusal("slow down"), "retry-after: 7"))


async def says_words(caller: Caller) -> None:
    """200 and the right type, but no JSON."""
    await caller.says(whole(200, caller.kind, b"data: four\n\n" if caller.streams else b"four"))


async def is_large(caller: Caller) -> None:
    """10 MB of a good answer."""
    await caller.says(whole(200, caller.kind, reply("x" * LARGE, caller.streams)))


async def is_a_page(caller: Caller) -> None:
    """200, but some proxy's page."""
    await caller.says(whole(200, "text/html; charset=utf-8", b"<html>welcome</html>"))


async def ends_early(caller: Caller) -> None:
    """JSON that ends in its middle, in a reply that is whole as far as HTTP goes."""
    await caller.says(whole(200, caller.kind, b'data: {"choices": [{\n\n' if caller.streams else b'{"choices": [{'))


async def half_a_chunk(caller: Caller) -> bool:
    """A chunk that is shorter than it says, and then the end."""
    await caller.begins("transfer-encoding: chunked")
    data = caller.begun
    await caller.says(f"{len(data) * 2:x}\r\n".encode() + data)
    return False


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        way.__name__: way
        for way in (
            never,
            drips_headers,
            drips_body,
            resets,
            stalls,
            closes,
            fails,
            is_busy,
            says_words,
            is_large,
            is_a_page,
            ends_early,
            half_a_chunk,
        )
    }
)
