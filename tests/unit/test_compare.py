"""Policies on recorded outcomes: the real policy objects, billed for all that they called."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.errors import UsageError
from stepladder.evaluate import compare, metrics
from stepladder.evaluate.aligned import align
from stepladder.evaluate.compare import Bench, Family
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.types import Attempt, Estimate, Estimates

DATA = make_aligned(80)
BENCH = Bench(DATA, DATA.cost)
FLAT = compare.as_estimates(np.tile([0.5, 0.6, 0.7], (80, 1)), STAGES)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_single_stage_has_its_recorded_quality_and_cost():
    for column, found in enumerate(compare.singles(BENCH, FLAT)):
        np.testing.assert_array_equal(found.quality, DATA.quality[:, column])
        np.testing.assert_array_equal(found.cost, DATA.cost[:, column])
        assert found.shares[column] == 1.0


def test_a_pipeline_is_billed_for_both():
    found = compare.play(BENCH, "fixed", FixedPolicy(first="small", then="large"), FLAT)
    assert set(found.cost) == {5.0}
    np.testing.assert_array_equal(found.quality, DATA.quality[:, 2])
    assert [each.name for each in compare.pipelines(BENCH, FLAT)] == ["fixed:small+medium", "fixed:small+large"]


@given(st.integers(0, 79), st.floats(0, 100), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_replay_of_a_choice_costs_what_was_recorded(number, lam, means):
    estimates = Estimates({name: Estimate(mean) for name, mean in zip(STAGES, means, strict=True)})
    course = compare.replay_query(BENCH, number, GreedyPolicy(), estimates, lam=lam)
    assert course.called == (course.kept,)
    assert course.cost == DATA.cost[number, course.kept]
    assert course.kept == int((lam * np.array(means) - DATA.cost[number]).argmax())


def test_a_cascade_sees_its_answers_and_pays_for_them():
    seen: list[tuple[str, ...]] = []

    def after(number: int, attempts: tuple[Attempt, ...]) -> Estimates:
        seen.append(tuple(attempt.stage for attempt in attempts))
        low = {name: Estimate(0.0) for name in STAGES}
        return Estimates(low | {"large": Estimate(1.0)})

    first = Estimates({"small": Estimate(0.9), "medium": Estimate(0.5), "large": Estimate(0.9)})
    course = compare.replay_query(BENCH, 3, GreedyPolicy(cascade=True), first, lam=50.0, after=after)
    assert course == (2, (0, 2), 5.0)
    assert seen == [("small",), ("small", "large")]


def test_seconds_are_those_of_all_calls():
    rows = [
        make_row(f"q{n}", name, 1.0, cost=1.0, latency_s=n + j + 1.0) for n in range(3) for j, name in enumerate("ab")
    ]
    bench = Bench(data := align(rows, ("a", "b")), data.cost)
    flat = compare.as_estimates(data.quality, data.stages)
    assert compare.pipelines(bench, flat)[0].seconds.tolist() == [3.0, 5.0, 7.0]
    assert compare.singles(bench, flat)[1].seconds.tolist() == [2.0, 3.0, 4.0]
    assert compare.play_mix(bench, "mix", (0.5, 0.5)).seconds.tolist() == [1.5, 2.5, 3.5]
    assert np.isnan(compare.singles(BENCH, FLAT)[0].seconds).all()


def test_chances_are_who_is_kept():
    found = compare.pipelines(BENCH, FLAT)[1]
    np.testing.assert_array_equal(found.chances, np.tile([0.0, 0.0, 1.0], (80, 1)))
    np.testing.assert_array_equal(compare.play_mix(BENCH, "mix", (1.0, 0.0, 3.0)).shares, [0.25, 0.0, 0.75])


def test_a_policy_that_gives_up_is_an_error():
    with pytest.raises(UsageError, match="gave up on recorded outcomes"):
        compare.play(BENCH, "single", SinglePolicy(stage="huge"), FLAT)


def test_random_mixes_lie_on_the_line_between_their_stages():
    quality, cost = DATA.quality.mean(axis=0), DATA.cost.mean(axis=0)
    found = compare.random_mixes(BENCH)
    for each in found:
        assert each.quality.mean() == pytest.approx(np.interp(each.cost.mean(), cost, quality))
    np.testing.assert_allclose([each.cost.mean() for each in found], sorted({*np.linspace(1, 4, 9), 2.0}))
    half = compare.play_mix(BENCH, "mix", (1.0, 0.0, 1.0))
    assert half.quality.mean() == pytest.approx((quality[0] + quality[2]) / 2)


def test_the_zero_router_is_nowhere_below_a_random_mix():
    hull = compare.zero_router(BENCH)
    costs, qualities = ([getattr(each, name).mean() for each in hull] for name in ("cost", "quality"))
    for mix in compare.random_mixes(BENCH):
        assert np.interp(mix.cost.mean(), costs, qualities) >= mix.quality.mean() - 1e-12


@given(st.integers(0, 1000), st.floats(0.1, 100))
@settings(max_examples=15, deadline=None)
def test_no_policy_is_worth_more_than_the_oracle(seed, lam):
    said = compare.as_estimates(chance(seed).random((80, 3)), STAGES)
    best = compare.oracle(BENCH, [lam])[0]
    worth = lam * best.quality.mean() - best.cost.mean()
    others = [compare.play(BENCH, "greedy", GreedyPolicy(), said, lam=lam), *compare.singles(BENCH, said)]
    others += [*compare.random_mixes(BENCH), *compare.zero_router(BENCH), *compare.pipelines(BENCH, said)]
    assert all(worth >= lam * each.quality.mean() - each.cost.mean() - 1e-9 for each in others)


def test_the_oracle_of_quality_takes_the_cheapest_of_the_best():
    found = compare.oracle(BENCH, [])[0]
    assert found.quality.mean() == DATA.quality.max(axis=1).mean()
    np.testing.assert_array_equal(found.cost, DATA.cost[0][DATA.quality.argmax(axis=1)])


def test_estimates_by_class():
    by_class = dict.fromkeys(("simple", "medium", "complex"), (0.1, 0.2, 0.3))
    found = compare.class_estimates(BENCH, by_class)
    assert found is not None
    assert found[0]["large"].mean == 0.3
    assert compare.class_estimates(BENCH, {"simple": (0.1, 0.2, 0.3)}) is None
    assert compare.class_estimates(BENCH, {}) is None


def test_summaries_of_the_known():
    grid = metrics.lambda_grid(DATA.quality.mean(axis=0), DATA.cost.mean(axis=0))
    truth = DATA.quality[:, -1] - DATA.quality[:, 0]
    found = compare.summarise(
        DATA, Family("oracle", compare.oracle(BENCH, grid.tolist()), truth), grid, chance(), times=50
    )
    assert found["gap_closed"] == pytest.approx(1.0)
    assert found["apgr"] > 0.7
    assert found["cost_save"] > 0.3
    assert found["cost_save_ci"][0] <= found["cost_save"] <= found["cost_save_ci"][1]
    dearest = compare.singles(BENCH, FLAT)[-1:]
    none = compare.summarise(DATA, Family("single", dearest), grid, chance(), times=50)
    assert [none["cost_save"], none["perf_gain"], *none["cost_save_ci"]] == pytest.approx([0.0] * 4)
    assert np.isnan(none["apgr"])
    assert none["gap_closed"] < 0
    elsewhere = Family("greedy", compare.curve(BENCH, "greedy", GreedyPolicy(), FLAT, [123.0]))
    assert np.isnan(compare.summarise(DATA, elsewhere, grid, chance(), times=2)["gap_closed"])


def test_a_family_without_lambda_takes_its_best_point_at_each():
    family = Family("single", compare.singles(BENCH, FLAT))
    grid = metrics.lambda_grid(DATA.quality.mean(axis=0), DATA.cost.mean(axis=0))
    for lam in grid.tolist():
        found = family.at(lam)
        assert found is not None
        assert found.value(lam).mean() == pytest.approx((lam * DATA.quality - DATA.cost).mean(axis=0).max())
    assert compare.summarise(DATA, family, grid, chance(), times=2)["gap_closed"] == pytest.approx(0.0, abs=1e-12)
    swept = Family("greedy", compare.curve(BENCH, "greedy", GreedyPolicy(), FLAT, [2.0, 5.0]))
    assert swept.at(5.0) is swept.played[1]
    assert swept.at(3.0) is None


def test_the_best_fixed_stage_closes_nothing():
    grid = metrics.lambda_grid(DATA.quality.mean(axis=0), DATA.cost.mean(axis=0))
    flat = compare.as_estimates(np.tile(DATA.quality.mean(axis=0), (80, 1)), STAGES)
    played = compare.curve(BENCH, "greedy", GreedyPolicy(), flat, compare.sweep(grid))
    found = compare.summarise(DATA, Family("greedy", played), grid, chance(), times=10)
    assert found["gap_closed"] == pytest.approx(0.0, abs=1e-12)


def test_intervals_are_those_of_the_same_resamples():
    same = compare.singles(BENCH, FLAT)[:1] * 2
    one, two = compare.intervals(DATA, same, chance(), times=100)
    assert one == two
    assert one[0][0] < same[0].quality.mean() < one[0][1]
    assert one[1] == pytest.approx((1.0, 1.0))


def test_a_sweep_holds_the_grid_and_more():
    grid = np.geomspace(1, 16, 9)
    found = compare.sweep(grid, 5.5, None)
    assert set(grid.tolist()) | {5.5} <= set(found)
    assert (found[0], found[-1]) == (pytest.approx(0.125), pytest.approx(128.0))
    assert found == sorted(found)
