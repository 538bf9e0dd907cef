"""Trivial policies that every judgement stands beside: who cannot beat them has predicted nothing.

Those of ``compare.py`` know nothing of a request, or everything. Here are the ones that know its length, or what
training rows say of its task or of the prompts that are most like it; and a verifier that is never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.compare import MIXES, Bench, Family, Played
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.metrics import RIGHT, Matrix, Vector
from stepladder.types import Estimates

SHRINK = 10.0
"""Queries of its stage's mean that a task's mean is mixed with."""

NEIGHBOURS = 25


def prompt_length(bench: Bench, stages: Sequence[int], grid: Vector, train: Aligned | None) -> Family:
    """Long prompts go up: for each pair of neighbours among ``stages`` (numbers, cheapest first) mixes in which the
    longest prompts, in characters, get the dearer one. Prompts of equal length share their chance.

    At each λ of the grid the mix is played that is best on training rows; where those are not at hand the mixes stand
    without a λ, and what compares with them takes the best in hindsight.
    """
    played = _by_length(bench, stages)
    lengths = _lengths(bench.data)
    if train is None:
        return Family("prompt-length", played, lengths)
    tried = _by_length(Bench(train, train.cost), stages)
    best = [max(range(len(tried)), key=lambda i: float(tried[i].value(lam).mean())) for lam in grid.tolist()]
    chosen = [replace(played[i], lam=lam) for i, lam in zip(best, grid.tolist(), strict=True)]
    return Family("prompt-length", [*played, *chosen], lengths)


def _by_length(bench: Bench, stages: Sequence[int]) -> list[Played]:
    """Mixes from the cheapest stage alone to the dearest; as many for any rows of one ladder."""
    lengths = _lengths(bench.data)
    ways = [(stages[0], stages[0], 0.0)]
    ways += [(low, high, share) for low, high in pairwise(stages) for share in np.linspace(0, 1, MIXES)[1:].tolist()]
    played = []
    for low, high, share in ways:
        above = _among_longest(lengths, share)
        chances = np.zeros_like(bench.data.quality)
        chances[:, high] += above
        chances[:, low] += 1 - above
        played.append(compare.by_chance(bench, "prompt-length", None, chances))
    return played


def _lengths(data: Aligned) -> Vector:
    return np.array([request.chars for request in data.requests], dtype=np.float64)


def _among_longest(lengths: Vector, share: float) -> Vector:
    """(n,) the chance of each prompt to be among the longest ``share`` of all."""
    _, number, counts = np.unique(-lengths, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    found: Vector = np.clip((share * len(lengths) - before) / counts, 0.0, 1.0)[number.reshape(-1)]
    return found


def task_estimates(data: Aligned, train: Aligned) -> list[Estimates]:
    """Each query's quality is its task's mean on training rows, shrunk to the stage's mean.

    Tasks are pairs of dataset and subset. With n training queries a task's estimate is
    (Σ y + SHRINK · stage mean) / (n + SHRINK); a task that training does not know has the stage's mean.
    """
    overall = train.quality.mean(axis=0)
    cells: dict[tuple[str, str], list[Vector]] = {}
    for task, line in zip(train.tasks, train.quality, strict=True):
        cells.setdefault(task, []).append(line)
    means: Mapping[tuple[str, str], Vector] = {
        task: (np.sum(lines, axis=0) + SHRINK * overall) / (len(lines) + SHRINK) for task, lines in cells.items()
    }
    return compare.as_estimates(np.array([means.get(task, overall) for task in data.tasks]), data.stages)


def neighbour_estimates(data: Aligned, train: Aligned, space: Likeness, many: int = NEIGHBOURS) -> list[Estimates]:
    """Each query's quality is the mean of the ``many`` training queries whose prompts are most like its own.

    ``space`` is of the training prompts, in their order.
    """
    near = space.nearest(texts_of(data), many)
    return compare.as_estimates(train.quality[near].mean(axis=1), data.stages)


def texts_of(data: Aligned) -> Sequence[str]:
    """The prompts that features read."""
    return [request.text for request in data.requests]


def perfect_verifier(bench: Bench) -> Family:
    """A cascade that asks the stages in order and stops at the first right answer (quality ≥ ½); all calls are billed.

    Where no answer is right it has asked all of them, and keeps the best, the cheapest of equals. It is ranked by
    whether the first stage is wrong.
    """
    quality, queries = bench.data.quality, np.arange(len(bench.data))
    right = quality >= RIGHT
    last = np.where(right.any(axis=1), right.argmax(axis=1), quality.shape[1] - 1)
    kept = np.where(right.any(axis=1), last, quality.argmax(axis=1))
    cost, seconds = (np.cumsum(part, axis=1)[queries, last] for part in (bench.data.cost, bench.seconds))
    chances: Matrix = np.eye(quality.shape[1])[kept]
    played = Played("perfect-verifier", None, quality[queries, kept], cost, seconds, chances)
    return Family("perfect-verifier", [played], -quality[:, 0])
