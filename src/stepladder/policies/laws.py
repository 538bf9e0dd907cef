"""What an answer will tell: the law of the estimate that one will hold once a stage's answer was seen.

Calling a stage reveals a signal and not its quality. X, the posterior mean of the stage's quality after its answer, is
what a decision goes by next; now it is a random number with mean ``Estimate.mean`` and standard deviation
``Estimate.told``. A law here is a tuple of rising values in [0, 1] that are equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, log, pi, sqrt
from statistics import NormalDist

from stepladder.types import Estimate

Law = tuple[float, ...]

LEVELS = 8
MOST_LEVELS = 64
SILENT = 1e-9
"""An answer that moves the estimate by less than this tells nothing."""

STEEPEST = 20.0
"""Spread on the logit scale beyond which the values lie at 0 and 1 anyway; keeps exp from overflowing."""


def law_of(estimate: Estimate, levels: int = LEVELS) -> Law:
    """The law of a stage's estimate after its answer; one value where the answer will tell nothing."""
    return law(estimate.mean, estimate.told, levels)


@lru_cache(maxsize=8192)
def law(mean: float, told: float, levels: int = LEVELS) -> Law:
    """``levels`` equally likely values in [0, 1] with this mean and this standard deviation.

    Stands for a logit-normal law, which two moments fix as they fix a Beta law and which looks like one: one hump where
    answers tell little, two ends where they tell all. Values at the conditional means of normal scores are brought to
    the mean by shrinking towards the end on its side, and then to the standard deviation by drawing them together, or
    by moving them towards the law that is spread widest (``_widest``). So the mean is exact to rounding, and so is
    the standard deviation, up to the greatest that ``levels`` equal parts can have. What is approximated is the shape.

    ``mean`` and ``told`` outside [0, 1] are brought to its ends.
    """
    middle = min(max(mean, 0.0), 1.0)
    spread = min(told, sqrt(middle * (1.0 - middle)))
    if levels == 1 or spread <= SILENT:
        return (middle,)
    if middle > 0.5:
        return tuple(1.0 - value for value in reversed(law(1.0 - middle, spread, levels)))
    return _spread_out(_with_mean(_logit_normal(middle, spread, levels), middle), middle, spread)


def reservation(values: Sequence[float], lam: float, cost: float) -> float:
    """Weitzman's reservation value: σ with E[(λX − σ)⁺] = cost, X equally likely to be any of the rising ``values``.

    Source: M. Weitzman, "Optimal Search for the Best Alternative", Econometrica 47 (1979). For each number of
    the highest values the equation without the ⁺ is linear; its left side never exceeds the true one, so σ is the
    greatest of the solutions. Of free stages it is λ times the highest value, the least σ that solves.
    """
    many, total, found = len(values), 0.0, -float("inf")
    for count, value in enumerate(reversed(values), start=1):
        total += value
        found = max(found, (lam * total - many * cost) / count)
    return found


@lru_cache(maxsize=MOST_LEVELS)
def normal_scores(levels: int) -> Law:
    """Means of a standard normal number within ``levels`` equally likely parts, rising: n·(φ(a) − φ(b)) of each."""
    normal = NormalDist()
    edges = [normal.inv_cdf(part / levels) for part in range(1, levels)]
    heights = [0.0, *(normal.pdf(edge) for edge in edges), 0.0]
    return tuple(levels * (low - high) for low, high in pairwise(heights))


def _logit_normal(mean: float, spread: float, levels: int) -> list[float]:
    """Values of about this mean and spread: the spread by the slope of the logistic function (and a steepening fitted
    at mean 0.5), the place by D. MacKay's approximation of its mean under a normal (Neural Computation 4, 1992)."""
    variance = mean * (1.0 - mean)
    known = spread * spread / variance
    steep = min(STEEPEST, spread / variance * (1.0 - min(known, 0.999)) ** -0.75)
    place = log(mean / (1.0 - mean)) * sqrt(1.0 + pi * steep * steep / 8.0)
    return [1.0 / (1.0 + exp(-place - steep * score)) for score in normal_scores(levels)]


def _with_mean(values: list[float], mean: float) -> list[float]:
    now = sum(values) / len(values)
    if now > mean:
        return [value * (mean / now) for value in values]
    shrink = (1.0 - mean) / (1.0 - now)
    return [1.0 - (1.0 - value) * shrink for value in values]


def _spread_out(values: list[float], mean: float, spread: float) -> Law:
    """The values with this standard deviation; they have the mean already, and keep it."""
    offs, wanted = [value - mean for value in values], spread * spread * len(values)
    have = sum([off * off for off in offs])
    if have >= wanted:
        by = sqrt(wanted / have)
        return tuple([mean + by * off for off in offs])
    wide = [value - mean for value in _widest(mean, len(values))]
    both, far = sum([a * b for a, b in zip(offs, wide, strict=True)]), sum([off * off for off in wide])
    share = _share(have, both, far, wanted)
    mixed = [mean + off + share * (most - off) for off, most in zip(offs, wide, strict=True)]
    return tuple([min(max(value, 0.0), 1.0) for value in mixed])


def _widest(mean: float, levels: int) -> list[float]:
    """Of all laws of so many equal parts the one with the greatest variance: zeros, one value between, ones."""
    ones = int(levels * mean)
    wide = [0.0] * (levels - ones) + [1.0] * ones
    wide[levels - 1 - ones] = levels * mean - ones
    return wide


def _share(near: float, both: float, far: float, wanted: float) -> float:
    """w in [0, 1] with (1−w)²·near + 2w(1−w)·both + w²·far = wanted; 1 where ``far`` is not enough.

    The left side rises with w, since the wider law majorises the other one: both ≥ near.
    """
    if far <= wanted:
        return 1.0
    bend, slope = near - 2.0 * both + far, both - near
    gap = wanted - near
    return min(1.0, gap / (slope + sqrt(max(0.0, slope * slope + bend * gap))))
