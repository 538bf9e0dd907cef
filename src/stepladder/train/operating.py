"""Operating points: the λ that training rows choose, out of fold, so that nobody has to choose it in hindsight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepladder.contracts import Featurizer, Policy, Predictor
from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.compare import After, Bench
from stepladder.evaluate.metrics import Matrix, Vector, lambda_grid
from stepladder.evaluate.operating import points_of, to_metrics
from stepladder.evaluate.reference import Reference
from stepladder.evaluate.scores import Posterior, estimate
from stepladder.train.fit import Row
from stepladder.train.rows import Numbers, fit_rows
from stepladder.train.stack import Crossed
from stepladder.types import EMPTY, Attempt, Estimates

LAMBDAS = 512
"""Settings tried when λ is calibrated."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """An operating point: ``lam`` (None where there is none), and mean quality and cost there, out of fold.

    ``metrics`` are the points of CostSave and PerfGain as an artifact remembers them (``evaluate/operating.py``).
    """

    lam: float | None
    quality: float
    cost: float
    metrics: Mapping[str, float] = field(default_factory=lambda: EMPTY)


def calibrate(estimates: Matrix, data: Aligned, reference: Reference, quality_loss: float) -> Calibrated:
    """The smallest λ at which the greedy rule loses at most ``quality_loss`` of the dearest stage's mean quality.

    ``estimates`` (n, k) are out of fold. Tried are LAMBDAS quantiles of the λ at which some query changes its stage.
    Where none will do, ``lam`` is None and the point told is the one with the highest quality.
    """
    expected = expected_costs(data, reference.cost, reference.output_tokens)
    lambdas = turns(estimates, expected)
    qualities, costs = greedy_curve(estimates, expected, data, lambdas)
    told = to_metrics("greedy", points_of(data, lambdas, qualities, costs))
    good = np.flatnonzero(qualities >= (1 - quality_loss) * float(data.quality[:, -1].mean()))
    at = int(good[0]) if len(good) else int(qualities.argmax())
    return Calibrated(float(lambdas[at]) if len(good) else None, float(qualities[at]), float(costs[at]), told)


def greedy_curve(estimates: Matrix, expected: Matrix, data: Aligned, lambdas: Vector) -> tuple[Vector, Vector]:
    """Mean quality and billed cost of the greedy rule at every λ, both (T,)."""
    found, queries = [], np.arange(len(data))
    for lam in lambdas.tolist():
        kept = (lam * estimates - expected).argmax(axis=1)
        found.append([float(part[queries, kept].mean()) for part in (data.quality, data.cost)])
    qualities, costs = np.array(found).T
    return qualities, costs


def turns(estimates: Matrix, costs: Matrix) -> Vector:
    """λ from 0 up between the queries' own break-even points (C_j − C_i)/(Q_j − Q_i), and one beyond them all."""
    points = [np.zeros(1)]
    for i in range(estimates.shape[1]):
        for j in range(estimates.shape[1]):
            gain, extra = estimates[:, j] - estimates[:, i], costs[:, j] - costs[:, i]
            useful = (gain > 1e-9) & (extra > 0)
            points.append(extra[useful] / gain[useful])
    found: Vector = np.unique(np.quantile(np.concatenate(points), np.linspace(0, 1, LAMBDAS)))
    return np.append((found[1:] + found[:-1]) / 2, found[-1] * 2)


# ── policies that look at answers ────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """What predictors say of queries that they did not learn from: before any answer, and ``after`` answers."""

    before: Sequence[Estimates]
    after: After


def cross_fit(
    learn: Callable[[Sequence[Row]], Predictor], data: Aligned, fold_of: Numbers, featurizer: Featurizer
) -> CrossFitted:
    """One predictor for each fold, learned from the others; every query is estimated by the one of its fold.

    ``learn`` is to fit what is asked after answers too (``Candidate.whole``): that is what makes it dear.
    """
    before: dict[int, Estimates] = {}
    posteriors: list[Posterior] = []
    for fold in range(int(fold_of.max()) + 1):
        held = np.flatnonzero(fold_of == fold)
        predictor = learn(fit_rows(data.take(fold_of != fold)))
        requests = [data.requests[number] for number in held.tolist()]
        before |= dict(zip(held.tolist(), estimate(predictor, featurizer, requests), strict=True))
        posteriors.append(Posterior(predictor, featurizer, data.requests))

    def after(number: int, attempts: tuple[Attempt, ...]) -> Estimates:
        return posteriors[int(fold_of[number])](number, attempts)

    return CrossFitted([before[number] for number in range(len(data))], after)


def crossed_fit(crossed: Crossed, numbers: Numbers) -> CrossFitted:
    """What a stack says of the queries at these places of its own rows, without another fit.

    Each has one recorded answer a stage, so every set of stages is asked about once and then remembered.
    """
    places = numbers.tolist()
    known: dict[tuple[int, frozenset[str]], Estimates] = {}

    def after(number: int, attempts: tuple[Attempt, ...]) -> Estimates:
        key = number, frozenset(attempt.stage for attempt in attempts)
        if key not in known:
            known[key] = crossed.estimates(places[number], attempts)
        return known[key]

    return CrossFitted([crossed.estimates(place) for place in places], after)


def points_along(
    fitted: CrossFitted, data: Aligned, reference: Reference, policies: Mapping[str, Policy], *, seed: int = 0
) -> dict[str, float]:
    """The points of CostSave and PerfGain of every policy, as an artifact remembers them.

    The policies, by name, are replayed on ``data`` along the λ that ``evaluate`` plays: the grid's and those around it.
    """
    bench = Bench(data, expected_costs(data, reference.cost, reference.output_tokens), seed)
    lambdas = compare.sweep(lambda_grid(reference.quality, reference.cost))
    found: dict[str, float] = {}
    for name, policy in policies.items():
        played = compare.curve(bench, name, policy, fitted.before, lambdas, after=fitted.after)
        means = ([float(getattr(each, part).mean()) for each in played] for part in ("quality", "cost"))
        quality, cost = (np.array(values) for values in means)
        found |= to_metrics(name, points_of(data, np.array(lambdas), quality, cost))
    return found
