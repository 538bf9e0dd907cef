"""Outcomes → artifacts: what was fitted is what is served."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepladder.errors import ArtifactError, MissingExtraError, UsageError
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.artifact import load, save
from stepladder.predictors.complexity import CLASSES, PAPER_PROMPTS, Complexity, LearnedComplexity
from stepladder.predictors.logistic import LogisticPredictor
from stepladder.predictors.matrix import PAPER_MATRIX, MatrixPredictor
from stepladder.predictors.mlp import MLPPredictor
from stepladder.testing import make_request
from stepladder.train import fit
from stepladder.train.fit import Row, fit_complexity, fit_logistic, fit_matrix, fit_mlp, mlp_inputs
from stepladder.types import Features

STAGES = ("small", "medium", "large")
TEMPLATES: dict[Complexity, tuple[str, ...]] = {
    "simple": ("What is {0}+{1}?", "How many legs have {0} spiders?", "Name item {0} of the list"),
    "medium": ("Explain why {0} is larger than {1}", "How does machine {0} work?", "Describe river {0}"),
    "complex": ("Design distributed system {0}", "Implement a {0}-ary tree", "Prove lemma {0} about {1} primes"),
}


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Right or wrong answers, drawn from the paper's matrix."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        label = chance.choice(CLASSES)
        text = chance.choice(TEMPLATES[label]).format(chance.randrange(100), chance.randrange(100))
        for stage, quality in enumerate(PAPER_MATRIX[label]):
            rows.append(Row(text, stage, float(chance.random() < quality), label))
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows(200)


def test_numpy_serves_what_scikit_learn_fitted(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted: list[Any] = []
    network = fit.sklearn_module("sklearn.neural_network")
    real = network.MLPRegressor
    monkeypatch.setattr(network, "MLPRegressor", lambda **kw: fitted.append(real(**kw)) or fitted[-1])
    save(fit_mlp(rows, STAGES, seed=3), tmp_path)
    artifact = load(tmp_path)
    predictor = MLPPredictor(STAGES, artifact.params, artifact.arrays)
    assert predictor.version == artifact.version
    settings = fitted[0].get_params()
    assert settings["hidden_layer_sizes"] == (128, 64, 32)
    assert (settings["activation"], settings["solver"], settings["max_iter"]) == ("relu", "adam", 1000)
    for text in [row.text for row in rows[:150:3]] + ["", "x" * 1000, "🪜"]:
        features = PaperFeatures().features(make_request(text))
        inputs = [mlp_inputs(features.values, stage, len(STAGES)) for stage in range(len(STAGES))]
        expected = np.clip(fitted[0].predict(np.array(inputs)), 0, 1)
        served = [predictor.predict(features)[stage].mean for stage in STAGES]
        np.testing.assert_allclose(served, expected, atol=1e-5)


def test_mlp_is_reproducible_and_says_how_it_did(rows: list[Row]) -> None:
    one, two, other = (fit_mlp(rows[:90], STAGES, seed=seed) for seed in (0, 0, 1))
    assert one.version == two.version != other.version
    assert one.metrics["rows"] == 90
    assert -1 < one.metrics["r2_train"] < 1
    assert all(0 < sd < 1 for sd in one.params["sd"])


def test_matrix_by_rules_recovers_the_papers_matrix() -> None:
    rows = make_rows(6000, seed=1)
    artifact = fit_matrix(rows, STAGES)
    estimates = MatrixPredictor(STAGES, artifact.params, artifact.arrays).predict(Features({}, "Implement B+ tree"))
    assert estimates.calibrated
    for stage, quality in zip(STAGES, PAPER_MATRIX["complex"], strict=True):
        assert estimates[stage].mean == pytest.approx(quality, abs=0.05)
        assert estimates[stage].sd == pytest.approx(np.sqrt(quality * (1 - quality)), abs=0.05)


def test_matrix_cells_shrink_towards_their_stage() -> None:
    rows = [Row("What is 2+2?", 0, 1.0), *(Row("Implement B+ tree", 0, 0.0) for _ in range(99))]
    artifact = fit_matrix(rows, ("only",), shrinkage=10.0)
    assert artifact.params["matrix"]["simple"][0] == pytest.approx((1 + 10 * 0.01) / 11)
    assert artifact.params["matrix"]["medium"][0] == pytest.approx(0.01)
    assert artifact.metrics == {"rows": 100, "rows.simple": 1.0, "rows.medium": 0.0, "rows.complex": 99.0}


def test_matrix_with_a_learned_classifier(rows: list[Row], tmp_path: Path) -> None:
    save(fit_matrix(rows, STAGES, classifier="learned"), tmp_path)
    artifact = load(tmp_path)
    predictor = MatrixPredictor(STAGES, artifact.params, artifact.arrays)
    assert predictor.version == artifact.version
    for text, label in (("What is 7+12?", "simple"), ("Describe river 4", "medium"), ("Prove lemma 3", "complex")):
        assert predictor.predict(Features({}, text)).notes["class"] == label


def test_complexity_is_learned_and_served_alike() -> None:
    rows = make_rows(100)
    texts, labels = [row.text for row in rows], [str(row.label) for row in rows]
    artifact = fit_complexity(texts, labels)
    learned = LearnedComplexity.from_arrays(artifact.arrays)
    right = sum(learned.classify(text) == label for text, label in zip(texts, labels, strict=True))
    assert right / len(texts) == pytest.approx(artifact.metrics["accuracy_train"])
    assert right / len(texts) > 0.95
    assert fit_complexity(texts, labels).version == artifact.version


def test_complexity_probabilities_equal_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    texts = [text for text, _ in PAPER_PROMPTS]
    labels = [CLASSES.index(label) for _, label in PAPER_PROMPTS]
    grams = fit._gram_matrix(texts)
    model = LogisticRegression(C=fit.INVERSE_PENALTY, max_iter=500, random_state=0).fit(grams, labels)
    artifact = fit_complexity(texts, [label for _, label in PAPER_PROMPTS])
    learned = LearnedComplexity.from_arrays(artifact.arrays)
    np.testing.assert_allclose([learned.proba(text) for text in texts], model.predict_proba(grams), atol=1e-5)


def test_matrix_can_reuse_a_classifier(rows: list[Row]) -> None:
    complexity = fit_complexity([row.text for row in rows], [str(row.label) for row in rows])
    unlabelled = [Row(row.text, row.stage, row.quality) for row in rows]
    artifact = fit_matrix(unlabelled, STAGES, classifier="learned", complexity=complexity)
    assert artifact.arrays == complexity.arrays
    with pytest.raises(UsageError, match="rows with labels"):
        fit_matrix(unlabelled, STAGES, classifier="learned")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "small, medium, large"),
        ([Row("a", 0, 1.0), Row("a", 2, 1.0)], "for the stages medium"),
        ([Row("a", stage, 1.0) for stage in range(4)], "stage number 3"),
        ([Row("a", stage, 1.5) for stage in range(3)], "quality 1.5"),
        ([Row("a", stage, float("nan")) for stage in range(3)], "quality nan"),
    ],
)
def test_rows_that_cannot_be_fitted(rows: list[Row], told: str) -> None:
    for fitter in (fit_mlp, fit_matrix):
        with pytest.raises(UsageError, match=told):
            fitter(rows, STAGES)


@pytest.mark.parametrize(
    ("texts", "labels"),
    [(["a"], ["hard"]), (["a", "b"], ["simple", "medium"]), (["a"], ["simple", "medium", "complex"])],
)
def test_labels_that_cannot_be_learned(texts: list[str], labels: list[str]) -> None:
    with pytest.raises(UsageError, match="labels should be"):
        fit_complexity(texts, labels)


def test_without_scikit_learn_it_says_what_to_install(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[train\]"):
        fit_mlp(rows, STAGES)


# ── logistic ─────────────────────────────────────────────────────────────────


def _telling_rows() -> list[Row]:
    """Stage 0 is right about sums and wrong about words; stage 1 is half right about everything."""
    return [
        Row(text, stage, quality)
        for number in range(80)
        for text, stage, quality in (
            (f"add {number} and {number + 3}", 0, 1.0),
            (f"define the word number {number}", 0, 0.0),
            (f"add {number} and {number + 3}", 1, 0.5),
            (f"define the word number {number}", 1, 0.5),
        )
    ]


def test_logistic_learns_which_stage_knows_what(tmp_path: Path) -> None:
    save(fit_logistic(_telling_rows(), ("a", "b")), tmp_path)
    found = load(tmp_path)
    predictor = LogisticPredictor(("a", "b"), found.params, found.arrays)
    sums, words = (predictor.predict(Features({}, text)) for text in ("add 7 and 900", "define the word tree"))
    assert sums["a"].mean > 0.9
    assert words["a"].mean < 0.1
    assert abs(sums["b"].mean - 0.5) < 0.05
    assert sums.calibrated
    assert sums["b"].sd < 0.1  # b is always exactly half right: far less spread than right or wrong


def test_logistic_of_a_stage_that_is_always_right() -> None:
    artifact = fit_logistic([Row("x", 0, 1.0), Row("y", 0, 1.0)], ("a",))
    estimate = LogisticPredictor(("a",), artifact.params, artifact.arrays).predict(Features({}, "z"))["a"]
    assert estimate.mean > 0.99


def test_logistic_arrays_of_another_ladder() -> None:
    artifact = fit_logistic(_telling_rows(), ("a", "b"))
    with pytest.raises(ArtifactError, match="should have weights"):
        LogisticPredictor(("a", "b", "c"), {}, artifact.arrays)


def test_an_interrupted_fit_is_no_fit(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    network = fit.sklearn_module("sklearn.neural_network")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(network.MLPRegressor, "_backprop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_mlp(rows, STAGES)
