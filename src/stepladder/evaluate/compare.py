"""Policies on recorded outcomes: each decides through its real views, and is billed for everything that it called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stepladder.contracts import Policy
from stepladder.errors import UsageError
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import RandomSplitPolicy, split_for_cost
from stepladder.policies.single import SinglePolicy
from stepladder.router import LOT, coin, next_decision
from stepladder.types import Action, Attempt, Call, Cost, Estimate, Estimates, Fail, Stop, View

After = Callable[[int, tuple[Attempt, ...]], Estimates]
"""(number of the query, attempts so far) → estimates, for predictors that read answers."""

ORACLE_LAMBDA = 1e9
"""λ of the oracle that asks for quality alone: the best outcome, the cheapest of equals."""

MIXES = 9
SWEEP = 33
"""λ of a curve besides the grid's: log-spaced, from an eighth of the grid's lowest to eight times its highest."""


# ── replay ───────────────────────────────────────────────────────────────────


class Course(NamedTuple):
    """One query's way: the stage that was kept, every stage that was called, and what all of them cost."""

    kept: int
    called: tuple[int, ...]
    cost: float


@dataclass(frozen=True, eq=False)
class Bench:
    """Recorded outcomes made ready for replay: ``expected`` (n, k) are the costs in views, ``seed`` is the coin's."""

    data: Aligned
    expected: Matrix
    seed: int = 0

    @cached_property
    def costs(self) -> tuple[Mapping[str, Cost], ...]:
        """What each query's views show."""
        return tuple(
            {name: Cost(value) for name, value in zip(self.data.stages, line, strict=True)}
            for line in self.expected.tolist()
        )

    @cached_property
    def attempts(self) -> tuple[tuple[Attempt, ...], ...]:
        """The recorded answers, (n, k), under the ladder's names, billed."""
        return tuple(
            tuple(row.attempt(stage, cost) for stage, row, cost in zip(self.data.stages, line, billed, strict=True))
            for line, billed in zip(self.data.rows, self.data.cost.tolist(), strict=True)
        )

    @cached_property
    def seconds(self) -> Matrix:
        """(n, k): how long each recorded answer took, NaN where the table does not say."""
        lines = [[np.nan if row.latency_s is None else row.latency_s for row in line] for line in self.data.rows]
        return np.array(lines, dtype=np.float64)

    @cached_property
    def coins(self) -> tuple[float, ...]:
        """The coin of each query's first step, as the router draws it."""
        return tuple(coin(self.seed, row[0].query_id, 0) for row in self.data.rows)

    @cached_property
    def lots(self) -> tuple[float, ...]:
        """The lot of each query, as the router draws it."""
        return tuple(coin(self.seed, row[0].query_id, LOT) for row in self.data.rows)


def replay_query(
    bench: Bench, number: int, policy: Policy, estimates: Estimates, *, lam: float = 0.0, after: After | None = None
) -> Course:
    """One query put to a policy: the router's loop, with recorded answers in the engine's place.

    Raises UsageError where the policy gives up: recorded outcomes have no faults to give up for.
    """
    stages, costs, recorded = bench.data.stages, bench.costs[number], bench.attempts[number]
    made: tuple[Attempt, ...] = ()
    called: list[int] = []
    action: Action | None = None
    while True:
        known = after(number, made) if made and after is not None else estimates
        spent = sum(attempt.cost for attempt in made)
        view = View(stages, lam, known, costs, made, spent, _coin(bench, number, len(made)), bench.lots[number])
        action = next_decision(policy, view, action).action
        match action:
            case Call(stage):
                called.append(stages.index(stage))
                made = (*made, recorded[called[-1]])
            case Stop(attempt):
                return Course(stages.index(attempt.stage), tuple(called), spent)
            case Fail(fault):
                raise UsageError(f"policy '{policy.name}' gave up on recorded outcomes: {fault.message}")


def _coin(bench: Bench, number: int, step: int) -> float:
    return coin(bench.seed, bench.data.rows[number][0].query_id, step) if step else bench.coins[number]


# ── a policy's results ───────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Played:
    """One policy at one setting: quality, cost and seconds of every query, (n,).

    ``chances`` (n, k) is how likely each stage's answer is the one that is kept: 0 or 1 but for mixes, whose quality,
    cost and seconds are means over their coin. ``seconds`` adds up all calls, NaN where the table knows none.
    """

    name: str
    lam: float | None
    quality: Vector
    cost: Vector
    seconds: Vector
    chances: Matrix

    def value(self, lam: float) -> Vector:
        """V = λ·Q − C of every query, (n,)."""
        return lam * self.quality - self.cost

    @property
    def shares(self) -> Vector:
        """Share of the answers by stage, (k,)."""
        found: Vector = self.chances.mean(axis=0)
        return found


def play(
    bench: Bench,
    name: str,
    policy: Policy,
    estimates: Sequence[Estimates],
    *,
    lam: float | None = None,
    after: After | None = None,
) -> Played:
    """The policy on every query. ``lam`` None is for policies that do not look at it."""
    courses = [
        replay_query(bench, number, policy, found, lam=lam or 0.0, after=after)
        for number, found in enumerate(estimates)
    ]
    kept = np.array([course.kept for course in courses])
    quality = bench.data.quality[np.arange(len(kept)), kept]
    seconds = np.array([bench.seconds[number, course.called].sum() for number, course in enumerate(courses)])
    chances = np.eye(len(bench.data.stages))[kept]
    return Played(name, lam, quality, np.array([course.cost for course in courses]), seconds, chances)


def play_mix(bench: Bench, name: str, weights: Sequence[float]) -> Played:
    """What ``random-split`` with these weights gives on average over its coin, query by query."""
    policy = RandomSplitPolicy(stages=bench.data.stages, weights=weights)
    drawn = np.array([policy.weights[stage] for stage in bench.data.stages], dtype=np.float64)
    chances = np.tile(drawn / drawn.sum(), (len(bench.data), 1))
    return by_chance(bench, name, None, chances)


def by_chance(bench: Bench, name: str, lam: float | None, chances: Matrix) -> Played:
    """What calling one stage of each query, drawn with these chances (n, k), gives on average."""
    parts = (bench.data.quality, bench.data.cost, bench.seconds)
    quality, cost, seconds = (np.where(chances > 0, chances * part, 0.0).sum(axis=1) for part in parts)
    return Played(name, lam, quality, cost, seconds, chances)


def as_estimates(qualities: Matrix, stages: Sequence[str]) -> list[Estimates]:
    """Qualities (n, k) as estimates without doubt."""
    return [
        Estimates({stage: Estimate(value) for stage, value in zip(stages, line, strict=True)}, calibrated=True)
        for line in qualities.tolist()
    ]


# ── baselines ────────────────────────────────────────────────────────────────


def singles(bench: Bench, estimates: Sequence[Estimates]) -> list[Played]:
    """Each stage alone."""
    return [play(bench, f"single:{stage}", SinglePolicy(stage=stage), estimates) for stage in bench.data.stages]


def pipelines(bench: Bench, estimates: Sequence[Estimates]) -> list[Played]:
    """The cheapest stage and then each of the others, always; both are billed."""
    first, *others = bench.data.stages
    return [play(bench, f"fixed:{first}+{then}", FixedPolicy(first=first, then=then), estimates) for then in others]


def random_mixes(bench: Bench, points: int = MIXES) -> list[Played]:
    """Mixes of the stages next to a cost, at costs evenly spaced from the cheapest stage's mean to the dearest's, and
    the stages themselves."""
    cost = bench.data.cost.mean(axis=0).tolist()
    return [play_mix(bench, "random-mix", split_for_cost(cost, target)) for target in targets(cost, points)]


def targets(costs: Sequence[float], points: int) -> list[float]:
    """``points`` costs evenly spaced between the least and the greatest, and each of ``costs`` itself; sorted."""
    spaced = np.linspace(min(costs), max(costs), points)[1:-1].tolist()
    return sorted({*spaced, *costs})


def zero_router(bench: Bench, points: int = MIXES) -> list[Played]:
    """The best that mixing stages by chance can do, chosen on these very rows: the upper hull of their (cost, quality).

    Wherever a stage lies below a mix of two others it is left out.
    """
    quality, cost = bench.data.quality.mean(axis=0), bench.data.cost.mean(axis=0)
    on_hull = metrics.hull(quality, cost)
    costs, found = cost[on_hull].tolist(), []
    for target in targets(costs, points):
        weights = np.zeros(len(cost))
        weights[on_hull] = split_for_cost(costs, target)
        found.append(play_mix(bench, "zero-router", weights.tolist()))
    return found


def class_estimates(bench: Bench, by_class: Mapping[str, Sequence[float]]) -> list[Estimates] | None:
    """The measured quality of each query's class on every stage; None where a query's class is not among them."""
    levels = bench.data.levels
    if not by_class or None in levels:
        return None
    return looked_up([str(level) for level in levels], by_class, bench.data.stages)


def looked_up(
    cells: Sequence[str], means_of: Mapping[str, Sequence[float] | Vector], stages: Sequence[str]
) -> list[Estimates] | None:
    """The measured qualities of each query's cell, one for each stage; None where a query's cell is not among them."""
    if any(cell not in means_of for cell in cells):
        return None
    return as_estimates(np.array([means_of[cell] for cell in cells]), stages)


def oracle(bench: Bench, lambdas: Sequence[float]) -> list[Played]:
    """The greedy rule with the outcomes and the billed costs themselves for estimates: the best of any router."""
    knowing = Bench(bench.data, bench.data.cost, bench.seed)
    truth = as_estimates(bench.data.quality, bench.data.stages)
    return curve(knowing, "oracle", GreedyPolicy(), truth, [*lambdas, ORACLE_LAMBDA])


def curve(
    bench: Bench,
    name: str,
    policy: Policy,
    estimates: Sequence[Estimates],
    lambdas: Sequence[float],
    *,
    after: After | None = None,
) -> list[Played]:
    """A policy at every λ."""
    return [play(bench, name, policy, estimates, lam=lam, after=after) for lam in lambdas]


def sweep(grid: Vector, *more: float | None, points: int = SWEEP) -> list[float]:
    """λ for a curve: the grid's own, ``points`` on both sides and between, and ``more``; sorted, each once."""
    wide = np.geomspace(grid[0] / 8, grid[-1] * 8, points)
    extra = [value for value in more if value is not None]
    return sorted({*grid.tolist(), *wide.tolist(), *extra})


# ── summaries ────────────────────────────────────────────────────────────────

FIGURES = ("cost_save", "perf_gain", "apgr", "cpt50", "cpt80", "cost_auc", "aiq", "gap_closed")


@dataclass(frozen=True, eq=False)
class Family:
    """A policy along its λ: ``played`` holds the points of its curve.

    ``score`` (n,) is the predicted gain of the last stage over the first, by which APGR and CPT rank the queries; None
    leaves those figures out.
    """

    name: str
    played: Sequence[Played]
    score: Vector | None = None

    def at(self, lam: float) -> Played | None:
        """What was played at this λ; of points without a λ (mixes, pipelines) the best there, in hindsight; else None.

        That hindsight is in a baseline's favour, so that a lead over it is no gift to what it is compared with.
        """
        exact = next((each for each in self.played if each.lam == lam), None)
        free = (each for each in self.played if each.lam is None)
        return exact or max(free, key=lambda each: float(each.value(lam).mean()), default=None)


def summarise(
    data: Aligned, family: Family, grid: Vector, rng: np.random.Generator, *, times: int = 1000
) -> dict[str, Any]:
    """FIGURES of a family with their 95 % intervals (``NAME_ci``), by bootstrap over groups of queries.

    ``cost_save`` is against the dearest stage, ``perf_gain`` against the best single one, both at the best point of
    the curve in hindsight. ``gap_closed`` is the mean over ``grid``; it is NaN where the family was not played there
    (``Family.at``).
    """
    whole = np.full((1, len(data)), 1 / len(data))
    said = _figures(data, family, grid, whole)[0]
    drawn = metrics.bootstrap(
        lambda weights: _figures(data, family, grid, weights), len(data), rng, times=times, groups=data.groups
    )
    found: dict[str, Any] = {}
    for number, name in enumerate(FIGURES):
        found[name] = float(said[number])
        found[f"{name}_ci"] = metrics.interval(drawn[:, number]) if np.isfinite(said[number]) else (np.nan, np.nan)
    return found


def intervals(
    data: Aligned, played: Sequence[Played], rng: np.random.Generator, *, times: int = 1000
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """95 % intervals of mean quality and mean cost of each, all on the same resamples."""
    quality, cost = (np.column_stack([getattr(each, name) for each in played]) for name in ("quality", "cost"))
    values = np.hstack([quality, cost])
    drawn = metrics.bootstrap(lambda weights: weights @ values, len(data), rng, times=times, groups=data.groups)
    many = len(played)
    return [(metrics.interval(drawn[:, i]), metrics.interval(drawn[:, many + i])) for i in range(many)]


def _figures(data: Aligned, family: Family, grid: Vector, weights: Matrix) -> Matrix:
    """(b, len(FIGURES)) for weights (b, n)."""
    quality = weights @ np.column_stack([each.quality for each in family.played])
    cost = weights @ np.column_stack([each.cost for each in family.played])
    stage_quality, stage_cost = weights @ data.quality, weights @ data.cost
    closed = gaps(data, family, grid, weights)
    lines = []
    for number, line in enumerate(weights):
        q, c, alone_q, alone_c = quality[number], cost[number], stage_quality[number], stage_cost[number]
        lines.append(
            (
                metrics.cost_save(q, c, float(alone_q[-1]), float(alone_c[-1])),
                metrics.perf_gain(q, float(alone_q.max())),
                *_ranked(data, family.score, line),
                metrics.cost_auc(q, c, alone_q, alone_c),
                metrics.aiq(q, c, alone_q, alone_c),
                closed[number],
            )
        )
    return np.array(lines, dtype=np.float64)


def _ranked(data: Aligned, score: Vector | None, weights: Vector) -> tuple[float, float, float]:
    """APGR, CPT(50 %) and CPT(80 %)."""
    if score is None:
        return (float("nan"),) * 3
    found = metrics.gap_recovered(data.quality[:, 0], data.quality[:, -1], score, weights)
    return metrics.apgr(found), metrics.cpt(found, 0.5), metrics.cpt(found, 0.8)


def gaps(data: Aligned, family: Family, grid: Vector, weights: Matrix) -> list[float]:
    """``metrics.gap_closed`` for each line of weights."""
    found = [(lam, family.at(lam)) for lam in grid.tolist()]
    mine = [played.value(lam) for lam, played in found if played is not None]
    if len(mine) < len(grid):
        return [float("nan")] * len(weights)
    best = [(lam * data.quality - data.cost).max(axis=1) for lam in grid.tolist()]
    value, oracle_value = weights @ np.column_stack(mine), weights @ np.column_stack(best)
    stage_quality, stage_cost = (weights @ part for part in (data.quality, data.cost))
    fixed = (stage_quality[:, None, :] * grid[:, None] - stage_cost[:, None, :]).max(axis=2)
    return [metrics.gap_closed(v, f, o) for v, f, o in zip(value, fixed, oracle_value, strict=True)]
