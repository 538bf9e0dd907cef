"""Operating points: the λ that training rows choose, out of fold, so that nobody has to choose it in hindsight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.metrics import Matrix
from stepladder.evaluate.operating import points_of, to_metrics
from stepladder.evaluate.reference import Reference
from stepladder.types import EMPTY

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


def greedy_curve(estimates: Matrix, expected: Matrix, data: Aligned, lambdas: Matrix) -> tuple[Matrix, Matrix]:
    """Mean quality and billed cost of the greedy rule at every λ, both (T,)."""
    found, queries = [], np.arange(len(data))
    for lam in lambdas.tolist():
        kept = (lam * estimates - expected).argmax(axis=1)
        found.append([float(part[queries, kept].mean()) for part in (data.quality, data.cost)])
    qualities, costs = np.array(found).T
    return qualities, costs


def turns(estimates: Matrix, costs: Matrix) -> Matrix:
    """λ from 0 up between the queries' own break-even points (C_j − C_i)/(Q_j − Q_i), and one beyond them all."""
    points = [np.zeros(1)]
    for i in range(estimates.shape[1]):
        for j in range(estimates.shape[1]):
            gain, extra = estimates[:, j] - estimates[:, i], costs[:, j] - costs[:, i]
            useful = (gain > 1e-9) & (extra > 0)
            points.append(extra[useful] / gain[useful])
    found: Matrix = np.unique(np.quantile(np.concatenate(points), np.linspace(0, 1, LAMBDAS)))
    return np.append((found[1:] + found[:-1]) / 2, found[-1] * 2)
