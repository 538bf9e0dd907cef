"""``stepladder serve`` as a process of its own, in front of a server in the test's process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from openai_server import chunk

HANG_S = 60.0
"""A generous limit: whoever waits longer hangs."""

QUESTION: Mapping[str, Any] = {"model": "stepladder", "messages": [{"role": "user", "content": "What is 2+2?"}]}


@dataclass
class Child:
    """A gateway, its configuration and its log."""

    process: asyncio.subprocess.Process
    ladder: Path
    log: Path
    url: str = ""

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.endswith("}")]

    async def until(self, is_so: Callable[[list[dict[str, Any]]], object]) -> None:
        """Wait until the log says so."""
        async with asyncio.timeout(HANG_S):
            while not is_so(self.events):
                assert self.process.returncode is None, self.log.read_text("utf-8")
                await asyncio.sleep(0.02)

    async def logged(self, words: str, times: int = 1) -> None:
        """Wait until so many lines hold these words."""
        await self.until(lambda events: sum(words in str(event) for event in events) >= times)

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(HANG_S):
            return await self.process.wait()


def ladder(url: str, *, gateway: str = "", traces: str = "", cost: float = 1.0) -> str:
    """Two stages before one server."""
    stages = "".join(
        f'[[stages]]\nname = "{name}"\nmodel = "{name}-model"\nbase_url = "{url}"\ncost = {price}\n'
        for name, price in (("low", cost), ("high", cost + 2))
    )
    return f'{stages}\n[gateway]\nport = 0\nlog = "json"\n{gateway}\n{traces}'


@asynccontextmanager
async def child(folder: Path, text: str, stdin: int = asyncio.subprocess.DEVNULL) -> AsyncGenerator[Child, None]:
    """Serve this ladder while the block lasts; ended by its own id where it has not ended by itself."""
    path, log = folder / "ladder.toml", folder / "log"
    path.write_text(text, "utf-8")
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stepladder", "serve", str(path), stdin=stdin, stderr=told
        )
    made = Child(process, path, log)
    try:
        await made.until(lambda events: any(event["event"] == "serving" for event in events))
        made.url = next(event["url"] for event in made.events if event["event"] == "serving")
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# ── what the server behind it does ───────────────────────────────────────────


def drips(gate: asyncio.Event) -> Callable[[web.Request, dict[str, Any]], Any]:
    """A server that begins a stream and goes on with it, or with a whole answer, only once the gate is open."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            await gate.wait()
            return web.json_response(whole("four"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(chunk({"role": "assistant", "content": "fo"})))
        await gate.wait()
        for part in (chunk({"content": "ur"}), chunk({}, "stop")):
            await response.write(sse(part))
        await response.write(b"data: [DONE]\n\n")
        return response

    return handler


def whole(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "x", "model": "m", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}


def sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


# ── asking it ────────────────────────────────────────────────────────────────


@dataclass
class Got:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        datas = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [data.decode() if data == b"[DONE]" else json.loads(data) for data in datas]

    @property
    def text(self) -> str:
        """What a client makes of a stream, or of a whole answer."""
        if b"data: " not in self.body[:6]:
            return str(self.json["choices"][0]["message"]["content"])
        said = [choice["delta"] for event in self.events if event != "[DONE]" for choice in event.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in said)


async def asked(session: ClientSession, url: str, **more: Any) -> Got:
    async with session.post(f"{url}/chat/completions", json={**QUESTION, **more}) as response:
        return Got(response.status, await response.read())


async def fetched(session: ClientSession, url: str, path: str) -> Got:
    """A GET beside /v1."""
    async with session.get(url.removesuffix("/v1") + path) as response:
        return Got(response.status, await response.read())
