"""Day one: estimates before anything was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import content_version, numbers_of
from stepladder.predictors.complexity import CLASSES, rules
from stepladder.predictors.matrix import PAPER_MATRIX, bernoulli_sd
from stepladder.types import Estimate, Estimates, Features


class PriorPredictor:
    """The paper's quality matrix (§2.2.3) by the class that the rules name; never marked calibrated.

    A ladder of any length is laid over the paper's three columns: stage i of n stands at i/(n−1), the columns stand at
    0, ½ and 1, and values between them are linear; a single stage takes the middle. The standard deviation is that of
    an answer that is either right or wrong. ``params`` may be empty, or give a ``matrix`` of three columns for each
    class in place of the paper's. Attempts made so far do not move these estimates.

    Raises ArtifactError for a matrix of another shape.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("prior", stages, params, arrays)
        matrix = params.get("matrix", PAPER_MATRIX)
        if not isinstance(matrix, Mapping):
            raise ArtifactError(f"'matrix' should give three columns for each of {', '.join(CLASSES)}")
        self._by_class = {name: _row(matrix.get(name), name, stages) for name in CLASSES}

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage; ``notes["class"]`` is the class that the rules name."""
        named = rules(features.text)
        return Estimates(dict(self._by_class[named]), calibrated=False, notes={"class": named})


def spread(columns: tuple[float, ...], stages: int) -> tuple[float, ...]:
    """The columns read off at ``stages`` evenly spaced places, linearly between them."""
    last = len(columns) - 1
    places = [last * i / (stages - 1) for i in range(stages)] if stages > 1 else [last / 2]
    return tuple(_between(columns, place) for place in places)


def _between(columns: tuple[float, ...], place: float) -> float:
    left = min(int(place), len(columns) - 2)
    share = place - left
    return columns[left] * (1 - share) + columns[left + 1] * share


def _row(value: Any, name: str, stages: tuple[str, ...]) -> dict[str, Estimate]:
    columns = numbers_of(value, f"matrix.{name}", len(PAPER_MATRIX["simple"]))
    means = spread(columns, len(stages))
    return {stage: Estimate(mean, bernoulli_sd(mean)) for stage, mean in zip(stages, means, strict=True)}
