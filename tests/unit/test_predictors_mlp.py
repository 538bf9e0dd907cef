"""The paper's network, served with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepladder.errors import ArtifactError
from stepladder.predictors.mlp import MLPPredictor
from stepladder.types import Features

STAGES = ("small", "large")


def tiny(**changes: Any) -> dict[str, Any]:
    """q = relu(entropy + bonus of the stage) + relu(length) - 0.5, by hand."""
    first = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.25, 0.0]])
    arrays = {"W0": first, "b0": np.zeros(2), "W1": np.ones((2, 1)), "b1": np.array([-0.5])}
    return arrays | changes


def test_forward_by_hand() -> None:
    predictor = MLPPredictor(STAGES, {"sd": [0.1, 0.2]}, tiny())
    estimates = predictor.predict(Features({"entropy": 0.5, "length": 0.25}, ""))
    assert (estimates["small"].mean, estimates["large"].mean) == (0.25, 0.5)
    assert (estimates["small"].sd, estimates["large"].sd) == (0.1, 0.2)
    assert estimates.calibrated


def test_means_are_clipped() -> None:
    predictor = MLPPredictor(STAGES, {}, tiny())
    assert predictor.predict(Features({"entropy": 0.0, "length": 1e6}, ""))["small"].mean == 1.0
    assert predictor.predict(Features({"entropy": -9.0, "length": 0.0}, ""))["small"].mean == 0.0


def test_a_fit_without_outcomes_is_not_calibrated() -> None:
    predictor = MLPPredictor(STAGES, {"measured": False}, tiny())
    assert not predictor.predict(Features({}, "")).calibrated


@pytest.mark.parametrize(
    ("params", "arrays", "told"),
    [
        ({}, {}, "at least two layers"),
        ({}, tiny(W0=np.zeros((5, 2))), "4 inputs come to it"),
        ({}, tiny(b0=np.zeros(3)), "layer 0"),
        ({}, tiny(W1=np.ones((2, 2)), b1=np.zeros(2)), "end in one output"),
        ({}, {"W0": tiny()["W0"], "W1": tiny()["W1"], "b0": np.zeros(2)}, "'b1'"),
        ({}, tiny(b1=np.array([np.nan])), "not finite"),
        ({"sd": [0.1]}, tiny(), "sd should be 2 numbers"),
        ({"inputs": "entropy"}, tiny(), "list of feature names"),
    ],
)
def test_what_does_not_fit_is_refused(params: dict[str, Any], arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        MLPPredictor(STAGES, params, arrays)
