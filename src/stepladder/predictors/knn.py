"""Quality of every stage as what it got on the training prompts that are nearest to the text."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import array_of, content_version, numbers_of
from stepladder.predictors.mean import single, spread_of
from stepladder.predictors.reading import NEIGHBOURS, neighbours
from stepladder.predictors.words import BUCKETS, hashed_words, weighed
from stepladder.types import Estimates, Features

SHRINKAGE = 10.0
"""Neighbours' worth of the stage's mean that is mixed in: few neighbours that agree are not sure of it."""


class KnnPredictor:
    """Nearest neighbours by the cosine of topics (latent semantic analysis: Deerwester et al., 1990).

    ``arrays``: ``idf`` (BUCKETS,), ``project`` (BUCKETS, d), the topics; ``near`` (n, d), unit vectors of known
    prompts, and ``near_quality`` (n, k), the qualities they got. ``params``: ``mean`` (k,), the stages' means;
    ``spread`` and ``measured`` as for ``logistic``. Attempts made so far do not move these estimates.

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("knn", stages, params, arrays)
        self._stages = stages
        self._spreads = numbers_of(params.get("spread", [1.0] * len(stages)), "spread", len(stages))
        self._means = np.array(numbers_of(params.get("mean"), "mean", len(stages)))
        self._calibrated = params.get("measured", True) is True
        prompts, topics = array_of(arrays, "near", 2, largest=2.0).shape
        if not prompts:
            raise ArtifactError("the array near holds no prompt: train it again")
        wanted = {"idf": (BUCKETS,), "project": (BUCKETS, topics), "near": (prompts, topics)}
        self._idf, self._project, self._near = (single(arrays, name, shape) for name, shape in wanted.items())
        self._quality = single(arrays, "near_quality", (prompts, len(stages)))

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage."""
        places, amounts = weighed(*hashed_words(features.text), self._idf)
        topics: NDArray[np.float32] = amounts @ self._project.take(places, axis=0)
        length = sqrt(float(topics @ topics))
        means = self._means
        if length:
            unit: NDArray[np.float32] = topics / np.float32(length)
            means = shrunk(neighbours(unit @ self._near.T, self._quality), means)
        found = zip(self._stages, means.tolist(), self._spreads, strict=True)
        return Estimates({stage: spread_of(mean, spread) for stage, mean, spread in found}, calibrated=self._calibrated)


def shrunk(near: NDArray[Any], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., k) what neighbours got, with SHRINKAGE neighbours' worth of the stages' means (k,)."""
    found: NDArray[np.float64] = (NEIGHBOURS * near + SHRINKAGE * means) / (NEIGHBOURS + SHRINKAGE)
    return found
