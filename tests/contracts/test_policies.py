"""Every built-in policy keeps the contract, and the check finds those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from stepladder.contracts import Policy
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import RandomSplitPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.testing import check_policy, make_attempt, make_view
from stepladder.types import Call, Decision, Fail, Fault, Stop, View

STAGES = ("small", "medium", "large")
BUILT_IN: dict[str, Policy] = {
    "greedy": GreedyPolicy(),
    "cascade": GreedyPolicy(cascade=True),
    "single, dearest": SinglePolicy(),
    "single, named": SinglePolicy(stage="medium"),
    "fixed": FixedPolicy(first="small", then="large"),
    "split, even": RandomSplitPolicy(stages=STAGES),
    "split, some": RandomSplitPolicy(stages=STAGES, weights=[0, 1, 3]),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_policies(name: str) -> None:
    view = make_view(dict.fromkeys(STAGES, 0.5), [1.0, 1.0, 1.0], attempts=[make_attempt("small", fault="auth")])
    check_policy(BUILT_IN[name], STAGES, [view])


GREEDY = GreedyPolicy()
NO = Decision(Fail(Fault("server", "no")))


class Broken:
    name = "broken"

    def __init__(self, decide: Callable[[View], Decision]) -> None:
        self._decide = decide

    def decide(self, view: View) -> Decision:
        return self._decide(view)


def forgetful(view: View) -> Decision:
    return Decision(Call(view.stages[0])) if view.stages else NO


def meddling(view: View) -> Decision:
    view.costs.clear()  # type: ignore[attr-defined]
    return NO


def flighty() -> Callable[[View], Decision]:
    turns = iter(range(10**9))
    return lambda view: replace(NO, propensity=1 / (1 + next(turns)))


def promising(view: View) -> Decision:
    left = [stage for stage in view.stages if stage not in [attempt.stage for attempt in view.attempts]]
    return Decision(Call(left[0], final=True)) if left else NO


def keeps_faults(view: View) -> Decision:
    return Decision(Stop(view.attempts[-1])) if view.attempts else GREEDY.decide(view)


@pytest.mark.parametrize(
    ("decide", "told"),
    [
        (forgetful, "had not come to an end after 16 steps"),
        (meddling, "changed the view"),
        (flighty(), "decided otherwise"),
        (promising, "a final call of"),
        (keeps_faults, "kept the failed attempt"),
        (lambda view: Decision(Call("large")), "only .* are allowed"),
        (lambda view: Decision(Stop(make_attempt("elsewhere"))), "must keep an attempt that is in the view"),
        (lambda view: replace(NO, propensity=0.0), r"propensity 0\.0"),
        (lambda view: replace(NO, values={"small": float("nan")}), "value of 'small' is nan"),
        (lambda view: Decision(Fail(Fault("server", ""))), "Fail must say why"),
        (lambda view: Decision(None), "an action is Call, Stop or Fail"),  # type: ignore[arg-type]
    ],
)
def test_broken_policies_are_found(decide: Callable[[View], Decision], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_policy(Broken(decide), STAGES)
