"""Readings: rows in training and in serving are the same numbers; a query's own outcome is not in its row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stack_tables import small
from stepladder.errors import ArtifactError
from stepladder.predictors import lexical
from stepladder.predictors.reading import NEIGHBOURS, Reading, by_task, neighbours
from stepladder.train.lesson import Lesson, lesson_of
from stepladder.train.reading import Read, fit_reading

SHARES = arrays(np.float32, (5, 3), elements=st.floats(0, 1, width=32))


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return lesson_of(small())


@pytest.fixture(scope="module")
def read(lesson) -> Read:
    return fit_reading(lesson)


def test_rows_are_what_serving_reads(lesson):
    """Where every outcome is the same, folds cannot matter, and all columns of both sides must agree: those that count
    words know in training that the text's own group was counted."""
    flat = fit_reading(lesson._replace(quality=np.full_like(lesson.quality, 0.7)))
    reading = Reading(flat.arrays, 2)
    assert flat.rows.shape == (len(lesson.texts), reading.columns)
    own = len(lexical.NAMES)
    for place in range(0, 160, 9):
        served = reading.row(lesson.texts[place])
        assert flat.rows[place, own:] == pytest.approx(served[own:], abs=4e-3)  # arrays are kept as 16 bits
        counts = flat.arrays["counts"].tolist()
        assert flat.rows[place, :own].tolist() == lexical.numbers(lesson.texts[place], counts, known=True)
        assert served[:own].tolist() == lexical.numbers(lesson.texts[place], counts)


def test_ones_own_outcome_is_not_in_ones_row(lesson, read):
    flipped = fit_reading(lesson_of(small(flipped=20)))
    mine = np.arange(160) // 2 == 20
    assert flipped.rows[mine] == pytest.approx(read.rows[mine], abs=1e-9)
    assert (flipped.rows[~mine] != read.rows[~mine]).any()


def test_the_same_seed_reads_the_same(lesson, read):
    again = fit_reading(lesson)
    assert np.array_equal(again.rows, read.rows)
    assert all(np.array_equal(again.arrays[name], array) for name, array in read.arrays.items())


def test_without_tasks_there_are_no_columns_of_tasks(lesson):
    plain = Reading(fit_reading(lesson._replace(tasks=None)).arrays, 2)
    assert not any(name.startswith("task ") for name in plain.names)
    assert len(plain.row("What is it?")) == plain.columns


def test_other_models_add_factors():
    reading = Reading(fit_reading(lesson_of(small(others=True))).arrays, 2)
    assert "factor 0" in reading.names
    assert np.isfinite(reading.row("Add the prime 5 to 7")).all()


@given(scores=SHARES, cells=arrays(np.float32, (3, 2), elements=st.floats(0, 1, width=32)))
@settings(max_examples=60, deadline=None)
def test_tasks_of_many_are_those_of_each(scores, cells):
    found = by_task(scores, cells)
    assert found == pytest.approx(np.array([by_task(line, cells) for line in scores]), abs=1e-6)
    assert (found >= cells.min(axis=0) - 1e-6).all()
    assert (found <= cells.max(axis=0) + 1e-6).all()


@given(st.integers(1, 2 * NEIGHBOURS), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_neighbours_are_a_mean_of_what_there_is(count, seed):
    chance = np.random.default_rng(seed)
    cosines, quality = chance.uniform(-1, 1, count).astype(np.float32), chance.random((count, 2)).astype(np.float32)
    found = neighbours(cosines, quality)
    nearest = np.argsort(-cosines)[:NEIGHBOURS]
    assert (found >= quality[nearest].min(axis=0) - 1e-6).all()
    assert (found <= quality[nearest].max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("name", ["counts", "idf", "project", "offset", "cells", "near", "near_quality"])
def test_arrays_that_do_not_fit(read, name):
    with pytest.raises(ArtifactError, match=name):
        Reading({key: array for key, array in read.arrays.items() if key != name}, 2)
    with pytest.raises(ArtifactError):
        Reading({**read.arrays, name: read.arrays[name][..., None]}, 2)
