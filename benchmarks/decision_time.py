"""How long a decision takes: the gateway's /v1/route on the embedded ladder, over judged prompts.

    python benchmarks/decision_time.py [--prompts 2000]

Prints and writes benchmarks/results/decision-time.json: microseconds spent deciding (features, prediction, costs,
policy), as the gateway reports them in `decide_us`, and milliseconds of the whole HTTP round trip.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from stepladder import config
from stepladder.build import build
from stepladder.evaluate.tasks.nano import generate
from stepladder.gateway.app import create_app
from stepladder.gateway.server import serving

RESULT = Path(__file__).parent / "results" / "decision-time.json"


async def measure(prompts: Sequence[str]) -> dict[str, list[float]]:
    """Deciding time [µs] and round trip [ms] of every prompt, asked one after the other; models are not loaded."""
    router = build(config.read("nano"))
    decide, whole = [], []
    async with serving(create_app(router)) as url, aiohttp.ClientSession() as session:
        for prompt in [*prompts[:50], *prompts]:
            began = time.perf_counter()
            body = {"model": "stepladder", "messages": [{"role": "user", "content": prompt}]}
            async with session.post(f"{url}/v1/route", json=body) as reply:
                told = await reply.json()
            whole.append((time.perf_counter() - began) * 1e3)
            decide.append(told["decide_us"])
    await router.close()
    return {"decide_us": decide[50:], "round_trip_ms": whole[50:]}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 3) for p in (50, 95, 99)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    args = parser.parse_args()
    prompts = [task.prompt for task in generate("judged", args.prompts, seed=1)]
    found = {name: percentiles(values) for name, values in asyncio.run(measure(prompts)).items()}
    report = {
        "command": f"python benchmarks/decision_time.py --prompts {args.prompts}",
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "prompts": args.prompts,
        **found,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
