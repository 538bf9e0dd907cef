"""Cost against quality on the embedded ladder, over judged prompts that neither models nor predictor have seen.

    python benchmarks/nano_frontier.py [--prompts 2000]

Every stage answers every prompt; then the shipped policy decides at each λ and is given the outcome of the stage that
it chose, billed as the gateway bills. Beside it: each stage alone, random mixes of stages, and an oracle that knows
every outcome. Writes benchmarks/results/nano-frontier.json and docs/img/nano-frontier.{png,svg}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder import config
from stepladder.build import build
from stepladder.evaluate.measure import Measured, measure
from stepladder.evaluate.tasks import Task
from stepladder.evaluate.tasks.nano import generate
from stepladder.router import Router
from stepladder.types import Call, Dials, Request

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "nano-frontier.json"
PICTURE = ROOT / "docs" / "img" / "nano-frontier"
LAMBDAS = tuple(float(x) for x in np.round(np.geomspace(0.25, 400, 33), 3))
RESAMPLES = 1000
Table = NDArray[np.float64]


class Outcomes(NamedTuple):
    """quality and cost, both (prompts, stages)."""

    quality: Table
    cost: Table


async def answered(router: Router, tasks: Sequence[Task]) -> dict[str, list[Measured]]:
    """Every stage on every prompt."""
    await router.start()
    try:
        return {
            stage.name: await measure(router.parts.engines[stage.name], stage, tasks, at_once=4)
            for stage in router.parts.ladder.stages
        }
    finally:
        await router.close()


def outcomes(router: Router, found: Mapping[str, Sequence[Measured]]) -> Outcomes:
    ladder, costs = router.parts.ladder, router.parts.costs
    return Outcomes(
        np.array([[m.quality for m in found[name]] for name in ladder.names]).T,
        np.array([[costs.billed(ladder[name], m.attempt) for m in found[name]] for name in ladder.names]).T,
    )


def choices(router: Router, tasks: Sequence[Task], lam: float) -> NDArray[np.int64]:
    """The stage that the shipped policy picks for every prompt."""
    picked = []
    for task in tasks:
        request = Request(task.query_id, messages=({"role": "user", "content": task.prompt},), dials=Dials(lam))
        action = router.decide(request).steps[0].decision.action
        assert isinstance(action, Call)
        picked.append(router.parts.ladder.index(action.stage))
    return np.array(picked)


def oracle(table: Outcomes, lam: float) -> NDArray[np.int64]:
    """The best stage for every prompt, every outcome known."""
    return np.argmax(lam * table.quality - table.cost, axis=1)


def point(table: Outcomes, picked: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Any]:
    """Mean quality and cost with 95 % bootstrap intervals, and the shares of the stages."""
    n = np.arange(len(picked))
    quality, cost = table.quality[n, picked], table.cost[n, picked]
    drawn = rng.integers(0, len(n), (RESAMPLES, len(n)))
    shares = np.bincount(picked, minlength=table.cost.shape[1]) / len(n)
    return {
        "quality": quality.mean(),
        "quality_ci": np.percentile(quality[drawn].mean(1), [2.5, 97.5]).tolist(),
        "cost": cost.mean(),
        "cost_ci": np.percentile(cost[drawn].mean(1), [2.5, 97.5]).tolist(),
        "shares": shares.tolist(),
    }


def report(router: Router, tasks: Sequence[Task], table: Outcomes) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = router.parts.ladder.names
    return {
        "stages": list(names),
        "single": {name: point(table, np.full(len(tasks), i), rng) for i, name in enumerate(names)},
        "stepladder": [{"lambda": lam, **point(table, choices(router, tasks, lam), rng)} for lam in LAMBDAS],
        "oracle": [{"lambda": lam, **point(table, oracle(table, lam), rng)} for lam in LAMBDAS],
        "by_level": {
            level: [float(table.quality[[t.level == level for t in tasks], i].mean()) for i in range(len(names))]
            for level in ("simple", "medium", "complex")
        },
    }


def draw(found: Mapping[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "stepladder"  # the same picture gives the same file
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    single = found["single"]
    axes.plot(*_line(list(single.values())), "o--", color="0.6", label="one stage alone, and random mixes of them")
    for name, at in single.items():
        axes.annotate(name, (at["cost"], at["quality"]), textcoords="offset points", xytext=(8, -12), color="0.35")
    axes.plot(*_line(found["oracle"]), color="tab:green", lw=1.2, ls=":", label="oracle (knows every outcome)")
    axes.plot(*_line(found["stepladder"]), ".-", color="tab:blue", label="Stepladder, by λ")
    axes.set(xlabel="mean cost of a request (cheapest stage's mean request = 1)", ylabel="measured quality")
    axes.set_title(f"nano, {found['prompts']} judged prompts", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE.with_suffix(".png"), dpi=130, metadata={"Software": None})
    figure.savefig(PICTURE.with_suffix(".svg"), metadata={"Date": None})


def _line(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [at["cost"] for at in points], [at["quality"] for at in points]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    args = parser.parse_args()
    tasks = generate("judged", args.prompts, seed=1)
    router = build(config.read("nano"))
    table = outcomes(router, asyncio.run(answered(router, tasks)))
    found = {
        "command": f"python benchmarks/nano_frontier.py --prompts {args.prompts}",
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "prompts": args.prompts,
        "versions": {"config": router.parts.versions.config, "artifact": router.parts.versions.artifact},
        **report(router, tasks, table),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    draw(found)
    for name, at in found["single"].items():
        sys.stdout.write(f"{name:8} quality {at['quality']:.3f}  cost {at['cost']:.2f}\n")
    for at in found["stepladder"][::4]:
        shares = " ".join(f"{share:.0%}" for share in at["shares"])
        sys.stdout.write(f"λ={at['lambda']:<7g} quality {at['quality']:.3f}  cost {at['cost']:.2f}  {shares}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
