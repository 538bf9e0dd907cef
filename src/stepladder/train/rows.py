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
"""Groups of a sample at the least, where there are so many, so that it can be cut into folds."""

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
    """The places of the queries of a ``sample``, rising.

    Of a group with more than its share, 1 / FEWEST_GROUPS of the sample, a part is taken, and more of it where the
    others do not fill the sample. So it falls short by less than that share.
    """
    if len(data) <= most:
        return np.arange(len(data))
    share, order = max(most // FEWEST_GROUPS, 1), rng.permutation(int(data.groups.max()) + 1)
    mixed = rng.permutation(len(data))
    ends = np.argsort(data.groups[mixed], kind="stable")
    members = np.split(mixed[ends], np.cumsum(np.bincount(data.groups))[:-1])
    found: list[Numbers] = []
    left = most
    for group in order.tolist():
        some = members[group][:share]
        if len(some) <= left:
            found.append(some)
            left -= len(some)
    spare = np.concatenate([members[group][share:] for group in order.tolist()])
    return np.sort(np.concatenate([*found, spare[:left]]))
