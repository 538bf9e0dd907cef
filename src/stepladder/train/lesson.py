"""Aligned outcomes as what a reading and its heads learn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.evaluate.aligned import Aligned

Matrix = NDArray[np.float64]

FEWEST_OF_TASK = 20
MOST_TASKS = 64
FEWEST_MODELS = 5


class Lesson(NamedTuple):
    """n queries: ``texts``, ``quality`` (n, k), ``groups`` (n,), ``tasks`` (n,) numbers of tasks or None where the
    table tells too few, and ``others`` (n, m), the qualities of models of the table that are no stage, NaN where not
    known, m = 0 where there are none."""

    texts: tuple[str, ...]
    quality: Matrix
    groups: NDArray[np.intp]
    tasks: NDArray[np.intp] | None
    others: Matrix

    def take(self, which: NDArray[np.intp]) -> Lesson:
        """The queries of these numbers."""
        texts = tuple(self.texts[number] for number in which.tolist())
        tasks = None if self.tasks is None else self.tasks[which]
        return Lesson(texts, self.quality[which], self.groups[which], tasks, self.others[which])


def lesson_of(data: Aligned) -> Lesson:
    """What the queries teach."""
    others = data.others if data.others is not None else np.zeros((len(data), 0))
    texts = tuple(request.text for request in data.requests)
    return Lesson(texts, data.quality, data.groups, tasks_of(data), others)


def tasks_of(data: Aligned) -> NDArray[np.intp] | None:
    """(n,) the number of each query's task: dataset and subset, or family and level; those with fewer than
    FEWEST_OF_TASK queries are one. None where that leaves fewer than two tasks, or more than MOST_TASKS."""
    labels = [
        (row[0].dataset or "", row[0].subset or "") if row[0].family is None else (row[0].family, row[0].level or "")
        for row in data.rows
    ]
    places = {label: place for place, label in enumerate(sorted(set(labels)))}
    number = np.array([places[label] for label in labels], dtype=np.intp)
    count = np.bincount(number, minlength=len(places))
    small = count < FEWEST_OF_TASK
    place = np.where(small, 0, np.cumsum(~small))
    found: NDArray[np.intp] = np.unique(place[number], return_inverse=True)[1]
    tasks = int(found.max()) + 1 if len(found) else 0
    return found if 2 <= tasks <= MOST_TASKS and len(places) > 1 else None


def factors_of(lesson: Lesson, most: int = 6) -> Matrix:
    """(n, f): what the qualities of all models of a query have in common, each column of variance 1.

    First the mean over models of quality less the model's mean, which is how easy the query is, then the main axes of
    the centred qualities. Many models' answers to a question tell more of it than one stage's. No factor (f = 0) where
    the table has fewer than FEWEST_MODELS models besides the stages.
    """
    models = lesson.others.shape[1]
    if models < FEWEST_MODELS:
        return np.zeros((len(lesson.texts), 0))
    quality = np.hstack([lesson.quality, lesson.others])
    known = np.isfinite(quality)
    means = np.where(known, quality, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, quality - means, 0.0)
    easy = centred.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    full = known.mean(axis=0) > 0.95
    axes = np.zeros((len(easy), 0))
    if full.sum() > most:
        left, size, _ = np.linalg.svd(centred[:, full], full_matrices=False)
        axes = left[:, : most - 1] * size[: most - 1]
    together = np.column_stack([easy, axes])
    found: Matrix = together / np.maximum(together.std(axis=0), 1e-9)
    return found
