"""Laws of estimates after an answer, on trees that were really fitted."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import make_row
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.scores import Posterior, estimate
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.gbdt import GBDTPredictor
from stepladder.testing import check_predictor
from stepladder.train import boost
from stepladder.train.after import fit_gbdt_after
from stepladder.train.boost import fit_gbdt
from stepladder.train.rows import fit_rows
from stepladder.types import Attempt, Estimates, Fault, Features, Usage

STAGES = ("a", "b", "c")
FINALS = ("7", "8", "I cannot answer that.", "", "so it is\n 7.")


@cache
def data() -> Aligned:
    rows = [
        make_row(
            str(n),
            stage,
            float((n + place) % 3 > 0),
            prompt=f"{'add' if n % 2 else 'count'} {n} and {n * 7 % 31}",
            response=FINALS[(n * (place + 2)) % len(FINALS)],
            output_tokens=1 + (n * 5 + place) % 9,
            **({} if n % 4 else {"confidence": -((n + place) % 5) / 5}),
        )
        for n in range(120)
        for place, stage in enumerate(STAGES)
    ]
    return align(rows, STAGES, pricing=(1.0, 2.0, 4.0))


@cache
def predictors() -> tuple[GBDTPredictor, GBDTPredictor]:
    """Without and with trees for after an answer, of the same rows."""
    rows = fit_rows(data())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost, "TREES", 20)
        found = [fit(rows, STAGES) for fit in (fit_gbdt, fit_gbdt_after)]
    before, both = (GBDTPredictor(STAGES, each.params, each.arrays) for each in found)
    return before, both


def attempts() -> st.SearchStrategy[Attempt]:
    return st.builds(
        Attempt,
        st.sampled_from(STAGES),
        st.sampled_from(FINALS) | st.text(max_size=40),
        st.builds(Usage, st.just(3), st.integers(0, 50)),
        finish_reason=st.sampled_from(("stop", "length", None)),
        logprobs=st.none() | st.lists(st.floats(-9, 0), max_size=3).map(tuple),
    )


def histories() -> st.SearchStrategy[list[Attempt]]:
    return st.lists(attempts(), unique_by=lambda attempt: attempt.stage, max_size=3)


def asked(text: str, *made: Attempt) -> Estimates:
    return predictors()[1].predict(Features({}, text, made))


def test_it_keeps_the_contract_of_predictors() -> None:
    check_predictor(predictors()[1], STAGES)


@given(st.text(max_size=60), histories(), st.randoms(use_true_random=False))
def test_the_order_of_the_history_does_not_matter(text, made, chance) -> None:
    mixed = list(made)
    chance.shuffle(mixed)
    assert asked(text, *mixed) == asked(text, *made)


@given(st.text(max_size=60), histories())
def test_failed_attempts_are_as_if_nobody_had_asked(text, made) -> None:
    before, both = predictors()
    failed = tuple(Attempt(attempt.stage, attempt.text, fault=Fault("server", "broken")) for attempt in made)
    plain = before.predict(Features({}, text))
    assert both.predict(Features({}, text)) == plain
    assert both.predict(Features({}, text, failed)) == plain
    assert before.predict(Features({}, text, tuple(made))) == plain


@given(st.lists(st.tuples(st.text(max_size=30), histories()), max_size=5))
def test_a_batch_is_one_by_one(lines) -> None:
    together = [asked(text, *made) for text, made in lines]
    again = [asked(text, *made) for text, made in reversed(lines)]
    assert together == again[::-1]


@given(st.integers(0, 119), st.lists(st.sampled_from(range(3)), unique=True, min_size=1))
@settings(max_examples=30)
def test_replay_sees_what_serving_sees(number, stages) -> None:
    predictor, features = predictors()[1], PaperFeatures()
    told = Posterior(predictor, features, data().requests)
    made = tuple(Bench(data(), data().cost).attempts[number][stage] for stage in stages)
    assert told(number, made) == predictor.predict(features.features(data().requests[number], made))
    assert told(number, made[::-1]) == told(number, made)
    assert told(number, ()) == estimate(predictor, features, data().requests[number : number + 1])[0]


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boost, "TREES", 20)
    assert fit_gbdt_after(fit_rows(data()), STAGES).version == predictors()[1].version
