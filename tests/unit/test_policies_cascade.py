"""The threshold cascade."""

from __future__ import annotations

from typing import Any

import pytest

from stepladder.errors import UsageError
from stepladder.policies.cascade import CascadePolicy
from stepladder.testing import check_policy, make_attempt, make_view
from stepladder.types import Call, Decision, Fail, Stop, View

COSTS = (1.0, 1.5, 4.0)
SMALL, MEDIUM, LARGE = (make_attempt(name, name) for name in ("small", "medium", "large"))


def view(small: float, medium: float, large: float, *attempts: Any, **more: Any) -> View:
    return make_view({"small": small, "medium": medium, "large": large}, COSTS, attempts=attempts, **more)


def decide(policy: CascadePolicy, *args: Any, **more: Any) -> Decision:
    return policy.decide(view(*args, **more))


def test_it_begins_at_the_bottom_whatever_is_expected() -> None:
    assert decide(CascadePolicy(thresholds=0.9), 0.1, 0.2, 0.9).action == Call("small")


def test_it_stops_at_the_first_answer_that_reaches_its_threshold() -> None:
    policy = CascadePolicy(thresholds=[0.8, 0.5])
    assert decide(policy, 0.8, 0.2, 0.9, SMALL).action == Stop(SMALL)
    decision = decide(policy, 0.79, 0.2, 0.9, SMALL)
    assert decision.action == Call("medium", draft=SMALL)
    assert decision.reason == "small is not good enough: medium is next"
    assert decide(policy, 0.1, 0.5, 0.9, SMALL, MEDIUM).action == Stop(MEDIUM)
    assert decide(policy, 0.1, 0.4, 0.9, SMALL, MEDIUM).action == Call("large", draft=MEDIUM)
    assert decide(policy, 0.1, 0.4, 0.9, SMALL, MEDIUM, LARGE).action == Stop(LARGE)


def test_the_ladders_last_stage_has_no_threshold() -> None:
    policy = CascadePolicy(thresholds=[0.8, 0.5])
    failed = make_attempt("medium", fault="timeout")
    assert decide(policy, 0.1, 0.2, 0.3, failed, SMALL, LARGE).action == Stop(LARGE)


def test_it_keeps_the_best_or_the_newest() -> None:
    made = (SMALL, MEDIUM, LARGE)
    assert decide(CascadePolicy(thresholds=0.9), 0.6, 0.2, 0.3, *made).action == Stop(SMALL)
    assert decide(CascadePolicy(thresholds=0.9, keep="last"), 0.6, 0.2, 0.3, *made).action == Stop(LARGE)


def test_a_stage_that_failed_is_passed_by() -> None:
    policy, failed = CascadePolicy(thresholds=0.9), make_attempt("small", fault="timeout")
    assert decide(policy, 0.1, 0.2, 0.3, failed).action == Call("medium")
    every = [make_attempt(name, fault="crash") for name in ("small", "medium", "large")]
    assert isinstance(decide(policy, 0.1, 0.2, 0.3, *every).action, Fail)
    assert isinstance(decide(policy, 0.1, 0.2, 0.3, allowed=()).action, Fail)


def test_thresholds_go_by_the_ladder_and_not_by_what_is_allowed() -> None:
    policy = CascadePolicy(thresholds=[0.9, 0.5])
    assert decide(policy, 0.1, 0.6, 0.3, MEDIUM, allowed=("medium", "large")).action == Stop(MEDIUM)


def test_a_call_is_final_where_it_is_certain_to_be_kept() -> None:
    best, last = CascadePolicy(thresholds=0.9), CascadePolicy(thresholds=0.9, keep="last")
    assert decide(best, 0.1, 0.2, 0.3, allowed=("large",)).action == Call("large", final=True)
    assert decide(best, 0.1, 0.2, 0.3, SMALL, MEDIUM).action == Call("large", final=False, draft=MEDIUM)
    assert decide(last, 0.1, 0.2, 0.3, SMALL, MEDIUM).action == Call("large", final=True, draft=MEDIUM)
    assert decide(last, 0.1, 0.2, 0.3, SMALL).action == Call("medium", final=False, draft=SMALL)


def test_too_few_thresholds_for_the_ladder_are_told() -> None:
    action = decide(CascadePolicy(thresholds=[0.5]), 0.1, 0.2, 0.3).action
    assert isinstance(action, Fail)
    assert action.fault.message == "policy 'cascade' has 1 thresholds, and this ladder of 3 stages needs 2"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs 'thresholds', one number or one for each stage but the last"),
        ({"thresholds": 1.5}, "'thresholds' should be a number from 0 to 1, not 1.5"),
        ({"thresholds": True}, "'thresholds' should be a number"),
        ({"thresholds": [0.5, "x"]}, "'thresholds' should be a number from 0 to 1, not 'x'"),
        ({"thresholds": "high"}, "'thresholds' should be a list of numbers, not 'high'"),
        ({"thresholds": 0.5, "keep": "first"}, "'keep' should be 'best' or 'last', not 'first'"),
        ({"threshold": 0.5}, r"no option 'threshold'; did you mean 'thresholds'\?"),
    ],
)
def test_options_are_checked(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        CascadePolicy(**options)


@pytest.mark.parametrize("policy", [CascadePolicy(thresholds=0.5), CascadePolicy(thresholds=[0.2, 0.9], keep="last")])
def test_it_keeps_the_contract(policy: CascadePolicy) -> None:
    check_policy(policy, ("small", "medium", "large"))
