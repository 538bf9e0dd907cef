"""CPU that one call costs the caller: the `openai` engine beside bare aiohttp and the official client.

    python benchmarks/engine_overhead.py [--calls 2000] [--rounds 5]

A small server in a process of its own answers at once; the arms take turns in one process, 16 calls in flight. Prints
and writes benchmarks/results/engine-overhead.json: CPU microseconds a call (user + system of this process, median of
the rounds) and each arm's ratio to bare aiohttp with the range over the rounds. The ratios are what to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import platform
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import aiohttp
from openai import AsyncOpenAI

from stepladder.engines.openai import OpenAIEngine
from stepladder.types import Attempt, Request, Stage

RESULT = Path(__file__).parent / "results" / "engine-overhead.json"
IN_FLIGHT = 16
MESSAGES = [{"role": "user", "content": "How does a car work? " * 8}]
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100},
}
Call = Callable[[], Awaitable[None]]


def serve(listener: socket.socket) -> None:
    """A server that answers every POST with the same reply."""
    import uvicorn

    body = json.dumps(REPLY).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


async def arms(url: str, stack: AsyncExitStack) -> Mapping[str, Call]:
    session = await stack.enter_async_context(aiohttp.ClientSession())
    client = await stack.enter_async_context(AsyncOpenAI(base_url=url, api_key="unused", max_retries=0))
    stage = Stage("s", "openai", "m", options={"base_url": url})
    engine = OpenAIEngine((stage,))
    await engine.start()
    stack.push_async_callback(engine.close)
    request = Request("r", messages=tuple(MESSAGES))

    async def bare() -> None:
        async with session.post(f"{url}/chat/completions", json={"model": "m", "messages": MESSAGES}) as reply:
            assert (await reply.json())["choices"]

    async def ours() -> None:
        async for event in engine.generate(request, stage):
            assert isinstance(event, Attempt)
            assert event.fault is None

    async def official() -> None:
        assert (await client.chat.completions.create(model="m", messages=MESSAGES)).choices  # type: ignore[arg-type]

    return {"aiohttp alone": bare, "stepladder's openai engine": ours, "official openai client": official}


async def cpu_us(call: Call, calls: int) -> float:
    """CPU microseconds a call, 16 in flight."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call()

    began = time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return (time.process_time() - began) / calls * 1e6


async def measure(url: str, calls: int, rounds: int) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        found = await arms(url, stack)
        for call in found.values():
            await cpu_us(call, 200)
        return await _rounds(found, calls, rounds)


async def _rounds(found: Mapping[str, Call], calls: int, rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, call in found.items():
            taken[name].append(await cpu_us(call, calls))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    server = mp.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
    server.start()
    try:
        taken = asyncio.run(measure(f"http://127.0.0.1:{listener.getsockname()[1]}", args.calls, args.rounds))
    finally:
        server.terminate()
        server.join()
    base = taken["aiohttp alone"]
    report = {
        "command": f"python benchmarks/engine_overhead.py --calls {args.calls} --rounds {args.rounds}",
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu_us_per_call": {name: round(median(values), 1) for name, values in taken.items()},
        "ratio_to_aiohttp": {name: _ratio(values, base) for name, values in taken.items()},
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _ratio(values: list[float], base: list[float]) -> dict[str, float]:
    ratios = sorted(value / other for value, other in zip(values, base, strict=True))
    return {"median": round(median(ratios), 2), "min": round(ratios[0], 2), "max": round(ratios[-1], 2)}


if __name__ == "__main__":
    sys.exit(main())
