"""Clients of the real server that leave in ways of their own; the usual ones are in test_gateway_faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import orjson

from gateway_fakes import world
from stepladder.gateway.server import serving
from stepladder.types import Attempt, EngineEvent, Request, Stage

HANG_S = 30.0


async def hangs(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
    """Never answers."""
    await asyncio.Event().wait()
    yield Attempt(stage.name)


def question(words: str) -> bytes:
    body = orjson.dumps({"messages": [{"role": "user", "content": words}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\n\r\n".encode() + body


async def test_a_client_is_seen_to_leave_after_a_large_body() -> None:
    """A server stops reading while a body comes faster than it is taken; it must not stop for good."""
    made = world(hangs)
    async with serving(made.app) as url, asyncio.timeout(HANG_S):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(question("word " * 300_000))
        await made.engine.under_way.wait()
        writer.close()
        await made.engine.cancelled.wait()
        await made.store.written.wait()


async def test_a_request_after_one_that_was_left_is_answered() -> None:
    made = world()
    async with serving(made.app) as url, asyncio.timeout(HANG_S):
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(question("word")[:-5])  # it never ends
        await writer.drain()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):  # one connection, one request after the other
            writer.write(question("word"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()
