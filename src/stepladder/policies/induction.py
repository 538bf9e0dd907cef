"""Optimal stopping with recall over signals of a few levels: every state that may be met, from the last one backwards.

A state says of every stage either which signal its answer gave or that it was not called yet. Stage i has
``levels[i]`` signals, numbered from 0, and ``levels[i]`` itself stands for "not called"; states are numbered in
row-major order over these, so the last one is the state in which nothing was called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erf, prod, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

REACH, STEP = 6.0, 0.25
"""The common factor is summed from −6 to 6 standard deviations, in steps of this or less."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The states with u stages left: their numbers (m,), the stages left (m, u), and what follows each call (m, u, …).

    ``follows`` (m, u, most levels) are numbers of states; where a stage has fewer signals than others the places
    beyond its last lead to a state past the end, whose worth is 0.
    """

    states: Whole
    stages: Whole
    follows: Whole


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All states for these numbers of signals: what each holds (n, k), and the layers by how many stages are left."""

    signals: Whole
    layers: tuple[Layer, ...]


@lru_cache(maxsize=256)
def tree(levels: tuple[int, ...]) -> Tree:
    """The states for k stages with so many signals each; n = Π(levels + 1) of them."""
    shape = [many + 1 for many in levels]
    signals = np.stack([axis.ravel() for axis in np.indices(shape)], axis=1)
    left = signals == np.array(levels)
    layers = [_layer(levels, left, np.flatnonzero(left.sum(axis=1) == count)) for count in range(1, len(levels) + 1)]
    return Tree(signals, tuple(layers))


def _layer(levels: tuple[int, ...], left: npt.NDArray[np.bool_], states: Whole) -> Layer:
    stages = np.nonzero(left[states])[1].reshape(len(states), -1)
    strides = np.array([prod(many + 1 for many in levels[number + 1 :]) for number in range(len(levels))])
    signal = np.arange(max(levels))
    many = np.array(levels)[stages][..., None]
    follows = states[:, None, None] - (many - signal) * strides[stages][..., None]
    return Layer(states, stages, np.where(signal < many, follows, len(left)))


@lru_cache(maxsize=256)
def chances(levels: tuple[int, ...], correlation: float = 0.0) -> Vector:
    """How likely each state's signals are, (n,): every stage's signals equally likely, and tied by one common factor.

    A one-factor Gaussian copula: stage i's signal is the part of the normal law, cut into ``levels[i]`` equally likely
    parts, that √r·F + √(1−r)·ε_i falls in, with F and all ε independent and normal. The factor is summed over by the
    trapezoid rule, whose error is far below that of its ends (2e-9).
    """
    found = np.zeros(prod(many + 1 for many in levels))
    for place, weight in _factor(correlation):
        state = np.full(1, weight)
        for many in levels:
            state = np.multiply.outer(state, [*_parts(many, correlation, place), 1.0]).ravel()
        found += state
    return found


def best_called(found: Tree, values: Sequence[Sequence[float]], held: float | None = None) -> Vector:
    """The greatest of ``held`` and of ``values[i][signal]`` of the stages called in each state, (n,).

    Without ``held`` it is −∞ where nothing was called.
    """
    most = max(len(line) for line in values) + 1
    padded = np.array([[*line, *[-np.inf] * (most - len(line))] for line in values])
    best: Vector = padded[np.arange(len(values)), found.signals].max(axis=1)
    return best if held is None else np.maximum(best, held)


def worth_of_calls(found: Tree, chance: Vector, stopping: Vector, costs: Sequence[float]) -> Vector:
    """What calling each stage first and going on in the best way is worth, (k,).

    ``chance`` (n,) is how likely a state's signals are, ``stopping`` (n,) what ending there is worth, in the unit of
    ``costs`` (k,); in the state where nothing was called it may be −∞. Any joint law of the signals will do.

    The worth of a state is multiplied by its chance throughout, so that what follows is a plain sum and no chance is
    divided by, also where it is 0.
    """
    prices = np.asarray(costs, dtype=np.float64)
    worth = np.append(np.where(chance > 0, chance * stopping, 0.0), 0.0)
    calls = np.zeros((1, len(costs)))
    for layer in found.layers:
        calls = worth[layer.follows].sum(axis=2) - prices[layer.stages] * chance[layer.states][:, None]
        worth[layer.states] = np.maximum(worth[layer.states], calls.max(axis=1))
    first: Vector = calls[0]
    return first


def _factor(correlation: float) -> list[tuple[float, float]]:
    """Places of the common factor and their weights, which sum to 1."""
    if correlation == 0.0:
        return [(0.0, 1.0)]
    step = min(STEP, 0.75 * sqrt((1.0 - correlation) / correlation))
    places = np.linspace(-REACH, REACH, int(np.ceil(2 * REACH / step)) + 1)
    weights = np.exp(-0.5 * places**2)
    return list(zip(places.tolist(), (weights / weights.sum()).tolist(), strict=True))


def _parts(many: int, correlation: float, place: float) -> list[float]:
    """How likely each signal is where the common factor stands at ``place``."""
    if correlation == 0.0:
        return [1.0 / many] * many
    edges = [NormalDist().inv_cdf(part / many) for part in range(1, many)]
    scale = sqrt(2.0 * (1.0 - correlation))
    below = [0.0, *(0.5 + 0.5 * erf((edge - sqrt(correlation) * place) / scale) for edge in edges), 1.0]
    return np.diff(below).tolist()
