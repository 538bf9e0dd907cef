"""Aligned outcomes → what fitting takes: rows, folds that keep groups whole, samples of whole groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned
from stepladder.predictors.complexity import CLASSES, Complexity
from stepladder.train.fit import Row

Numbers = NDArray[np.intp]

FEWEST_GROUPS = 5
"""Groups of a sample at the least, so that it can be cut into folds: of larger ones a part is taken."""

CLASS_GROUPS = 10
"""Fewer, and a fold might leave none of a class to learn from."""


def fit_rows(data: Aligned) -> list[Row]:
    """One row for each query and stage; a level that is no class of complexity is no label."""
    known: dict[str, Complexity] = {name: name for name in CLASSES}
    labels = [known.get(level or "") for level in data.levels]
    return [
        Row(request.text, stage, quality, label, group, answers[stage].attempt(data.stages[stage]))
        for request, line, label, group, answers in zip(
            data.requests, data.quality.tolist(), labels, data.groups.tolist(), data.rows, strict=True
        )
        for stage, quality in enumerate(line)
    ]


def has_classes(data: Aligned) -> bool:
    """True where every class of complexity has CLASS_GROUPS groups of queries, so that a classifier can be learned."""
    of_class = {name: np.array([level == name for level in data.levels]) for name in CLASSES}
    return all(len(np.unique(data.groups[mine])) >= CLASS_GROUPS for mine in of_class.values())


def folds(data: Aligned, count: int, rng: np.random.Generator) -> Numbers:
    """(n,) a fold in [0, count) for each query; queries of one group fall into one fold.

    Raises UsageError where there are fewer groups than folds.
    """
    groups = int(data.groups.max()) + 1
    if groups < count:
        raise UsageError(f"{groups} groups of queries are too few for {count} folds: collect more outcomes")
    found: Numbers = (rng.permutation(groups) % count)[data.groups]
    return found


def sample(data: Aligned, most: int, rng: np.random.Generator) -> Aligned:
    """About ``most`` queries, whole groups drawn by chance; all of them where there are no more."""
    return data if len(data) <= most else data.take(drawn(data, most, rng))


def drawn(data: Aligned, most: int, rng: np.random.Generator) -> Numbers:
    """The places of the queries of a ``sample``, rising."""
    if len(data) <= most:
        return np.arange(len(data))
    sizes = np.bincount(data.groups)
    order = rng.permutation(len(sizes))
    taken = int(np.searchsorted(np.cumsum(sizes[order]), most, side="right"))
    if taken >= min(FEWEST_GROUPS, len(order)):
        return np.flatnonzero(np.isin(data.groups, order[:taken]))
    return _thinned(data.groups, order[:FEWEST_GROUPS], most, rng)


def _thinned(groups: Numbers, taken: Numbers, most: int, rng: np.random.Generator) -> Numbers:
    """Some of the queries of groups that are too large to be taken whole, as many of each."""
    each = max(most // len(taken), 1)
    found = [rng.permutation(np.flatnonzero(groups == group))[:each] for group in taken.tolist()]
    return np.sort(np.concatenate(found))
