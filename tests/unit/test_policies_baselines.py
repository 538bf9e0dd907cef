"""Single, fixed and random-split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from stepladder.config import LAMBDA_PRESETS
from stepladder.errors import UsageError
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.random_split import RandomSplitPolicy, draw, split_for_cost
from stepladder.policies.single import SinglePolicy
from stepladder.testing import make_attempt, make_fault, make_view
from stepladder.types import Call, Decision, Fail, Stop

QUALITY = {"small": 0.5, "medium": 0.75, "large": 1.0}
COSTS = (1.0, 1.3, 1.8)


def failed_with(decision: Decision) -> str:
    assert isinstance(decision.action, Fail)
    return f"{decision.action.fault.kind}: {decision.action.fault.message}"


# ── single ───────────────────────────────────────────────────────────────────


def test_single_calls_its_stage_or_the_dearest_allowed() -> None:
    assert SinglePolicy(stage="small").decide(make_view(QUALITY, COSTS)).action == Call("small", final=True)
    assert SinglePolicy().decide(make_view(QUALITY, COSTS)).action == Call("large", final=True)
    view = make_view(QUALITY, COSTS, allowed=("small", "medium"))
    assert SinglePolicy().decide(view).action == Call("medium", final=True)


def test_single_keeps_its_answer_and_hides_no_fault() -> None:
    answered, failed = make_attempt("small"), make_attempt("small", fault="timeout")
    assert SinglePolicy().decide(make_view(QUALITY, COSTS, attempts=[answered])).action == Stop(answered)
    decision = SinglePolicy(stage="small").decide(make_view(QUALITY, COSTS, attempts=[failed]))
    assert decision.action == Fail(make_fault("timeout"))


def test_single_says_which_stage_is_not_allowed() -> None:
    decision = SinglePolicy(stage="large").decide(make_view(QUALITY, COSTS, allowed=("small",)))
    assert failed_with(decision) == "bad_request: stage 'large' may not take this request; allowed: small"
    for policy in (SinglePolicy(), SinglePolicy(stage="small")):
        assert failed_with(policy.decide(make_view(QUALITY, COSTS, allowed=()))).startswith("bad_request")


# ── fixed ────────────────────────────────────────────────────────────────────


def test_fixed_calls_both_and_keeps_the_later() -> None:
    policy, first, second = FixedPolicy(first="small", then="large"), make_attempt("small"), make_attempt("large")
    assert policy.decide(make_view(QUALITY, COSTS)).action == Call("small", final=False)
    assert policy.decide(make_view(QUALITY, COSTS, attempts=[first])).action == Call("large", final=True)
    assert policy.decide(make_view(QUALITY, COSTS, attempts=[first, second])).action == Stop(second)


def test_fixed_hides_no_fault() -> None:
    policy, first = FixedPolicy(first="small", then="large"), make_attempt("small")
    for attempts in ([make_attempt("small", fault="crash")], [first, make_attempt("large", fault="crash")]):
        assert policy.decide(make_view(QUALITY, COSTS, attempts=attempts)).action == Fail(make_fault("crash"))


def test_fixed_does_not_begin_what_it_may_not_finish() -> None:
    policy = FixedPolicy(first="small", then="large")
    decision = policy.decide(make_view(QUALITY, COSTS, allowed=("small", "medium")))
    assert "'large'" in failed_with(decision)


@pytest.mark.parametrize("options", [{}, {"first": "small"}, {"first": "small", "then": "small"}])
def test_fixed_needs_two_stages(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="two different stages"):
        FixedPolicy(**options)


# ── random-split ─────────────────────────────────────────────────────────────


def test_split_follows_the_coin_and_knows_its_propensity() -> None:
    policy = RandomSplitPolicy(stages=["small", "large"], weights=[1, 3])
    for coin, stage, chance in (
        (0.0, "small", 0.25),
        (0.249, "small", 0.25),
        (0.25, "large", 0.75),
        (0.99, "large", 0.75),
    ):
        decision = policy.decide(make_view(QUALITY, COSTS, coin=coin))
        assert (decision.action, decision.propensity) == (Call(stage, final=True), chance)


def test_split_draws_among_the_allowed() -> None:
    policy = RandomSplitPolicy(stages=["small", "medium", "large"], weights=[1, 1, 2])
    drawn = Counter()
    for coin in range(300):
        decision = policy.decide(make_view(QUALITY, COSTS, allowed=("small", "large"), coin=coin / 300))
        assert isinstance(decision.action, Call)
        drawn[decision.action.stage, round(decision.propensity, 6)] += 1
    assert drawn == {("small", 0.333333): 100, ("large", 0.666667): 200}


def test_split_never_draws_a_weight_of_zero() -> None:
    policy = RandomSplitPolicy(stages=["small", "medium", "large"], weights=[0, 1, 0])
    for coin in (0.0, 0.5, 1 - 2**-53):
        assert policy.decide(make_view(QUALITY, COSTS, coin=coin)).action == Call("medium", final=True)
    assert "may take this request" in failed_with(policy.decide(make_view(QUALITY, COSTS, allowed=("small",))))


def test_split_keeps_its_answer_and_hides_no_fault() -> None:
    policy, answered = RandomSplitPolicy(stages=["small"]), make_attempt("small")
    assert policy.decide(make_view(QUALITY, COSTS, attempts=[answered])).action == Stop(answered)
    failed = [make_attempt("small", fault="timeout")]
    assert policy.decide(make_view(QUALITY, COSTS, attempts=failed)).action == Fail(make_fault("timeout"))


def test_draw_falls_on_the_last_where_sums_round() -> None:
    assert draw({"a": 0.1, "b": 0.2, "c": 0.3}, 1 - 2**-53) == "c"


def test_split_for_the_papers_fixed_rows() -> None:
    assert split_for_cost([1.0, 1.8], 1.60) == pytest.approx((0.25, 0.75))
    with pytest.raises(UsageError, match=r"cost 1, 1\.3 has the mean cost 1\.36"):
        split_for_cost([1.0, 1.3], 1.36)
    policy = RandomSplitPolicy(stages=["small", "large"], target_cost=1.60, costs=[1.0, 1.8])
    assert policy.weights == pytest.approx({"small": 0.25, "large": 0.75})


def test_split_at_the_ends_and_on_a_stage() -> None:
    assert split_for_cost([1.0, 1.3, 1.8], 1.0) == (1.0, 0.0, 0.0)
    assert split_for_cost([1.0, 1.3, 1.8], 1.3) == (0.0, 1.0, 0.0)
    assert split_for_cost([1.0, 1.3, 1.8], 1.8) == (0.0, 0.0, 1.0)
    assert split_for_cost([1.0, 1.0], 1.0) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs 'stages'"),
        ({"stages": ["a", "a"]}, "each named once"),
        ({"stages": ["a", "b"], "weights": [1]}, "needs 'weights'"),
        ({"stages": ["a", "b"], "weights": [0, 0]}, "not all 0"),
        ({"stages": ["a", "b"], "weights": [1, -1]}, "from 0 up"),
        ({"stages": ["a"], "weights": [1], "target_cost": 1.0}, "not both"),
        ({"stages": ["a"], "target_cost": 1.0}, "needs 'costs'"),
        ({"stages": "ab"}, "needs 'stages'"),
        ({"stages": ["a"], "weights": ["x"]}, "from 0 up"),
        ({"stages": ["a"], "weights": 1}, "needs 'weights'"),
        ({"stages": ["a"], "target_cost": "1", "costs": [1]}, "finite numbers"),
        ({"stages": ["a"], "target_cost": 1, "costs": [float("nan")]}, "finite numbers"),
        ({"stages": ["a"], "wieghts": [1]}, "did you mean 'weights'"),
    ],
)
def test_split_refuses_what_is_no_distribution(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        RandomSplitPolicy(**options)


def test_presets_lie_where_the_paper_puts_them() -> None:
    assert 1 <= LAMBDA_PRESETS["production"] <= 2
    assert LAMBDA_PRESETS["balanced"] == 5
    assert 10 <= LAMBDA_PRESETS["research"] <= 20
