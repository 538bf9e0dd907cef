"""What stopping policies lose against the best plan where stages' signals go together, and how long deciding takes.

    python benchmarks/stopping_regret.py [--ladders 60] [--decisions 1500]

Prints and writes benchmarks/results/stopping-regret.json. Ladders are drawn from a seed: rising means, rising costs, λ
from 2 to 30, answers that tell some of what can be told. Signals follow the one-factor copula of ``optimal``; the best
plan is worth what backward induction over it says. Every policy is played on every course, each weighed by its chance,
with the posterior means and spreads of that very model in its views, so nothing here is simulated. Regret is the best
plan's expected λ·Q − ΣC less the policy's; its share is that of what the best plan gains over calling the one best
stage. Deciding is timed on first decisions of views never seen before, so that no law is found in a cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.contracts import Policy
from stepladder.policies.cascade import CascadePolicy
from stepladder.policies.cascade_route import CascadeRoutePolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.induction import best_called, chances, tree, worth_of_calls
from stepladder.policies.laws import law
from stepladder.policies.optimal import OptimalPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.testing import make_attempt, make_view
from stepladder.types import Call, Estimate, Estimates, Stop, View

RESULT = Path(__file__).parent / "results" / "stopping-regret.json"
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)
LEVELS = {2: 5, 3: 4, 4: 3, 5: 3}
"""Signals of each stage, by the number of stages."""

SEED = 20261123

Policies = Callable[[float, int], dict[str, Policy]]


def contestants(correlation: float, levels: int) -> dict[str, Policy]:
    """Policies at the model's own levels; ``optimal`` knows the correlation, the others take signals as independent."""
    return {
        "pandora": PandoraPolicy(levels=levels),
        "cascade-route": CascadeRoutePolicy(levels=levels),
        "optimal": OptimalPolicy(levels=levels, correlation=correlation),
        "greedy cascade": GreedyPolicy(cascade=True),
    }


def drawn(count: int, chance: random.Random) -> View:
    """A view before any answer."""
    means = sorted(chance.uniform(0.2, 0.95) for _ in range(count))
    costs = sorted(chance.uniform(0.5, 1.0) * 2.5**place for place in range(count))
    quality = {f"s{place}": _telling(mean, chance) for place, mean in enumerate(means)}
    return make_view(quality, costs, lam=2.0 * 15 ** chance.random())


def _telling(mean: float, chance: random.Random) -> Estimate:
    doubt = sqrt(mean * (1.0 - mean))
    return Estimate(mean, doubt, chance.uniform(0.2, 0.9) * doubt)


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """``values[i][signal]`` is the quality after stage i's answer; ``likely`` (levels + 1, …) are chances of states."""

    view: View
    values: Sequence[Sequence[float]]
    likely: Any
    levels: int

    def moments(self, state: tuple[int, ...]) -> Estimates:
        """What a perfect predictor says in this state."""
        return Estimates({name: self._estimate(state, place) for place, name in enumerate(self.view.stages)})

    def _estimate(self, state: tuple[int, ...], place: int) -> Estimate:
        if state[place] < self.levels:
            return Estimate(self.values[place][state[place]])
        values, weights = np.array(self.values[place]), self.next(state, place)
        mean = float(weights @ values)
        told = sqrt(max(0.0, float(weights @ (values - mean) ** 2)))
        return Estimate(mean, told, told)

    def next(self, state: tuple[int, ...], place: int) -> Any:
        """How likely each signal of this stage is from here."""
        ahead = self.likely[(*state[:place], slice(0, self.levels), *state[place + 1 :])]
        return ahead / ahead.sum()


def world(view: View, correlation: float, levels: int) -> World:
    sizes = (levels,) * len(view.stages)
    values = [law(view.estimates[name].mean, view.estimates[name].told, levels) for name in view.stages]
    return World(view, values, chances(sizes, correlation).reshape([many + 1 for many in sizes]), levels)


def best_plan(here: World) -> float:
    sizes = (here.levels,) * len(here.values)
    stopping = best_called(tree(sizes), [[here.view.lam * value for value in line] for line in here.values])
    costs = [here.view.costs[name].total for name in here.view.stages]
    return float(worth_of_calls(tree(sizes), here.likely.ravel(), stopping, costs).max())


def played(policy: Policy, here: World, state: tuple[int, ...] | None = None, made: tuple[Any, ...] = ()) -> float:
    """Expected λ·Q − ΣC of the policy from this state on."""
    state = state or (here.levels,) * len(here.values)
    view = replace(here.view, estimates=here.moments(state), attempts=made)
    action = policy.decide(view).action
    if isinstance(action, Stop):
        return view.lam * view.estimates[action.attempt.stage].mean
    assert isinstance(action, Call)
    place = view.stages.index(action.stage)
    after = (*made, make_attempt(action.stage))
    worth = -view.costs[action.stage].total
    for signal, weight in enumerate(here.next(state, place).tolist()):
        if weight > 1e-15:
            worth += weight * played(policy, here, (*state[:place], signal, *state[place + 1 :]), after)
    return worth


def regrets(count: int, correlation: float, ladders: int) -> dict[str, dict[str, float]]:
    chance = random.Random(f"{SEED}:{count}")
    worlds = [world(drawn(count, chance), correlation, LEVELS[count]) for _ in range(ladders)]
    best = np.array([best_plan(here) for here in worlds])
    alone = np.array([max(here.view.value(stage) for stage in here.view.stages) for here in worlds])
    found = {}
    for name, policy in contestants(correlation, LEVELS[count]).items():
        lost = best - np.array([played(policy, here) for here in worlds])
        figures = {"mean": lost.mean(), "worst": lost.max(), "share": lost.sum() / (best - alone).sum()}
        found[name] = {key: max(0.0, round(float(value), 6)) for key, value in figures.items()}
    found["best plan"] = {"gain over one stage": round(float((best - alone).mean()), 6)}
    return found


def decision_times(count: int, decisions: int) -> dict[str, dict[str, float]]:
    """Microseconds of first decisions on views never seen before."""
    policies = {
        "greedy": GreedyPolicy(),
        "cascade": CascadePolicy(thresholds=0.8),
        "pandora": PandoraPolicy(),
        "cascade-route": CascadeRoutePolicy(),
        "optimal": OptimalPolicy(),
        "optimal, r = 0.5": OptimalPolicy(correlation=0.5),
    }
    found = {}
    for name, policy in policies.items():
        chance, spent = random.Random(f"{SEED}:{count}:{name}"), []
        for _ in range(decisions + 50):
            view = drawn(count, chance)
            began = time.perf_counter()
            policy.decide(view)
            spent.append((time.perf_counter() - began) * 1e6)
        spent = sorted(spent[50:])
        found[name] = {"p50": round(spent[decisions // 2], 1), "p99": round(spent[decisions * 99 // 100], 1)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=60)
    parser.add_argument("--decisions", type=int, default=1500)
    args = parser.parse_args()
    regret: dict[str, Any] = {}
    for count in LEVELS:
        for correlation in CORRELATIONS:
            found = regrets(count, correlation, args.ladders)
            regret[f"{count} stages, r = {correlation:g}"] = found
            told = "  ".join(
                f"{name} {each['mean']:.4f} ({each['share']:.1%})" for name, each in found.items() if "share" in each
            )
            sys.stdout.write(f"regret  {count} stages  r = {correlation:g}  {told}\n")
            sys.stdout.flush()
    times = {f"{count} stages": decision_times(count, args.decisions) for count in (3, 5)}
    for count, found in times.items():
        for name, each in found.items():
            sys.stdout.write(f"decide  {count}  {name}: p50 {each['p50']} µs, p99 {each['p99']} µs\n")
    report = {
        "command": f"python benchmarks/stopping_regret.py --ladders {args.ladders} --decisions {args.decisions}",
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seed": SEED,
        "levels": LEVELS,
        "regret": regret,
        "decide_us": times,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
