"""Rows of measured quality → artifacts. Needs the extra [train] where scikit-learn does the fitting."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.contracts import Featurizer
from stepladder.errors import MissingExtraError, UsageError
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.complexity import CLASSES, Complexity, LearnedComplexity
from stepladder.predictors.grams import BUCKETS, DENSE, hashed_grams
from stepladder.predictors.matrix import by_rules
from stepladder.predictors.mlp import INPUTS
from stepladder.types import Attempt, Request

Matrix = NDArray[np.float64]

HIDDEN = (128, 64, 32)
MAX_ITER = 1000
"""The paper's network and its limit on epochs (§2.2.1)."""

SHRINKAGE = 10.0
"""Rows' worth of the stage's overall mean that is mixed into each cell of a matrix."""

INVERSE_PENALTY = 10.0
"""scikit-learn's C of the complexity classifier."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured outcome: ``quality`` in [0, 1] of the answer of stage number ``stage`` to ``text``.

    ``label`` is the question's class of complexity where somebody knows it; rows of one ``group`` rest on one fact
    (None: each text is a group of its own). ``answer`` is what the stage said, for fits that read answers.
    """

    text: str
    stage: int
    quality: float
    label: Complexity | None = None
    group: int | None = None
    answer: Attempt | None = None


# ── the paper's network ──────────────────────────────────────────────────────


def fit_mlp(
    rows: Sequence[Row], stages: Sequence[str], seed: int = 0, *, featurizer: Featurizer | None = None
) -> Artifact:
    """The paper's MLPRegressor (§2.2.1): hidden layers of 128, 64 and 32, ReLU, Adam, 1000 epochs at the most.

    Inputs are the paper's, unscaled as there: entropy, length, one-hot stage. ``params["sd"]`` is each stage's
    standard deviation of the residuals on these rows. ``metrics``: ``rows``, ``iterations`` and ``r2_train``, which is
    no measure of how it does on questions that it has not seen. Raises UsageError for rows that cannot be fitted,
    MissingExtraError.
    """
    check(rows, stages)
    regressor = sklearn_module("sklearn.neural_network").MLPRegressor(
        hidden_layer_sizes=HIDDEN, activation="relu", solver="adam", max_iter=MAX_ITER, random_state=seed
    )
    inputs, quality = _inputs(rows, len(stages), featurizer or PaperFeatures()), qualities(rows)
    with quiet():
        regressor.fit(inputs, quality)
    residuals = quality - np.clip(regressor.predict(inputs), 0.0, 1.0)
    return Artifact(
        kind="mlp",
        stages=tuple(stages),
        params={"inputs": list(INPUTS), "sd": _sd_by_stage(rows, residuals, len(stages)), "measured": True},
        arrays=_layers(regressor),
        metrics={"rows": len(rows), "iterations": regressor.n_iter_, "r2_train": _r2(quality, residuals)},
    )


def mlp_inputs(values: Mapping[str, float], stage: int, stages: int) -> list[float]:
    """One row of the network's input: the paper's two numbers and the one-hot code of the stage."""
    return [*(values[name] for name in INPUTS), *(float(i == stage) for i in range(stages))]


def _inputs(rows: Sequence[Row], stages: int, featurizer: Featurizer) -> Matrix:
    texts = {row.text for row in rows}
    values = {text: featurizer.features(Request("", prompt=text)).values for text in texts}
    return np.array([mlp_inputs(values[row.text], row.stage, stages) for row in rows])


def _layers(regressor: Any) -> dict[str, NDArray[Any]]:
    weights = {f"W{layer}": array for layer, array in enumerate(regressor.coefs_)}
    return weights | {f"b{layer}": array for layer, array in enumerate(regressor.intercepts_)}


def _sd_by_stage(rows: Sequence[Row], residuals: Matrix, stages: int) -> list[float]:
    of_row = np.array([row.stage for row in rows])
    return [min(float(np.sqrt(np.mean(residuals[of_row == stage] ** 2))), 1.0) for stage in range(stages)]


def _r2(quality: Matrix, residuals: Matrix) -> float:
    spread = float(np.sum((quality - quality.mean()) ** 2))
    return 1.0 - float(np.sum(residuals**2)) / spread if spread else 0.0


# ── a regression for each stage ──────────────────────────────────────────────


def fit_logistic(
    rows: Sequence[Row],
    stages: Sequence[str],
    seed: int = 0,
    *,
    inverse_penalty: float = INVERSE_PENALTY,
    grams: Grams | None = None,
) -> Artifact:
    """Logistic regression of each stage's quality on hashed n-grams of the text.

    A quality between 0 and 1 counts as that share of a right answer and the rest of a wrong one. ``grams`` holds the
    rows' texts where they were hashed before, for fits that share them. ``params["spread"]`` is the variance of the
    outcomes about the fit, as a share of what right-or-wrong answers would have. ``metrics``: ``rows`` and
    ``r2_train``, which is no measure of how it does on questions that it has not seen. Raises UsageError for rows that
    cannot be fitted, MissingExtraError.
    """
    check(rows, stages)
    grams = grams or Grams([row.text for row in rows])
    by_stage = ([row for row in rows if row.stage == i] for i in range(len(stages)))
    fitted = [_fit_stage(mine, grams.of([row.text for row in mine]), seed, inverse_penalty) for mine in by_stage]
    quality = np.concatenate([stage.quality for stage in fitted])
    residuals = np.concatenate([stage.quality - stage.means for stage in fitted])
    return Artifact(
        kind="logistic",
        stages=tuple(stages),
        params={"spread": [stage.spread for stage in fitted], "measured": True},
        arrays={
            "weights": np.ascontiguousarray(np.stack([stage.weights for stage in fitted], axis=1), dtype=np.float32),
            "bias": np.array([stage.bias for stage in fitted]),
        },
        metrics={"rows": len(rows), "r2_train": _r2(quality, residuals)},
    )


class _StageFit(NamedTuple):
    """One stage's regression: weights (BUCKETS + 2,), and on its rows the quality and the fitted means."""

    weights: Matrix
    bias: float
    quality: Matrix
    means: Matrix

    @property
    def spread(self) -> float:
        binary = float(np.mean(self.means * (1 - self.means)))
        return min(float(np.mean((self.quality - self.means) ** 2)) / binary, 1.0) if binary else 1.0


class Grams:
    """Texts hashed once. Raises MissingExtraError."""

    def __init__(self, texts: Iterable[str]) -> None:
        distinct = dict.fromkeys(texts)
        self._place = {text: place for place, text in enumerate(distinct)}
        self._matrix = _gram_matrix(list(distinct))

    def of(self, texts: Iterable[str]) -> Any:
        """The lines of these texts, each of them known: a sparse matrix, (texts, BUCKETS + DENSE)."""
        return self._matrix[[self._place[text] for text in texts]]


def _fit_stage(rows: Sequence[Row], grams: Any, seed: int, inverse_penalty: float) -> _StageFit:
    quality = qualities(rows)
    if quality.min() == quality.max():  # no regression needs to tell right from wrong here
        mean = float(np.clip(quality[0], 0.001, 0.999))
        flat = np.zeros(BUCKETS + DENSE)
        return _StageFit(flat, float(np.log(mean / (1 - mean))), quality, np.full(len(rows), mean))
    model = sklearn_module("sklearn.linear_model").LogisticRegression(
        C=inverse_penalty, max_iter=300, random_state=seed
    )
    halves = halves_of(quality)
    with quiet():
        model.fit(grams[halves.rows], halves.labels, sample_weight=halves.weight)
    means = model.predict_proba(grams)[:, 1]
    return _StageFit(model.coef_[0], float(model.intercept_[0]), quality, means)


# ── the matrix ───────────────────────────────────────────────────────────────


def fit_matrix(
    rows: Sequence[Row],
    stages: Sequence[str],
    *,
    classifier: Literal["rules", "learned"] = "rules",
    complexity: Artifact | None = None,
    shrinkage: float = SHRINKAGE,
    seed: int = 0,
) -> Artifact:
    """Measured mean and standard deviation of quality for each class and stage.

    Every row counts towards the classes as the classifier will see its text when serving, so that an estimate is what
    such questions really got. ``learned`` uses ``complexity`` (an artifact of ``fit_complexity``), or fits one on the
    rows' labels. Each cell is shrunk towards its stage's mean by ``shrinkage`` rows' worth. ``metrics``: ``rows``, and
    ``rows.CLASS`` for each class. Raises UsageError for rows that cannot be fitted, MissingExtraError.
    """
    check(rows, stages)
    arrays: Mapping[str, NDArray[Any]] = {}
    classify: Callable[[str], tuple[float, ...]] = by_rules
    if classifier == "learned":
        arrays = (complexity or _fit_labels(rows, seed)).arrays
        classify = LearnedComplexity.from_arrays(arrays).proba
    chances = {text: classify(text) for text in {row.text for row in rows}}
    weights = np.array([chances[row.text] for row in rows])
    means, sds = _cells(rows, weights, len(stages), shrinkage)
    return Artifact(
        kind="matrix",
        stages=tuple(stages),
        params={"matrix": _by_class(means), "sd": _by_class(sds), "classifier": classifier, "measured": True},
        arrays=arrays,
        metrics={"rows": len(rows)} | {f"rows.{c}": float(n) for c, n in zip(CLASSES, weights.sum(0), strict=True)},
    )


def _cells(rows: Sequence[Row], weights: Matrix, stages: int, shrinkage: float) -> tuple[Matrix, Matrix]:
    """Means and standard deviations, both (classes, stages)."""
    quality, of_row = qualities(rows), np.array([row.stage for row in rows])
    means, sds = np.zeros((len(CLASSES), stages)), np.zeros((len(CLASSES), stages))
    for stage in range(stages):
        mine = of_row == stage
        seen, share = quality[mine], weights[mine]
        mass = share.sum(axis=0) + shrinkage
        first = (share.T @ seen + shrinkage * seen.mean()) / mass
        second = (share.T @ seen**2 + shrinkage * np.mean(seen**2)) / mass
        means[:, stage] = first
        sds[:, stage] = np.sqrt(np.maximum(second - first**2, 0.0))
    return np.clip(means, 0.0, 1.0), sds


def _by_class(cells: Matrix) -> dict[str, list[float]]:
    return {name: row.tolist() for name, row in zip(CLASSES, cells, strict=True)}


def _fit_labels(rows: Sequence[Row], seed: int) -> Artifact:
    labels = {row.text: row.label for row in rows if row.label is not None}
    if not labels:
        raise UsageError("a learned classifier needs rows with labels, or an artifact of fit_complexity")
    return fit_complexity(list(labels), list(labels.values()), seed)


# ── the classifier ───────────────────────────────────────────────────────────


def fit_complexity(texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> Artifact:
    """Softmax regression on hashed n-grams (``LearnedComplexity``); all three classes must occur among the labels.

    Its artifact is of kind ``complexity``, which is no predictor by itself: hand it to ``fit_matrix``. ``metrics``:
    ``rows`` and ``accuracy_train``. Raises UsageError for labels that cannot be learned from, MissingExtraError.
    """
    strange = sorted(set(labels) - set(CLASSES))
    if strange or len(texts) != len(labels) or set(labels) != set(CLASSES):
        told = f"unknown: {', '.join(strange)}" if strange else f"{len(labels)} labels for {len(texts)} texts"
        raise UsageError(f"labels should be one of {', '.join(CLASSES)} for each text, all of them used; {told}")
    targets = np.array([CLASSES.index(label) for label in labels])
    grams = _gram_matrix(texts)
    model = sklearn_module("sklearn.linear_model").LogisticRegression(
        C=INVERSE_PENALTY, max_iter=500, random_state=seed
    )
    with quiet():
        model.fit(grams, targets)
    return Artifact(
        kind="complexity",
        stages=(),
        arrays={
            "complexity_weights": np.ascontiguousarray(model.coef_.T, dtype=np.float32),
            "complexity_bias": np.asarray(model.intercept_, dtype=np.float64),
        },
        metrics={"rows": len(texts), "accuracy_train": float(model.score(grams, targets))},
    )


def _gram_matrix(texts: Sequence[str]) -> Any:
    """Texts as a sparse matrix, (texts, BUCKETS + DENSE), of the amounts that ``LearnedComplexity`` weighs."""
    sparse = sklearn_module("scipy.sparse")
    found = (hashed_grams(text) for text in texts)
    parts = [(columns.astype(np.int32), amounts) for columns, amounts in found]
    ends = np.cumsum([0] + [len(columns) for columns, _ in parts])
    columns = np.concatenate([columns for columns, _ in parts])
    amounts = np.concatenate([amounts for _, amounts in parts]).astype(np.float64)
    del parts  # as large as the matrix
    matrix = sparse.csr_matrix((amounts, columns, ends), shape=(len(texts), BUCKETS + DENSE))
    matrix.sum_duplicates()
    return matrix


# ── common to all ────────────────────────────────────────────────────────────


def check(rows: Sequence[Row], stages: Sequence[str]) -> None:
    """Raise UsageError for rows of no stage of the ladder, of no quality, or that leave a stage without any."""
    seen = {row.stage for row in rows}
    missing = [name for index, name in enumerate(stages) if index not in seen]
    if missing:
        raise UsageError(f"no measured outcomes for the stages {', '.join(missing)}")
    for row in rows:
        if not 0 <= row.stage < len(stages):
            raise UsageError(f"a row has stage number {row.stage}; the ladder has {len(stages)} stages")
        if not 0.0 <= row.quality <= 1.0:
            raise UsageError(f"a row has quality {row.quality}; it should be from 0 to 1")


class Halves(NamedTuple):
    """Outcomes as right and wrong answers: ``rows`` (m,) numbers of the outcomes, ``labels`` 1 or 0, and ``weight``."""

    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    weight: Matrix


def halves_of(quality: Matrix) -> Halves:
    """A quality between 0 and 1 as that share of a right answer and the rest of a wrong one, the right ones first. What
    would weigh 0 is left out: it would only cost time."""
    right, wrong = np.flatnonzero(quality > 0), np.flatnonzero(quality < 1)
    labels: NDArray[np.intp] = np.repeat([1, 0], (len(right), len(wrong)))
    return Halves(np.r_[right, wrong], labels, np.r_[quality[right], 1 - quality[wrong]])


def spread_of_outcomes(quality: Matrix) -> float:
    """Variance of the outcomes as a share of what right-or-wrong answers of the same mean would have."""
    binary = float(quality.mean() * (1 - quality.mean()))
    return min(float(quality.var()) / binary, 1.0) if binary > 0 else 1.0


def qualities(rows: Sequence[Row]) -> Matrix:
    """(rows,) their qualities."""
    return np.array([row.quality for row in rows], dtype=np.float64)


def sklearn_module(module: str) -> Any:
    """A module of scikit-learn's world; raises MissingExtraError."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError("training", "train") from error


@contextmanager
def quiet() -> Iterator[None]:
    """A fit that stops at its limit says so in ``metrics``, not on the screen.

    Vectors here are short: threads that wait for each other made a fit 5 times slower on 2 cores. Raises
    KeyboardInterrupt where scikit-learn's network caught one: it only warns, and hands out what it had by then.
    """
    with warnings.catch_warnings(record=True) as told, sklearn_module("threadpoolctl").threadpool_limits(1):
        warnings.simplefilter("always")
        yield
    if any("interrupted" in str(warning.message) for warning in told):
        raise KeyboardInterrupt
