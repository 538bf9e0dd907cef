"""What follows from the paper's own matrix, costs and rule, and what does not."""

from __future__ import annotations

import pytest

from stepladder.costs.fixed import FixedCosts
from stepladder.errors import UsageError
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import split_for_cost
from stepladder.policies.single import SinglePolicy
from stepladder.predictors.complexity import PAPER_PROMPTS
from stepladder.predictors.matrix import PAPER_MATRIX, MatrixPredictor
from stepladder.predictors.prior import PriorPredictor
from stepladder.testing import make_ladder, make_request, no_forecast
from stepladder.types import Call, View

LADDER = make_ladder("13b", "34b", "70b")
COSTS = FixedCosts(LADDER.stages, no_forecast, vector="paper")
PREDICTOR = MatrixPredictor(LADDER.names, {"matrix": PAPER_MATRIX}, {})
LATENCY_MS = {"13b": 640, "34b": 1050, "70b": 1900}
"""Paper §3.2."""


def view_of(prompt: str, lam: float, costs: FixedCosts = COSTS) -> View:
    request = make_request(prompt)
    return View(
        stages=LADDER.names,
        lam=lam,
        estimates=PREDICTOR.predict(PaperFeatures().features(request)),
        costs={stage.name: costs.expected(stage, request) for stage in LADDER.stages},
    )


def run(policy: GreedyPolicy | SinglePolicy, lam: float, costs: FixedCosts = COSTS) -> dict[str, object]:
    """Shares in percent, mean cost, mean quality and mean latency over the paper's ten prompts."""
    chosen, cost, quality = [], 0.0, 0.0
    for prompt, label in PAPER_PROMPTS:
        view = view_of(prompt, lam, costs)
        action = policy.decide(view).action
        assert isinstance(action, Call)
        chosen.append(action.stage)
        cost += view.costs[action.stage].total / 10
        quality += PAPER_MATRIX[label][LADDER.index(action.stage)] / 10
    latency = sum(LATENCY_MS[stage] for stage in chosen) / 10
    shares = tuple(chosen.count(stage) * 10 for stage in LADDER.names)
    return {"shares": shares, "cost": round(cost, 4), "quality": round(quality, 4), "ms": latency}


@pytest.mark.parametrize(("stage", "quality"), [("13b", 0.718), ("34b", 0.844), ("70b", 0.915)])
def test_single_model_rows_are_the_papers(stage: str, quality: float) -> None:
    assert run(SinglePolicy(stage=stage), lam=5.0)["quality"] == quality


@pytest.mark.parametrize(
    ("lam", "shares"), [(0.5, (100, 0, 0)), (1, (100, 0, 0)), (2, (70, 30, 0)), (5, (40, 30, 30)), (20, (0, 40, 60))]
)
def test_shares_of_the_greedy_rule(lam: float, shares: tuple[int, ...]) -> None:
    assert run(GreedyPolicy(), lam)["shares"] == shares


def test_the_greedy_rule_at_lambda_5() -> None:
    assert run(GreedyPolicy(), 5.0) == {"shares": (40, 30, 30), "cost": 1.33, "quality": 0.877, "ms": 1141.0}


def test_no_policy_exceeds_the_largest_stage_under_this_matrix() -> None:
    best = sum(max(PAPER_MATRIX[label]) for _, label in PAPER_PROMPTS) / 10
    assert round(best, 4) == 0.915
    for lam in (0.5, 1, 2, 5, 10, 20, 1e6):
        quality = run(GreedyPolicy(), lam)["quality"]
        assert isinstance(quality, float)
        assert quality <= 0.915  # and the paper reports 0.936


def test_no_saving_exceeds_44_percent_under_these_costs() -> None:
    assert pytest.approx(0.444, abs=5e-4) == 1 - 1.0 / 1.8


def test_the_first_costs_send_simple_and_medium_questions_to_the_smallest_stage() -> None:
    first = FixedCosts(LADDER.stages, no_forecast, vector="first")
    assert run(GreedyPolicy(), 5.0, first)["shares"] == (100, 0, 0)


def test_fixed_rows_as_random_splits() -> None:
    assert split_for_cost([1.0, 1.8], 1.60) == pytest.approx((0.25, 0.75))
    with pytest.raises(UsageError, match=r"1\.36"):
        split_for_cost([1.0, 1.3], 1.36)


def test_the_prior_is_the_same_on_the_papers_ladder() -> None:
    prior = PriorPredictor(LADDER.names, {}, {})
    for prompt, _ in PAPER_PROMPTS:
        features = PaperFeatures().features(make_request(prompt))
        ours, papers = prior.predict(features), PREDICTOR.predict(features)
        assert [ours[name].mean for name in LADDER.names] == [papers[name].mean for name in LADDER.names]
