"""Laws of optimal stopping, each on the model that the policies go by themselves: worth is computed, not simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod, sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.contracts import Policy
from stepladder.policies.cascade_route import CascadeRoutePolicy, set_values
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.induction import _by_sets, best_called, chances, tree, worth_of_calls
from stepladder.policies.laws import law, reservation
from stepladder.policies.optimal import OptimalPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.testing import make_attempt
from stepladder.types import Call, Cost, Estimate, Estimates, Stop, View
from stopping_models import (
    LAMBDAS,
    PRICES,
    SHARES,
    Model,
    independent,
    play,
    scaled,
    telling_views,
    with_cost,
    with_costs,
)

SEEING = (PandoraPolicy, CascadeRoutePolicy, OptimalPolicy)
"""Those that go by the laws of what answers will tell."""


# ── laws of posterior means ──────────────────────────────────────────────────


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 64))
def test_a_law_keeps_its_mean_and_as_much_spread_as_it_can(mean: float, told: float, levels: int) -> None:
    values = law(mean, told, levels)
    assert list(values) == sorted(values)
    assert 0.0 <= values[0] <= values[-1] <= 1.0
    assert fmean(values) == pytest.approx(mean, abs=1e-12)
    spread = sqrt(fmean((value - mean) ** 2 for value in values))
    wanted = min(told, sqrt(mean * (1 - mean)))
    if levels == 1 or wanted <= 1e-9:
        assert values == (mean,)
    elif spread < wanted - 1e-7:  # as wide as can be: all but one value at the ends
        assert sum(1 for value in values if 1e-9 < value < 1 - 1e-9) <= 1
    else:
        assert spread == pytest.approx(wanted, abs=1e-7)


@given(st.lists(SHARES, min_size=1, max_size=8).map(sorted), LAMBDAS, PRICES)
def test_a_reservation_value_is_the_root_of_its_equation(values: list[float], lam: float, cost: float) -> None:
    sigma = reservation(values, lam, cost)
    assert fmean(max(0.0, lam * value - sigma) for value in values) == pytest.approx(cost, abs=1e-12)
    assert sigma >= lam * fmean(values) - cost - 1e-12


# ── one and the same where nothing is told ───────────────────────────────────


@pytest.mark.parametrize("kind", SEEING)
@given(view=telling_views(most=8, tells=False), again=st.booleans())
@settings(max_examples=60)
def test_answers_that_tell_nothing_leave_the_greedy_rule(kind: type, view: View, again: bool) -> None:
    policy: Policy = OptimalPolicy(max_stages=8) if kind is OptimalPolicy else kind()
    first = GreedyPolicy().decide(view)
    action = policy.decide(view).action
    assert isinstance(action, Call)
    assert isinstance(first.action, Call)
    if again:  # one that failed, so that there is something to choose from without it
        view = replace(view, attempts=(make_attempt(first.action.stage, fault="server"),))
        first, action = GreedyPolicy().decide(view), policy.decide(view).action
        assert isinstance(action, Call)
        assert isinstance(first.action, Call)
    assert action.stage == first.action.stage
    if kind is PandoraPolicy:
        assert policy.decide(view).values == first.values
    answered = make_attempt(action.stage)
    assert policy.decide(replace(view, attempts=(*view.attempts, answered))).action == Stop(answered)


# ── optimal ──────────────────────────────────────────────────────────────────


@given(telling_views(most=4), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_pandora_is_optimal_where_signals_are_independent(view: View, levels: int) -> None:
    model = independent(view, levels)
    weitzman = play(PandoraPolicy(levels=levels), model, view, told=False)
    thorough = OptimalPolicy(levels=levels)
    best = max(thorough.decide(view).values.values())
    assert weitzman.worth == pytest.approx(best, abs=1e-9)
    assert play(thorough, model, view, told=False).worth == pytest.approx(best, abs=1e-9)


@given(telling_views(least=5, most=8))
@settings(max_examples=12, deadline=None)
def test_pandora_is_optimal_on_up_to_eight_stages(view: View) -> None:
    best = max(OptimalPolicy(levels=2, max_stages=8).decide(view).values.values())
    weitzman = play(PandoraPolicy(levels=2), independent(view, 2), view, told=False)
    assert weitzman.worth == pytest.approx(best, abs=1e-9)


@given(telling_views(most=4), st.integers(2, 4), SHARES)
@settings(max_examples=60, deadline=None)
def test_pandora_and_optimal_agree_with_an_answer_in_hand(view: View, levels: int, held: float) -> None:
    """The worth of calling the best stage and going on from there, with something to fall back on."""
    view = _holding(view, held)
    weitzman, best = PandoraPolicy(levels=levels).decide(view), OptimalPolicy(levels=levels).decide(view)
    margin = max(best.values.values())
    assert isinstance(weitzman.action, Stop) == (max(weitzman.values.values()) <= 0)
    if abs(margin) > 1e-9:
        assert isinstance(best.action, Stop) == isinstance(weitzman.action, Stop)
    if isinstance(weitzman.action, Call):
        assert best.values[weitzman.action.stage] == pytest.approx(margin, abs=1e-9)


@st.composite
def small_trees(draw: st.DrawFn) -> tuple[tuple[int, ...], list[float], list[list[float]], list[float], float]:
    """Numbers of signals, any joint law of them, any quality of each stage under all signals, costs, λ."""
    levels = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=3)))
    size = prod(levels)
    weights = draw(st.lists(st.integers(0, 8), min_size=size, max_size=size).filter(any))
    quality = [draw(st.lists(SHARES, min_size=size, max_size=size)) for _ in levels]
    costs = draw(st.lists(PRICES, min_size=len(levels), max_size=len(levels)))
    return levels, [weight / sum(weights) for weight in weights], quality, costs, draw(LAMBDAS)


@given(small_trees())
@settings(max_examples=60, deadline=None)
def test_optimal_is_the_best_of_all_policies_there_are(case) -> None:
    """Under any joint law: signals may be tied in any way, and may tell of each other's quality too."""
    levels, joint, quality, costs, lam = case
    every = list(product(*(range(many) for many in levels)))
    likely = dict(zip(every, joint, strict=True))

    def about(seen: dict[int, int]) -> tuple[float, list[float]]:
        """The chance of what was seen, and each stage's expected quality given it."""
        fits = [number for number, all_ in enumerate(every) if all(all_[i] == s for i, s in seen.items())]
        total = sum(joint[number] for number in fits)
        if total == 0:
            return 0.0, [0.0] * len(levels)
        return total, [sum(joint[n] * line[n] for n in fits) / total for line in quality]

    def policies(seen: dict[int, int]) -> Iterator[float]:
        """The worth of every single policy from here on."""
        total, means = about(seen)
        if seen:
            yield lam * max(means[stage] for stage in seen)
        for stage in range(len(levels)):
            if stage in seen:
                continue
            after = [{**seen, stage: signal} for signal in range(levels[stage])]
            follow = [then for then in after if about(then)[0] > 0]
            chances_of = [about(then)[0] / total for then in follow]
            for ways in product(*(sorted(set(policies(then))) for then in follow)):
                yield sum(p * way for p, way in zip(chances_of, ways, strict=True)) - costs[stage]

    states = tree(levels)
    chance = np.array([about(_seen(line, levels))[0] for line in states.signals.tolist()])
    stopping = np.array([_best(about(_seen(line, levels))[1], _seen(line, levels)) for line in states.signals.tolist()])
    found = worth_of_calls(states, chance, lam * np.where(np.isfinite(stopping), stopping, -1e30), costs)
    assert sum(likely.values()) == pytest.approx(1.0)
    assert found.max() == pytest.approx(max(policies({})), abs=1e-9)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_many_states_are_thought_through_as_few_are(levels: tuple[int, ...], held: bool, seed: int) -> None:
    """State by state or set by set, the plan is worth the same, also where some states cannot be."""
    rng = np.random.default_rng(seed)
    few, many = tree(levels), _by_sets(levels)
    assert few.layers
    assert not few.sets
    chance = chances(levels, 0.5) * (rng.random(len(few.signals)) < 0.8)
    values = [np.sort(rng.random(count)).tolist() for count in levels]
    stopping, costs = best_called(few, values, 0.4 if held else None), rng.random(len(levels)).tolist()
    by_hand = [
        max([v[s] for v, s, n in zip(values, line, levels, strict=True) if s < n], default=-np.inf)
        for line in few.signals.tolist()
    ]
    assert np.array_equal(stopping, np.maximum(by_hand, 0.4 if held else -np.inf))
    one, other = (worth_of_calls(each, chance, stopping, costs) for each in (few, many))
    assert one == pytest.approx(other, abs=1e-12)


def test_states_that_are_many_are_kept_by_sets() -> None:
    assert tree((10,) * 5).sets
    assert not tree((10,) * 5).layers
    assert tree((4,) * 5).layers


def _seen(line: Sequence[int], levels: Sequence[int]) -> dict[int, int]:
    return {stage: signal for stage, signal in enumerate(line) if signal < levels[stage]}


def _best(means: Sequence[float], seen: dict[int, int]) -> float:
    return max((means[stage] for stage in seen), default=-np.inf)


def copula(view: View, levels: int, correlation: float) -> Model:
    """Stages whose signals go together as ``optimal`` takes them to."""
    laws = tuple(law(view.estimates[name].mean, view.estimates[name].told, levels) for name in view.stages)
    sizes = tuple(len(values) for values in laws)
    likely = chances(sizes, correlation).reshape([many + 1 for many in sizes])
    return Model(view.stages, laws, {all_: float(likely[all_]) for all_ in product(*map(range, sizes))})


@given(telling_views(most=3), st.integers(2, 3), st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]))
@settings(max_examples=40, deadline=None)
def test_a_copula_leaves_every_stage_its_law_and_no_policy_beats_the_plan(
    view: View, levels: int, correlation: float
) -> None:
    model = copula(view, levels, correlation)
    for number, name in enumerate(view.stages):
        for _, likely in model.signals(number, {}):
            assert likely == pytest.approx(1 / len(model.values[number]), abs=1e-7)
        assert model.estimates({})[name].mean == pytest.approx(view.estimates[name].mean, abs=1e-7)
    planned = max(OptimalPolicy(levels=levels, correlation=correlation).decide(view).values.values())
    for policy in (PandoraPolicy(levels=levels), CascadeRoutePolicy(levels=levels), GreedyPolicy(cascade=True)):
        assert play(policy, model, view).worth <= planned + 1e-6


# ── sets ─────────────────────────────────────────────────────────────────────


@given(telling_views(most=4), st.integers(1, 3), st.none() | SHARES)
def test_the_worth_of_a_set_is_that_of_asking_all_of_it(view: View, levels: int, held: float | None) -> None:
    laws = [law(view.estimates[name].mean, view.estimates[name].told, levels) for name in view.stages]
    costs = [view.costs[name].total for name in view.stages]
    found = set_values(laws, costs, view.lam, held)
    for place in range(1 << len(laws)):
        members = [number for number in range(len(laws)) if place >> number & 1]
        best = fmean(max((held or 0.0, *values)) for values in product(*(laws[number] for number in members)))
        worth = view.lam * (best - (held or 0.0)) - sum(costs[number] for number in members)
        assert found[place] == pytest.approx(worth, abs=1e-9)


# ── what no policy may break ─────────────────────────────────────────────────


def _holding(view: View, held: float) -> View:
    """The view with an answer of this quality in hand, of a stage that is none of the others."""
    known = Estimates({"held": Estimate(held), **view.estimates.stages})
    costs = {"held": Cost(0.0), **view.costs}
    names = ("held", *view.stages)
    return replace(view, stages=names, estimates=known, costs=costs, attempts=(make_attempt("held"),))


@pytest.mark.parametrize("kind", [PandoraPolicy, OptimalPolicy])
@given(view=telling_views(most=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_dearer_stage_is_expected_to_be_called_no_more(kind: type, view: View, data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(view.stages))
    more = data.draw(PRICES.filter(bool))
    dearer = with_cost(view, stage, view.costs[stage].total + more)
    model, policy = independent(view, 3), kind(levels=3)
    before, after = (play(policy, model, each, told=False).calls[stage] for each in (view, dearer))
    assert after <= before + 1e-9


@given(telling_views(most=6), st.none() | SHARES, st.data())
def test_a_dearer_stage_enters_no_set_that_it_was_not_in(view: View, held: float | None, data: st.DataObject) -> None:
    """What ``cascade-route`` takes itself to be about to call."""
    number = data.draw(st.integers(0, len(view.stages) - 1))
    more = data.draw(PRICES.filter(bool))
    dearer = with_cost(view, view.stages[number], view.costs[view.stages[number]].total + more)

    def chosen(here: View) -> int:
        laws = [law(here.estimates[name].mean, here.estimates[name].told, 4) for name in here.stages]
        costs = [here.costs[name].total for name in here.stages]
        return int(np.argmax(set_values(laws, costs, here.lam, held)[0 if held is not None else 1 :]))

    offset = 0 if held is not None else 1
    if not (chosen(view) + offset) >> number & 1:
        assert not (chosen(dearer) + offset) >> number & 1


@given(telling_views(most=4), st.sampled_from([0.0, 0.5, 0.9]), st.data())
@settings(max_examples=30, deadline=None)
def test_the_worth_of_the_best_way_is_convex_in_every_cost(view: View, correlation: float, data: st.DataObject) -> None:
    """By the envelope theorem its slope is minus the expected calls, so that a dearer stage is called no more."""
    stage = data.draw(st.sampled_from(view.stages))
    low, high = sorted([data.draw(PRICES), data.draw(PRICES)])
    policy = OptimalPolicy(levels=3, correlation=correlation)

    def worth(cost: float) -> float:
        return max(policy.decide(with_cost(view, stage, cost)).values.values())

    assert worth((low + high) / 2) <= (worth(low) + worth(high)) / 2 + 1e-9
    assert worth(high) <= worth(low) + 1e-9


@pytest.mark.parametrize("kind", SEEING)
@given(view=telling_views(most=4))
@settings(max_examples=40, deadline=None)
def test_free_stages_end_with_the_best(kind: type, view: View) -> None:
    """The expected quality is that of asking all and keeping the best."""
    free = replace(with_costs(view, [0.0] * len(view.stages)), lam=1.0 + view.lam)
    model = independent(free, 3)
    best = fmean(max(values) for values in product(*model.values))
    assert play(kind(levels=3), model, free, told=False).quality == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", SEEING)
@given(view=telling_views(most=5), power=st.integers(-20, 20), held=st.none() | SHARES)
@settings(max_examples=60, deadline=None)
def test_the_unit_of_cost_changes_nothing(kind: type, view: View, power: int, held: float | None) -> None:
    view = view if held is None else _holding(view, held)
    here, there = kind().decide(view), kind().decide(scaled(view, 2.0**power))
    assert here.action == there.action
    assert {stage: value * 2.0**power for stage, value in here.values.items()} == dict(there.values)


@pytest.mark.parametrize("kind", SEEING)
@given(view=telling_views(least=2, most=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_allowed_stages_are_called(kind: type, view: View, data: st.DataObject) -> None:
    allowed = data.draw(st.lists(st.sampled_from(view.stages), min_size=1, unique=True))
    view = replace(view, stages=tuple(stage for stage in view.stages if stage in allowed))
    decision = kind().decide(view)
    assert isinstance(decision.action, Call)
    assert decision.action.stage in allowed
    assert decision.action.final == (len(allowed) == 1)
    assert set(decision.values) <= set(allowed)
