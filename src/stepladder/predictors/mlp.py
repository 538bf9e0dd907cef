"""The paper's quality predictor (§2.2.1): an MLP of 128, 64 and 32 units with ReLU, served with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import array_of, content_version, numbers_of
from stepladder.types import Estimate, Estimates, Features

Matrix = NDArray[np.float64]
INPUTS = ("entropy", "length")


class MLPPredictor:
    """Quality of all stages in one pass.

    The input of stage i is the named features followed by a one-hot code of i, (features + stages) wide. ``arrays``
    are ``W0``, ``b0``, ``W1`` … as scikit-learn shapes them, (in, out) and (out,). ``params``: ``inputs`` (feature
    names, the paper's two by default), ``sd`` (one standard deviation for each stage: that of the training residuals),
    ``measured`` (False where no outcome stands behind the fit). The network's output is unbounded; means are clipped
    to [0, 1]. Attempts made so far do not move these estimates.

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("mlp", stages, params, arrays)
        self._stages = stages
        self._inputs = _names(params.get("inputs", list(INPUTS)))
        self._sds = numbers_of(params.get("sd", [0.0] * len(stages)), "sd", len(stages))
        self._calibrated = params.get("measured", True) is True
        weights, biases = _layers(arrays)
        _check_shapes(weights, biases, len(self._inputs) + len(stages))
        wide = len(self._inputs)
        self._first = weights[0][:wide]
        self._base = weights[0][wide:] + biases[0]  # (stages, out): what the one-hot code picks, once and for all
        self._rest = list(zip(weights[1:], biases[1:], strict=True))

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage; a feature that is not there counts as 0."""
        values = features.values
        means = self.forward(np.array([values.get(name, 0.0) for name in self._inputs])).tolist()
        stages = zip(self._stages, means, self._sds, strict=True)
        return Estimates(
            {stage: Estimate(min(max(mean, 0.0), 1.0), sd) for stage, mean, sd in stages}, calibrated=self._calibrated
        )

    def forward(self, values: Matrix) -> Matrix:
        """Raw outputs, (stages,), for one vector of features, (features,)."""
        hidden = self._base + values @ self._first
        for weight, bias in self._rest:
            hidden = np.maximum(hidden, 0.0) @ weight + bias
        return hidden[:, 0]


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ArtifactError("'inputs' should be a list of feature names")
    return tuple(value)


def _layers(arrays: Mapping[str, Any]) -> tuple[list[Matrix], list[Matrix]]:
    depth = sum(name.startswith("W") for name in arrays)
    weights = [array_of(arrays, f"W{layer}", 2) for layer in range(depth)]
    return weights, [array_of(arrays, f"b{layer}", 1) for layer in range(depth)]


def _check_shapes(weights: list[Matrix], biases: list[Matrix], width: int) -> None:
    if len(weights) < 2:
        raise ArtifactError("the MLP should have at least two layers, W0 and W1")
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.shape[0] != width or bias.shape != (weight.shape[1],):
            raise ArtifactError(
                f"layer {layer} of the MLP is {weight.shape} with bias {bias.shape}; {width} inputs come to it"
            )
        width = weight.shape[1]
    if width != 1:
        raise ArtifactError(f"the MLP should end in one output, not {width}")
