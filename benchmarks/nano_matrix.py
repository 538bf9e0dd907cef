"""Measure the embedded ladder: quality of each nano model on judged tasks, by level and family.

    pip install xllamacpp==2026.10.11549
    PYTHONPATH=src python3 benchmarks/nano_matrix.py --tasks 2500

runs on any machine with a CPU and writes benchmarks/results/nano-matrix.json. Decoding is greedy; every model answers
the same tasks. The judged tasks are used here and nowhere in training. A model whose weights are not there is left out
and named under "missing".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import xllamacpp

from stepladder.evaluate.graders import grade
from stepladder.evaluate.tasks import Task
from stepladder.evaluate.tasks.nano import generate

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src/stepladder/presets/nano"
STAGES = ("small", "medium", "large")
CONTEXT = 512
MOST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Graded:
    """One graded answer: its task, text, quality in [0, 1], tokens, and whether the model ended it itself."""

    task: Task
    text: str
    quality: float
    tokens: int
    ended: bool


def load(path: Path, slots: int) -> Any:
    """A llama.cpp server in this process for one model."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT * slots  # the total over all slots
    params.n_parallel = slots
    params.cpuparams.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    # Dropping a server that has served nothing can deadlock, so let it answer once.
    server.handle_chat_completions({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    return server


def answer(server: Any, task: Task) -> Graded:
    """Ask one task greedily and grade the answer. Raises RuntimeError if the engine replies with an error."""
    body = {"messages": [{"role": "user", "content": task.prompt}], "temperature": 0, "max_tokens": MOST_TOKENS}
    reply = server.handle_chat_completions(body)
    if "error" in reply:
        raise RuntimeError(f"{task.query_id}: {reply['error']}")
    first, used = reply["choices"][0], reply["usage"]["completion_tokens"]
    text = first["message"]["content"]
    return Graded(task, text, grade(task.grader, text, task.answer), used, first["finish_reason"] == "stop")


def by(graded: Sequence[Graded], *fields: str) -> dict[str, dict[str, float | int]]:
    """Mean quality and number of tasks for each value of one or more fields of the task."""

    def key(item: Graded) -> str:
        return "/".join(str(getattr(item.task, field)) for field in fields)

    groups = groupby(sorted(graded, key=key), key)
    rows = ((name, [item.quality for item in items]) for name, items in groups)
    return {name: {"quality": round(fmean(values), 4), "n": len(values)} for name, values in rows}


def measure(path: Path, tasks: Sequence[Task], slots: int) -> dict[str, Any]:
    """All figures of one model."""
    server = load(path, slots)
    began = time.perf_counter()
    with ThreadPoolExecutor(slots) as pool:
        graded = list(pool.map(lambda task: answer(server, task), tasks))
    seconds = time.perf_counter() - began
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "quality": round(fmean(item.quality for item in graded), 4),
        "by_level": by(graded, "level"),
        "by_family": by(graded, "family"),
        "by_family_and_level": by(graded, "family", "level"),
        "mean_answer_tokens": round(fmean(item.tokens for item in graded), 2),
        "ended_by_the_model": round(fmean(item.ended for item in graded), 4),
        "seconds": round(seconds, 1),
    }


def cpu_name() -> str:
    """The processor as the kernel names it, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.machine()


def main() -> None:
    """Measure, print the matrix by level, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4, help="requests in flight")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of nano-{small,medium,large}.gguf")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/nano-matrix.json")
    args = parser.parse_args()
    tasks = generate("judged", args.tasks, args.seed)
    paths = {name: args.weights / f"nano-{name}.gguf" for name in STAGES}
    stages = {name: measure(path, tasks, args.slots) for name, path in paths.items() if path.exists()}
    for name, found in stages.items():
        levels = "  ".join(f"{level} {cell['quality']:.3f}" for level, cell in sorted(found["by_level"].items()))
        print(f"{name:7s} {levels}  all {found['quality']:.3f}  {found['seconds']} s")
    result = {
        "command": shlex.join(["python3", "benchmarks/nano_matrix.py", *sys.argv[1:]]),
        "machine": cpu_name(),
        "python": platform.python_version(),
        "xllamacpp": version("xllamacpp"),
        "split": "judged",
        "tasks": len(tasks),
        "seed": args.seed,
        "graders": sorted({task.grader for task in tasks}),
        "stages": stages,
        "missing": [name for name, path in paths.items() if not path.exists()],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
