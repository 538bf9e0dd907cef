"""What a policy is worth along λ: its score, its regret, its lead over the best baseline, its deferral curve.

``compare.summarise`` has the figures that read a curve; these read values V = λ·Q − C at the grid's own λ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepladder.evaluate import metrics, operating
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.compare import Family, Played
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.operating import Point

SHARES = 21
"""Points of a deferral curve, evenly spaced from nothing sent up to everything."""


class Judge(NamedTuple):
    """Rows, grid of λ and resamples that every figure of one judgement rests on."""

    data: Aligned
    grid: Vector
    seed: int
    times: int

    def bootstrap(self, values: Matrix) -> Matrix:
        """Weighted means (times, m) of ``values`` (n, m); all figures of a judgement see the same resamples."""
        rng, groups = np.random.default_rng(self.seed), self.data.groups
        return metrics.bootstrap(lambda w: w @ values, len(self.data), rng, times=self.times, groups=groups)


def values(judge: Judge, family: Family) -> Matrix:
    """V = λ·Q − C of every query at every λ of the grid, (n, G).

    ``Family.at`` says which of its points; NaN where it has none.
    """
    found, nothing = [], np.full(len(judge.data), np.nan)
    for lam in judge.grid.tolist():
        played = family.at(lam)
        found.append(nothing if played is None else played.value(lam))
    return np.column_stack(found)


def worth(judge: Judge, family: Family) -> dict[str, Any]:
    """``score``, the mean value over the grid, and ``regret``, one number for each λ of the grid: the value of the best
    choice for every query less the policy's; both with ``_ci``."""
    mine = values(judge, family)
    best = np.column_stack([(lam * judge.data.quality - judge.data.cost).max(axis=1) for lam in judge.grid.tolist()])
    told = np.column_stack([mine.mean(axis=1), best - mine])
    drawn = judge.bootstrap(told)
    ranges = [metrics.interval(drawn[:, i]) for i in range(told.shape[1])]
    means = told.mean(axis=0).tolist()
    return {"score": means[0], "score_ci": ranges[0], "regret": means[1:], "regret_ci": ranges[1:]}


def versus(judge: Judge, family: Family, baselines: Sequence[Family]) -> dict[str, Any] | None:
    """The family's ``value_diff``, mean over grid and queries, to the ``name`` of the best of ``baselines``.

    The best is the one with the highest score on these rows; ``ci`` is paired, query by query. None without baselines.
    """
    scores = {each.name: values(judge, each).mean(axis=1) for each in baselines}
    if not scores:
        return None
    name = max(scores, key=lambda each: float(scores[each].mean()))
    gap = values(judge, family).mean(axis=1) - scores[name]
    drawn = judge.bootstrap(gap.reshape(-1, 1))
    return {"name": name, "value_diff": float(gap.mean()), "ci": metrics.interval(drawn[:, 0])}


def deferral(judge: Judge, family: Family) -> dict[str, list[float]] | None:
    """``quality`` where ``share`` of the queries go to the dearest stage and the rest to the cheapest, by the family's
    score; None for a family that ranks no queries."""
    if family.score is None:
        return None
    shares, quality = np.linspace(0, 1, SHARES), judge.data.quality
    found = metrics.deferral(quality[:, 0], quality[:, -1], family.score, shares)
    return {"share": shares.tolist(), "quality": found.tolist()}


def at_points(judge: Judge, family: Family, points: Mapping[str, Point], alone: Sequence[Played]) -> dict[str, Any]:
    """What became of a family's operating points on the judged rows, by kind (``operating.applied``)."""
    found = {}
    for kind, point in points.items():
        played = operating.at_point(kind, point, alone, family.played)
        found[kind] = operating.applied(judge.data, point, played, judge.bootstrap)
    return found
