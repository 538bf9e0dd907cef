"""The experiment's arms: the paper's methods and ours as policies on recorded outcomes, under one reading of cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.costs.fixed import VECTORS
from stepladder.evaluate import compare, metrics
from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.compare import Bench, Played
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.reference import Reference, reference_of
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import split_for_cost
from stepladder.reproduce import paper
from stepladder.types import Estimates

ADAPTIVE = GreedyPolicy()
"""The paper's rule (§2.2.2): the stage with the greatest λ·Q − C, once."""

CURVE = 25
"""λ of the finer sweep, log-spaced from an eighth of the grid's lowest to eight times its highest."""

CLOSE = 1e-12


# ── readings of cost ─────────────────────────────────────────────────────────


class Reading(NamedTuple):
    """What a call costs: ``vector``, one number for each stage, or None for what each answer was billed."""

    name: str
    told: str
    vector: tuple[float, ...] | None


MEASURED = Reading("measured", "measured: what the ladder's own cost model billed", None)
PAPERS = Reading("paper", "the paper's, §2.2.2", VECTORS["paper"])
FINER = Reading("finer", "the paper's finer ones, §6.1.2", VECTORS["fine"])


def readings(stages: int) -> tuple[Reading, ...]:
    """Those that a ladder of so many stages has: the paper's vectors are for three."""
    return (MEASURED, PAPERS, FINER) if stages == len(paper.STAGES) else (MEASURED,)


def priced(data: Aligned, reading: Reading) -> Aligned:
    """The outcomes with their costs in this reading."""
    if reading.vector is None:
        return data
    cost = np.tile(np.array(reading.vector), (len(data), 1))
    return replace(data, cost=cost, cost_unit="relative", pricing=reading.vector)


# ── arms ─────────────────────────────────────────────────────────────────────


class Router(NamedTuple):
    """A way to estimate quality: what it says of every judged query, and its calibrated λ (None where it has none).

    ``decide_s`` is what one decision takes, in seconds; it counts as latency.
    """

    name: str
    estimates: Sequence[Estimates]
    lam: float | None
    decide_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Arms:
    """Everything that was played under one reading.

    ``alone`` holds the arms without λ, ``by_lambda`` each router at the paper's λ, ``calibrated`` each at its own
    (where it has one), ``curves`` each along the finer sweep. ``mixes`` are by chance: at the quality that is wanted,
    its shares set on training rows, and at the cost of ours. ``oracle`` is the cheapest choice at ``wanted``
    quality or more. ``missing`` says why a cell of the paper's has no counterpart.
    """

    bench: Bench
    reading: Reading
    wanted: float
    alone: Sequence[Played]
    by_lambda: Mapping[str, Sequence[Played]]
    calibrated: Mapping[str, Played]
    curves: Mapping[str, Sequence[Played]]
    mixes: Sequence[Played]
    oracle: Played
    oracle_curve: Sequence[Played]
    missing: Mapping[str, str]

    @property
    def played(self) -> list[Played]:
        """All of them, in a fixed order."""
        found = [*self.alone, *(each for line in self.by_lambda.values() for each in line), *self.calibrated.values()]
        found += [each for line in self.curves.values() for each in line]
        found += [*self.mixes, self.oracle, *self.oracle_curve]
        return found


def play_all(
    judged: Aligned, train: Aligned, reading: Reading, routers: Sequence[Router], *, quality_loss: float, seed: int
) -> Arms:
    """Every arm on the judged queries. Expected costs, the sweep and the mix's stages come from training rows.

    The last router is ours: the random mix costs what it costs, at its calibrated λ (else at the paper's λ = 5).
    """
    data, reference = priced(judged, reading), reference_of(priced(train, reading))
    bench = Bench(data, expected_costs(data, reference.cost, reference.output_tokens), seed)
    first = routers[0].estimates
    alone = [*compare.singles(bench, first), *compare.pipelines(bench, first)]
    splits, missing = fixed_splits(bench)
    sweep = _sweep(reference)
    by_lambda = {each.name: along(bench, each, paper.LAMBDAS) for each in routers}
    calibrated = {each.name: along(bench, each, [each.lam])[0] for each in routers if each.lam is not None}
    ours = calibrated.get(routers[-1].name, by_lambda[routers[-1].name][paper.LAMBDAS.index(paper.CHOSEN_LAMBDA)])
    wanted = (1 - quality_loss) * float(data.quality[:, -1].mean())
    return Arms(
        bench,
        reading,
        wanted,
        [*alone, *splits],
        by_lambda,
        calibrated,
        {each.name: along(bench, each, sweep) for each in routers},
        mixes(bench, reference, quality_loss, float(ours.cost.mean())),
        oracle_at(bench, wanted),
        compare.oracle(bench, [*sweep, *paper.LAMBDAS]),
        missing,
    )


def along(bench: Bench, router: Router, lambdas: Sequence[float | None]) -> list[Played]:
    """The paper's rule on a router's estimates at every λ that is one."""
    found = [lam for lam in lambdas if lam is not None]
    played = compare.curve(bench, router.name, ADAPTIVE, router.estimates, found)
    return [replace(each, seconds=each.seconds + router.decide_s) for each in played]


def _sweep(reference: Reference) -> list[float]:
    grid = metrics.lambda_grid(reference.quality, reference.cost)
    return [float(lam) for lam in np.geomspace(grid[0] / 8, grid[-1] * 8, CURVE)]


def fixed_splits(bench: Bench) -> tuple[list[Played], dict[str, str]]:
    """The paper's fixed pipelines read as a random split that meets their stated costs, and why one cannot be.

    "Fixed 13B→70B" at 1.60 is 75 % on the dearest stage, in whichever reading; for "Fixed 13B→34B" at 1.36 there is no
    share. Ladders that have not three stages have neither.
    """
    stages = bench.data.stages
    if len(stages) != len(paper.STAGES):
        told = f"the paper's stated costs are of three stages, this ladder has {len(stages)}"
        return [], {f"split:{stages[0]}+{then}": told for then in stages[1:]}
    found, missing = [], {}
    for number in (1, 2):
        name, share = f"split:{stages[0]}+{stages[number]}", paper.pipeline_share(number)
        if share is None:
            stated, low, high = paper.TABLE_42[f"Fixed 13B→{paper.STAGES[number]}"].cost, *paper.COSTS[: number + 1]
            missing[name] = f"{stated:.2f} is no mix of {low} and {high}"
        else:
            weights = [1 - share, *(share * (column == number) for column in range(1, len(stages)))]
            found.append(compare.play_mix(bench, name, weights))
    return found, missing


def mixes(bench: Bench, reference: Reference, quality_loss: float, cost: float) -> list[Played]:
    """Stages by chance: what costs least among those of the wanted quality in training, and what costs ``cost``."""
    at_cost = random_mix(bench, reference, cost)
    return [calibrated_mix(bench, reference, quality_loss), *([] if at_cost is None else [at_cost])]


def calibrated_mix(bench: Bench, reference: Reference, quality_loss: float) -> Played:
    """The cheapest mix that loses at most ``quality_loss`` of the dearest stage's mean quality on training rows."""
    useful = metrics.hull(reference.quality, reference.cost)
    wanted = (1 - quality_loss) * float(reference.quality[-1])
    quality = [float(reference.quality[stage]) for stage in useful]
    upper = next(place for place, value in enumerate(quality) if value >= wanted)
    weights = np.zeros(len(reference.quality))
    weights[useful[upper]] = 1.0
    if upper:
        share = (wanted - quality[upper - 1]) / (quality[upper] - quality[upper - 1])
        weights[useful[upper - 1 : upper + 1]] = 1 - share, share
    return compare.play_mix(bench, "calibrated-mix", weights.tolist())


def random_mix(bench: Bench, reference: Reference, cost: float) -> Played | None:
    """Stages by chance at this mean cost: a mix of those that no other mix beats on training rows.

    None where these stages' costs do not reach it.
    """
    useful = metrics.hull(reference.quality, reference.cost)
    mean = bench.data.cost.mean(axis=0)
    costs = [float(mean[stage]) for stage in useful]
    target = min(max(cost, min(costs)), max(costs))
    if abs(target - cost) > CLOSE * max(costs):  # closer is the same mean, added up in another order
        return None
    weights = np.zeros(len(mean))
    weights[useful] = split_for_cost(costs, target)
    return compare.play_mix(bench, "random-mix", weights.tolist())


# ── the oracle ───────────────────────────────────────────────────────────────


def oracle_at(bench: Bench, wanted: float) -> Played:
    """The cheapest choice of stages, every outcome known, whose mean quality is ``wanted`` or more.

    By linear programming's relaxation: the rule with true qualities and billed costs at the λ where it reaches
    ``wanted``, and at that λ a mix of the two choices that are worth the same, so at most the cost of one query's
    climb below what whole queries allow. ``wanted`` above what the stages reach together gives their best.
    """
    quality, cost = bench.data.quality, bench.data.cost
    low, high = _choice(quality, cost, 0.0), _choice(quality, cost, compare.ORACLE_LAMBDA)
    if _mean(quality, high) < wanted - CLOSE:
        return compare.by_chance(bench, "oracle", None, _keep(high, quality))
    if _mean(quality, low) >= wanted - CLOSE:
        return compare.by_chance(bench, "oracle", None, _keep(low, quality))
    low, high = _bracket(quality, cost, wanted, low, high)
    share = (wanted - _mean(quality, low)) / (_mean(quality, high) - _mean(quality, low))
    chances = (1 - share) * _keep(low, quality) + share * _keep(high, quality)
    return compare.by_chance(bench, "oracle", None, chances)


Choice = NDArray[np.intp]


def _bracket(quality: Matrix, cost: Matrix, wanted: float, low: Choice, high: Choice) -> tuple[Choice, Choice]:
    """Two neighbouring corners of the best curve, with ``wanted`` between their qualities (Dinkelbach's steps).

    What counts as no gain goes by the costs themselves: in usd a request may cost a millionth.
    """
    while True:
        gain, extra = _mean(quality, high) - _mean(quality, low), _mean(cost, high) - _mean(cost, low)
        lam = extra / gain
        middle = _choice(quality, cost, lam)
        worth = lam * (_mean(quality, middle) - _mean(quality, low)) - (_mean(cost, middle) - _mean(cost, low))
        if worth <= CLOSE * (lam + _mean(cost, high)):
            return low, high
        if _mean(quality, middle) >= wanted:
            high = middle
        else:
            low = middle


def _choice(quality: Matrix, cost: Matrix, lam: float) -> Choice:
    found: Choice = (lam * quality - cost).argmax(axis=1)
    return found


def _mean(part: Matrix, choice: Choice) -> float:
    return float(part[np.arange(len(choice)), choice].mean())


def _keep(choice: Choice, like: Matrix) -> Matrix:
    found: Matrix = np.eye(like.shape[1])[choice]
    return found


# ── figures ──────────────────────────────────────────────────────────────────


def figures(arms: Arms, rng: np.random.Generator, *, times: int) -> list[dict[str, Any]]:
    """One entry for each of ``arms.played``: means with 95 % intervals by bootstrap over groups, all on one draw.

    ``cheaper`` = 1 − mean cost / that of the dearest stage alone, ``faster`` the same of seconds, ``quality_diff`` the
    difference of mean quality and ``better`` its share. ``oracle_share`` is the saving as a share of what the oracle
    saves at ``oracle_quality``: ``arms.wanted``, or where the arm falls short of that, the arm's own mean quality.
    """
    data, played = arms.bench.data, arms.played
    floors = [min(arms.wanted, float(each.quality.mean())) for each in played]
    best = np.column_stack([oracle_at(arms.bench, floor).cost for floor in floors])
    drawn = metrics.bootstrap(
        lambda weights: _ratios(arms, best, weights), len(data), rng, times=times, groups=data.groups
    )  # (times, arms, RATIOS)
    said = _ratios(arms, best, np.full((1, len(data)), 1 / len(data)))[0]
    return [{**_entry(arms, each, said[i], drawn[:, i]), "oracle_quality": floors[i]} for i, each in enumerate(played)]


RATIOS = ("quality", "cost", "seconds", "cheaper", "faster", "quality_diff", "better", "oracle_share")


def _ratios(arms: Arms, best: Matrix, weights: Matrix) -> Matrix:
    """(b, arms, len(RATIOS)) for weights (b, n); ``best`` (n, arms) is what each arm's oracle pays."""
    played, data = arms.played, arms.bench.data
    quality, cost, seconds = (
        weights @ np.column_stack([getattr(each, part) for each in played]) for part in ("quality", "cost", "seconds")
    )
    top_quality, top_cost = (weights @ part[:, [-1]] for part in (data.quality, data.cost))
    top_seconds, least = weights @ arms.bench.seconds[:, [-1]], weights @ best
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = (top_cost - cost) / (top_cost - least)
        parts = (quality, cost, seconds, 1 - cost / top_cost, 1 - seconds / top_seconds)
        return np.stack([*parts, quality - top_quality, quality / top_quality - 1, saved], axis=2)


def _entry(arms: Arms, played: Played, said: Vector, drawn: Matrix) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": played.name,
        "lambda": None if played.lam == compare.ORACLE_LAMBDA else played.lam,
        "shares": dict(zip(arms.bench.data.stages, played.shares.tolist(), strict=True)),
    }
    for number, name in enumerate(RATIOS):
        if name != "seconds":
            found |= {name: float(said[number]), f"{name}_ci": metrics.interval(drawn[:, number])}
    found["latency"] = latency(arms.bench, played) | {"mean_ci": metrics.interval(drawn[:, RATIOS.index("seconds")])}
    return found


def latency(bench: Bench, played: Played) -> dict[str, float]:
    """Seconds of a query: ``mean``, ``p50`` and ``p95``; of a mix, over queries and its coin."""
    sure = bool(np.isin(played.chances, (0.0, 1.0)).all())
    values, weights = (
        (played.seconds, np.ones(len(played.seconds))) if sure else (bench.seconds.ravel(), played.chances.ravel())
    )
    return {
        "mean": float(played.seconds.mean()),
        "p50": weighted_quantile(values, weights, 0.5),
        "p95": weighted_quantile(values, weights, 0.95),
    }


def weighted_quantile(values: Vector, weights: Vector, share: float) -> float:
    """The least value that at least ``share`` of the weight does not exceed."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    place = int(np.searchsorted(total, share * total[-1] - CLOSE))
    return float(values[order][min(place, len(values) - 1)])


def shares_by_class(played: Played, classes: Sequence[str], stages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Class → share of its queries by stage."""
    of = np.array(classes)
    return {
        str(level): dict(zip(stages, played.chances[of == level].mean(axis=0).tolist(), strict=True))
        for level in np.unique(of)
    }
