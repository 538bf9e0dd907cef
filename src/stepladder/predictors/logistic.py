"""Quality of every stage straight from the text: one logistic regression a stage on hashed n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, sqrt
from typing import Any

import numpy as np

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import array_of, content_version, numbers_of
from stepladder.predictors.grams import BUCKETS, DENSE, hashed_grams
from stepladder.types import Estimate, Estimates, Features


class LogisticPredictor:
    """Quality of stage i is σ(grams · weights[:, i] + bias[i]).

    ``arrays``: ``weights``, (BUCKETS + 2, stages), and ``bias``, (stages,). ``params``: ``spread`` (one number for each
    stage: the share of q(1−q), the variance of a right-or-wrong answer, that outcomes really have; 1 by default) and
    ``measured`` (False where no outcome stands behind the fit). Attempts made so far do not move these estimates.

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("logistic", stages, params, arrays)
        self._stages = stages
        self._spreads = numbers_of(params.get("spread", [1.0] * len(stages)), "spread", len(stages))
        self._calibrated = params.get("measured", True) is True
        weights, bias = array_of(arrays, "weights", 2), array_of(arrays, "bias", 1)
        if weights.shape != (BUCKETS + DENSE, len(stages)) or bias.shape != (len(stages),):
            raise ArtifactError(
                f"the logistic predictor should have weights {(BUCKETS + DENSE, len(stages))} and bias "
                f"{(len(stages),)}, not {weights.shape} and {bias.shape}"
            )
        self._weights = np.ascontiguousarray(weights, dtype=np.float32)
        self._bias: list[float] = bias.tolist()

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage."""
        rows, amounts = hashed_grams(features.text)
        raw = (amounts @ self._weights.take(rows, axis=0)).tolist()
        found = zip(self._stages, raw, self._bias, self._spreads, strict=True)
        estimates = {stage: from_logit(value + bias, spread) for stage, value, bias, spread in found}
        return Estimates(estimates, calibrated=self._calibrated)


def sigmoid(logit: float) -> float:
    """σ(logit), never 0 nor 1."""
    inner = -30.0 if logit < -30.0 else 30.0 if logit > 30.0 else logit
    return 1 / (1 + exp(-inner))


def from_logit(logit: float, spread: float) -> Estimate:
    """σ(logit), and the deviation of outcomes whose variance is the share ``spread`` of a right-or-wrong answer's."""
    mean = sigmoid(logit)
    return Estimate(mean, sqrt(spread * mean * (1 - mean)))
