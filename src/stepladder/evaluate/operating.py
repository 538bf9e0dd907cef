"""Operating points: a policy's λ chosen on training rows, applied once to rows that had no part in the choice.

CostSave is the λ with the least cost that keeps the dearest stage's mean quality; PerfGain the one with the highest
quality. Where no λ does either on training rows, the point is the single stage that it should have beaten, and has no
λ. An artifact's ``metrics`` remember them as ``lambda_KIND:POLICY``, ``quality_KIND:POLICY`` and
``cost_KIND:POLICY``; the last two are means out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.compare import Played
from stepladder.evaluate.metrics import Matrix, Vector

KINDS = ("cost_save", "perf_gain")
TELL = {
    "cost_save": "the dearest stage's quality at the least cost",
    "perf_gain": "the highest quality",
}


class Point(NamedTuple):
    """A λ (None: the single stage itself), with mean quality and cost on training rows, out of fold."""

    lam: float | None
    quality: float
    cost: float


def points_of(data: Aligned, lambdas: Vector, quality: Vector, cost: Vector) -> dict[str, Point]:
    """The points of a policy's curve (T,) on training rows; of equals the cheapest, then the smallest λ."""
    stage_quality, stage_cost = data.quality.mean(axis=0), data.cost.mean(axis=0)
    best = int(np.lexsort((stage_cost, -stage_quality))[0])
    good = np.flatnonzero(quality >= stage_quality[-1] - 1e-12)
    saving = good[np.lexsort((lambdas[good], cost[good]))][:1]
    gaining = np.lexsort((lambdas, cost, -quality))[:1]
    return {
        "cost_save": _point(lambdas, quality, cost, saving[cost[saving] < stage_cost[-1]])
        or Point(None, float(stage_quality[-1]), float(stage_cost[-1])),
        "perf_gain": _point(lambdas, quality, cost, gaining[quality[gaining] > stage_quality[best]])
        or Point(None, float(stage_quality[best]), float(stage_cost[best])),
    }


def _point(lambdas: Vector, quality: Vector, cost: Vector, at: Any) -> Point | None:
    return Point(float(lambdas[at[0]]), float(quality[at[0]]), float(cost[at[0]])) if len(at) else None


def to_metrics(policy: str, points: Mapping[str, Point]) -> dict[str, float]:
    """As flat names and numbers, as an artifact's ``metrics`` hold them."""
    found: dict[str, float] = {}
    for kind, point in points.items():
        named = {"lambda": point.lam, "quality": point.quality, "cost": point.cost}
        found |= {f"{name}_{kind}:{policy}": value for name, value in named.items() if value is not None}
    return found


def from_metrics(values: Mapping[str, float], policy: str) -> dict[str, Point]:
    """What ``to_metrics`` wrote of a policy; empty where nobody chose points for it."""
    found = {}
    for kind in KINDS:
        quality, cost = values.get(f"quality_{kind}:{policy}"), values.get(f"cost_{kind}:{policy}")
        if quality is not None and cost is not None:
            found[kind] = Point(values.get(f"lambda_{kind}:{policy}"), quality, cost)
    return found


def all_of(values: Mapping[str, float]) -> dict[str, dict[str, Point]]:
    """The points of every policy that an artifact remembers some of."""
    prefixes = tuple(f"quality_{kind}:" for kind in KINDS)
    policies = sorted({key.split(":", 1)[1] for key in values if key.startswith(prefixes)})
    return {policy: from_metrics(values, policy) for policy in policies}


# ── applied once ─────────────────────────────────────────────────────────────

FIGURES = ("quality", "cost", "quality_ratio", "cost_save", "perf_gain")
"""Of the judged rows: the first two as they are; ``quality_ratio`` and ``cost_save`` (1 − the costs' ratio) against
the dearest stage, ``perf_gain`` (the qualities' ratio − 1) against the best single one."""


def applied(data: Aligned, point: Point, played: Played, draw: Callable[[Matrix], Matrix]) -> dict[str, Any]:
    """FIGURES of a point on judged rows, as it was ``played`` there, with 95 % intervals.

    ``draw`` resamples the means of the columns of an array (n, m): (times, m).
    """
    parts = np.column_stack([played.quality, played.cost, data.quality, data.cost])
    said, ranges = _figures(parts.mean(axis=0).reshape(1, -1))[0], _figures(draw(parts))
    found: dict[str, Any] = {"lambda": point.lam, "policy_used": played.name}
    for number, name in enumerate(FIGURES):
        found |= {name: float(said[number]), f"{name}_ci": metrics.interval(ranges[:, number])}
    return found | {"out_of_fold": {"quality": point.quality, "cost": point.cost}}


def at_point(kind: str, point: Point, alone: Sequence[Played], curve: Sequence[Played]) -> Played:
    """What was played at the point: the curve at its λ, or one of the single stages, ``alone``."""
    if point.lam is not None:
        return next(each for each in curve if each.lam == point.lam)
    if kind == "cost_save":
        return alone[-1]
    return min(alone, key=lambda each: abs(each.cost.mean() - point.cost))


def _figures(means: Matrix) -> Matrix:
    """(b, len(FIGURES)) from means (b, 2 + 2k) of quality and cost, then of every stage's quality and cost."""
    quality, cost = means[:, 0], means[:, 1]
    stage_quality, stage_cost = np.hsplit(means[:, 2:], 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, paid = quality / stage_quality[:, -1], cost / stage_cost[:, -1]
        gain = quality / stage_quality.max(axis=1) - 1
    return np.column_stack([quality, cost, ratio, 1 - paid, gain])


def chosen(points: Mapping[str, Mapping[str, Point]]) -> dict[str, str]:
    """For each kind the policy that training rows chose: least cost for CostSave, highest quality for PerfGain.

    ``points`` are by policy and kind. Points without a λ come last.
    """
    found = {}
    for kind in KINDS:
        there = {name: mine[kind] for name, mine in points.items() if kind in mine}
        if there:
            sign = 1 if kind == "cost_save" else -1
            figure = "cost" if kind == "cost_save" else "quality"
            found[kind] = min(there, key=lambda name: (there[name].lam is None, sign * getattr(there[name], figure)))
    return found
