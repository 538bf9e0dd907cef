"""Laws of stacks, means and neighbours: any text, any history, any order; told is never more than the doubt."""

from __future__ import annotations

from functools import cache
from math import isfinite

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack_tables import SMALL, both_profiles, small, small_stack
from stepladder import plugins
from stepladder.contracts import Predictor
from stepladder.evaluate.compare import Bench
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.artifact import Artifact, load, save
from stepladder.testing import make_attempt
from stepladder.train import plain
from stepladder.train.reading import Read
from stepladder.types import Attempt, Estimates, Request

KINDS = ("full", "fast", "mean", "mean, by task", "knn")
TEXTS = st.one_of(
    st.text(max_size=300),
    st.binary(max_size=200).map(lambda data: data.decode("latin-1")),
    st.sampled_from(["", " ", "\n\t \r", "x" * 100_000, "word " * 20_000, "Add the prime 7", "(A) 1\n(B) 2"]),
)
ANSWERS = st.lists(
    st.tuples(st.sampled_from([*SMALL, "stranger"]), st.text(max_size=60), st.sampled_from([None, "timeout"])),
    max_size=3,
)


@cache
def artifact(kind: str) -> Artifact:
    stacked, data = small_stack(), small()
    read = Read(dict(stacked.arrays), stacked.crossed.rows)
    if kind == "mean":
        return plain.fit_mean(data)
    if kind == "mean, by task":
        return plain.task_mean(read, data)
    if kind == "knn":
        return plain.knn(read, data)
    found = both_profiles()
    return Artifact(found.kind, found.stages, params={**found.params, "profile": kind}, arrays=found.arrays)


@cache
def predictor(kind: str) -> Predictor:
    return made(artifact(kind))


def made(found: Artifact) -> Predictor:
    built: Predictor = plugins.load("predictors", found.kind)(found.stages, found.params, found.arrays)
    return built


def said(by: Predictor, text: str, attempts: tuple[Attempt, ...] = ()) -> Estimates:
    return by.predict(PaperFeatures().features(Request("x", prompt=text), attempts))


def history(drawn: list[tuple[str, str, str | None]]) -> tuple[Attempt, ...]:
    return tuple(
        make_attempt(stage, fault=fault) if fault else make_attempt(stage, text=text) for stage, text, fault in drawn
    )


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, drawn=ANSWERS)
@settings(max_examples=40, deadline=None)
def test_estimates_are_shares_with_doubt(kind, text, drawn):
    attempts = history(drawn)
    found = said(predictor(kind), text, attempts)
    answered = {attempt.stage for attempt in attempts if attempt.fault is None}
    assert set(found.stages) == set(SMALL)
    for stage, each in found.stages.items():
        assert 0.0 <= each.mean <= 1.0
        assert isfinite(each.sd)
        assert 0.0 <= each.told <= each.sd
        if stage in answered:
            assert each.told == 0.0


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=2, max_size=5))
@settings(max_examples=15, deadline=None)
def test_what_was_asked_before_changes_nothing(kind, texts):
    by = predictor(kind)
    assert [said(by, text) for text in texts] == [said(by, text) for text in texts[::-1]][::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_bit_for_bit(kind, tmp_path):
    one = artifact(kind)
    save(one, tmp_path)
    again = load(tmp_path)
    assert again.version == one.version == made(again).version
    assert set(again.arrays) == set(one.arrays)
    for name, array in one.arrays.items():
        assert (again.arrays[name].dtype, again.arrays[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(again.arrays[name], array)
    for request in small().requests[:20]:
        assert said(made(again), request.text) == said(predictor(kind), request.text)


@given(place=st.integers(0, 159), stages=st.sets(st.sampled_from(SMALL)))
@settings(max_examples=40, deadline=None)
def test_crossed_estimates_keep_the_same_laws(place, stages):
    data = small()
    attempts = tuple(each for each in Bench(data, data.cost).attempts[place] if each.stage in stages)
    found = small_stack().crossed.estimates(place, attempts)
    for stage, each in found.stages.items():
        assert 0.0 <= each.mean <= 1.0
        assert 0.0 <= each.told <= each.sd
        assert each.told == 0.0 or stage not in stages
    assert found == small_stack().crossed.estimates(place, attempts[::-1])
