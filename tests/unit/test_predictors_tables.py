"""The prior and the quality matrix."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from stepladder.errors import ArtifactError
from stepladder.predictors.grams import BUCKETS, DENSE
from stepladder.predictors.matrix import PAPER_MATRIX, MatrixPredictor
from stepladder.predictors.prior import PriorPredictor, spread
from stepladder.types import Estimates, Features

LADDER = ("13b", "34b", "70b")
PAPER_PARAMS: dict[str, Any] = {"matrix": {name: list(row) for name, row in PAPER_MATRIX.items()}}


def means(estimates: Estimates) -> list[float]:
    return [estimate.mean for estimate in estimates.stages.values()]


def asked(text: str) -> Features:
    return Features({}, text)


def test_prior_is_the_papers_matrix_on_three_stages() -> None:
    prior = PriorPredictor(LADDER, {}, {})
    estimates = prior.predict(asked("Explain photosynthesis"))
    assert list(estimates.stages) == list(LADDER)
    assert means(estimates) == [0.72, 0.85, 0.91]
    assert estimates["13b"].sd == pytest.approx(sqrt(0.72 * 0.28))
    assert estimates.calibrated is False
    assert estimates.notes == {"class": "medium"}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (1, [0.75]),
        (2, [0.50, 0.90]),
        (3, [0.50, 0.75, 0.90]),
        (4, [0.50, 2 / 3, 0.80, 0.90]),
        (5, [0.50, 0.625, 0.75, 0.825, 0.90]),
    ],
)
def test_prior_is_laid_over_ladders_of_any_length(stages: int, expected: list[float]) -> None:
    assert spread(PAPER_MATRIX["complex"], stages) == pytest.approx(expected)
    prior = PriorPredictor(tuple(f"s{i}" for i in range(stages)), {}, {})
    assert means(prior.predict(asked("Implement B+ tree"))) == pytest.approx(expected)


def test_prior_takes_another_matrix_and_refuses_a_broken_one() -> None:
    ones = {"matrix": {name: [1, 1, 1] for name in PAPER_MATRIX}}
    assert means(PriorPredictor(LADDER, ones, {}).predict(asked(""))) == [1.0, 1.0, 1.0]
    for broken in ({"simple": [1, 1, 1]}, [1], {name: [1, 2, 3] for name in PAPER_MATRIX}):
        with pytest.raises(ArtifactError, match="matrix"):
            PriorPredictor(LADDER, {"matrix": broken}, {})


def test_versions_differ_by_contents() -> None:
    assert PriorPredictor(LADDER, {}, {}).version == PriorPredictor(LADDER, {}, {}).version
    assert PriorPredictor(LADDER, {}, {}).version != PriorPredictor(LADDER[:2], {}, {}).version


def test_matrix_by_rules_is_a_row_of_the_table() -> None:
    predictor = MatrixPredictor(LADDER, PAPER_PARAMS, {})
    assert means(predictor.predict(asked("What is 2+2?"))) == [0.88, 0.91, 0.93]
    assert not predictor.predict(asked("")).calibrated
    assert MatrixPredictor(LADDER, PAPER_PARAMS | {"measured": True}, {}).predict(asked("")).calibrated


def test_matrix_by_a_learned_classifier_is_a_mixture() -> None:
    bias = np.log([0.5, 0.25, 0.25])
    arrays = {"complexity_weights": np.zeros((BUCKETS + DENSE, 3)), "complexity_bias": bias}
    sd = {name: [0.1, 0.1, 0.1] for name in PAPER_MATRIX}
    predictor = MatrixPredictor(LADDER, PAPER_PARAMS | {"classifier": "learned", "sd": sd}, arrays)
    estimates = predictor.predict(asked("anything"))
    mean = 0.5 * 0.88 + 0.25 * 0.72 + 0.25 * 0.50
    between = 0.5 * 0.88**2 + 0.25 * 0.72**2 + 0.25 * 0.50**2 - mean**2
    assert estimates["13b"].mean == pytest.approx(mean)
    assert estimates["13b"].sd == pytest.approx(sqrt(0.1**2 + between))
    assert estimates.notes == {"class": "simple"}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({}, "'matrix' should give"),
        ({"matrix": {"simple": [1, 1, 1]}}, "no row for medium, complex"),
        ({"matrix": {name: [1, 1] for name in PAPER_MATRIX}}, "matrix.simple should be 3 numbers"),
        (PAPER_PARAMS | {"sd": {}}, "'sd' has no row"),
        (PAPER_PARAMS | {"classifier": "lerned"}, "did you mean 'learned'"),
        (PAPER_PARAMS | {"classifier": "learned"}, "complexity_weights"),
    ],
)
def test_matrix_refuses_what_does_not_fit(params: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        MatrixPredictor(LADDER, params, {})
