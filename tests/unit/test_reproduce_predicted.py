"""R², the paper's stand-in for quality, and the ceiling, on tables whose answer is known."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.reproduce import predicted


def classes(data: Aligned) -> list[str]:
    return [str(level) for level in data.levels]


def confident(said: list[list[float | None]]) -> Aligned:
    """Quality 1 where the stage said more than 0.5."""
    rows = [
        make_row(
            f"q{n}", name, float((p or 0) > 0.5), cost=1.0, confidence=None if p is None else log(p), level="simple"
        )
        for n, line in enumerate(said)
        for name, p in zip(STAGES, line, strict=True)
    ]
    return align(rows, STAGES)


def test_scores_of_the_known():
    data = make_aligned(60)
    perfect = predicted.scores(data.quality, data.quality, classes(data), STAGES)
    assert [perfect[key] for key in ("pooled", "within_stage", "within_class")] == [1.0] * 3
    means = np.tile(data.quality.mean(axis=0), (60, 1))
    flat = predicted.scores(data.quality, means, classes(data), STAGES)
    assert flat["within_stage"] == pytest.approx(0.0)
    assert flat["pooled"] == pytest.approx(metrics.r2(data.quality, means))
    assert flat["per_stage"]["small"] == pytest.approx(0.0)


def test_entries_that_are_not_known_are_left_out():
    quality, said = np.array([[1.0, 0.0], [0.0, np.nan]]), np.array([[1.0, np.nan], [0.0, 1.0]])
    found = predicted.scores(quality, said, ["simple", "complex"], ("a", "b"))
    assert (found["n"], found["pooled"]) == (2, 1.0)


def test_the_stand_in_is_the_geometric_mean_and_is_compared_with_quality():
    data = confident([[0.9, 0.8, 0.2], [0.3, None, 0.7]])
    np.testing.assert_allclose(predicted.confidence(data), [[0.9, 0.8, 0.2], [0.3, np.nan, 0.7]])
    found = predicted.stand_in(data, classes(data))
    assert found is not None
    assert (found["auc"], found["n"]) == (1.0, 5)
    said, quality = np.array([0.9, 0.8, 0.2, 0.3, 0.7]), np.array([1, 1, 0, 0, 1])
    assert found["correlation"] == pytest.approx(np.corrcoef(said, quality)[0, 1])
    assert found["r2"] == pytest.approx(1 - ((quality - said) ** 2).sum() / ((quality - 0.6) ** 2).sum())
    assert predicted.stand_in(make_aligned(5), classes(make_aligned(5))) is None


def test_without_confidences_nothing_is_trained_on_them():
    data = make_aligned(5)
    assert predicted.stand_in_predicted(data, data, classes(data), lambda rows: []) is None


def test_correlation_of_what_does_not_vary_is_no_number():
    assert np.isnan(predicted.correlation(np.ones(3), np.arange(3.0)))
    assert np.isnan(predicted.correlation(np.ones(1), np.ones(1)))


def make_families(seed: int, count: int) -> Aligned:
    """Family a is always right, b never; their questions share no words."""
    rows = []
    for n in range(count):
        family = "ab"[n % 2]
        text = f"count apples {seed} {n}" if family == "a" else f"measure zebras {seed} {n}"
        rows += [
            make_row(f"{seed}-{n}", name, float(family == "a"), cost=1.0, prompt=text, family=family, level="simple")
            for name in STAGES
        ]
    return align(rows, STAGES)


def test_the_ceiling_knows_families_and_neighbours():
    train, judged = make_families(1, 60), make_families(2, 20)
    found = predicted.ceiling(train, judged, (classes(train), classes(judged)))
    assert found["class_stage"]["pooled"] == pytest.approx(0.0)
    assert found["family_class_stage"]["pooled"] == found["nearest_1"]["pooled"] == found["nearest_25"]["pooled"] == 1.0
    assert found["nearest_1_shared"] == pytest.approx(1.0)
    assert found["has_families"]


def test_a_family_that_training_lacks_gets_its_classs_mean():
    train, judged = make_families(1, 60), make_families(2, 20)
    known = train.take(np.array([row[0].family == "a" for row in train.rows]))
    estimated = predicted.neighbours(known, judged, ["a"] * len(known), ["a", "b"] * 10, np.full((20, 3), 0.25))[1]
    assert set(estimated[1::2].ravel()) == {0.25}
    assert set(estimated[::2].ravel()) == {1.0}


def test_the_nearest_question_is_the_likest_one():
    asked = {"alpha beta gamma": 1.0, "delta epsilon zeta": 0.0, "eta theta iota": 0.5}
    rows = [make_row(text, "a", quality, cost=1.0, prompt=text) for text, quality in asked.items()]
    train = align(rows, ("a",))
    judged = align([make_row("q", "a", 0.0, cost=1.0, prompt="please, eta theta iota")], ("a",))
    first, many = predicted.neighbours(train, judged, ["x"] * 3, ["x"], np.zeros((1, 1)))
    assert (first.tolist(), many.tolist()) == ([[0.5]], [[0.5]])
    assert predicted.neighbours(train, train, ["x"] * 3, ["x"] * 3, np.zeros((3, 1)))[0].ravel().tolist() == [
        1.0,
        0.0,
        0.5,
    ]
