"""Lessons → what a text is read with (``predictors/reading.py``). Needs the extra [train]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.predictors import lexical, structure
from stepladder.predictors.reading import MOST_NEAR, SHOWN, by_task, names, neighbours
from stepladder.predictors.words import BUCKETS, hashed_words, weighed
from stepladder.train.boost import by_group
from stepladder.train.fit import quiet, sklearn_module
from stepladder.train.lesson import Lesson, factors_of

Matrix = NDArray[np.float64]
Numbers = NDArray[np.intp]

FOLDS = 5
"""Rows that heads learn from are read by scores that were fitted to other groups."""

PENALTY = 1.5
"""Of the regressions on words, whose rows have length 1."""

TOPIC_PENALTY = 1.0
STEPS = 25
"""Of conjugate gradients: stopping early is a penalty too."""

TOPICS = 128
MOST_FOR_TOPICS = 20_000
FEWEST_TEXTS = 2
"""Texts that a word must stand in to be read at all."""

CERTAINTIES = tuple(np.geomspace(1.0, 40.0, 24).tolist())
SHRINKAGE = 10.0
"""Rows' worth of the stage's mean that is mixed into each task's."""


class Read(NamedTuple):
    """``arrays`` of a Reading, and ``rows`` (n, columns): what it would make of the lesson's texts if they were new."""

    arrays: dict[str, NDArray[Any]]
    rows: Matrix

    def names(self, stages: int) -> tuple[str, ...]:
        """The columns of ``rows``."""
        tasks, topics = len(self.arrays["cells"]), self.arrays["near"].shape[1]
        factors = len(self.arrays["offset"]) - stages - tasks
        return names(stages, factors, tasks, topics, self.arrays["near_quality"].shape[1])


def fit_reading(lesson: Lesson, seed: int = 0) -> Read:
    """Fit a reading. The regressions behind ``rows`` are cross-fitted, whole groups at a time, and neighbours come from
    other folds (stacking: Wolpert, 1992). Raises MissingExtraError."""
    stages = lesson.quality.shape[1]
    rng = np.random.default_rng(seed)
    fold_of = (rng.permutation(int(lesson.groups.max()) + 1) % FOLDS)[lesson.groups]
    counts = lexical.word_counts(by_group(lesson.texts, lesson.groups))
    words, idf = _words(lesson.texts)
    kinds = _one_hot(lesson.tasks, len(lesson.texts))
    factors = factors_of(lesson)
    targets = np.hstack([lesson.quality, factors, kinds])
    scored = stages + factors.shape[1]
    topics = _topics(words, rng)
    projected = np.asarray(words @ topics)
    unit = projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-9)
    known = np.hstack([lesson.quality, factors[:, :1]])
    linear, whole = _crossed(lambda some: _ridge(words[some], targets[some]), words, fold_of)
    if kinds.shape[1]:
        certainty = _certainty(linear[:, scored:], kinds)
        linear[:, scored:] *= certainty
        whole.weights[:, scored:] *= certainty
        whole.bias[scored:] *= certainty
    by_topic, of_topics = _crossed(lambda some: _dense_ridge(unit[some], lesson.quality[some]), unit, fold_of)
    cells = _cells(lesson.quality, kinds)
    told = [_numbers(lesson.texts, counts), linear[:, :scored], by_topic, _near(unit, known, fold_of)]
    told.append(projected[:, :SHOWN])
    if kinds.shape[1]:
        told.append(_told_by_task(linear[:, scored:], lesson.quality, kinds, fold_of))
    kept = np.sort(rng.permutation(len(unit))[:MOST_NEAR])
    arrays: dict[str, NDArray[Any]] = {
        "counts": counts,
        "idf": idf,
        "project": np.hstack([whole.weights, topics]).astype(np.float16),
        "offset": whole.bias,
        "cells": cells,
        "topic_weights": of_topics.weights,
        "topic_bias": of_topics.bias,
        "near": unit[kept].astype(np.float16),
        "near_quality": known[kept].astype(np.float16),
    }
    read = Read(arrays, np.hstack(told))
    assert read.rows.shape[1] == len(read.names(stages))  # noqa: S101 - the two sides of one contract
    return read


class _Line(NamedTuple):
    """A linear fit: weights (columns, t) and bias (t,)."""

    weights: Matrix
    bias: Matrix


def _crossed(fit: Callable[[Numbers], _Line], inputs: Any, fold_of: Numbers) -> tuple[Matrix, _Line]:
    """Scores (n, t) by fits that saw none of a query's fold, and the fit to all."""
    whole = fit(np.arange(len(fold_of)))
    found = np.tile(whole.bias, (len(fold_of), 1))
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if len(held) and len(rest):
            line = fit(rest)
            found[held] = inputs[held] @ line.weights + line.bias
    return found, whole


# ── words ────────────────────────────────────────────────────────────────────


def _words(texts: Sequence[str]) -> tuple[Any, NDArray[np.float32]]:
    """A sparse matrix (n, BUCKETS) with rows of length 1, and the weights of the buckets (BUCKETS,)."""
    sparse = sklearn_module("scipy.sparse")
    counted = [hashed_words(text) for text in texts]
    many = np.zeros(BUCKETS)
    for places, _ in counted:
        many[places] += 1
    idf = np.where(many >= FEWEST_TEXTS, np.log((1 + len(texts)) / (1 + many)) + 1, 0.0).astype(np.float32)
    rows = [weighed(places, amounts, idf) for places, amounts in counted]
    ends = np.cumsum([0, *(len(places) for places, _ in rows)])
    places = np.concatenate([places for places, _ in rows]).astype(np.int32)
    amounts = np.concatenate([amounts for _, amounts in rows])
    return sparse.csr_matrix((amounts, places, ends), shape=(len(texts), BUCKETS)), idf


def _ridge(inputs: Any, targets: Matrix) -> _Line:
    """Ridge regression of all targets at once by conjugate gradients (Hestenes and Stiefel, 1952)."""
    bias = targets.mean(axis=0)
    transposed = inputs.T.tocsr()
    rest = np.asarray(transposed @ (targets - bias))
    weights = np.zeros_like(rest)
    way, size = rest.copy(), (rest**2).sum(axis=0)
    for _ in range(STEPS):
        seen = np.asarray(transposed @ (inputs @ way)) + PENALTY * way
        step = size / np.maximum((way * seen).sum(axis=0), 1e-30)
        weights += step * way
        rest -= step * seen
        before, size = size, (rest**2).sum(axis=0)
        way = rest + size / np.maximum(before, 1e-30) * way
    return _Line(weights, bias)


def _dense_ridge(inputs: Matrix, targets: Matrix) -> _Line:
    middle, bias = inputs.mean(axis=0), targets.mean(axis=0)
    centred = inputs - middle
    weights = np.linalg.solve(
        centred.T @ centred + TOPIC_PENALTY * np.eye(inputs.shape[1]), centred.T @ (targets - bias)
    )
    return _Line(weights, bias - middle @ weights)


# ── topics, neighbours, tasks ────────────────────────────────────────────────


def _topics(words: Any, rng: np.random.Generator) -> Matrix:
    """(BUCKETS, d) the directions in which the texts differ most, of MOST_FOR_TOPICS texts at the most."""
    count = min(TOPICS, max(words.shape[0] // 8, 1))
    some = words[np.sort(rng.permutation(words.shape[0])[:MOST_FOR_TOPICS])]
    model = sklearn_module("sklearn.decomposition").TruncatedSVD(count, n_iter=3, random_state=int(rng.integers(2**31)))
    with quiet():
        model.fit(some.astype(np.float64))
    found: Matrix = model.components_.T
    return found


def _near(unit: Matrix, known: Matrix, fold_of: Numbers) -> Matrix:
    """(n, m) what the neighbours of other folds got."""
    points, quality = unit.astype(np.float32), known.astype(np.float32)
    found = np.tile(known.mean(axis=0), (len(unit), 1))
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)[:MOST_NEAR]
        if len(rest):
            others, got = points[rest], quality[rest]
            for start in range(0, len(held), 256):
                some = held[start : start + 256]
                cosines = points[some] @ others.T
                found[some] = [neighbours(line, got) for line in cosines]
    return found


def _one_hot(tasks: Numbers | None, count: int) -> Matrix:
    if tasks is None:
        return np.zeros((count, 0))
    found: Matrix = (tasks[:, None] == np.arange(int(tasks.max()) + 1)).astype(np.float64)
    return found


def _certainty(scores: Matrix, kinds: Matrix) -> float:
    """By how much scores (n, t), regressions of 0 and 1, are to be stretched to be the tasks' logits: the likeliest."""

    def loss(certainty: float) -> float:
        stretched = certainty * scores
        stretched -= stretched.max(axis=1, keepdims=True)
        told = stretched - np.log(np.exp(stretched).sum(axis=1, keepdims=True))
        return -float((told * kinds).sum())

    found: float = min(CERTAINTIES, key=loss)
    return found


def _cells(quality: Matrix, kinds: Matrix) -> Matrix:
    """(t, k) mean quality of every task on every stage, shrunk to the stage's mean."""
    found: Matrix = (kinds.T @ quality + SHRINKAGE * quality.mean(axis=0)) / (kinds.sum(axis=0)[:, None] + SHRINKAGE)
    return found


def _told_by_task(scores: Matrix, quality: Matrix, kinds: Matrix, fold_of: Numbers) -> Matrix:
    found = np.zeros_like(quality)
    for fold in range(FOLDS):
        held, rest = fold_of == fold, fold_of != fold
        cells = _cells(quality[rest], kinds[rest]) if rest.any() else _cells(quality, kinds)
        found[held] = by_task(scores[held].astype(np.float32), cells.astype(np.float32))
    return found


# ── numbers ──────────────────────────────────────────────────────────────────


def _numbers(texts: Sequence[str], counts: NDArray[np.float32]) -> Matrix:
    known = counts.tolist()
    lines = [[*lexical.numbers(text, known, known=True), *structure.structure(text)] for text in texts]
    return np.array(lines, dtype=np.float64)
