"""Stacks: what they learn, what they do not, what they leak of a query's own outcome, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from outcome_tables import make_row
from stack_tables import SIGNALS, SMALL, both_profiles, fitted, noise, small, small_stack, telling
from stepladder.errors import ArtifactError, UsageError
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.metrics import Matrix
from stepladder.evaluate.scores import Posterior, estimate, means
from stepladder.features.conversation import NAMES
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.stack import AFTER, FAST, StackPredictor, calibrated
from stepladder.testing import check_predictor
from stepladder.train.stack import FEWEST, Stacked, _platt


def before(stacked: Stacked) -> Matrix:
    return np.array([stacked.crossed.means(place) for place in range(len(stacked.crossed.numbers))])


@pytest.fixture(scope="module")
def learned() -> Stacked:
    return fitted(telling(), trees=40)


# ── what is learned ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("signal", ["word", "task", "kin"])
def test_what_a_text_tells_is_learned(learned, signal):
    at = SIGNALS.index(signal)
    assert metrics.r2(telling().quality[:, at], before(learned)[:, at]) > 0.6


def test_what_an_answer_tells_is_learned(learned):
    data, at = telling(), SIGNALS.index("answer")
    attempts = Bench(data, data.cost).attempts
    said = [learned.crossed.estimates(n, (attempts[n][at],)).stages["answer"].mean for n in range(len(data))]
    truth = data.quality[:, at]
    assert metrics.r2(truth, before(learned)[:, at]) < 0.1
    assert metrics.r2(truth, np.array(said)) > 0.8
    promised = StackPredictor(SIGNALS, learned.params, learned.arrays)
    told = promised.predict(PaperFeatures().features(data.requests[0])).stages
    assert told["answer"].told > 3 * told["word"].told


def test_it_knows_new_prompts_too(learned):
    new = telling(200, seed=7)
    predictor = StackPredictor(SIGNALS, learned.params, learned.arrays)
    said = means(estimate(predictor, PaperFeatures(), new.requests), SIGNALS)
    for signal in ("word", "task"):  # kinds of prompts are drawn anew with the seed
        at = SIGNALS.index(signal)
        assert metrics.r2(new.quality[:, at], said[:, at]) > 0.6


def test_of_noise_it_makes_the_means():
    data = noise()
    stacked = fitted(data)
    by_means = np.tile(data.quality.mean(axis=0), (len(data), 1))
    assert metrics.log_loss(data.quality, before(stacked)) < 1.02 * metrics.log_loss(data.quality, by_means)
    new = noise(300, seed=9)
    said = means(estimate(StackPredictor(SMALL, stacked.params, stacked.arrays), PaperFeatures(), new.requests), SMALL)
    there = np.tile(by_means[0], (len(new), 1))
    assert metrics.log_loss(new.quality, said) < 1.02 * metrics.log_loss(new.quality, there)


def talks(queries: int = 240, seed: int = 0) -> Aligned:
    """The same kind of questions to one stage, which is right only where it was not corrected before."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(queries):
        prompt, amiss = f"Say more of fact {int(chance.integers(10**6))}", bool(chance.integers(2))
        if amiss:
            prompt = f"No, {prompt}"
        before = ({"role": "user", "content": "Tell me"}, {"role": "assistant", "content": "I'm sorry, I can't."})
        talk = bool(chance.integers(2))
        messages = (*(before if talk else ()), {"role": "user", "content": prompt})
        right = float(not (talk and amiss))
        rows.append(make_row(f"{seed}-{number}", "a", right, prompt=prompt, messages=messages))
    return align(rows, ("a",), pricing=(1.0,))


def test_what_went_before_a_question_is_learned():
    """Neither the words alone nor the conversation's length tell it: both together do."""
    stacked = fitted(talks())
    assert stacked.params["values"] == list(NAMES)
    predictor, new = StackPredictor(("a",), stacked.params, stacked.arrays), talks(80, seed=3)
    said = means(estimate(predictor, PaperFeatures(), new.requests), ("a",))
    assert metrics.r2(new.quality[:, 0], said[:, 0]) > 0.8
    bare = replace(new, rows=tuple((replace(line[0], messages=None),) for line in new.rows))
    alone = means(estimate(predictor, PaperFeatures(), bare.requests), ("a",))
    assert alone.min() > 0.5
    assert "values" not in small_stack().params


@pytest.mark.parametrize("values", ["turns", [3], 7])
def test_values_that_are_no_names(values):
    artifact = both_profiles()
    with pytest.raises(ArtifactError, match="values should be a list of names"):
        StackPredictor(SMALL, {**artifact.params, "values": values}, artifact.arrays)


# ── what leaks, what repeats ─────────────────────────────────────────────────


def test_a_groups_own_outcomes_hardly_move_its_estimates():
    """No row or head that judges a query has seen its group (``test_reading`` holds that exactly). Still its outcome
    reaches it: in the rows that its heads learned from, the number of trees, and the calibration, which are of all
    queries. That is a leak towards its own outcome, of the order of its share of the rows (here 2 of 160)."""
    group, data = 20, small()
    flipped = fitted(small(flipped=group))
    mine = np.flatnonzero(np.arange(len(data)) // 2 == group)
    moved = before(flipped)[mine] - before(small_stack())[mine]
    towards = moved * (1 - 2 * data.quality[mine])
    assert np.abs(moved).max() < 0.12
    assert towards.mean() < 0.05


def test_the_same_seed_gives_the_same_stack():
    again, other = fitted(small()), fitted(small(), seed=1)
    one = small_stack().artifact(SMALL)
    assert again.artifact(SMALL).version == one.version
    assert other.artifact(SMALL).version != one.version
    for name, array in one.arrays.items():
        assert np.array_equal(again.arrays[name], array), name


def test_crossed_estimates_are_those_of_heads_that_serve_alike():
    """Before and after, ``estimates`` says what ``means`` and ``posterior`` say, as serving would put it."""
    crossed, data = small_stack().crossed, small()
    attempts = Bench(data, data.cost).attempts
    for place in (0, 7, 99):
        found = crossed.estimates(place)
        assert [each.mean for each in found.stages.values()] == crossed.means(place)
        assert found.calibrated
        after = crossed.estimates(place, attempts[place][:1])
        assert after.stages["a"].told == 0
        assert set(after.stages) == set(SMALL)


def test_crossed_estimates_are_as_good_as_those_of_new_queries():
    """No optimism: the log-loss of the crossed estimates is about that of new queries of the same kind."""
    new, stacked = small(400, seed=5), small_stack()
    said = means(estimate(StackPredictor(SMALL, stacked.params, stacked.arrays), PaperFeatures(), new.requests), SMALL)
    crossed = metrics.log_loss(small().quality, before(stacked))
    assert metrics.log_loss(new.quality, said) < crossed + 0.08


# ── what is refused ──────────────────────────────────────────────────────────


def test_too_few_queries():
    with pytest.raises(UsageError, match=f"learns from {FEWEST} queries .* these are 40 of 20"):
        fitted(small(40))


@pytest.mark.parametrize("name", sorted(both_profiles().arrays))
def test_a_missing_or_misshapen_array_is_named(name):
    artifact = both_profiles()
    params = {**artifact.params, "profile": "fast" if name.startswith(FAST) else "full"}
    left = {key: array for key, array in artifact.arrays.items() if key != name}
    with pytest.raises(ArtifactError, match=rf"\b{name.removeprefix(FAST)}\b"):
        StackPredictor(SMALL, params, left)
    array = artifact.arrays[name]
    for wrong in (array[..., None], array[:-1], np.full(array.shape, np.nan)):
        with pytest.raises(ArtifactError, match=r"array|should be|go with|go together"):
            StackPredictor(SMALL, params, {**left, name: wrong})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"profile": "quick"}, "profile should be full or fast, not 'quick'"),
        ({"profile": "fast", "fast": None}, "holds no profile 'fast'"),
        ({"spread": [1.0]}, "spread should be 2 numbers"),
        ({"told": [0.1, 7.0]}, "told should be 2 numbers from 0 to 1"),
        ({"told_after": "no"}, "told_after should be"),
        ({"depth": -1}, "depth should be"),
        ({f"{AFTER}depth": "deep"}, "after_depth should be"),
        ({f"{AFTER}signals": ["answered", "smell"]}, "'smell'"),
    ],
)
def test_parameters_that_do_not_fit(changed, told):
    artifact = both_profiles()
    with pytest.raises(ArtifactError, match=told):
        StackPredictor(SMALL, {**artifact.params, **changed}, artifact.arrays)


def test_of_another_ladder():
    artifact = both_profiles()
    with pytest.raises(ArtifactError):
        StackPredictor(("a", "b", "c"), artifact.params, artifact.arrays)


# ── serving ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("profile", ["full", "fast"])
def test_the_contract(profile):
    artifact = replace(both_profiles(), params={**both_profiles().params, "profile": profile})
    check_predictor(StackPredictor(artifact.stages, artifact.params, artifact.arrays), SMALL)


def test_profiles_have_versions_of_their_own():
    artifact = both_profiles()
    full, fast = (
        StackPredictor(SMALL, {**artifact.params, "profile": name}, artifact.arrays) for name in ("full", "fast")
    )
    assert full.version != fast.version
    data, features = small(), PaperFeatures()
    posteriors = [Posterior(each, features, data.requests) for each in (full, fast)]
    attempts = Bench(data, data.cost).attempts
    for stage in SMALL:
        said = [np.array([each(n, attempts[n]).stages[stage].mean for n in range(60)]) for each in posteriors]
        assert (said[0] != said[1]).any()


def test_the_fast_profile_promises_nothing_of_answers():
    """What answers tell was measured on the full profile's posteriors."""
    artifact = both_profiles()
    assert max(artifact.params["told"]) > 0
    fast = StackPredictor(SMALL, {**artifact.params, "profile": "fast"}, artifact.arrays)
    said = fast.predict(PaperFeatures().features(small().requests[0]))
    assert all(each.told == 0 for each in said.stages.values())


@pytest.mark.parametrize("name", ["project", "offset", "topic_weights", "near", "line", "after_line", "base"])
def test_numbers_that_no_fit_makes_are_refused(name):
    """They are finite, and what is computed from them would not be."""
    artifact = both_profiles()
    huge = np.full_like(np.asarray(artifact.arrays[name], dtype=np.float64), 1e300)
    with pytest.raises(ArtifactError, match=f"'{name}' holds numbers beyond"):
        StackPredictor(SMALL, artifact.params, {**artifact.arrays, name: huge})


@pytest.mark.parametrize("raw", [np.full(200, 0.9), np.linspace(0.95, 0.05, 200)])
def test_calibration_is_right_on_average_even_where_estimates_say_nothing(raw):
    quality = np.arange(200) % 4 == 0
    slope, offset = _platt(raw, quality.astype(float))
    said = [calibrated(mean, slope, offset) for mean in raw.tolist()]
    assert slope > 0
    assert abs(np.mean(said) - 0.25) < 0.1
    assert calibrated(0.7, *_platt(np.full(9, 0.7), np.ones(9))) > 0.99


def test_an_answer_that_the_table_does_not_tell_is_no_empty_answer():
    """Half of stage a's answers are not told, and all of these are wrong: that must not be learned."""
    data = small(240)
    lines = [
        (replace(line[0], pred=None, response=None, output_tokens=None), line[1]) if n % 2 else line
        for n, line in enumerate(data.rows)
    ]
    told = fitted(replace(data, rows=tuple(lines)))
    wrong = replace(data, rows=tuple(lines), quality=np.where((np.arange(240) % 2 == 1)[:, None], 0.0, data.quality))
    also = fitted(wrong)
    assert told.metrics["after_rows"] == also.metrics["after_rows"] < fitted(data).metrics["after_rows"]


def test_which_signals_there_are_does_not_turn_on_the_order_of_the_table():
    data = small(700)
    lines = [
        (replace(line[0], pred="17 + 4 = 21 apples"), line[1]) if n >= 650 else line for n, line in enumerate(data.rows)
    ]
    signals = fitted(replace(data, rows=tuple(lines)), trees=5).params["after_signals"]
    assert "equations" in signals
