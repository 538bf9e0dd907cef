"""What a predictor makes of a text: numbers, linear scores of its words, the kind of task it is, and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.predictors import lexical, structure
from stepladder.predictors.artifact import array_of, shaped
from stepladder.predictors.words import BUCKETS, hashed_words, weighed

Matrix = NDArray[np.float64]

NEIGHBOURS = 40
SHARPNESS = 10.0
"""A neighbour counts exp(SHARPNESS · cosine)."""

LARGEST = 1e6
"""No number of a reading may be larger: single precision holds sums of such products."""

SHOWN = 48
"""Of the topics, those that trees and regressions see; all of them find neighbours."""

MOST_NEAR = 20_000
"""Prompts that are kept as neighbours, at the most: each costs a multiplication when serving."""


class Reading:
    """A text as a row of ``columns`` numbers.

    ``arrays``: ``counts`` (WORDS,) of ``lexical``; ``idf`` (BUCKETS,); ``project`` (BUCKETS, k + f + t + d): linear
    scores of every stage's quality, of f factors that the qualities of many models share, of t tasks, and d topics
    (latent semantic analysis: Deerwester et al., 1990); ``offset`` (k + f + t,); ``cells`` (t, k), the mean quality of
    every task, shrunk to the stage's; ``topic_weights`` (d, k) and ``topic_bias`` (k,), a linear score of the topics;
    ``near`` (n, d), unit vectors of known prompts, and ``near_quality`` (n, m), the qualities they got, m ≥ k.

    Raises ArtifactError where the arrays do not fit one another.
    """

    def __init__(self, arrays: Mapping[str, Any], stages: int) -> None:
        self.stages = stages
        self._counts = lexical.packed(shaped(arrays, "counts", (lexical.WORDS,), largest=LARGEST))
        self._idf = shaped(arrays, "idf", (BUCKETS,), largest=LARGEST).astype(np.float32)
        project, offset = (
            array_of(arrays, "project", 2, largest=LARGEST),
            array_of(arrays, "offset", 1, largest=LARGEST),
        )
        self._cells = array_of(arrays, "cells", 2, largest=LARGEST).astype(np.float32)
        near, quality = array_of(arrays, "near", 2, largest=2.0), array_of(arrays, "near_quality", 2, largest=LARGEST)
        tasks, topics = self._cells.shape[0], near.shape[1]
        self._linear = len(offset)
        factors = self._linear - stages - tasks
        if project.shape != (BUCKETS, self._linear + topics) or factors < 0 or self._cells.shape != (tasks, stages):
            raise ArtifactError(
                f"a reading of {stages} stages, {tasks} tasks and {topics} topics does not go with the arrays "
                f"project {project.shape}, offset {offset.shape} and cells {self._cells.shape}"
            )
        if len(near) != len(quality) or not len(near) or quality.shape[1] < stages:
            raise ArtifactError(f"the arrays near {near.shape} and near_quality {quality.shape} do not go together")
        self._project = project.astype(np.float32)
        self._offset = offset.astype(np.float32)
        self._scored = stages + factors
        self._weights = shaped(arrays, "topic_weights", (topics, stages), largest=LARGEST).astype(np.float32)
        self._bias = shaped(arrays, "topic_bias", (stages,), largest=LARGEST).astype(np.float32)
        self._near, self._near_quality = near.astype(np.float32), quality.astype(np.float32)
        self.names = names(stages, factors, tasks, topics, quality.shape[1])
        self.columns = len(self.names)

    def row(self, text: str) -> Matrix:
        """(columns,) what is read of a text."""
        places, amounts = weighed(*hashed_words(text), self._idf)
        projected: NDArray[np.float32] = amounts @ self._project.take(places, axis=0)
        linear, topics = projected[: self._linear] + self._offset, projected[self._linear :]
        length = sqrt(float(topics @ topics))
        unit: NDArray[np.float32] = topics / np.float32(length) if length else topics
        parts: list[Any] = [
            lexical.numbers(text, self._counts),
            structure.structure(text),
            linear[: self._scored],
            unit @ self._weights + self._bias,
            neighbours(unit @ self._near.T, self._near_quality),
            topics[:SHOWN],
        ]
        if len(self._cells):
            parts.append(by_task(linear[self._scored :], self._cells))
        return np.concatenate(parts, dtype=np.float64)


def names(stages: int, factors: int, tasks: int, topics: int, known: int) -> tuple[str, ...]:
    """The columns of a row."""
    return (
        *lexical.NAMES,
        *structure.NAMES,
        *(f"words {i}" for i in range(stages)),
        *(f"factor {i}" for i in range(factors)),
        *(f"topics {i}" for i in range(stages)),
        *(f"neighbours {i}" for i in range(known)),
        *(f"topic {i}" for i in range(min(topics, SHOWN))),
        *(f"task {i}" for i in range(stages if tasks else 0)),
    )


def neighbours(cosines: NDArray[np.float32], quality: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m,) mean quality of the NEIGHBOURS nearest of n prompts, each weighed by exp(SHARPNESS · cosine)."""
    count = min(NEIGHBOURS, len(cosines))
    nearest = np.argpartition(cosines, len(cosines) - count)[len(cosines) - count :]
    close = cosines.take(nearest)
    weights = np.exp(SHARPNESS * (close - close.max()))
    found: NDArray[np.float32] = weights @ quality.take(nearest, axis=0) / weights.sum()
    return found


def by_task(scores: NDArray[np.float32], cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., k) expected quality over the tasks, whose chances grow with exp(scores), scores being (..., t)."""
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: NDArray[np.float32] = chances @ cells / chances.sum(axis=-1, keepdims=True)
    return found
