"""The complexity-adaptive quality matrix (paper §2.2.3): quality by class of question and stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

from stepladder.errors import ArtifactError, nearest
from stepladder.predictors.artifact import content_version, numbers_of
from stepladder.predictors.complexity import CLASSES, LearnedComplexity, rules
from stepladder.types import Estimate, Estimates, Features

Classify = Callable[[str], tuple[float, ...]]
"""Text → probabilities of the classes, in the order of CLASSES."""

Table = tuple[tuple[float, ...], ...]
"""One row for each class, one column for each stage."""

PAPER_MATRIX: Mapping[str, tuple[float, ...]] = {
    "simple": (0.88, 0.91, 0.93),
    "medium": (0.72, 0.85, 0.91),
    "complex": (0.50, 0.75, 0.90),
}
"""Paper §2.2.3, for its ladder of 13B, 34B and 70B."""

CLASSIFIERS = ("rules", "learned")


class MatrixPredictor:
    """Quality of a stage is Σ over classes of p(class)·matrix[class][stage].

    ``params``: ``matrix`` (class → one mean in [0, 1] for each stage), ``sd`` (the same shape; without it an answer is
    taken as right or wrong, so √(q(1−q))), ``classifier`` (``rules`` or ``learned``), ``measured`` (True where the
    matrix was fitted to outcomes: only then are estimates marked calibrated). The standard deviation is that of the
    mixture: within the classes and between them. Attempts made so far do not move these estimates.

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("matrix", stages, params, arrays)
        self._stages = stages
        self._means = _table(params.get("matrix"), "matrix", len(stages))
        self._sds = _spreads(params.get("sd"), self._means)
        self._calibrated = params.get("measured") is True
        self._classify = _classifier(params.get("classifier", "rules"), arrays)

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage; ``notes["class"]`` is the likeliest class."""
        chances = self._classify(features.text)
        likeliest = CLASSES[chances.index(max(chances))]
        estimates = {stage: self._mixture(chances, column) for column, stage in enumerate(self._stages)}
        return Estimates(estimates, calibrated=self._calibrated, notes={"class": likeliest})

    def _mixture(self, chances: tuple[float, ...], column: int) -> Estimate:
        mean = square = 0.0
        for chance, means, sds in zip(chances, self._means, self._sds, strict=True):
            mean += chance * means[column]
            square += chance * (means[column] ** 2 + sds[column] ** 2)
        return Estimate(min(max(mean, 0.0), 1.0), sqrt(max(square - mean * mean, 0.0)))


def by_rules(text: str) -> tuple[float, ...]:
    """All probability on the class that the rules name."""
    named = rules(text)
    return tuple(float(name == named) for name in CLASSES)


def bernoulli_sd(mean: float) -> float:
    """Standard deviation of an answer that is right with this probability: the most doubt that a mean allows."""
    return sqrt(mean * (1 - mean))


def _classifier(name: Any, arrays: Mapping[str, Any]) -> Classify:
    if name == "rules":
        return by_rules
    if name == "learned":
        return LearnedComplexity.from_arrays(arrays).proba
    raise ArtifactError(f"the matrix has no classifier '{name}'; {nearest(str(name), CLASSIFIERS)}")


def _table(value: Any, what: str, columns: int) -> Table:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"'{what}' should give one row of numbers for each of {', '.join(CLASSES)}")
    missing = [name for name in CLASSES if name not in value]
    if missing:
        raise ArtifactError(f"'{what}' has no row for {', '.join(missing)}")
    return tuple(numbers_of(value[name], f"{what}.{name}", columns) for name in CLASSES)


def _spreads(value: Any, means: Table) -> Table:
    if value is None:
        return tuple(tuple(bernoulli_sd(mean) for mean in row) for row in means)
    return _table(value, "sd", len(means[0]))
