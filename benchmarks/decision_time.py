"""How long a decision takes: the gateway's /v1/route on the embedded ladder, over judged prompts.

    python benchmarks/decision_time.py [--prompts 2000]
    python benchmarks/decision_time.py --before COMMIT [--artifact DIR] [--profile fast] [--rounds 9]

Prints and writes benchmarks/results/decision-time.json: microseconds spent deciding (features, prediction, costs,
policy), as the gateway reports them in `decide_us`, and milliseconds of the whole HTTP round trip.

With --before the code of a commit and that of the working tree decide the same texts with the same artifact (by default
nano's): features, estimates and the greedy policy, each in a process of its own on one thread. The two take turns text
by text, so that what else the machine does falls on both: a text is decided five times in a row, of which `first` is
the first, by a process that had waited for its turn, and `us` the best. Texts are the first 60 and 200 words of
questions of ../shared's MMLU-Pro, or of nano's prompts strung together where that is not there. Microseconds are of
each text's best round; `p99` is of the texts. Estimates of both are compared: `largest difference`. Writes
decision-time-before-after.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import aiohttp

from stepladder import config
from stepladder.build import build
from stepladder.evaluate.outcomes import read
from stepladder.evaluate.tasks.nano import generate
from stepladder.gateway.app import create_app
from stepladder.gateway.server import serving
from stepladder.predictors.artifact import load

RESULT = Path(__file__).parent / "results" / "decision-time.json"
BEFORE_AFTER = RESULT.with_name("decision-time-before-after.json")
ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT.parent / "shared" / "data" / "mmlu_pro.parquet"
LENGTHS = (60, 200)
TEXTS = 200

DECIDER = """
import json, sys, time
from dataclasses import replace
from stepladder import plugins
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.predictors.artifact import load
from stepladder.types import Cost, Request, View
artifact = load(sys.argv[1])
if artifact.kind == "stack":
    artifact = replace(artifact, params={**artifact.params, "profile": sys.argv[2]})
predictor = plugins.load("predictors", artifact.kind)(artifact.stages, artifact.params, artifact.arrays)
features, policy, stages = PaperFeatures(), GreedyPolicy(), artifact.stages
costs = {stage: Cost(float(number + 1)) for number, stage in enumerate(stages)}
for line in sys.stdin:
    request = Request("x", prompt=json.loads(line))
    taken = []
    for _ in range(5):
        began = time.perf_counter_ns()
        estimates = predictor.predict(features.features(request))
        policy.decide(View(stages, 5.0, estimates, costs))
        taken.append((time.perf_counter_ns() - began) / 1e3)
    print(json.dumps([taken, [estimates[stage].mean for stage in stages]]), flush=True)
"""
"""Of words that any version knows, since it is run by the code of either commit."""


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


class Decider:
    """A process that decides with the package that lies in a folder."""

    def __init__(self, source: Path, artifact: str, profile: str) -> None:
        words = [sys.executable, "-c", DECIDER, artifact, profile]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def decide(self, text: str) -> tuple[list[float], list[float]]:
        """Microseconds of the times in a row, and the means."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        taken, means = json.loads(self._process.stdout.readline())
        return taken, means

    def close(self) -> None:
        self._process.communicate()


def texts(words: int) -> list[str]:
    """So many words of each question."""
    if QUESTIONS.is_file():
        rows = (row for row in read(QUESTIONS) if row.model == "Llama-2-7b-hf" and row.split == "validation")
        whole = [row.request.text for row in rows]
    else:
        tasks = [task.prompt for task in generate("judged", 4 * TEXTS * words // 8, seed=1)]
        whole = [" ".join(tasks[at :: 2 * TEXTS]) for at in range(2 * TEXTS)]
    ends = [[match.end() for match in re.finditer(r"\S+", text)] for text in whole]
    return [text[: end[words - 1]] for text, end in zip(whole, ends, strict=True) if len(end) >= words][:TEXTS]


def compared(before: str, artifact: str, profile: str, rounds: int) -> dict[str, Any]:
    """Both codes' times, and how far their estimates lie apart."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", before, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        pair = {
            "before": Decider(Path(folder) / "src", artifact, profile),
            "after": Decider(ROOT / "src", artifact, profile),
        }
        try:
            return {f"{words} words": _turns(pair, texts(words), rounds) for words in LENGTHS}
        finally:
            for decider in pair.values():
                decider.close()


def _turns(pair: Mapping[str, Decider], asked: Sequence[str], rounds: int) -> dict[str, Any]:
    best: dict[str, list[float]] = {name: [inf] * len(asked) for name in pair}
    first: dict[str, list[float]] = {name: [inf] * len(asked) for name in pair}
    apart = 0.0
    for _ in range(rounds):
        for place, text in enumerate(asked):
            said = {name: decider.decide(text) for name, decider in pair.items()}
            for name, (taken, _) in said.items():
                best[name][place] = min(best[name][place], *taken)
                first[name][place] = min(first[name][place], taken[0])
            apart = max(apart, *(abs(a - b) for a, b in zip(said["before"][1], said["after"][1], strict=True)))
    warm, cold = ({name: percentiles(times) for name, times in each.items()} for each in (best, first))
    ratio = statistics.median(a / b for a, b in zip(best["after"], best["before"], strict=True))
    return {
        "texts": len(asked),
        "us": warm,
        "first": cold,
        "after / before": round(ratio, 3),
        "largest difference": apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--artifact", default=str(ROOT / "src" / "stepladder" / "presets" / "nano" / "artifact"))
    parser.add_argument("--profile", choices=("fast", "full"), default="fast")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.before:
        return _before_after(args)
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


def _before_after(args: argparse.Namespace) -> int:
    commit = subprocess.run(["git", "rev-parse", "--short", args.before], cwd=ROOT, check=True, capture_output=True)
    artifact = load(args.artifact)
    report = {
        "command": f"python benchmarks/decision_time.py --before {args.before} --profile {args.profile} "
        f"--rounds {args.rounds}",
        "before": commit.stdout.decode().strip(),
        "artifact": {"kind": artifact.kind, "version": artifact.version, "stages": list(artifact.stages)},
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **compared(args.before, args.artifact, args.profile, args.rounds),
    }
    told = json.dumps(report, indent=2) + "\n"
    BEFORE_AFTER.write_text(told, "utf-8")
    sys.stdout.write(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
