"""Laws that hold for every ladder, price and posterior."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.contracts import Policy
from stepladder.errors import UsageError
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import RandomSplitPolicy, split_for_cost
from stepladder.policies.single import SinglePolicy
from stepladder.testing import make_attempt, make_view
from stepladder.testing.policies import check_policy
from stepladder.types import Call, Cost, Estimate, Estimates, Stop, View

# Binary fractions: λ·Q − C is exact, so that ties are ties.
SHARES = st.integers(0, 64).map(lambda n: n / 64)
PRICES = st.integers(0, 640).map(lambda n: n / 64)
LAMBDAS = st.integers(0, 400).map(lambda n: n / 8)


@st.composite
def views(draw: st.DrawFn, least: int = 2) -> View:
    names = tuple(f"s{i}" for i in range(draw(st.integers(least, 8))))
    qualities = draw(st.lists(SHARES, min_size=len(names), max_size=len(names)))
    costs = sorted(draw(st.lists(PRICES, min_size=len(names), max_size=len(names))))
    return make_view(dict(zip(names, qualities, strict=True)), costs, lam=draw(LAMBDAS), coin=draw(SHARES) * 0.999)


def called(policy: Policy, view: View) -> str:
    action = policy.decide(view).action
    assert isinstance(action, Call)
    return action.stage


def with_cost(view: View, stage: str, cost: float) -> View:
    return replace(view, costs={**view.costs, stage: Cost(cost)})


@given(views())
def test_greedy_is_the_brute_force_argmax_with_ties_to_the_cheaper(view: View) -> None:
    def exact(stage: str) -> Fraction:
        return Fraction(view.lam) * Fraction(view.estimates[stage].mean) - Fraction(view.costs[stage].total)

    best = max(exact(stage) for stage in view.stages)
    assert called(GreedyPolicy(), view) == next(stage for stage in view.stages if exact(stage) == best)


@given(views(), st.data())
def test_raising_a_stages_cost_never_raises_its_use(view: View, data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(view.stages))
    dearer = with_cost(view, stage, view.costs[stage].resource + data.draw(PRICES))
    if called(GreedyPolicy(), view) != stage:
        assert called(GreedyPolicy(), dearer) != stage


@given(views())
def test_free_stages_leave_quality_alone_to_decide(view: View) -> None:
    free = replace(view, lam=1 + view.lam, costs={stage: Cost(0.0) for stage in view.stages})
    best = max(view.estimates[stage].mean for stage in view.stages)
    assert view.estimates[called(GreedyPolicy(), free)].mean == best


@given(views(), LAMBDAS)
def test_quality_never_falls_as_lambda_rises(view: View, more: float) -> None:
    below, above = called(GreedyPolicy(), view), called(GreedyPolicy(), replace(view, lam=view.lam + more))
    assert view.estimates[above].mean >= view.estimates[below].mean
    assert view.costs[above].total >= view.costs[below].total or view.estimates[above] == view.estimates[below]


@given(views(), st.data())
def test_a_climb_is_worth_its_price_and_a_stop_leaves_none_that_is(view: View, data: st.DataObject) -> None:
    tried = data.draw(st.lists(st.sampled_from(view.stages), min_size=1, max_size=4, unique=True))
    view = replace(view, attempts=tuple(make_attempt(stage) for stage in tried))
    action = GreedyPolicy(cascade=True).decide(view).action
    held = max(view.estimates[stage].mean for stage in tried)
    gains = {
        stage: view.lam * (view.estimates[stage].mean - held) - view.costs[stage].total
        for stage in view.stages
        if stage not in tried
    }
    if isinstance(action, Stop):
        assert all(gain <= 0 for gain in gains.values())
        assert view.estimates[action.attempt.stage].mean == held
    else:
        assert isinstance(action, Call)
        assert gains[action.stage] == max(gains.values()) > 0


@given(views())
def test_a_cascade_that_learns_nothing_asks_once(view: View) -> None:
    cascade = GreedyPolicy(cascade=True)
    first = called(cascade, view)
    assert first == called(GreedyPolicy(), view)
    answered = make_attempt(first)
    assert cascade.decide(replace(view, attempts=(answered,))).action == Stop(answered)


@given(views(), st.data())
def test_fixed_bills_both(view: View, data: st.DataObject) -> None:
    first, then = data.draw(st.permutations(view.stages))[:2]
    policy, asked = FixedPolicy(first=first, then=then), []
    while isinstance(action := policy.decide(view).action, Call):
        asked.append(action.stage)
        bill = view.costs[action.stage].resource
        attempts = (*view.attempts, make_attempt(action.stage, cost=bill))
        view = replace(view, attempts=attempts, spent=view.spent + bill)
    assert asked == [first, then]
    assert action == Stop(view.attempts[-1])
    assert view.spent == view.costs[first].resource + view.costs[then].resource


@given(st.lists(st.integers(0, 640), min_size=1, max_size=8), st.integers(0, 640))
def test_a_split_meets_its_cost_exactly_in_expectation(costs: list[int], target: int) -> None:
    """In rational arithmetic: the weights come out as fractions, so the mean is the target and not nearly so."""
    exact = [Fraction(cost, 64) for cost in costs]
    wanted = Fraction(target, 64)
    try:
        weights = split_for_cost(exact, wanted)  # type: ignore[arg-type]
    except UsageError:
        assert not min(exact) <= wanted <= max(exact)
        return
    assert sum(weights) == 1
    assert sum(Fraction(weight) * cost for weight, cost in zip(weights, exact, strict=True)) == wanted


@given(st.lists(st.integers(1, 20), min_size=2, max_size=8))
def test_a_split_calls_each_stage_as_often_as_its_propensity_says(weights: list[int]) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    policy, total = RandomSplitPolicy(stages=names, weights=weights), sum(weights)
    view = make_view(dict.fromkeys(names, 0.5), [1.0] * len(names))
    drawn = dict.fromkeys(names, 0)
    for ticket in range(total):
        decision = policy.decide(replace(view, coin=(ticket + 0.5) / total))
        assert isinstance(decision.action, Call)
        drawn[decision.action.stage] += 1
        assert decision.propensity == weights[names.index(decision.action.stage)] / total
    assert list(drawn.values()) == weights


@given(views(), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=200)
def test_every_walk_ends_and_asks_no_stage_twice(view: View, seed: int, faults: float) -> None:
    chance = random.Random(seed)
    policies: list[Policy] = [
        GreedyPolicy(),
        GreedyPolicy(cascade=True),
        SinglePolicy(),
        SinglePolicy(stage=view.stages[0]),
        FixedPolicy(first=view.stages[0], then=view.stages[-1]),
        RandomSplitPolicy(stages=view.stages),
    ]
    for policy in policies:
        here = view
        for _ in range(len(view.stages) + 1):
            action = policy.decide(here).action
            if not isinstance(action, Call):
                break
            assert action.stage not in [attempt.stage for attempt in here.attempts]
            failed = chance.random() < faults
            attempt = make_attempt(action.stage, fault="server" if failed else None)
            moved = Estimates({stage: Estimate(chance.random()) for stage in view.stages})
            here = replace(here, attempts=(*here.attempts, attempt), estimates=moved, coin=chance.random())
        else:
            raise AssertionError(f"{policy.name} did not end")


def test_thousands_of_steps_under_random_faults() -> None:
    for count in range(2, 9):
        names = tuple(f"s{i}" for i in range(count))
        for policy in (GreedyPolicy(), GreedyPolicy(cascade=True), RandomSplitPolicy(stages=names)):
            check_policy(policy, names, walks=300, seed=count)
