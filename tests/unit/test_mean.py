"""Means: of a stage for every text, of a task where the artifact can tell tasks."""

from __future__ import annotations

import numpy as np
import pytest

from stack_tables import SMALL, noise, small, small_stack
from stepladder.errors import ArtifactError, UsageError
from stepladder.evaluate import metrics
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.mean import MeanPredictor
from stepladder.testing import check_predictor
from stepladder.train import plain
from stepladder.train.reading import Read
from stepladder.types import Request

EASY, HARD = "Which number of houses has river 12?", "Add the prime 12 to 7"


def made(artifact: Artifact) -> MeanPredictor:
    return MeanPredictor(artifact.stages, artifact.params, artifact.arrays)


def means(by: MeanPredictor, text: str) -> list[float]:
    found = by.predict(PaperFeatures().features(Request("x", prompt=text)))
    return [found.stages[stage].mean for stage in SMALL]


@pytest.fixture(scope="module")
def by_task() -> Artifact:
    return plain.fit_task_mean(small(others=True))


def test_the_stages_means():
    data = small()
    artifact = plain.fit_mean(data)
    assert means(made(artifact), EASY) == means(made(artifact), "") == pytest.approx(data.quality.mean(axis=0))
    found = made(artifact).predict(PaperFeatures().features(Request("x", prompt=EASY)))
    assert found.calibrated
    assert found.stages["a"].sd == pytest.approx(data.quality[:, 0].std(), abs=1e-6)
    assert artifact.metrics["rows"] == data.quality.size


def test_tasks_are_told_by_their_words(by_task):
    cells = by_task.arrays["cells"]
    assert cells.shape == (2, 2)
    places, sums = cells  # by name
    assert by_task.arrays["project"].shape[1] == 2
    bent = {**by_task.arrays, "cells": np.array([[0.9, 0.9], [0.1, 0.1]])}
    by = MeanPredictor(SMALL, by_task.params, bent)
    assert means(by, EASY)[0] > 0.7
    assert means(by, HARD)[0] < 0.3
    assert places.tolist() != sums.tolist()


def test_a_reading_that_is_there_gives_the_same_as_another_fit():
    data, stacked = small(), small_stack()
    shared = plain.task_mean(Read(dict(stacked.arrays), stacked.crossed.rows), data)
    assert shared.version == plain.fit_task_mean(data).version


def test_out_of_fold_they_are_about_as_good_as_the_stages_means():
    data, stacked = small(), small_stack()
    said = plain.by_task(Read(dict(stacked.arrays), stacked.crossed.rows), 2)
    assert said.shape == data.quality.shape
    flat = np.tile(data.quality.mean(axis=0), (len(data), 1))
    assert metrics.log_loss(data.quality, said) < 1.05 * metrics.log_loss(data.quality, flat)


def test_tables_without_tasks_are_refused():
    with pytest.raises(UsageError, match="tells no tasks apart"):
        plain.fit_task_mean(noise(60))


def test_the_contract(by_task):
    check_predictor(made(by_task), SMALL)
    check_predictor(made(plain.fit_mean(small())), SMALL)


@pytest.mark.parametrize("name", ["cells", "idf", "project", "offset"])
def test_arrays_that_do_not_fit(by_task, name):
    rest = {key: array for key, array in by_task.arrays.items() if key != name}
    for arrays in (
        rest,
        {**rest, name: by_task.arrays[name][..., None]},
        {**rest, name: by_task.arrays[name] * np.nan},
    ):
        with pytest.raises(ArtifactError, match=r"cells|idf|project|offset"):
            MeanPredictor(SMALL, by_task.params, arrays)
    with pytest.raises(ArtifactError, match=name):
        MeanPredictor(SMALL, by_task.params, rest)


@pytest.mark.parametrize("cells", [[[0.5, 1.5]], [[-0.1, 0.5]], [[0.5]]])
def test_cells_that_are_no_qualities(cells):
    with pytest.raises(ArtifactError, match="cells should hold numbers from 0 to 1"):
        MeanPredictor(SMALL, {}, {"cells": np.array(cells)})
