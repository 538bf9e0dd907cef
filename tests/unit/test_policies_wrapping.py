"""Policies over policies: budget, quality-floor and latency-slo, alone, together, and by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stepladder import config
from stepladder.build import build
from stepladder.contracts import Policy
from stepladder.errors import ConfigError, StepladderError, UsageError
from stepladder.policies.budget import BudgetPolicy, mix_for_budget
from stepladder.policies.cascade import CascadePolicy
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.latency_slo import LatencySLOPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.policies.quality_floor import QualityFloorPolicy, risk_controlled
from stepladder.policies.random_split import RandomSplitPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.testing import check_policy, make_attempt, make_view
from stepladder.types import Attempt, Call, Fail, Stop, View

QUALITY = {"small": 0.5, "medium": 0.75, "large": 1.0}
COSTS = (1.0, 1.5, 4.0)
SECONDS = {"small": 1.0, "medium": 2.0, "large": 8.0}
NAMES = ("small", "medium", "large")


def timed(*attempts: Attempt, seconds: float = 0.0, **more: Any) -> View:
    """A view whose stages take SECONDS; every attempt so far took ``seconds``."""
    view = make_view(QUALITY, COSTS, attempts=[replace(attempt, seconds=seconds) for attempt in attempts], **more)
    costs = {name: replace(cost, seconds=SECONDS[name]) for name, cost in view.costs.items()}
    return replace(view, costs=costs)


# ── budget ───────────────────────────────────────────────────────────────────


def test_a_budget_plays_the_higher_lambda_for_its_share() -> None:
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[1.0, 20.0], share=0.25)
    low, high = policy.decide(make_view(QUALITY, COSTS, lot=0.25)), policy.decide(make_view(QUALITY, COSTS, lot=0.2))
    assert (low.action, low.propensity) == (Call("small", final=True), 0.75)
    assert (high.action, high.propensity) == (Call("large", final=True), 0.25)
    assert low.reason.endswith("; λ=1 by lot")
    assert high.reason.endswith("; λ=20 by lot")
    assert policy.name == "budget(greedy)"


def test_where_both_lambdas_agree_nothing_is_left_to_the_lot() -> None:
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[19.0, 20.0], share=0.25)
    for lot in (0.0, 0.9):
        assert policy.decide(make_view(QUALITY, COSTS, lot=lot)).propensity == 1.0


def test_a_budgets_propensity_takes_in_its_bases() -> None:
    split = RandomSplitPolicy(stages=["small", "large"], weights=[1, 3])
    policy = BudgetPolicy(base=split, lambdas=[1.0, 20.0], share=0.5)
    assert policy.decide(make_view(QUALITY, COSTS, lot=0.7, coin=0.1)).propensity == 0.25


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_or_nothing_leaves_one_lambda(share: float) -> None:
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[1.0, 20.0], share=share)
    for lot in (0.0, 0.5, 1 - 2**-53):
        decision = policy.decide(make_view(QUALITY, COSTS, lot=lot))
        assert decision.action == Call("large" if share else "small", final=True)
        assert decision.propensity == 1.0


def test_the_lot_not_the_requests_lambda_decides() -> None:
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[1.0, 1.0])
    assert policy.decide(make_view(QUALITY, COSTS, lam=1000.0)).action == Call("small", final=True)


def test_a_mix_meets_its_budget() -> None:
    costs = {1.0: 1.0, 5.0: 2.0, 20.0: 4.0}
    assert mix_for_budget(costs, 3.0) == (5.0, 20.0, 0.5)
    assert mix_for_budget(costs, 2.0) == (5.0, 20.0, 0.0)
    assert mix_for_budget(costs, 9.0) == (20.0, 20.0, 0.0)
    assert mix_for_budget({1.0: 1.0, 2.0: 3.0, 3.0: 2.0, 4.0: 5.0}, 2.5) == pytest.approx((3.0, 4.0, 1 / 6))


@pytest.mark.parametrize(
    ("costs", "budget", "told"),
    [
        ({}, 1.0, "one λ or more"),
        ({1.0: float("nan")}, 1.0, "all finite numbers"),
        ({1.0: 1.0}, float("inf"), "all finite numbers"),
        ({1.0: 2.0, 5.0: 1.5}, 1.0, r"no mix has the mean cost 1: the least that any λ costs is 1.5 \(λ=5\)"),
    ],
)
def test_a_mix_that_cannot_be(costs: dict[float, float], budget: float, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        mix_for_budget(costs, budget)


# ── quality-floor ────────────────────────────────────────────────────────────


def test_a_floor_lifts_lambda_and_never_lowers_it() -> None:
    policy = QualityFloorPolicy(base=GreedyPolicy(), floor=20.0)
    assert policy.decide(make_view(QUALITY, COSTS, lam=1.0)).action == Call("large", final=True)
    assert policy.decide(make_view(QUALITY, COSTS, lam=1.0)).reason.endswith("; λ=20 is the floor")
    view = make_view(QUALITY, COSTS, lam=50.0)
    assert policy.decide(view) == GreedyPolicy().decide(view)


def test_the_first_safe_lambda_is_chosen() -> None:
    losses = np.zeros((99, 4))
    losses[:40, 0], losses[:9, 1], losses[:2, 2] = 1.0, 1.0, 1.0
    assert risk_controlled(losses, 0.5) == 0
    assert risk_controlled(losses, 0.1) == 1  # (9 + 1) / 100
    assert risk_controlled(losses, 0.099) == 2
    assert risk_controlled(losses, 0.01) == 3


def test_a_loss_that_comes_back_counts_below_too() -> None:
    losses = np.zeros((9, 3))
    losses[:5, 1] = 1.0
    assert risk_controlled(losses, 0.5) == 2
    assert risk_controlled(losses, 0.6) == 0


def test_a_risk_that_cannot_be_kept() -> None:
    with pytest.raises(UsageError, match=r"no λ keeps the risk at 0.05: the least that these 9 rows allow is 0.1"):
        risk_controlled(np.zeros((9, 2)), 0.05)
    for wrong in (np.zeros(3), np.zeros((0, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan), np.full((2, 2), -1.0)):
        with pytest.raises(UsageError, match="losses should be"):
            risk_controlled(wrong, 0.1)
    with pytest.raises(UsageError, match="delta should be from 0 to 1, not 2"):
        risk_controlled(np.zeros((2, 2)), 2)


# ── latency-slo ──────────────────────────────────────────────────────────────


def test_stages_that_would_be_late_are_left_out() -> None:
    policy = LatencySLOPolicy(base=GreedyPolicy(), slo_s=5.0)
    decision = policy.decide(timed(lam=50.0))
    assert decision.action == Call("medium", final=True)
    assert decision.reason.endswith("; large would be late")
    assert LatencySLOPolicy(base=GreedyPolicy(), slo_s=8.0).decide(timed(lam=50.0)).action == Call("large", final=True)


def test_time_that_attempts_took_is_gone() -> None:
    failed = make_attempt("medium", fault="timeout")
    policy = LatencySLOPolicy(base=GreedyPolicy(), slo_s=9.0)
    assert policy.decide(timed(failed, seconds=0.5, lam=50.0)).action == Call("large", final=True)
    assert policy.decide(timed(failed, seconds=1.5, lam=50.0)).action == Call("small", final=True)


def test_where_none_fits_the_quickest_answers() -> None:
    policy = LatencySLOPolicy(base=GreedyPolicy(), slo_s=0.5)
    assert policy.decide(timed(lam=50.0)).action == Call("small", final=False)
    assert policy.decide(timed(lam=50.0, allowed=("large",))).action == Call("large", final=True)
    failed = make_attempt("small", fault="timeout")
    assert policy.decide(timed(failed, lam=50.0)).action == Call("medium", final=False)


def test_where_none_fits_what_is_in_hand_is_kept() -> None:
    answered = make_attempt("small")
    view = timed(answered, seconds=4.0, lam=50.0)
    assert LatencySLOPolicy(base=GreedyPolicy(cascade=True), slo_s=20.0).decide(view).action == Call(
        "large", draft=view.attempts[0]
    )
    decision = LatencySLOPolicy(base=GreedyPolicy(cascade=True), slo_s=4.5).decide(view)
    assert decision.action == Stop(view.attempts[0])
    assert decision.reason == "small is kept: 0.50 s are too few for a further one"


def test_a_base_whose_stage_is_late_falls_back_on_an_answer_or_fails_in_words() -> None:
    answered = make_attempt("small")
    view = timed(answered)
    policy = LatencySLOPolicy(base=FixedPolicy(first="small", then="large"), slo_s=5.0)
    assert policy.decide(view).action == Stop(view.attempts[0])
    assert isinstance(LatencySLOPolicy(base=SinglePolicy(stage="large"), slo_s=5.0).decide(timed()).action, Fail)


def test_a_call_stays_final_only_where_it_would_be_without_the_hurry() -> None:
    """With large left out nothing else than small is left; but large may be quicker than thought, and then fit."""
    view = timed(lam=50.0, allowed=("small", "large"))
    assert LatencySLOPolicy(base=PandoraPolicy(), slo_s=5.0).decide(view).action == Call("small", final=False)
    assert LatencySLOPolicy(base=GreedyPolicy(), slo_s=5.0).decide(view).action == Call("small", final=True)


def test_without_seconds_nothing_is_late() -> None:
    view = make_view(QUALITY, COSTS, lam=50.0)
    assert LatencySLOPolicy(base=GreedyPolicy(), slo_s=0.0).decide(view) == GreedyPolicy().decide(view)


# ── together ─────────────────────────────────────────────────────────────────


def test_wrappers_compose() -> None:
    policy = BudgetPolicy(
        base=LatencySLOPolicy(base=QualityFloorPolicy(base=PandoraPolicy(), floor=5.0), slo_s=5.0),
        lambdas=[0.0, 50.0],
        share=0.5,
    )
    assert policy.name == "budget(latency-slo(quality-floor(pandora)))"
    low, high = policy.decide(timed(lot=0.9)), policy.decide(timed(lot=0.1))
    assert low.action == high.action == Call("medium")
    assert low.propensity == high.propensity == 1.0
    assert "large would be late; λ=50 by lot" in high.reason
    assert "λ=5 is the floor" in low.reason
    check_policy(policy, NAMES)


BASES: tuple[Policy, ...] = (
    GreedyPolicy(),
    GreedyPolicy(cascade=True),
    PandoraPolicy(),
    FixedPolicy(first="small", then="large"),
    CascadePolicy(thresholds=0.5, keep="last"),
)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_wrappers_keep_the_contract_over_any_base(base: Policy) -> None:
    check_policy(BudgetPolicy(base=base, lambdas=[1.0, 20.0], share=0.4), NAMES, [timed()])
    check_policy(QualityFloorPolicy(base=base, floor=4.0), NAMES, [timed()])
    hurried = [timed(), timed(make_attempt("small"), seconds=1.0), timed(make_attempt("medium"), seconds=3.0)]
    check_policy(LatencySLOPolicy(base=base, slo_s=3.0), NAMES, hurried)


def test_without_a_base_it_is_pandora() -> None:
    assert LatencySLOPolicy(slo_s=1.0).name == "latency-slo(pandora)"


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (BudgetPolicy, {"lambdas": [1.0]}, r"needs 'lambdas', the lower and the higher, not \[1.0\]"),
        (BudgetPolicy, {"lambdas": [5.0, 1.0]}, "the lower and the higher"),
        (BudgetPolicy, {"lambdas": [-1.0, 1.0]}, "'lambdas' should be a number from 0 up, not -1.0"),
        (BudgetPolicy, {"lambdas": 3.0}, "'lambdas' should be a list of numbers, not 3.0"),
        (BudgetPolicy, {"lambdas": [1.0, 2.0], "share": 1.5}, "'share' should be a number from 0 to 1, not 1.5"),
        (BudgetPolicy, {"lambdas": [1.0, 2.0], "base": "pandora"}, "'base' should be a policy, not 'pandora'"),
        (BudgetPolicy, {"lambda": 1.0}, r"no option 'lambda'; did you mean 'lambdas'\?"),
        (QualityFloorPolicy, {}, "needs 'floor'"),
        (QualityFloorPolicy, {"floor": float("nan")}, "'floor' should be a number from 0 up, not nan"),
        (QualityFloorPolicy, {"flor": 1.0}, r"no option 'flor'; did you mean 'floor'\?"),
        (LatencySLOPolicy, {}, "needs 'slo_s'"),
        (LatencySLOPolicy, {"slo_s": -1}, "'slo_s' should be a number from 0 up, not -1"),
        (LatencySLOPolicy, {"slo": 1.0}, r"no option 'slo'; did you mean 'slo_s'\?"),
    ],
)
def test_options_are_checked(kind: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        kind(**options)


# ── by name ──────────────────────────────────────────────────────────────────

STAGES = [{"name": name, "engine": "scripted", "model": name, "cost": cost} for name, cost in (("a", 1.0), ("b", 2.0))]


def made(name: str, **options: Any) -> Policy:
    settings = config.parse({"stages": STAGES, "policy": {"name": name, "mode": "cascade", "options": options}})
    return build(settings).parts.policies["cascade"]


@pytest.mark.parametrize("name", ["pandora", "cascade-route", "optimal"])
def test_each_is_found_by_its_name(name: str) -> None:
    assert made(name).name == name


def test_a_base_is_named_alone_or_with_its_options() -> None:
    assert made("latency-slo", slo_s=2.0, base="greedy").name == "latency-slo(greedy)"
    inner = {"name": "latency-slo", "slo_s": 2.0, "base": {"name": "cascade", "thresholds": [0.5]}}
    policy = made("budget", lambdas=[1.0, 2.0], share=0.4, base=inner)
    assert policy.name == "budget(latency-slo(cascade))"
    assert made("quality-floor", floor=3.0).name == "quality-floor(pandora)"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("latency-slo", {"slo_s": 1.0, "base": "gredy"}, "no policy is called 'gredy'; did you mean 'greedy'?"),
        ("latency-slo", {"slo_s": 1.0, "base": {"cascade": True}}, "'base' should be a policy's name, or a table"),
        ("latency-slo", {"slo_s": 1.0, "base": 3}, "'base' should be a policy, not 3"),
        ("latency-slo", {"slo_s": 1.0, "base": {"name": "greedy", "cascad": True}}, "did you mean 'cascade'?"),
    ],
)
def test_a_base_that_cannot_be(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(StepladderError) as caught:
        made(name, **options)
    assert told in str(caught.value)


def test_a_bases_stages_and_thresholds_must_fit_the_ladder() -> None:
    with pytest.raises(ConfigError, match=r"policy.options.base.stage: no stage 'c'"):
        made("latency-slo", slo_s=1.0, base={"name": "single", "stage": "c"})
    with pytest.raises(ConfigError, match=r"policy.options.thresholds: 2 of them; 2 stages need 1, one for each but"):
        made("cascade", thresholds=[0.5, 0.5])
