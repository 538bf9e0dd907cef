"""Finding λ on recorded outcomes: what is promised is what a replay at that λ gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import STAGES, make_aligned
from stepladder.errors import UsageError
from stepladder.evaluate import calibration, compare
from stepladder.evaluate.calibration import Replay
from stepladder.evaluate.compare import Bench, Played
from stepladder.evaluate.metrics import lambda_grid
from stepladder.policies.budget import BudgetPolicy
from stepladder.policies.greedy import GreedyPolicy

DATA = make_aligned(150, seed=4)
BENCH = Bench(DATA, DATA.cost)
SAID = compare.as_estimates(0.6 * DATA.quality + 0.4 * np.random.default_rng(1).random(DATA.quality.shape), STAGES)


def at(lam: float) -> Played:
    return compare.play(BENCH, "greedy", GreedyPolicy(), SAID, lam=lam)


REPLAY = Replay(at, lambda_grid(DATA.quality.mean(axis=0), DATA.cost.mean(axis=0)))


@given(st.floats(1.0, 3.9))
@settings(max_examples=15, deadline=None)
def test_a_mix_meets_a_budget_exactly(budget):
    found = calibration.at_cost(REPLAY, budget)
    lower, higher, share = found.mix
    assert found.lam == lower
    assert found.played.cost.mean() <= budget + 1e-12
    assert REPLAY.cost(higher) > budget or higher == lower
    mixed = (1 - share) * REPLAY.cost(lower) + share * REPLAY.cost(higher)
    assert mixed == pytest.approx(budget) or (higher == lower and mixed <= budget)


def test_the_policy_that_serves_meets_it_too():
    """On average over lots: each query at the higher λ for its share."""
    lower, higher, share = calibration.at_cost(REPLAY, 2.0).mix
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[lower, higher], share=share)
    benches = [Bench(DATA, DATA.cost, seed) for seed in range(40)]
    costs = [compare.play(each, "budget", policy, SAID).cost.mean() for each in benches]
    assert np.mean(costs) == pytest.approx(2.0, abs=0.01)


def test_the_neighbours_of_a_budget_are_close():
    lower, higher, _ = calibration.at_cost(REPLAY, 2.0).mix
    assert 0 < higher - lower <= calibration.CLOSE * higher


def test_the_smallest_lambda_of_a_quality():
    target = 0.9 * DATA.quality[:, -1].mean()
    found = calibration.at_quality(REPLAY, target)
    assert found.played.quality.mean() >= target
    assert REPLAY.quality(found.lam * (1 - 3 * calibration.CLOSE)) < target
    assert calibration.at_quality(REPLAY, 0.0).lam == 0.0


def test_the_floor_keeps_its_risk_and_no_smaller_lambda_does():
    dearest = DATA.quality[:, -1]
    found = calibration.at_floor(REPLAY, dearest, 0.5, 0.1)
    n, dropped = len(DATA), dearest - found.played.quality > 0.5
    assert (dropped.sum() + 1) / (n + 1) <= 0.1
    below = REPLAY.coarse[REPLAY.coarse.index(found.lam) - 1]
    assert ((dearest - REPLAY(below).quality > 0.5).sum() + 1) / (n + 1) > 0.1


def test_what_cannot_be_had():
    with pytest.raises(UsageError, match="no λ reaches the mean quality 1 on these rows: the best is 0"):
        calibration.at_quality(REPLAY, 1.0)
    with pytest.raises(UsageError, match="no mix has the mean cost 0.5: the least that any λ costs is 1"):
        calibration.at_cost(REPLAY, 0.5)
    with pytest.raises(UsageError, match="no λ keeps the risk at 0"):
        calibration.at_floor(REPLAY, DATA.quality[:, -1], 0.0, 0.0)


def test_each_lambda_is_played_once():
    asked: list[float] = []

    def noted(lam: float) -> Played:
        asked.append(lam)
        return at(lam)

    replay = Replay(noted, np.array([1.0, 10.0]))
    calibration.at_cost(replay, 2.0)
    calibration.at_quality(replay, 0.5)
    assert len(asked) == len(set(asked))
