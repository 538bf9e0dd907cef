"""Quality of every stage as what the stage, or the stage on the text's kind of task, got on average."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import array_of, content_version, numbers_of, shaped
from stepladder.predictors.reading import LARGEST, by_task
from stepladder.predictors.words import BUCKETS, hashed_words, weighed
from stepladder.types import Estimate, Estimates, Features


class MeanPredictor:
    """The stage's mean for every text, or the mean over tasks, weighed by how much the text looks like each.

    ``arrays``: ``cells`` (t, k), mean quality of t tasks on every stage; where t > 1 also ``idf`` (BUCKETS,),
    ``project`` (BUCKETS, t) and ``offset`` (t,), linear scores that tell tasks by their words. ``params``: ``spread``
    and ``measured`` as for ``logistic``. Attempts made so far do not move these estimates.

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("mean", stages, params, arrays)
        self._stages = stages
        self._spreads = numbers_of(params.get("spread", [1.0] * len(stages)), "spread", len(stages))
        self._calibrated = params.get("measured", True) is True
        cells = array_of(arrays, "cells", 2, largest=LARGEST)
        tasks = len(cells)
        if not tasks or cells.shape[1] != len(stages) or cells.min() < 0 or cells.max() > 1:
            raise ArtifactError(
                f"the array cells should hold numbers from 0 to 1, (tasks, {len(stages)}), not {cells.shape}"
            )
        self._cells = cells.astype(np.float32)
        self._words: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | None = None
        if tasks > 1:
            wanted = {"idf": (BUCKETS,), "project": (BUCKETS, tasks), "offset": (tasks,)}
            idf, project, offset = (single(arrays, name, shape) for name, shape in wanted.items())
            self._words = idf, project, offset

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage."""
        means = self._cells[0]
        if self._words is not None:
            idf, project, offset = self._words
            places, amounts = weighed(*hashed_words(features.text), idf)
            means = by_task(amounts @ project.take(places, axis=0) + offset, self._cells)
        found = zip(self._stages, means.tolist(), self._spreads, strict=True)
        return Estimates({stage: spread_of(mean, spread) for stage, mean, spread in found}, calibrated=self._calibrated)


def spread_of(mean: float, spread: float) -> Estimate:
    """An estimate in [0, 1] whose outcomes vary by the share ``spread`` of a right-or-wrong answer's variance."""
    inside = min(max(mean, 0.0), 1.0)
    return Estimate(inside, sqrt(spread * inside * (1 - inside)))


def single(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The array of this shape in single precision; raises ArtifactError that names it."""
    return shaped(arrays, name, shape, largest=LARGEST).astype(np.float32)
