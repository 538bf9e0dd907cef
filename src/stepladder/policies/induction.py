"""Optimal stopping with recall over signals of a few levels: every state that may be met, from the last one backwards.

A state says of every stage either which signal its answer gave or that it was not called yet. Stage i has
``levels[i]`` signals, numbered from 0, and ``levels[i]`` itself stands for "not called"; states are numbered in
row-major order over these, so the last one is the state in which nothing was called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations
from math import erf, prod, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

LARGE = 250
"""States for each set of stages, on average, from which sums along axes are quicker than looking up what follows each
state, and need a fiftieth of the memory."""

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


Place = tuple[int | slice, ...]
"""Where the states of one set of called stages lie in an array with an axis for every stage."""


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """The states in which the same stages were called: their ``place``, which are left, and what follows a call.

    ``follows`` holds for each stage left the place of the states after its call, and the axis there of its signals.
    """

    place: Place
    stages: tuple[int, ...]
    follows: tuple[tuple[Place, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All n states for these numbers of signals, those with fewer stages left first: in ``layers`` by how many are
    left, or, where there are many states, in ``sets`` by which were called. The other of the two is empty."""

    levels: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    sets: tuple[Called, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array with an axis for every stage."""
        return tuple(many + 1 for many in self.levels)

    @property
    def signals(self) -> Whole:
        """What each state holds, (n, k)."""
        return np.stack([axis.ravel() for axis in np.indices(self.shape)], axis=1)


@lru_cache(maxsize=256)
def tree(levels: tuple[int, ...]) -> Tree:
    """The states for k stages with so many signals each; n = Π(levels + 1) of them."""
    found, counts = Tree(levels), range(1, len(levels) + 1)
    if prod(found.shape) >= LARGE << len(levels):
        return _by_sets(levels)
    left = found.signals == np.array(levels)
    layers = [_layer(levels, left, np.flatnonzero(left.sum(axis=1) == count)) for count in counts]
    return Tree(levels, layers=tuple(layers))


def _by_sets(levels: tuple[int, ...]) -> Tree:
    every = range(len(levels))
    sets = [_called(levels, left) for count in range(1, len(levels) + 1) for left in combinations(every, count)]
    return Tree(levels, sets=tuple(sets))


def _called(levels: tuple[int, ...], left: tuple[int, ...]) -> Called:
    follows = []
    for stage in left:
        after = tuple(each for each in left if each != stage)
        follows.append((_place(levels, after), sum(each not in after for each in range(stage))))
    return Called(_place(levels, left), left, tuple(follows))


def _place(levels: tuple[int, ...], left: tuple[int, ...]) -> Place:
    return tuple(many if stage in left else slice(0, many) for stage, many in enumerate(levels))


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
    best = np.full(found.shape, -np.inf if held is None else held)
    for stage, line in enumerate(values):
        along = [1] * len(values)
        along[stage] = -1
        np.maximum(best, np.array([*line, -np.inf]).reshape(along), out=best)
    return best.ravel()


def worth_of_calls(found: Tree, chance: Vector, stopping: Vector, costs: Sequence[float]) -> Vector:
    """What calling each stage first and going on in the best way is worth, (k,).

    ``chance`` (n,) is how likely a state's signals are, ``stopping`` (n,) what ending there is worth, in the unit of
    ``costs`` (k,); in the state where nothing was called it may be −∞. Any joint law of the signals will do.

    The worth of a state is multiplied by its chance throughout, so that what follows is a plain sum and no chance is
    divided by, also where it is 0.
    """
    if found.sets:
        return _worth_by_sets(found, chance, stopping, costs)
    prices = np.asarray(costs, dtype=np.float64)
    worth = np.zeros(len(chance) + 1)
    np.multiply(chance, stopping, out=worth[:-1], where=chance > 0)
    calls = np.zeros((1, len(costs)))
    for layer in found.layers:
        calls = worth[layer.follows].sum(axis=2) - prices[layer.stages] * chance[layer.states][:, None]
        worth[layer.states] = np.maximum(worth[layer.states], calls.max(axis=1))
    first: Vector = calls[0]
    return first


def _worth_by_sets(found: Tree, chance: Vector, stopping: Vector, costs: Sequence[float]) -> Vector:
    likely, ending = chance.reshape(found.shape), stopping.reshape(found.shape)
    worth = np.multiply(likely, ending, out=np.zeros(found.shape), where=likely > 0)
    calls: list[Any] = []
    for called in found.sets:
        here = likely[called.place]
        follows = zip(called.stages, called.follows, strict=True)
        calls = [worth[place].sum(axis=axis) - costs[stage] * here for stage, (place, axis) in follows]
        worth[called.place] = reduce(np.maximum, calls, worth[called.place])
    return np.array(calls, dtype=np.float64)


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
