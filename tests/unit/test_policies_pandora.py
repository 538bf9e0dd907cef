"""Laws of posterior means, reservation values, and the policy that goes by them."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from stepladder.errors import UsageError
from stepladder.policies.laws import law, normal_scores, reservation
from stepladder.policies.pandora import PandoraPolicy
from stepladder.testing import make_attempt, make_view
from stepladder.types import Call, Estimate, Fail, Stop

COSTS = (1.0, 1.5, 4.0)


# ── laws ─────────────────────────────────────────────────────────────────────


def test_a_law_has_its_two_moments() -> None:
    for mean, told in ((0.5, 0.1), (0.5, 0.45), (0.9, 0.2), (0.07, 0.15), (0.001, 0.001)):
        values = law(mean, told)
        assert len(values) == 8
        assert fmean(values) == pytest.approx(mean, abs=1e-12)
        assert pstdev(values) == pytest.approx(told, abs=1e-9)


def test_an_answer_that_tells_nothing_has_one_value_and_exactly_the_mean() -> None:
    assert law(0.7, 0.0) == (0.7,)
    assert law(0.7, 0.3, levels=1) == (0.7,)
    assert law(1.0, 0.3) == (1.0,)
    assert law(0.0, 0.3) == (0.0,)


def test_an_answer_that_tells_all_leaves_right_or_wrong() -> None:
    assert law(0.25, 1.0) == pytest.approx((0.0,) * 6 + (1.0,) * 2)
    assert law(0.3, 1.0, levels=4) == pytest.approx((0.0, 0.0, 0.2, 1.0))


def test_laws_of_right_and_wrong_mirror_each_other() -> None:
    assert law(0.8, 0.1) == tuple(1.0 - value for value in reversed(law(1.0 - 0.8, 0.1)))


def test_normal_scores_have_the_mean_of_each_part() -> None:
    assert normal_scores(2) == pytest.approx((-0.7978845608, 0.7978845608))  # ±√(2/π)
    assert sum(normal_scores(7)) == pytest.approx(0.0)


# ── reservation values ───────────────────────────────────────────────────────


def test_a_reservation_value_solves_its_equation() -> None:
    values, lam, cost = (0.1, 0.4, 0.8), 10.0, 2.0
    sigma = reservation(values, lam, cost)
    assert sigma == pytest.approx(3.0)  # (8 − σ) + (4 − σ) = 3·2: two values are above it
    assert fmean(max(0.0, lam * value - sigma) for value in values) == pytest.approx(cost)
    assert reservation((0.6,), 5.0, 1.25) == 5.0 * 0.6 - 1.25
    assert reservation((0.1, 0.9), 10.0, 0.0) == 9.0
    assert reservation((0.1, 0.9), 0.0, 3.0) == -3.0


# ── the policy ───────────────────────────────────────────────────────────────


def test_a_cheap_stage_whose_answers_tell_is_asked_before_the_best_one() -> None:
    quality = {"small": Estimate(0.6, 0.49, 0.4), "large": Estimate(0.9, 0.3, 0.0)}
    view = make_view(quality, (1.0, 3.0), lam=10.0)
    assert view.value("large") > view.value("small")
    decision = PandoraPolicy().decide(view)
    assert decision.action == Call("small", final=False)
    assert decision.values["large"] == 6.0
    assert decision.values["small"] > 6.0
    assert decision.reason.startswith("small has the greatest reservation value")


def test_it_climbs_after_a_poor_answer_and_keeps_a_good_one() -> None:
    answered, costs = make_attempt("small", "perhaps 4?"), (1.0, 3.0)
    poor = make_view({"small": 0.2, "large": Estimate(0.9)}, costs, lam=10.0, attempts=[answered])
    decision = PandoraPolicy().decide(poor)
    assert decision.action == Call("large", draft=answered)
    assert decision.values == pytest.approx({"large": 4.0})
    good = make_view({"small": 0.7, "large": Estimate(0.9)}, costs, lam=10.0, attempts=[answered])
    decision = PandoraPolicy().decide(good)
    assert decision.action == Stop(answered)
    assert decision.values == pytest.approx({"large": -1.0})


def test_a_tie_with_what_is_in_hand_stops() -> None:
    answered = make_attempt("small")
    view = make_view({"small": 0.25, "large": 0.5}, (1.0, 1.0), lam=4.0, attempts=[answered])
    assert PandoraPolicy().decide(view).values == {"large": 0.0}
    assert PandoraPolicy().decide(view).action == Stop(answered)


def test_an_answer_must_be_given_also_where_none_is_worth_its_cost() -> None:
    view = make_view({"small": 0.5, "medium": 0.6, "large": 0.7}, COSTS, lam=0.1)
    assert PandoraPolicy().decide(view).action == Call("small", final=False)


def test_only_a_call_that_must_be_kept_is_final() -> None:
    quality = {"small": 0.5, "large": 0.9}
    assert PandoraPolicy().decide(make_view(quality, (1, 2), allowed=("large",))).action == Call("large", final=True)
    failed = make_attempt("small", fault="timeout")
    assert PandoraPolicy().decide(make_view(quality, (1, 2), attempts=[failed])).action == Call("large", final=True)


def test_after_faults_what_is_left() -> None:
    quality = {"small": 0.5, "large": 0.9}
    failed, answered = make_attempt("large", fault="timeout"), make_attempt("small")
    both = make_view(quality, (1, 2), attempts=[failed, answered])
    assert PandoraPolicy().decide(both).action == Stop(answered)
    lost = make_view(quality, (1, 2), attempts=[failed, make_attempt("small", fault="crash")])
    assert isinstance(PandoraPolicy().decide(lost).action, Fail)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match=r"no option 'level'; did you mean 'levels'\?"):
        PandoraPolicy(level=3)
    for wrong in (0, 65, 2.5, True, "8"):
        with pytest.raises(UsageError, match="'levels' should be a whole number from 1 to 64, not"):
            PandoraPolicy(levels=wrong)  # type: ignore[arg-type]
