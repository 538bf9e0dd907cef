"""Estimates after an answer: learned from sets of stages that answered, served by gbdt, played as a cascade."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from outcome_tables import make_row
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench, replay_query
from stepladder.evaluate.scores import Posterior
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.gbdt import GBDTPredictor
from stepladder.predictors.history import SIGNALS, names
from stepladder.train import after, boost
from stepladder.train.after import fit_gbdt_after, stage_sets
from stepladder.train.boost import fit_gbdt
from stepladder.train.rows import fit_rows
from stepladder.types import Attempt, Features

STAGES = ("a", "b")


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost, "TREES", 40)
        yield


def telling(queries: int = 400, seed: int = 0, **more: Any) -> Aligned:
    """Stage a is right half of the time, by chance; where it is wrong it says 41, not 42. Stage b is always right."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(queries):
        right = bool(chance.integers(2))
        prompt = f"What is fact {int(chance.integers(10**6))}?"
        rows.append(
            make_row(f"{seed}-{number}", "a", float(right), prompt=prompt, **({"pred": ("41", "42")[right]} | more))
        )
        rows.append(make_row(f"{seed}-{number}", "b", 1.0, prompt=prompt, **({"pred": "42"} | more)))
    return align(rows, STAGES, pricing=(1.0, 3.0))


def made(artifact: Artifact) -> GBDTPredictor:
    return GBDTPredictor(artifact.stages, artifact.params, artifact.arrays)


@pytest.fixture(scope="module")
def fitted() -> Artifact:
    return fit_gbdt_after(fit_rows(telling()), STAGES)


@pytest.fixture(scope="module")
def longer() -> Artifact:
    return fit_gbdt_after(fit_rows(wordy(telling())), STAGES)


def whole(stage: str, text: str) -> Attempt:
    return Attempt(stage, text, finish_reason="stop")


def wordy(data: Aligned) -> Aligned:
    """The same, but a wrong answer is "?", which tells on its own that it is wrong."""
    rows = [
        make_row(row.query_id, row.model, row.quality, prompt=row.prompt, pred="forty-two" if row.quality else "?")
        for line in data.rows
        for row in line
    ]
    return align(rows, data.stages, pricing=data.pricing)


def test_the_cascade_climbs_exactly_where_the_answer_says_it_is_wrong(longer: Artifact) -> None:
    data = wordy(telling(100, seed=1))
    predictor, features = made(longer), PaperFeatures()
    before = [predictor.predict(features.features(request)) for request in data.requests]
    told = Posterior(predictor, features, data.requests)
    bench = Bench(data, data.cost)
    courses = [
        replay_query(bench, number, GreedyPolicy(cascade=True), before[number], lam=3.5, after=told)
        for number in range(len(data))
    ]
    wrong = (data.quality[:, 0] == 0).tolist()
    assert all(course.called[0] == 0 for course in courses)
    assert [course.called == (0, 1) for course in courses] == wrong
    assert [course.kept == 1 for course in courses] == wrong
    assert {course.cost for course in courses} == {1.0, 4.0}


def test_agreement_tells_once_both_answered(fitted: Artifact) -> None:
    predictor = made(fitted)
    right, wrong = (
        predictor.predict(Features({}, "What is fact 7?", (whole("a", text), whole("b", "42"))))
        for text in ("42", "41")
    )
    assert right["a"].mean > 0.9
    assert wrong["a"].mean < 0.1
    assert wrong["b"].mean > 0.9
    alone = predictor.predict(Features({}, "What is fact 7?", (whole("a", "41"),)))
    assert 0.3 < alone["a"].mean < 0.7


def test_the_trees_before_an_answer_are_untouched(fitted: Artifact) -> None:
    plain = fit_gbdt(fit_rows(telling()), STAGES)
    assert set(fitted.arrays) > set(plain.arrays)
    assert all(np.array_equal(fitted.arrays[name], array) for name, array in plain.arrays.items())
    assert {name: fitted.params[name] for name in plain.params} == dict(plain.params)
    assert fitted.params["after_signals"] == list(SIGNALS)
    assert fitted.metrics["after_rows"] == 400 * 3 * 2


def test_the_same_seed_gives_the_same_artifact(fitted: Artifact) -> None:
    assert fit_gbdt_after(fit_rows(telling()), STAGES).version == fitted.version


def test_a_table_without_answers_has_no_trees_for_after_one() -> None:
    data = telling(60, pred=None)
    artifact = fit_gbdt_after(fit_rows(data), STAGES)
    assert artifact.version == fit_gbdt(fit_rows(data), STAGES).version
    assert not any(name.startswith("after_") for name in (*artifact.arrays, *artifact.params))


def test_a_table_with_token_counts_alone_has_them() -> None:
    artifact = fit_gbdt_after(fit_rows(telling(60, pred=None, output_tokens=5)), STAGES)
    assert "after_value" in artifact.arrays


def test_sets_of_stages_begin_with_the_prefixes() -> None:
    chance = np.random.default_rng(0)
    assert stage_sets(1, chance) == [(0,)]
    three = stage_sets(3, chance)
    assert three[:3] == [(0,), (0, 1), (0, 1, 2)]
    assert sorted(three[3:]) == [(0, 2), (1,), (1, 2), (2,)]
    many = stage_sets(6, chance)
    assert many[:6] == [tuple(range(count)) for count in range(1, 7)]
    assert len(many) == len(set(many)) >= 11
    assert all(each == tuple(sorted(each)) and each for each in many)


def test_no_more_examples_than_the_limit() -> None:
    chance = np.random.default_rng(0)
    numbers, sets = after.drawn_sets(40, stage_sets(3, chance), chance, most=50)
    assert len(numbers) == len(sets) == 50
    assert set(np.bincount(numbers).tolist()) <= {0, 1, 2}


def test_half_of_the_examples_hide_the_log_probabilities() -> None:
    data = telling(200, confidence=-0.5)
    asked = after._queries(fit_rows(data))
    known = {row.text: 0 for line in asked for row in line.values()}
    signals = after._examples(asked, 2, known, np.random.default_rng(0)).signals
    column = list(names(2))
    shown = signals[signals[:, column.index("answered 0")] == 1][:, column.index("logprob 0")]
    assert set(shown.tolist()) == {-0.5, 1.0}
    assert 0.4 < (shown == 1.0).mean() < 0.6


def test_a_text_asked_twice_is_two_queries() -> None:
    rows = fit_rows(telling(3)) * 2
    assert [len(line) for line in after._queries(rows)] == [2] * 6
