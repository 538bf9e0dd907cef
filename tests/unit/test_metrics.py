"""Figures of merit: against hand-computed values, against scikit-learn, and the laws that they keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import brier_score_loss, log_loss, r2_score, roc_auc_score

from stepladder.evaluate import metrics
from stepladder.evaluate.metrics import gap_recovered

RIGHT = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
SAID = np.array([0.9, 0.4, 0.4, 0.7, 0.1])
units = arrays.arrays(np.float64, 40, elements=st.floats(0, 1))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(n: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong answers and coarse estimates of them, with many ties."""
    chance = rng(seed)
    said = np.round(chance.random(n), 1) * 0.98 + 0.01
    return (chance.random(n) < said).astype(float), said


# ── estimates ────────────────────────────────────────────────────────────────


def test_by_hand():
    assert metrics.brier(RIGHT, SAID) == pytest.approx((0.01 + 0.16 + 0.36 + 0.09 + 0.01) / 5)
    assert metrics.r2(RIGHT, SAID) == pytest.approx(1 - 0.63 / 1.2)
    assert metrics.auc(RIGHT, SAID) == pytest.approx(5.5 / 6)  # of 6 pairs one is tied
    told = -(np.log(0.9) + np.log(0.6) + np.log(0.4) + np.log(0.7) + np.log(0.9)) / 5
    assert metrics.log_loss(RIGHT, SAID) == pytest.approx(told)


def test_as_scikit_learn_says():
    right, said = drawn()
    assert metrics.auc(right, said) == pytest.approx(roc_auc_score(right, said))
    assert metrics.brier(right, said) == pytest.approx(brier_score_loss(right, said))
    assert metrics.log_loss(right, said) == pytest.approx(log_loss(right, said))
    assert metrics.r2(right, said) == pytest.approx(r2_score(right, said))


def test_r2_within_takes_the_means_away():
    labels = np.array([0, 0, 1, 1])
    quality = np.array([0.0, 0.2, 0.8, 1.0])
    assert metrics.r2_within(quality, np.array([0.1, 0.1, 0.9, 0.9]), labels) == pytest.approx(0.0)
    assert metrics.r2_within(quality, quality, labels) == 1.0
    assert metrics.r2(quality, np.array([0.1, 0.1, 0.9, 0.9])) > 0.9


def test_no_value_where_there_is_none():
    same = np.ones(3)
    assert np.isnan(metrics.r2(same, same * 0.5))
    assert np.isnan(metrics.auc(same, SAID[:3]))
    assert all(np.isnan(metrics.interval(np.array([np.nan]))))


def test_ece_by_hand():
    quality, said = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.2, 0.4, 0.8, 0.9])
    assert metrics.ece(quality, said, bins=2) == pytest.approx((abs(1 - 0.6) + abs(2 - 1.7)) / 4)


def test_ece_does_not_see_the_order_of_equal_estimates():
    quality = np.repeat([0.0, 1.0], 50)
    assert metrics.ece(quality, np.full(100, 0.5)) == pytest.approx(0.0)


def test_a_calibrated_predictor_stays_under_the_floor():
    said = rng(5).random(3000)
    floor = metrics.ece_floor(said, rng(6))
    found = [metrics.ece((rng(seed).random(3000) < said).astype(float), said) for seed in range(100, 160)]
    assert 0.85 <= np.mean(np.array(found) <= floor) <= 1.0
    assert metrics.ece((said > 0.5).astype(float), said) > 3 * floor
    assert metrics.ece_floor(said, rng(6)) == floor
    assert metrics.ece_floor(said[:300], rng(6)) > floor


def test_the_spread_of_outcomes_that_are_never_quite_right():
    said = np.full(200, 0.5)
    assert metrics.outcome_spread(np.tile([0.0, 1.0], 100), said) == 1.0
    assert metrics.outcome_spread(np.tile([0.4, 0.6], 100), said) == pytest.approx(0.04)


@given(units)
def test_a_perfect_estimate_and_a_mean_one(quality):
    if np.ptp(quality) > 1e-3:
        assert metrics.r2(quality, quality) == 1.0
        assert metrics.r2(quality, np.full(40, quality.mean())) == pytest.approx(0.0, abs=1e-9)


@given(units, units)
def test_auc_turns_over_with_its_estimates(quality, said):
    found = metrics.auc(quality, said)
    assert np.isnan(found) or found + metrics.auc(quality, -said) == pytest.approx(1.0)


# ── chance ───────────────────────────────────────────────────────────────────


def test_resamples_are_weights_and_repeat():
    chunks = list(metrics.resamples(7, rng(3), times=25))
    weights = np.concatenate(chunks)
    assert weights.shape == (25, 7)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_array_equal(weights, np.concatenate(list(metrics.resamples(7, rng(3), times=25))))


def test_groups_are_drawn_whole():
    groups = np.array([0, 0, 1, 2, 2, 2])
    weights = np.concatenate(list(metrics.resamples(6, rng(), times=50, groups=groups)))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()


def test_resamples_come_in_chunks(monkeypatch):
    whole = np.concatenate(list(metrics.resamples(5, rng(), times=9)))
    monkeypatch.setattr(metrics, "CHUNK", 10)
    chunks = list(metrics.resamples(5, rng(), times=9))
    assert [len(chunk) for chunk in chunks] == [2, 2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


@given(units)
@settings(max_examples=20)
def test_identical_policies_differ_by_nothing(quality):
    assert metrics.paired_interval(quality, quality, rng(), times=50) == (0.0, 0.0)


def test_the_interval_covers():
    low, high = metrics.paired_interval(rng(1).normal(0.3, 1, 500), np.zeros(500), rng(2))
    assert low < 0.3 < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(500), rel=0.2)


# ── curves ───────────────────────────────────────────────────────────────────


def test_cost_save_and_perf_gain_by_hand():
    quality, cost = np.array([0.5, 0.81, 0.79, 0.84]), np.array([1.0, 3.0, 2.0, 5.0])
    assert metrics.cost_save(quality, cost, 0.8, 4.0) == pytest.approx(0.25)
    assert metrics.cost_save(quality, cost, 0.9, 4.0) == 0.0
    assert metrics.perf_gain(quality, 0.8) == pytest.approx(0.05)


def test_cost_auc_by_hand():
    stage_quality, stage_cost = np.array([0.4, 0.8]), np.array([1.0, 3.0])
    line = metrics.cost_auc(np.array([0.4, 0.8]), np.array([1.0, 3.0]), stage_quality, stage_cost)
    assert line == pytest.approx(0.6)
    early = metrics.cost_auc(np.array([0.8]), np.array([2.0]), stage_quality, stage_cost)
    assert early == pytest.approx((0.6 + 0.8) / 2)  # from the cheapest stage up to it, then flat
    cut = metrics.cost_auc(np.array([0.4, 1.0]), np.array([1.0, 5.0]), stage_quality, stage_cost)
    assert cut == pytest.approx((0.4 + 0.7) / 2)
    assert np.isnan(metrics.cost_auc(np.array([1.0]), np.array([1.0]), np.ones(2), np.ones(2)))


def test_gap_recovered_by_hand():
    weak, strong = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    curve = gap_recovered(weak, strong, np.array([2.0, 4.0, 3.0, 1.0]))
    np.testing.assert_allclose(curve.calls, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.recovered, [0, 1, 2, 2, 1])
    assert metrics.apgr(curve) == pytest.approx(0.25 * (0.5 + 1.5 + 2 + 1.5))
    assert metrics.cpt(curve, 0.5) == pytest.approx(0.125)
    assert metrics.cpt(curve, 0.8) == pytest.approx(0.2)
    assert metrics.cpt(curve, 0.0) == 0.0
    assert np.isnan(metrics.cpt(curve, 3.0))


def test_a_score_that_says_nothing_is_chance():
    right, said = drawn()
    curve = gap_recovered(right * 0.5, right, np.zeros(len(said)))
    assert (metrics.apgr(curve), metrics.cpt(curve, 0.5), metrics.cpt(curve, 0.8)) == pytest.approx((0.5, 0.5, 0.8))


def test_ties_are_what_chance_makes_of_them_on_average():
    weak, said = drawn(60)
    strong = np.maximum(weak, drawn(60, seed=9)[0])
    jittered = [metrics.apgr(gap_recovered(weak, strong, said + 1e-6 * rng(seed).random(60))) for seed in range(400)]
    assert metrics.apgr(gap_recovered(weak, strong, said)) == pytest.approx(np.mean(jittered), rel=0.02)


def test_weights_count_like_repeated_queries():
    weak, said = drawn(20)
    strong = np.ones(20)
    times = np.arange(20) % 3
    repeated = gap_recovered(np.repeat(weak, times), strong[: times.sum()], np.repeat(said, times))
    weighted = gap_recovered(weak, strong, said, times / times.sum())
    assert metrics.apgr(weighted) == pytest.approx(metrics.apgr(repeated))


def test_a_stage_that_is_no_better_leaves_no_gap():
    for strong in (RIGHT, RIGHT * 0.5):
        curve = gap_recovered(RIGHT, strong, SAID)
        assert np.isnan(metrics.apgr(curve))
        assert np.isnan(metrics.cpt(curve, 0.5))


# ── λ ────────────────────────────────────────────────────────────────────────


def test_switches_of_the_best_stage():
    quality, cost = np.array([0.5, 0.7, 0.8]), np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(metrics.switches(quality, cost), [5.0, 20.0])
    for lam, best in ((4.9, 0), (5.1, 1), (19.0, 1), (21.0, 2)):
        assert (lam * quality - cost).argmax() == best


def test_a_stage_under_the_hull_is_never_best():
    assert metrics.hull(np.array([0.5, 0.55, 0.8]), np.array([1.0, 3.0, 4.0])) == [0, 2]
    assert metrics.hull(np.array([0.9, 0.55, 0.8]), np.array([1.0, 3.0, 4.0])) == [0]
    assert metrics.hull(np.array([0.5, 0.6]), np.array([1.0, 1.0])) == [1]


def test_the_grid_covers_every_switch():
    grid = metrics.lambda_grid(np.array([0.5, 0.7, 0.8]), np.array([1.0, 2.0, 4.0]))
    assert (len(grid), grid[0], grid[-1]) == (9, pytest.approx(2.5), pytest.approx(40.0))
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(grid[1] / grid[0]))
    for quality, cost in (([0.9, 0.8], [1.0, 2.0]), ([0.5, 0.5], [1.0, 1.0]), ([0.5, 0.6], [0.0, 0.0])):
        grid = metrics.lambda_grid(np.array(quality), np.array(cost))
        assert len(grid) == 9
        assert np.isfinite(grid).all()


def test_gap_closed_by_hand():
    value, fixed, oracle = np.array([1.5, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 3.0])
    assert metrics.gap_closed(value, fixed, oracle) == pytest.approx((0.5 + 0.0) / 2)
    assert np.isnan(metrics.gap_closed(fixed, fixed, fixed))


# ── calibration, ceilings, groups ────────────────────────────────────────────


def test_reliability_is_what_the_ece_adds_up():
    right, said = drawn()
    table = metrics.reliability(right, said)
    assert sum(each.n for each in table) == len(said)
    assert [each.estimate for each in table] == sorted(each.estimate for each in table)
    summed = sum(each.n * abs(each.quality - each.estimate) for each in table) / len(said)
    assert summed == pytest.approx(metrics.ece(right, said))
    assert metrics.reliability(np.array([0.0, 1.0]), np.full(2, 0.5)) == [(0.5, 0.5, 2)]


def test_the_ceiling_by_hand():
    """Two queries of 6 samples: Var(mean) = 2/9, less E[m(1 − m)]/5 = 1/36, over p̄(1 − p̄) = 1/4."""
    found = metrics.r2_ceiling(np.array([1 / 6, 5 / 6]), np.array([6, 6]))
    true = (2 / 9) - (5 / 36) / 5
    assert found == pytest.approx((true / 0.25, true / (2 / 9)))
    assert metrics.r2_ceiling(np.array([0.0, 1.0]), np.array([2, 2])) == (1.0, 1.0)
    assert metrics.r2_ceiling(np.full(3, 0.5), np.full(3, 4)) == pytest.approx((np.nan, np.nan), nan_ok=True)
    with pytest.raises(ValueError, match="two samples or more"):
        metrics.r2_ceiling(np.array([1.0]), np.array([1]))


def test_the_ceiling_is_the_r2_of_who_knows_the_chances():
    chances = rng(1).beta(1, 1, 4000)
    answers = rng(2).random((4000, 5)) < chances[:, None]
    found = metrics.r2_ceiling(answers.mean(axis=1), np.full(4000, 5))
    assert found.single == pytest.approx(metrics.r2(answers[:, 0].astype(float), chances), abs=0.04)
    assert found.mean == pytest.approx(metrics.r2(answers.mean(axis=1), chances), abs=0.03)


def test_group_fit_by_hand():
    quality, said = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), np.array([0.6, 0.6, 0.9, 0.9, 0.2])
    found = metrics.group_fit(quality, said, np.array([0, 0, 1, 1, 2]))  # the last is alone
    residual, total, noise = 2 * 0.1**2 + 2 * 0.1**2, 2 * 0.25**2 * 2, 0.5
    assert found.raw == pytest.approx(1 - residual / total)
    assert (found.groups, found.n) == (2, 4)
    assert noise > total
    assert np.isnan(found.corrected)
    assert found.signal == 0.0
    assert metrics.group_fit(quality, said, np.arange(5)).groups == 0


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers whose chance is that of their group, plus a part that no group knows; 100 groups of 24."""
    chance = rng(seed)
    groups = np.repeat(np.arange(100), 24)
    chances = np.clip(chance.uniform(0.1, 0.9, 100)[groups] + chance.uniform(-0.1, 0.1, 2400), 0, 1)
    return (chance.random(2400) < chances).astype(float), chances, groups


def test_group_fit_takes_the_noise_away():
    """Whoever knows the chances has 1, whoever knows nothing 0, whoever knows half of each group's deviation ¾."""
    found = [[], [], []]
    for seed in range(12):
        quality, chances, groups = clustered(seed)
        middle = chances.mean()
        for kept, said in zip(found, (chances, np.full(2400, middle), (chances + middle) / 2), strict=True):
            kept.append(metrics.group_fit(quality, said, groups))
    assert np.mean([fit.raw for fit in found[0]]) < 0.9
    assert np.mean([fit.corrected for fit in found[0]]) == pytest.approx(1.0, abs=0.02)
    assert np.mean([fit.corrected for fit in found[1]]) == pytest.approx(0.0, abs=0.02)
    assert np.mean([fit.corrected for fit in found[2]]) == pytest.approx(0.75, abs=0.03)
    assert np.mean([fit.strict for fit in found[2]]) == pytest.approx(0.75, abs=0.03)


def test_random_groups_hold_no_signal():
    quality, chances, groups = clustered(3)
    found = metrics.group_fit(quality, chances, rng(0).permutation(groups))
    assert found.signal < metrics.NO_SIGNAL
    assert np.isnan(found.corrected)


# ── hulls and deferral ───────────────────────────────────────────────────────


def test_aiq_by_hand():
    stage_quality, stage_cost = np.array([0.4, 0.8]), np.array([1.0, 3.0])
    dented = metrics.aiq(np.array([0.4, 0.5, 0.8]), np.array([1.0, 2.0, 3.0]), stage_quality, stage_cost)
    assert dented == pytest.approx(0.6)  # the point under the line is mixed away
    bulging = metrics.aiq(np.array([0.4, 0.8, 0.7]), np.array([1.0, 2.0, 3.0]), stage_quality, stage_cost)
    assert bulging == pytest.approx((0.6 + 0.8) / 2)  # a falling curve is not followed
    assert metrics.aiq(np.array([0.8]), np.array([2.0]), stage_quality, stage_cost) == pytest.approx(0.7)
    assert np.isnan(metrics.aiq(np.array([1.0]), np.array([1.0]), np.ones(2), np.ones(2)))


@given(units, units)
def test_the_hull_is_nowhere_below_the_curve(quality, cost):
    stages = np.array([quality[0], quality.max()]), np.array([cost.min() - 0.1, cost.max() + 0.1])
    assert metrics.aiq(quality, cost, *stages) >= metrics.cost_auc(quality, cost, *stages) - 1e-9


def test_deferral_by_hand():
    weak, strong = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    found = metrics.deferral(weak, strong, np.array([2.0, 4.0, 3.0, 1.0]), np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == [0.5, 0.75, 1.0, 1.0, 0.75]


@given(units)
def test_deferral_ends_at_the_two_stages(score):
    weak, strong = np.tile([0.0, 1.0], 20), np.tile([1.0, 0.5], 20)
    ends = metrics.deferral(weak, strong, score, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [weak.mean(), strong.mean()])
