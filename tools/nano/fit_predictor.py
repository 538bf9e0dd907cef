"""Measure the embedded ladder on its `train` prompts and fit what ships with it: prices and a quality predictor.

    python tools/nano/fit_predictor.py [--prompts 4000]

Writes presets/nano/costs.json and presets/nano/artifact/, and benchmarks/results/nano-predictor.json with how the
candidates did on prompts held out by group. The judged prompts are not touched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from stepladder import config
from stepladder.build import make_engines, make_ladder
from stepladder.costs.timing import StageTiming, TimingRow, fit_measured, save_timings
from stepladder.engines.threads import available_cores
from stepladder.evaluate.measure import Measured, measure
from stepladder.evaluate.tasks import Task
from stepladder.evaluate.tasks.nano import generate
from stepladder.features.paper import PaperFeatures
from stepladder.plugins import load
from stepladder.predictors.artifact import Artifact, save
from stepladder.train.fit import Row, fit_logistic, fit_matrix, fit_mlp
from stepladder.types import Ladder, Request

ROOT = Path(__file__).resolve().parents[2]
NANO = config.PRESETS / "nano"
SEED = 20261123
FOLDS = 5
LAMBDAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


async def answers(ladder: Ladder, tasks: Sequence[Task], *, at_once: int) -> list[Measured]:
    """Every stage on every task, one stage after the other so that none disturbs another's time."""
    engines = make_engines(ladder.stages)
    engine = engines[ladder.names[0]]
    await engine.start()
    found: list[Measured] = []
    try:
        for stage in ladder.stages:
            began = time.perf_counter()
            found += await measure(engine, stage, tasks, at_once=at_once)
            sys.stderr.write(f"{stage.name}: {len(tasks)} prompts in {time.perf_counter() - began:.1f} s\n")
    finally:
        await engine.close()
    return found


def timings(measured: Iterable[Measured]) -> dict[str, StageTiming]:
    """What a call of each stage takes, from answers given one at a time."""
    rows = [
        TimingRow(
            m.stage,
            m.attempt.usage.prompt_tokens,
            m.attempt.usage.output_tokens,
            m.attempt.seconds,
            len(m.task.prompt),
        )
        for m in measured
    ]
    return fit_measured(rows)


def rows(measured: Iterable[Measured], stages: tuple[str, ...]) -> list[Row]:
    return [Row(m.task.prompt, stages.index(m.stage), m.quality, m.task.level) for m in measured]


def fold_of(task: Task) -> int:
    """Whole groups fall into one fold, so that no fact is seen on both sides."""
    return int.from_bytes(task.group_id.encode()[-4:], "big") % FOLDS


Fit = Callable[[Sequence[Row], Sequence[str]], Artifact]
CANDIDATES: Mapping[str, Fit] = {
    "matrix, rules": lambda found, stages: fit_matrix(found, stages, classifier="rules"),
    "matrix, learned": lambda found, stages: fit_matrix(found, stages, classifier="learned", seed=SEED),
    "logistic": lambda found, stages: fit_logistic(found, stages, SEED),
    "mlp, the paper's": lambda found, stages: fit_mlp(found, stages, SEED),
}


def held_out(fit: Fit, measured: Sequence[Measured], stages: tuple[str, ...]) -> dict[tuple[str, str], float]:
    """(query id, stage) → estimate by an artifact that saw none of the query's group."""
    estimates: dict[tuple[str, str], float] = {}
    features = PaperFeatures()
    for fold in range(FOLDS):
        artifact = fit(rows((m for m in measured if fold_of(m.task) != fold), stages), stages)
        predictor = load("predictors", artifact.kind)(stages, artifact.params, artifact.arrays)
        for m in measured:
            if fold_of(m.task) == fold:
                told = predictor.predict(features.features(Request("", prompt=m.task.prompt)))
                estimates[m.task.query_id, m.stage] = told[m.stage].mean
    return estimates


def scores(
    estimates: Mapping[tuple[str, str], float], measured: Sequence[Measured], costs: Mapping[str, float]
) -> dict[str, Any]:
    """R² over all rows, and at each λ the greedy rule's mean value, its quality and its cost."""
    truth = {(m.task.query_id, m.stage): m.quality for m in measured}
    mean = fmean(truth.values())
    spread = sum((q - mean) ** 2 for q in truth.values())
    missed = sum((truth[key] - estimates[key]) ** 2 for key in truth)
    queries = {m.task.query_id for m in measured}
    at: dict[str, dict[str, float]] = {}
    for lam in LAMBDAS:
        chosen = {q: max(costs, key=lambda s, q=q: lam * estimates[q, s] - costs[s]) for q in queries}
        quality = fmean(truth[q, s] for q, s in chosen.items())
        cost = fmean(costs[s] for s in chosen.values())
        at[f"{lam:g}"] = {"value": lam * quality - cost, "quality": quality, "cost": cost}
    return {"r2": 1 - missed / spread, "lambda": at}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--timed", type=int, default=250, help="prompts asked one at a time, for the prices")
    args = parser.parse_args()
    settings = config.parse({**_tree(), "costs": {}, "predictor": {}}, source="nano", folder=NANO.resolve(), text="")
    ladder = make_ladder(settings)
    tasks = generate("train", args.prompts, SEED)
    alone = asyncio.run(answers(ladder, tasks[: args.timed], at_once=1))
    taken = timings(alone)
    save_timings(taken, NANO / "costs.json")
    wide = replace(ladder, stages=tuple(replace(s, options={**s.options, "n_parallel": 8}) for s in ladder.stages))
    measured = asyncio.run(answers(wide, tasks, at_once=8))
    unit = min(timing.mean_seconds for timing in taken.values())
    costs = {name: taken[name].mean_seconds / unit for name in ladder.names}
    report = {name: scores(held_out(fit, measured, ladder.names), measured, costs) for name, fit in CANDIDATES.items()}
    best = max(report, key=lambda name: fmean(at["value"] / float(lam) for lam, at in report[name]["lambda"].items()))
    artifact = CANDIDATES[best](rows(measured, ladder.names), ladder.names)
    metrics = {**artifact.metrics, "r2_held_out": report[best]["r2"]}
    save(replace(artifact, created=time.strftime("%Y-%m-%d", time.gmtime()), metrics=metrics), NANO / "artifact")
    _write(args, ladder, measured, costs, report, best)
    return 0


def _tree() -> dict[str, Any]:
    import tomllib

    return tomllib.loads((NANO / "ladder.toml").read_text("utf-8"))


def _write(
    args: argparse.Namespace,
    ladder: Ladder,
    measured: Sequence[Measured],
    costs: Mapping[str, float],
    report: Mapping[str, Any],
    best: str,
) -> None:
    matrix = {
        level: [fmean(m.quality for m in measured if m.task.level == level and m.stage == s) for s in ladder.names]
        for level in ("simple", "medium", "complex")
    }
    found = {
        "command": f"python tools/nano/fit_predictor.py --prompts {args.prompts} --timed {args.timed}",
        "machine": f"{platform.processor() or platform.machine()}, {available_cores()} cores",
        "prompts": args.prompts,
        "stages": list(ladder.names),
        "mean_cost": costs,
        "quality_by_level": matrix,
        "held_out_by_group": report,
        "shipped": best,
    }
    path = ROOT / "benchmarks" / "results" / "nano-predictor.json"
    path.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    sys.stdout.write(
        json.dumps({key: found[key] for key in ("mean_cost", "quality_by_level", "shipped")}, indent=2) + "\n"
    )
    for name, figures in report.items():
        values = "  ".join(
            f"λ={lam}: q {at['quality']:.3f} c {at['cost']:.2f}" for lam, at in figures["lambda"].items()
        )
        sys.stdout.write(f"{name:18} R² {figures['r2']:.3f}  {values}\n")


if __name__ == "__main__":
    sys.exit(main())
