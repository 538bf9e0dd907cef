"""Every built-in predictor keeps the contract, and the check finds those that do not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stepladder.contracts import Predictor
from stepladder.predictors.complexity import CLASSES
from stepladder.predictors.gbdt import GBDTPredictor
from stepladder.predictors.grams import BUCKETS, DENSE
from stepladder.predictors.lexical import NAMES, WORDS
from stepladder.predictors.logistic import LogisticPredictor
from stepladder.predictors.matrix import MatrixPredictor
from stepladder.predictors.mlp import MLPPredictor
from stepladder.predictors.prior import PriorPredictor
from stepladder.testing import FakePredictor, check_predictor
from stepladder.types import Estimate, Estimates, Features

LADDERS = [tuple(f"s{i}" for i in range(count)) for count in (1, 2, 3, 8)]


def matrix(stages: tuple[str, ...], classifier: str) -> MatrixPredictor:
    rng = np.random.default_rng(0)
    table = {name: rng.random(len(stages)).tolist() for name in CLASSES}
    arrays = {"complexity_weights": rng.normal(size=(BUCKETS + DENSE, 3)), "complexity_bias": np.zeros(3)}
    return MatrixPredictor(stages, {"matrix": table, "classifier": classifier}, arrays)


def mlp(stages: tuple[str, ...]) -> MLPPredictor:
    rng = np.random.default_rng(0)
    sizes = (2 + len(stages), 128, 64, 32, 1)
    arrays: dict[str, Any] = {}
    for layer, (wide, high) in enumerate(pairwise(sizes)):
        arrays |= {f"W{layer}": rng.normal(size=(wide, high)), f"b{layer}": rng.normal(size=high)}
    return MLPPredictor(stages, {}, arrays)


def logistic(stages: tuple[str, ...]) -> LogisticPredictor:
    rng = np.random.default_rng(0)
    arrays = {"weights": rng.normal(size=(BUCKETS + DENSE, len(stages))), "bias": rng.normal(size=len(stages))}
    return LogisticPredictor(stages, {}, arrays)


def gbdt(stages: tuple[str, ...]) -> GBDTPredictor:
    rng = np.random.default_rng(0)
    shape = (len(stages), 4, 3)  # one split and two leaves a tree
    arrays: dict[str, Any] = {
        "weights": rng.normal(size=(BUCKETS + DENSE, len(stages))),
        "bias": rng.normal(size=len(stages)),
        "base": rng.normal(size=len(stages)),
        "counts": rng.random(WORDS),
        "feature": rng.integers(len(NAMES), size=shape),
        "threshold": rng.normal(size=shape),
        "left": np.broadcast_to([1, 1, 2], shape).copy(),
        "right": np.broadcast_to([2, 1, 2], shape).copy(),
        "value": rng.normal(size=shape),
    }
    return GBDTPredictor(stages, {"depth": 1}, arrays)


MAKERS: dict[str, Callable[[tuple[str, ...]], Predictor]] = {
    "prior": lambda stages: PriorPredictor(stages, {}, {}),
    "matrix by rules": lambda stages: matrix(stages, "rules"),
    "matrix, learned": lambda stages: matrix(stages, "learned"),
    "mlp": mlp,
    "logistic": logistic,
    "gbdt": gbdt,
    "fake": lambda stages: FakePredictor(dict.fromkeys(stages, 0.5)),
}


@pytest.mark.parametrize("stages", LADDERS, ids=len)
@pytest.mark.parametrize("name", MAKERS)
def test_built_in_predictors(name: str, stages: tuple[str, ...]) -> None:
    check_predictor(MAKERS[name](stages), stages)


class Broken:
    version = "broken"

    def __init__(self, predict: Callable[[Features], Estimates]) -> None:
        self._predict = predict

    def predict(self, features: Features) -> Estimates:
        return self._predict(features)


def always(mean: float, sd: float = 0.0) -> Callable[[Features], Estimates]:
    return lambda features: Estimates({"small": Estimate(mean, sd)})


def counting() -> Callable[[Features], Estimates]:
    turns = iter(range(10**9))
    return lambda features: Estimates({"small": Estimate(1 / (1 + next(turns)))})


def forgetful(features: Features) -> Estimates:
    """Keeps for the next decision what only this one's attempts told."""
    mean = features.memo.setdefault("mean", 0.1 * len(features.attempts))
    return Estimates({"small": Estimate(mean)})


def meddling(features: Features) -> Estimates:
    features.values.clear()  # type: ignore[attr-defined]
    return Estimates({"small": Estimate(0.5)})


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (always(1.5), r"mean 1\.5"),
        (always(float("nan")), "mean nan"),
        (always(0.5, -0.1), "below 0"),
        (always(0.5, float("inf")), "sd of small"),
        (lambda features: Estimates({}), r"are of \[\]"),
        (lambda features: Estimates({"small": Estimate(0.5), "huge": Estimate(0.5)}), "huge"),
        (counting(), "answered otherwise"),
        (meddling, "changed the features"),
        (forgetful, "keeps of a request's text"),
    ],
)
def test_broken_predictors_are_found(predict: Callable[[Features], Estimates], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_predictor(Broken(predict), ("small",))


def test_a_predictor_without_a_version_is_found() -> None:
    nameless = FakePredictor({"small": 0.5})
    nameless.version = ""
    with pytest.raises(AssertionError, match="version"):
        check_predictor(nameless, ("small",))
