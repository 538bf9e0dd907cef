"""Figures of merit: pure functions on arrays. Formulas: RouteLLM (arXiv 2406.18665), cascade routing (2410.10347).

Qualities are in [0, 1], costs in any one unit. Where a figure has no value (one class only, no spread) it is NaN. What
needs chance takes a ``numpy.random.Generator``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Labels = NDArray[Any]

BINS = 15
CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1 in the log-loss, so that one sure mistake does not make it infinite."""

RIGHT = 0.5
"""From this quality up an answer counts as right, where a figure knows only right and wrong."""

NO_SIGNAL = 0.2
"""Where no more of the groups' spread than this is signal, a corrected R² would be a quotient of two noises."""

CHUNK = 2_000_000
"""Numbers held at once while resampling."""


# ── how good an estimate is ──────────────────────────────────────────────────


def r2(quality: Matrix, estimate: Matrix) -> float:
    """1 − Σ(y − p)² / Σ(y − ȳ)², over all entries of two arrays of one shape; NaN where y does not vary."""
    return _explained(quality - estimate, quality - np.mean(quality))


def r2_within(quality: Matrix, estimate: Matrix, labels: Labels) -> float:
    """R² of what is left once the mean of each label's entries is known: 1 − Σ(y − p)² / Σ(y − ȳ_label)².

    All three are of one shape. An estimator that knows no more than those means has 0; a biased one is below.
    """
    number = np.unique(labels, return_inverse=True)[1].reshape(-1)
    flat = quality.reshape(-1)
    means = np.bincount(number, flat) / np.bincount(number)
    return _explained(quality - estimate, flat - means[number])


def auc(quality: Matrix, estimate: Matrix) -> float:
    """Chance that a right answer (quality ≥ ½) has the higher estimate than a wrong one, ties counting half.

    By mean ranks (Mann and Whitney). NaN where all are right or all are wrong.
    """
    right, flat = quality.reshape(-1) >= RIGHT, estimate.reshape(-1)
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return float("nan")
    _, number, counts = np.unique(flat, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    above = float(mean_rank[number.reshape(-1)][right].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def brier(quality: Matrix, estimate: Matrix) -> float:
    """Mean of (y − p)²."""
    return float(np.mean((quality - estimate) ** 2))


def log_loss(quality: Matrix, estimate: Matrix) -> float:
    """Mean of −y·ln p − (1 − y)·ln(1 − p), in nats; a quality between 0 and 1 is that share of a right answer."""
    p = np.clip(estimate, CLIP, 1 - CLIP)
    return float(-np.mean(quality * np.log(p) + (1 - quality) * np.log1p(-p)))


def ece(quality: Matrix, estimate: Matrix, bins: int = BINS) -> float:
    """Expected calibration error: Σ over bins of share·|mean y − mean p|.

    Bins hold equally many entries, in the order of the estimate; equal estimates stay in one bin.
    """
    p = estimate.reshape(-1)
    place = _bins(p, bins)
    return float(np.abs(np.bincount(place, quality.reshape(-1) - p)).sum() / len(p))


def ece_floor(
    estimate: Matrix,
    rng: np.random.Generator,
    *,
    spread: float = 1.0,
    bins: int = BINS,
    times: int = 200,
    quantile: float = 0.95,
) -> float:
    """The ECE that a perfectly calibrated predictor with these estimates stays under in ``quantile`` of samples.

    Outcomes are drawn ``times`` times: right with probability p; ``spread`` is the share of p(1 − p), the variance of
    a right-or-wrong answer, that outcomes really have (``outcome_spread``).
    """
    p = estimate.reshape(-1)
    place = _bins(p, bins)
    drawn = [np.bincount(place, np.sqrt(spread) * ((rng.random(len(p)) < p) - p)) for _ in range(times)]
    errors = np.abs(np.array(drawn)).sum(axis=1) / len(p)
    return float(np.quantile(errors, quantile))


def outcome_spread(quality: Matrix, estimate: Matrix) -> float:
    """Variance of outcomes about their estimates as a share of p(1 − p), at most 1; 1 where all are right or wrong."""
    binary = float(np.sum(estimate * (1 - estimate)))
    if binary <= 0 or bool(np.isin(quality, (0.0, 1.0)).all()):
        return 1.0
    return min(float(np.sum((quality - estimate) ** 2)) / binary, 1.0)


class Bin(NamedTuple):
    """A bin of a reliability table: mean estimate, mean quality, and how many entries."""

    estimate: float
    quality: float
    n: int


def reliability(quality: Matrix, estimate: Matrix, bins: int = BINS) -> list[Bin]:
    """The bins that ``ece`` adds up, lowest estimates first; bins that equal estimates left empty are not there."""
    p = estimate.reshape(-1)
    place = _bins(p, bins)
    counts = np.bincount(place, minlength=bins)
    said, was = (np.bincount(place, part.reshape(-1), minlength=bins) for part in (estimate, quality))
    filled = np.flatnonzero(counts)
    return [Bin(float(said[i] / counts[i]), float(was[i] / counts[i]), int(counts[i])) for i in filled]


class Ceiling(NamedTuple):
    """The highest R² that estimates can have: of ``single`` answers, and of the ``mean`` of a query's samples."""

    single: float
    mean: float


def r2_ceiling(mean: Vector, samples: Vector) -> Ceiling:
    """The R² of an estimator that knows every query's true success probability p, from repeated samples of a stage.

    ``mean`` (n,) is the share of right answers among a query's ``samples`` (n,), which are at least 2. A right-or-wrong
    answer varies by p(1 − p) about its p, so the best R² of one answer is Var(p)/(p̄(1 − p̄)), and that of the mean of m
    answers Var(p)/Var(mean). Var(p) is taken without bias: Var(mean) − E[mean·(1 − mean)/(m − 1)], and p̄ is the mean
    of the means. NaN where the means do not vary.
    """
    if not len(mean) or bool((samples < 2).any()):
        raise ValueError("a ceiling needs queries with two samples or more")
    spread = float(np.var(mean, ddof=1)) if len(mean) > 1 else 0.0
    true = max(spread - float(np.mean(mean * (1 - mean) / (samples - 1))), 0.0)
    middle = float(np.mean(mean))
    once = middle * (1 - middle)
    if spread <= 0 or once <= 0:
        return Ceiling(float("nan"), float("nan"))
    return Ceiling(min(true / once, 1.0), min(true / spread, 1.0))


class GroupFit(NamedTuple):
    """How well mean estimates of groups fit their mean qualities, on one stage.

    ``raw`` is the R² as it stands, ``corrected`` without the noise of sampling, ``strict`` with a smaller correction of
    the residual; ``signal`` is the share of the groups' spread that is no noise; ``groups`` (of 2 queries and more)
    and their queries ``n`` were counted.
    """

    raw: float
    corrected: float
    strict: float
    signal: float
    groups: int
    n: int


def group_fit(quality: Vector, estimate: Vector, groups: Labels) -> GroupFit:
    """R² of expected quality per group, weighted by the groups' sizes; all three are (n,).

    With n_g queries in group g, means ȳ_g and p̄_g, and ȳ over all::

        residual = Σ n_g (ȳ_g − p̄_g)²        total = Σ n_g (ȳ_g − ȳ)²        noise = Σ s²_g
        raw       = 1 − residual / total
        corrected = 1 − max(0, residual − noise) / (total − noise)

    s²_g is the sample variance of y in the group (for right-or-wrong answers ȳ_g(1 − ȳ_g)·n_g/(n_g − 1)), so that
    s²_g/n_g is the sampling variance of ȳ_g: even a perfect estimator misses ȳ_g by that much. It counts all of a
    group's spread as noise, also what the estimator foresaw of it, and so is kind to good estimators; ``strict`` takes
    Σ Var_g(y − p) from the residual instead, whose expectation is then 0 only for an estimator that is right about
    every group. Groups of one query, whose variance is not known, are left out. NaN where noise is all there is.
    """
    number = np.unique(groups, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(number)
    kept = counts[number] > 1
    if not kept.any():
        return GroupFit(*(float("nan"),) * 4, 0, 0)
    y, p = quality[kept], estimate[kept]
    number = np.unique(number[kept], return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(number)
    mean_y, mean_p = (np.bincount(number, part) / sizes for part in (y, p))
    residual, total = (float(sizes @ gap**2) for gap in (mean_y - mean_p, mean_y - y.mean()))
    noise, foreseen = (_within(part, number, sizes) for part in (y, y - p))
    true = total - noise
    useful = true > NO_SIGNAL * total
    return GroupFit(
        1 - residual / total if total > 0 else float("nan"),
        1 - max(0.0, residual - noise) / true if useful else float("nan"),
        1 - max(0.0, residual - foreseen) / true if useful else float("nan"),
        max(true, 0.0) / total if total > 0 else float("nan"),
        len(sizes),
        len(y),
    )


def _within(values: Vector, number: NDArray[np.intp], sizes: NDArray[np.intp]) -> float:
    """Sum of the groups' sample variances."""
    gap = values - (np.bincount(number, values) / sizes)[number]
    return float(np.sum(np.bincount(number, gap**2) / (sizes - 1)))


def _explained(residual: Matrix, deviation: Matrix) -> float:
    spread = float(np.sum(deviation**2))
    return 1.0 - float(np.sum(residual**2)) / spread if spread > 0 else float("nan")


def _bins(p: Vector, bins: int) -> NDArray[np.intp]:
    first = np.searchsorted(np.sort(p), p, side="left")
    place: NDArray[np.intp] = first * bins // len(p)
    return place


# ── chance ───────────────────────────────────────────────────────────────────


def resamples(
    n: int, rng: np.random.Generator, *, times: int = 1000, groups: NDArray[np.intp] | None = None
) -> Iterator[Matrix]:
    """Weights of bootstrap resamples, in chunks of (some, n); each line sums to 1, ``times`` lines in all.

    With ``groups`` (n,), numbers from 0 up, whole groups are drawn, since their queries are no independent evidence.
    The same generator state gives the same weights: figures computed on one line are paired.
    """
    unit = np.arange(n) if groups is None else groups
    count = int(unit.max()) + 1
    size = max(1, CHUNK // n)
    for start in range(0, times, size):
        here = range(start, min(start + size, times))
        drawn = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in here]
        weights = np.array(drawn, dtype=np.float64)[:, unit]
        yield weights / weights.sum(axis=1, keepdims=True)


def bootstrap(
    statistic: Callable[[Matrix], Matrix],
    n: int,
    rng: np.random.Generator,
    *,
    times: int = 1000,
    groups: NDArray[np.intp] | None = None,
) -> Matrix:
    """``statistic`` (weights (b, n) → values (b, …)) of every resample: (times, …)."""
    return np.concatenate([statistic(weights) for weights in resamples(n, rng, times=times, groups=groups)])


def interval(values: Vector, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values, (low, high); NaN values are left out, none left gives NaN."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def paired_interval(
    one: Vector,
    other: Vector,
    rng: np.random.Generator,
    *,
    times: int = 1000,
    groups: NDArray[np.intp] | None = None,
) -> tuple[float, float]:
    """95 % interval of mean(one − other), both (n,), query by query."""
    gap = one - other
    return interval(bootstrap(lambda weights: weights @ gap, len(gap), rng, times=times, groups=groups))


# ── cost and quality of a policy along its dial ──────────────────────────────


def cost_save(quality: Vector, cost: Vector, wanted: float, full: float) -> float:
    """1 − min{cost : quality ≥ wanted} / full, over the points (T,) of a curve.

    ``wanted`` and ``full`` are quality and cost of the stage that is compared with. 0 where no point is as good: one
    can always call that stage itself.
    """
    good = cost[quality >= wanted - 1e-12]
    return max(1 - float(good.min()) / full, 0.0) if len(good) and full > 0 else 0.0


def perf_gain(quality: Vector, best: float) -> float:
    """max quality of a curve / quality of the best single stage − 1."""
    return float(quality.max()) / best - 1 if best > 0 else float("nan")


def cost_auc(quality: Vector, cost: Vector, stage_quality: Vector, stage_cost: Vector) -> float:
    """Mean quality over the costs between the cheapest and the dearest single stage (cascade routing).

    The area under the points (T,), sorted by cost and joined by lines, over the range's width. The curve starts with
    the cheapest stage's point unless it has one as cheap, is flat after its last point, and is cut at the dearest
    stage. NaN where all stages (k,) cost the same.
    """
    low, high = float(stage_cost.min()), float(stage_cost.max())
    if high <= low:
        return float("nan")
    order = np.lexsort((quality, cost))
    x, y = cost[order], quality[order]
    if x[0] > low:
        x, y = np.r_[low, x], np.r_[stage_quality[stage_cost.argmin()], y]
    inside = x[(x > low) & (x < high)]
    places = np.r_[low, inside, high]
    heights = np.asarray(np.interp(places, x, y), dtype=np.float64)
    return _area(heights, places) / (high - low)


def aiq(quality: Vector, cost: Vector, stage_quality: Vector, stage_cost: Vector) -> float:
    """AIQ: mean quality over the costs between the cheapest and the dearest single stage, along the curve's hull.

    ``cost_auc`` of the non-decreasing upper hull of the points (T,): what mixing the policy's own settings by chance
    reaches (RouterBench, arXiv 2403.12031, §3). NaN where all stages (k,) cost the same.
    """
    low, high = float(stage_cost.min()), float(stage_cost.max())
    if high <= low:
        return float("nan")
    order = np.lexsort((-quality, cost))
    points = list(zip(cost[order].tolist(), quality[order].tolist(), strict=True))
    if points[0][0] > low:
        points.insert(0, (low, float(stage_quality[stage_cost.argmin()])))
    corners = _upper_hull(points)
    x, y = np.array([corner[0] for corner in corners]), np.array([corner[1] for corner in corners])
    places = np.r_[low, x[(x > low) & (x < high)], high]
    return _area(np.asarray(np.interp(places, x, y), dtype=np.float64), places) / (high - low)


def _upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the concave hull of (cost, quality) in the order of cost, up to the highest quality."""
    found: list[tuple[float, float]] = []
    for x, y in points:
        if found and y <= found[-1][1]:
            continue
        while len(found) > 1:
            (ax, ay), (bx, by) = found[-2:]
            if (by - ay) * (x - bx) > (y - by) * (bx - ax):
                break
            found.pop()
        found.append((x, y))
    return found


class GapRecovered(NamedTuple):
    """A curve of the share of the quality gap between two stages over the share of calls to the stronger.

    ``calls`` (m,) rises from 0 to 1; ``recovered`` (m,) is (Q − Q_weak)/(Q_strong − Q_weak).
    """

    calls: Vector
    recovered: Vector


def gap_recovered(weak: Vector, strong: Vector, score: Vector, weights: Vector | None = None) -> GapRecovered:
    """PGR (RouteLLM): queries go to the strong stage in the order of ``score``, highest first; all are (n,).

    Queries of equal score go together, and lines join the points, which is what breaking ties by chance gives on
    average. ``weights`` (n,) sum to 1. NaN where the strong stage is not the better one: there is no gap to recover.
    """
    calls, gained = _sent(strong - weak, score, weights)
    gap = gained[-1]
    return GapRecovered(calls, gained / gap if gap > 0 else np.full(len(gained), np.nan))


def apgr(curve: GapRecovered) -> float:
    """∫ PGR d(share of calls): 0.5 for a router by chance."""
    return _area(curve.recovered, curve.calls)


def cpt(curve: GapRecovered, share: float) -> float:
    """CPT(x): the least share of strong calls that recovers ``share`` of the gap; NaN where the gap has no size."""
    reached = np.flatnonzero(curve.recovered >= share - 1e-12)
    if not len(reached):
        return float("nan")
    at = reached[0]
    if at == 0:
        return 0.0
    (x0, x1), (y0, y1) = curve.calls[at - 1 : at + 1], curve.recovered[at - 1 : at + 1]
    return float(x0 + (x1 - x0) * min((share - y0) / (y1 - y0), 1.0))


def deferral(weak: Vector, strong: Vector, score: Vector, shares: Vector, weights: Vector | None = None) -> Vector:
    """Quality (m,) where these ``shares`` (m,) of the queries, highest ``score`` first, go to the strong stage.

    The deferral curve; arguments as for ``gap_recovered``, and it has values where there is no gap too.
    """
    calls, gained = _sent(strong - weak, score, weights)
    lowest = float(np.mean(weak) if weights is None else weights @ weak)
    found: Vector = lowest + np.interp(shares, calls, gained)
    return found


def _sent(gain: Vector, score: Vector, weights: Vector | None) -> tuple[Vector, Vector]:
    """Share of the queries that went up, from 0 to 1, and the quality gained so far, as ``score`` falls."""
    share = np.full(len(score), 1 / len(score)) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    calls = np.r_[0.0, np.cumsum(share[order])[ends]]
    gained: Vector = np.r_[0.0, np.cumsum((share * gain)[order])[ends]]
    return calls / calls[-1], gained


# ── λ ────────────────────────────────────────────────────────────────────────


def hull(quality: Vector, cost: Vector) -> list[int]:
    """The single stages that no mix of others beats, cheapest first: the upper hull of their (cost, quality), (k,)."""
    at = int(np.lexsort((-quality, cost))[0])
    found = [at]
    while (better := np.flatnonzero(quality > quality[at])).size:
        slopes = (cost[better] - cost[at]) / (quality[better] - quality[at])
        near = better[slopes <= slopes.min()]
        at = int(near[np.argmax(quality[near])])
        found.append(at)
    return found


def switches(quality: Vector, cost: Vector) -> Vector:
    """The λ > 0 at which the best single stage changes as λ rises: the slopes of the hull of (quality, cost)."""
    corners = hull(quality, cost)
    slopes: Vector = np.diff(cost[corners]) / np.diff(quality[corners])
    return slopes[slopes > 0]


def lambda_grid(quality: Vector, cost: Vector, points: int = 9) -> Vector:
    """``points`` log-spaced λ from half the first switch of the best single stage to twice the last.

    Where it never switches, from a tenth of the costs' range to ten times it (or of the mean cost, if they are equal).
    """
    found = switches(quality, cost)
    if len(found):
        return np.geomspace(found.min() / 2, found.max() * 2, points)
    scale = float(np.ptp(cost)) or float(np.mean(cost)) or 1.0
    return np.geomspace(scale / 10, scale * 10, points)


def gap_closed(value: Vector, fixed: Vector, oracle: Vector) -> float:
    """Mean over the grid of (V − V_fixed)/(V_oracle − V_fixed); all (G,), V = λ·Q − C.

    ``fixed`` is the best mix of single stages, which at any λ is one of them. Points where the oracle gains nothing
    are left out.
    """
    room = oracle - fixed
    useful = room > 1e-12
    return float(np.mean((value - fixed)[useful] / room[useful])) if useful.any() else float("nan")


def _area(y: Vector, x: Vector) -> float:
    """By the trapezoid rule; ``x`` does not fall."""
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)))
