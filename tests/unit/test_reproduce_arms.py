"""The arms of the experiment on tables small enough to reckon by hand, and laws that hold for any."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.reference import reference_of
from stepladder.reproduce import arms
from stepladder.reproduce.arms import Router

QUALITY = ((1, 1, 1), (0, 1, 1), (0, 0, 1), (0, 0, 0))
SECONDS = (0.1, 0.2, 0.4)
COSTS = (1.0, 2.0, 4.0)


def tiny(stages: int = 3, quality: tuple[tuple[int, ...], ...] = QUALITY) -> Aligned:
    levels = ("simple", "medium", "complex", "complex")
    rows = [
        make_row(f"q{n}", name, float(line[j]), cost=COSTS[j], latency_s=SECONDS[j], level=levels[n % 4])
        for n, line in enumerate(quality)
        for j, name in enumerate(STAGES[:stages])
    ]
    return align(rows, STAGES[:stages])


TINY = tiny()
BENCH = Bench(TINY, TINY.cost)


def played(data: Aligned, routers: int = 1, loss: float = 0.0) -> arms.Arms:
    said = compare.as_estimates(data.quality, data.stages)
    made = [Router(name, said, 5.0) for name in ("adaptive:paper-mlp", "adaptive:ours")[:routers]]
    return arms.play_all(data, data, arms.MEASURED, made, quality_loss=loss, seed=0)


def test_the_oracle_pays_no_more_than_it_must():
    found = arms.oracle_at(BENCH, 0.75)
    assert found.quality.mean() == pytest.approx(0.75)
    assert found.cost.tolist() == [1.0, 2.0, 4.0, 1.0]
    assert arms.oracle_at(BENCH, 0.5).cost.sum() == pytest.approx(1 + 2 + 1 + 1)
    assert arms.oracle_at(BENCH, 0.0).cost.tolist() == [1.0] * 4
    half = arms.oracle_at(BENCH, 0.625)
    assert half.quality.mean() == pytest.approx(0.625)
    assert half.cost.sum() == pytest.approx((5 + 8) / 2)
    assert arms.oracle_at(BENCH, 1.0).quality.mean() == 0.75


@given(st.integers(0, 10_000), st.floats(0.2, 1.0), st.sampled_from([1e-9, 1e-6, 1e6]))
@settings(max_examples=25, deadline=None)
def test_the_oracle_chooses_alike_in_any_unit_of_cost(seed, share, unit):
    data = make_aligned(40, seed=seed)
    dear = replace(data, cost=data.cost * unit)
    wanted = share * float(data.quality.max(axis=1).mean())
    one, other = (arms.oracle_at(Bench(each, each.cost), wanted) for each in (data, dear))
    assert other.cost.mean() / unit == pytest.approx(one.cost.mean(), rel=1e-9)


@given(st.integers(0, 10_000), st.floats(0.2, 1.0))
@settings(max_examples=25, deadline=None)
def test_the_oracle_is_what_trying_everything_finds_up_to_one_query(seed, share):
    data = make_aligned(6, seed=seed)
    bench = Bench(data, data.cost)
    wanted = share * float(data.quality.max(axis=1).mean())
    found = arms.oracle_at(bench, wanted)
    rows = np.arange(6)
    ways = [np.array(way) for way in product(range(3), repeat=6)]
    whole = min(data.cost[rows, way].mean() for way in ways if data.quality[rows, way].mean() >= wanted - 1e-12)
    assert whole - (4 - 1) / 6 - 1e-9 <= found.cost.mean() <= whole + 1e-9
    assert found.quality.mean() >= wanted - 1e-9
    np.testing.assert_allclose(found.chances.sum(axis=1), 1.0)


@given(st.integers(0, 1000), st.floats(0.1, 100))
@settings(max_examples=15, deadline=None)
def test_no_arm_is_worth_more_than_the_oracle_at_its_lambda(seed, lam):
    data = make_aligned(60, seed=seed)
    said = compare.as_estimates(np.random.default_rng(seed).random((60, 3)), STAGES)
    found = arms.play_all(
        data,
        make_aligned(60, seed=seed + 1),
        arms.MEASURED,
        [Router("adaptive:ours", said, lam)],
        quality_loss=0.01,
        seed=0,
    )
    best = compare.oracle(found.bench, [lam])[0]
    worth = lam * best.quality.mean() - best.cost.mean()
    for each in found.played:
        assert each.shares.sum() == pytest.approx(1.0)
        assert worth >= lam * each.quality.mean() - each.cost.mean() - 1e-9


@given(st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_random_mix_lies_on_the_line_at_its_cost(seed, place):
    data = make_aligned(60, seed=seed)
    reference = reference_of(data)
    cost, quality = data.cost.mean(axis=0), data.quality.mean(axis=0)
    hull = arms.metrics.hull(quality, cost)
    wanted = float(cost[hull[0]] + place * (cost[hull[-1]] - cost[hull[0]]))
    found = arms.random_mix(Bench(data, data.cost), reference, wanted)
    assert found is not None
    assert found.cost.mean() == pytest.approx(wanted)
    assert found.quality.mean() == pytest.approx(np.interp(wanted, cost[hull], quality[hull]))
    assert arms.random_mix(Bench(data, data.cost), reference, 5.0) is None


@pytest.mark.parametrize("stage", [0, 2])
def test_a_random_mix_at_the_cost_of_one_stage_alone_is_that_stage(stage):
    """The mean of one column, added up in two ways, differs in its last digits."""
    data = make_aligned(25, seed=3)
    data = replace(data, cost=np.random.default_rng(0).random((25, 3)) * 0.1 + [1.0, 1.7, 2.4])
    alone = compare.singles(Bench(data, data.cost), compare.as_estimates(data.quality, STAGES))[stage]
    for dust in (-1e-15, 0.0, 1e-15):
        found = arms.random_mix(Bench(data, data.cost), reference_of(data), float(alone.cost.mean()) + dust)
        assert found is not None
        assert found.shares[stage] == pytest.approx(1.0)


def test_fixed_pipelines_in_both_readings():
    found = played(TINY)
    by_name = {each.name: each for each in found.alone}
    both = by_name["fixed:small+large"]
    assert both.cost.tolist() == [5.0] * 4
    np.testing.assert_allclose(both.seconds, 0.5)
    split = by_name["split:small+large"]
    assert split.cost.mean() == pytest.approx(0.25 * 1 + 0.75 * 4)
    assert split.quality.mean() == pytest.approx(0.25 * 0.25 + 0.75 * 0.75)
    assert split.seconds.mean() == pytest.approx(0.25 * 0.1 + 0.75 * 0.4)
    assert found.missing == {"split:small+medium": "1.36 is no mix of 1.0 and 1.3"}
    two = played(tiny(2, tuple(line[:2] for line in QUALITY)))
    assert [each.name for each in two.alone] == ["single:small", "single:medium", "fixed:small+medium"]
    assert "this ladder has 2" in two.missing["split:small+medium"]


def test_readings_of_cost():
    assert [each.name for each in arms.readings(3)] == ["measured", "paper", "finer"]
    assert arms.readings(2) == arms.readings(4) == (arms.MEASURED,)
    dear = arms.priced(TINY, arms.PAPERS)
    np.testing.assert_array_equal(dear.cost, [[1.0, 1.3, 1.8]] * 4)
    np.testing.assert_array_equal(dear.quality, TINY.quality)
    assert arms.priced(TINY, arms.MEASURED) is TINY


def test_figures_of_the_known():
    found = played(TINY, routers=2)
    entries = dict(
        zip(
            [each.name for each in found.played], arms.figures(found, np.random.default_rng(0), times=200), strict=False
        )
    )
    large, small = entries["single:large"], entries["single:small"]
    assert (large["cheaper"], large["faster"], large["quality_diff"], large["oracle_share"]) == (0.0, 0.0, 0.0, 0.0)
    assert small["cheaper"] == pytest.approx(0.75)
    assert small["faster"] == pytest.approx(0.75)
    assert small["quality_diff"] == pytest.approx(-0.5)
    assert small["better"] == pytest.approx(0.25 / 0.75 - 1)
    assert small["oracle_quality"] == pytest.approx(0.25)
    oracle = entries["oracle"]
    assert (oracle["quality"], oracle["cost"], oracle["oracle_share"]) == pytest.approx((0.75, 2.0, 1.0))
    assert oracle["cheaper_ci"][0] <= oracle["cheaper"] <= oracle["cheaper_ci"][1]
    assert small["latency"]["mean"] == pytest.approx(0.1)


def test_ratios_are_paired():
    """Each query's cost is the same multiple of the dearest stage's, so the ratio has no width."""
    rows = [
        make_row(f"q{n}", name, 1.0, cost=n + (j + 1.0) * n, latency_s=1.0)
        for n in range(1, 9)
        for j, name in enumerate(STAGES)
    ]
    found = played(align(rows, STAGES))
    small = arms.figures(found, np.random.default_rng(0), times=50)[0]
    assert small["cheaper_ci"] == pytest.approx((0.5, 0.5))
    assert small["cost_ci"][0] < small["cost_ci"][1]


def test_latency_of_a_mix_is_over_queries_and_coin():
    mix = compare.play_mix(BENCH, "mix", (0.6, 0.0, 0.4))
    assert arms.latency(BENCH, mix) == pytest.approx({"mean": 0.22, "p50": 0.1, "p95": 0.4})
    sure = compare.singles(BENCH, compare.as_estimates(TINY.quality, STAGES))[1]
    assert arms.latency(BENCH, sure) == pytest.approx({"mean": 0.2, "p50": 0.2, "p95": 0.2})


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_a_quantile_with_equal_weights_is_the_plain_one(values, share):
    found = arms.weighted_quantile(np.array(values), np.ones(len(values)), share)
    assert found == pytest.approx(np.quantile(values, share, method="inverted_cdf"), abs=1e-9) or found in values
    assert np.mean(np.array(values) <= found) >= share - 1e-9


def test_shares_by_class():
    found = arms.shares_by_class(compare.oracle(BENCH, [])[0], [str(level) for level in TINY.levels], STAGES)
    assert found["simple"] == {"small": 1.0, "medium": 0.0, "large": 0.0}
    assert found["medium"] == {"small": 0.0, "medium": 1.0, "large": 0.0}
    assert found["complex"] == {"small": 0.5, "medium": 0.0, "large": 0.5}


def test_a_calibrated_mix_takes_its_shares_from_training_rows():
    train, judged = make_aligned(300), make_aligned(200)
    reference = reference_of(train)
    found = arms.calibrated_mix(Bench(judged, judged.cost), reference, 0.05)
    shares = found.chances[0]
    assert np.allclose(found.chances, shares)
    assert shares.sum() == pytest.approx(1)
    assert float(shares @ reference.quality) == pytest.approx(0.95 * reference.quality[-1])
    whole = arms.calibrated_mix(Bench(judged, judged.cost), reference, 1.0)
    assert whole.chances[0].tolist() == [1, 0, 0]


def test_deciding_counts_as_latency():
    said = compare.as_estimates(TINY.quality, TINY.stages)
    quick, slow = (arms.along(BENCH, Router("adaptive:ours", said, 5.0, taken), [5.0])[0] for taken in (0.0, 0.25))
    assert np.allclose(slow.seconds - quick.seconds, 0.25)
