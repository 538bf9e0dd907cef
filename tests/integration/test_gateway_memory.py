"""A gateway that has answered much holds no more than one that has answered little."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import misbehaving
from gateway_child import HANG_S, Child, child

AT_ONCE = 8
LADDER = """\
[[stages]]
name = "low"
model = "m"
base_url = "{url}"
cost = 1.0

[[stages]]
name = "high"
model = "m"
base_url = "{url}"
cost = 2.0

[gateway]
port = 0
log = "json"

[traces]
path = "traces.sqlite3"
keep_rows = 1000
"""


def resident(served: Child) -> int:
    """Bytes of memory that the process holds."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def question(number: int) -> dict[str, Any]:
    """No two are alike, and every fifth is of another kind."""
    mode = ("route", "cascade", "fixed", "route", "cascade")[number % 5]
    text = f"What is {number} + {number % 97}? " + "Take your time. " * (number % 13)
    block = {"mode": mode, "explain": number % 7 == 0, "session": f"s-{number % 5000}"}
    return {"messages": [{"role": "user", "content": text}], "stream": number % 2 == 0, "stepladder": block}


async def put(served: Child, numbers: range) -> None:
    """Ask these, some at once, over connections that are kept."""
    waiting = iter(numbers)

    async def some(session: aiohttp.ClientSession) -> None:
        for number in waiting:
            body = question(number)
            async with session.post(f"{served.url}/chat/completions", json=body) as response:
                data = await response.read()
                assert response.status == 200, data[:500]
                assert b"four" in data
            if number % 10 == 0:
                decision = response.headers["x-stepladder-decision-id"]
                async with session.post(f"{served.url}/feedback", json={"decision_id": decision, "score": 1}) as told:
                    assert told.status == 200

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some(session))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_twenty_thousand_requests_leave_no_weight(tmp_path: Path) -> None:
    async with (
        misbehaving.serving(misbehaving.good) as server,
        child(tmp_path, LADDER.format(url=server.url)) as served,
    ):
        sizes = [resident(served)]
        ends = [0, 2_000, *range(7_000, 22_001, 5_000)]
        for begin, end in itertools.pairwise(ends):
            async with asyncio.timeout(20 * HANG_S):
                await put(served, range(begin, end))
            server.bodies.clear()
            sizes.append(resident(served))
    told = " ".join(f"{end}: {size / 2**20:.1f}" for end, size in zip(ends, sizes, strict=True))
    sys.stdout.write(f"\nMiB after so many requests: {told}\n")
    assert sizes[-1] <= 1.05 * sizes[1], told
