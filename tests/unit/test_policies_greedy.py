"""The greedy policy, plain and as a cascade."""

from __future__ import annotations

import pytest

from stepladder.errors import UsageError
from stepladder.policies.greedy import GreedyPolicy
from stepladder.testing import make_attempt, make_fault, make_view
from stepladder.types import Call, Fail, Stop

QUALITY = {"small": 0.5, "medium": 0.75, "large": 1.0}
COSTS = (1.0, 1.5, 4.0)


def test_calls_the_best_and_says_why() -> None:
    decision = GreedyPolicy().decide(make_view(QUALITY, COSTS, lam=5.0))
    assert decision.action == Call("medium", final=True)
    assert decision.values == {"small": 1.5, "medium": 2.25, "large": 1.0}
    assert decision.reason == "medium is worth 2.25, next best small 1.50 (λ=5)"
    assert decision.propensity == 1.0


def test_ties_go_to_the_cheaper_stage() -> None:
    decision = GreedyPolicy().decide(make_view({"small": 0.5, "large": 0.75}, (1.0, 2.0), lam=4.0))
    assert decision.values == {"small": 1.0, "large": 1.0}
    assert decision.action == Call("small", final=True)


def test_only_allowed_stages_count() -> None:
    view = make_view(QUALITY, COSTS, allowed=("small", "large"))
    assert GreedyPolicy().decide(view).action == Call("small", final=True)
    assert GreedyPolicy().decide(make_view(QUALITY, COSTS, allowed=("large",))).reason.endswith("left (λ=5)")


def test_keeps_its_answer() -> None:
    answered = make_attempt("small")
    assert GreedyPolicy().decide(make_view(QUALITY, COSTS, attempts=[answered])).action == Stop(answered)


def test_after_a_fault_the_best_of_the_rest() -> None:
    failed = [make_attempt("medium", fault="timeout")]
    policy = GreedyPolicy()
    assert policy.decide(make_view(QUALITY, COSTS, attempts=failed)).action == Call("small", final=True)
    failed.append(make_attempt("small", fault="crash"))
    assert policy.decide(make_view(QUALITY, COSTS, attempts=failed)).action == Call("large", final=True)
    failed.append(make_attempt("large", fault="server"))
    assert policy.decide(make_view(QUALITY, COSTS, attempts=failed)).action == Fail(make_fault("server"))


def test_nothing_allowed_fails_in_words() -> None:
    for cascade in (False, True):
        action = GreedyPolicy(cascade=cascade).decide(make_view(QUALITY, COSTS, allowed=())).action
        assert isinstance(action, Fail)
        assert "no stage is allowed" in action.fault.message


def test_cascade_begins_like_greedy_but_promises_nothing() -> None:
    assert GreedyPolicy(cascade=True).decide(make_view(QUALITY, COSTS)).action == Call("medium", final=False)


def test_cascade_climbs_where_the_posterior_makes_it_worth_its_price() -> None:
    poor = make_attempt("medium", "perhaps 4?")
    view = make_view(QUALITY | {"medium": 0.1}, COSTS, lam=5.0, attempts=[poor])
    decision = GreedyPolicy(cascade=True).decide(view)
    assert decision.action == Call("small", draft=None)
    assert decision.values == pytest.approx({"small": 1.0, "large": 0.5})
    view = make_view(QUALITY | {"medium": 0.1}, (2.5, 1.5, 4.0), lam=5.0, attempts=[poor])
    assert GreedyPolicy(cascade=True).decide(view).action == Call("large", draft=poor)


def test_cascade_stops_where_no_climb_is_worth_more_than_nothing() -> None:
    answered = make_attempt("medium")
    view = make_view({"small": 0.5, "medium": 0.6, "large": 1.0}, (1.0, 1.5, 2.0), lam=5.0, attempts=[answered])
    decision = GreedyPolicy(cascade=True).decide(view)
    assert decision.values["large"] == 0.0
    assert decision.action == Stop(answered)
    assert "medium is kept" in decision.reason


def test_what_was_spent_is_sunk() -> None:
    decisions = []
    for spent in (0.0, 1000.0):
        attempts = [make_attempt("medium", cost=spent)]
        decisions.append(GreedyPolicy(cascade=True).decide(make_view(QUALITY, COSTS, attempts=attempts)))
    assert decisions[0].values == decisions[1].values


def test_cascade_keeps_the_answer_with_the_highest_current_posterior() -> None:
    low, high = make_attempt("small", "a"), make_attempt("large", "b")
    policy = GreedyPolicy(cascade=True)
    view = make_view({"small": 0.9, "medium": 0.1, "large": 0.2}, COSTS, attempts=[low, high])
    assert policy.decide(view).action == Stop(low)
    view = make_view({"small": 0.2, "medium": 0.1, "large": 0.9}, COSTS, attempts=[low, high])
    assert policy.decide(view).action == Stop(high)
    view = make_view({"small": 0.9, "medium": 0.1, "large": 0.9}, COSTS, attempts=[low, high])
    assert policy.decide(view).action == Stop(low)


def test_a_cascades_call_is_final_only_where_it_must_be_kept() -> None:
    policy = GreedyPolicy(cascade=True)
    assert policy.decide(make_view(QUALITY, COSTS, allowed=("large",))).action == Call("large", final=True)
    failed = [make_attempt("medium", fault="timeout"), make_attempt("small", fault="timeout")]
    assert policy.decide(make_view(QUALITY, COSTS, attempts=failed)).action == Call("large", final=True)
    answered = [make_attempt("small"), make_attempt("medium", fault="timeout")]
    action = policy.decide(make_view(QUALITY | {"small": 0.0}, COSTS, attempts=answered)).action
    assert action == Call("large", final=False, draft=answered[0])


def test_a_cascade_survives_a_fault_on_the_way_up() -> None:
    kept = make_attempt("small")
    attempts = [kept, make_attempt("medium", fault="crash"), make_attempt("large", fault="crash")]
    assert GreedyPolicy(cascade=True).decide(make_view(QUALITY, COSTS, attempts=attempts)).action == Stop(kept)


def test_unknown_options_are_named() -> None:
    with pytest.raises(UsageError, match=r"no option 'cascad'; did you mean 'cascade'\?"):
        GreedyPolicy(cascad=True)
    with pytest.raises(UsageError, match="true or false"):
        GreedyPolicy(cascade="yes")  # type: ignore[arg-type]
