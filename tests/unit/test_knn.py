"""Neighbours: what prompts with the same words got, and the stage's mean where nothing is near."""

from __future__ import annotations

import numpy as np
import pytest

from stack_tables import SIGNALS, SMALL, small, telling
from stepladder.errors import ArtifactError
from stepladder.evaluate import metrics
from stepladder.evaluate.scores import estimate, means
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.knn import SHRINKAGE, KnnPredictor
from stepladder.predictors.reading import NEIGHBOURS
from stepladder.testing import check_predictor
from stepladder.train import plain
from stepladder.train.lesson import lesson_of
from stepladder.train.reading import fit_reading
from stepladder.types import Request


def made(artifact: Artifact) -> KnnPredictor:
    return KnnPredictor(artifact.stages, artifact.params, artifact.arrays)


@pytest.fixture(scope="module")
def fitted() -> Artifact:
    return plain.fit_knn(small())


def test_kinds_of_prompts_are_learned():
    data, at = telling(), SIGNALS.index("kin")
    read = fit_reading(lesson_of(data))
    out_of_fold = plain.by_neighbours(read, data)
    assert metrics.r2(data.quality[:, at], out_of_fold[:, at]) > 0.4
    served = means(estimate(made(plain.knn(read, data)), PaperFeatures(), data.requests), SIGNALS)
    assert np.corrcoef(served[:, at], out_of_fold[:, at])[0, 1] > 0.9


def test_a_text_of_unknown_words_gets_the_means(fitted):
    found = made(fitted).predict(PaperFeatures().features(Request("x", prompt="zzyzx qwxv")))
    assert [found.stages[stage].mean for stage in SMALL] == pytest.approx(fitted.params["mean"])


def test_few_that_agree_are_not_sure(fitted):
    one = {**fitted.arrays, "near_quality": np.ones_like(fitted.arrays["near_quality"])}
    found = KnnPredictor(SMALL, {**fitted.params, "mean": [0.5, 0.5]}, one).predict(
        PaperFeatures().features(Request("x", prompt="Add the prime 12 to 7"))
    )
    wanted = (NEIGHBOURS + SHRINKAGE * 0.5) / (NEIGHBOURS + SHRINKAGE)
    assert found.stages["a"].mean == pytest.approx(wanted)
    assert found.stages["a"].sd > 0


def test_the_contract(fitted):
    check_predictor(made(fitted), SMALL)


@pytest.mark.parametrize("name", ["idf", "project", "near", "near_quality"])
def test_arrays_that_do_not_fit(fitted, name):
    rest = {key: array for key, array in fitted.arrays.items() if key != name}
    with pytest.raises(ArtifactError, match=name):
        KnnPredictor(SMALL, fitted.params, rest)
    for wrong in (fitted.arrays[name][..., None], fitted.arrays[name][:-1], fitted.arrays[name] * np.nan):
        with pytest.raises(ArtifactError, match=r"idf|project|near"):
            KnnPredictor(SMALL, fitted.params, {**rest, name: wrong})


def test_parameters_and_prompts_that_are_missing(fitted):
    with pytest.raises(ArtifactError, match="mean should be 2 numbers"):
        KnnPredictor(SMALL, {}, fitted.arrays)
    none = {**fitted.arrays, "near": fitted.arrays["near"][:0], "near_quality": fitted.arrays["near_quality"][:0]}
    with pytest.raises(ArtifactError, match="near holds no prompt"):
        KnnPredictor(SMALL, fitted.params, none)
