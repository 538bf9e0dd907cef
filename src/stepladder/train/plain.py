"""Outcomes → the plain predictors ``mean`` and ``knn``, whose parts are those of a reading (``train/reading.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.knn import shrunk
from stepladder.train.fit import spread_of_outcomes
from stepladder.train.lesson import lesson_of, tasks_of
from stepladder.train.reading import Read, fit_reading

Matrix = NDArray[np.float64]


def fit_mean(data: Aligned, seed: int = 0) -> Artifact:
    """Every stage's mean. ``seed`` is not needed. ``metrics``: ``rows``."""
    del seed
    return _artifact("mean", data, {}, {"cells": data.quality.mean(axis=0).reshape(1, -1)})


def fit_task_mean(data: Aligned, seed: int = 0) -> Artifact:
    """Every stage's mean by task, shrunk to the stage's. Raises UsageError where the table tells no tasks,
    MissingExtraError."""
    if tasks_of(data) is None:
        raise UsageError("the table tells no tasks apart: it needs a 'dataset', 'subset' or 'family' of some size each")
    return task_mean(fit_reading(lesson_of(data), seed), data)


def fit_knn(data: Aligned, seed: int = 0) -> Artifact:
    """What the nearest prompts got. Raises MissingExtraError."""
    return knn(fit_reading(lesson_of(data), seed), data)


def task_mean(read: Read, data: Aligned) -> Artifact:
    """``fit_task_mean`` where these rows' reading is there already."""
    arrays = read.arrays
    scored, tasks = len(arrays["offset"]), len(arrays["cells"])
    mine = slice(scored - tasks, scored)
    own = {"cells": arrays["cells"], "idf": arrays["idf"]}
    return _artifact("mean", data, {}, {**own, "project": arrays["project"][:, mine], "offset": arrays["offset"][mine]})


def knn(read: Read, data: Aligned) -> Artifact:
    """``fit_knn`` where these rows' reading is there already."""
    arrays = read.arrays
    kept = {"idf": arrays["idf"], "near": arrays["near"], "project": arrays["project"][:, len(arrays["offset"]) :]}
    kept["near_quality"] = arrays["near_quality"][:, : len(data.stages)]
    return _artifact("knn", data, {"mean": data.quality.mean(axis=0).tolist()}, kept)


def by_task(read: Read, stages: int) -> Matrix:
    """(n, k) estimates of ``task_mean`` of its own rows, by cells and scores that saw none of their group."""
    return _columns(read, [f"task {i}" for i in range(stages)])


def by_neighbours(read: Read, data: Aligned) -> Matrix:
    """(n, k) estimates of ``knn`` of its own rows, by neighbours of other groups."""
    near = _columns(read, [f"neighbours {i}" for i in range(len(data.stages))])
    return shrunk(near, data.quality.mean(axis=0))


def _columns(read: Read, names: Sequence[str]) -> Matrix:
    place = {name: number for number, name in enumerate(read.names(len(names)))}
    found: Matrix = np.clip(read.rows[:, [place[name] for name in names]], 0.0, 1.0)
    return found


def _artifact(kind: str, data: Aligned, params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Artifact:
    spread = [spread_of_outcomes(quality) for quality in data.quality.T]
    return Artifact(
        kind=kind,
        stages=data.stages,
        params={**params, "spread": spread, "measured": True},
        arrays={name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metrics={"rows": float(data.quality.size)},
    )
