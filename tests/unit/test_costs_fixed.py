"""Hand-set costs, price lists, and the tokens they expect."""

from __future__ import annotations

from typing import Any

import pytest

from stepladder.contracts import CostModel
from stepladder.costs.fixed import FixedCosts
from stepladder.costs.price_list import PriceListCosts
from stepladder.costs.tokens import expected_tokens
from stepladder.errors import ConfigError, UsageError
from stepladder.testing import make_attempt, make_ladder, make_request, no_forecast
from stepladder.types import Attempt, Cost, EngineCost, Fault, Stage, Usage

STAGES = make_ladder("small", "medium", "large").stages
PRICED = make_ladder("small", "large", price_in=2.0, price_out=10.0).stages


def slow(stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None) -> EngineCost:
    return EngineCost(seconds=0.5 + (output_tokens / 100 if draft is None else 0), device_s=1.0)


def resources(costs: CostModel, stages: tuple[Stage, ...] = STAGES) -> list[float]:
    return [costs.expected(stage, make_request()).resource for stage in stages]


# ── tokens ───────────────────────────────────────────────────────────────────


def test_tokens_by_characters_and_the_callers_limit() -> None:
    assert expected_tokens(make_request("x" * 401)) == (101, 256)
    assert expected_tokens(make_request("x" * 9), 12.2, 3.0) == (3, 13)
    assert expected_tokens(make_request("x", max_tokens=10))[1] == 10
    assert expected_tokens(make_request("x", max_tokens=10, max_completion_tokens=7))[1] == 7
    assert expected_tokens(make_request("x", max_tokens=9999))[1] == 256
    assert expected_tokens(make_request("", max_tokens=0)) == (0, 0)


@pytest.mark.parametrize("limit", [None, "10", -1, True, 2.5])
def test_a_limit_that_is_none_is_passed_over(limit: Any) -> None:
    assert expected_tokens(make_request("x", max_tokens=limit))[1] == 256


# ── fixed ────────────────────────────────────────────────────────────────────


def test_fixed_vectors() -> None:
    assert resources(FixedCosts(STAGES, no_forecast)) == [1.0, 2.0, 3.0]
    assert resources(FixedCosts(STAGES, no_forecast, vector="paper")) == [1.0, 1.3, 1.8]
    assert resources(FixedCosts(STAGES, no_forecast, vector="first")) == [1.0, 2.5, 5.0]
    assert resources(FixedCosts(STAGES, no_forecast, vector="fine")) == [1.0, 1.2, 1.5]
    assert resources(FixedCosts(STAGES, no_forecast, vector=[3, 2, 1])) == [3.0, 2.0, 1.0]


def test_fixed_prices_the_engines_seconds() -> None:
    request = make_request("x", max_tokens=50)
    assert FixedCosts(STAGES, slow).expected(STAGES[0], request) == Cost(1.0, seconds=1.0)
    assert FixedCosts(STAGES, slow, latency_price=2.0).expected(STAGES[0], request) == Cost(1.0, 1.0, latency=2.0)
    assert FixedCosts(STAGES, no_forecast, latency_price=2.0).expected(STAGES[0], request) == Cost(1.0)
    history = (make_attempt("small"),)
    drafted = FixedCosts(STAGES, slow, latency_price=2.0).expected(STAGES[1], request, history, history[0])
    assert drafted == Cost(2.0, 0.5, latency=1.0)


def test_fixed_bills_answers_and_what_was_written() -> None:
    costs, fault = FixedCosts(STAGES, no_forecast), Fault("server", "no")
    assert costs.billed(STAGES[1], make_attempt("medium")) == 2.0
    assert costs.billed(STAGES[1], Attempt("medium", text="")) == 2.0
    assert costs.billed(STAGES[1], Attempt("medium", usage=Usage(5, 0), fault=fault)) == 0.0
    assert costs.billed(STAGES[1], Attempt("medium", usage=Usage(5, 3), fault=fault)) == 2.0
    assert costs.billed(STAGES[1], Attempt("medium", "half an ans", fault=fault)) == 2.0


def test_fixed_lists_every_stage_without_a_cost() -> None:
    with pytest.raises(ConfigError) as caught:
        FixedCosts(make_ladder("small", "large", cost=None).stages, no_forecast)
    assert [problem.key for problem in caught.value.problems] == ["stages.small.cost", "stages.large.cost"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vector": "papr"}, "did you mean 'paper'"),
        ({"vector": [1.0, 2.0]}, "for 2 stages, not 3"),
        ({"vector": [1.0, 2.0, -1.0]}, "cost of 'large'"),
        ({"vector": [1.0, 2.0, "x"]}, "cost of 'large'"),
        ({"vector": 5}, "a name or a list"),
        ({"latency_price": -1}, "latency_price"),
        ({"latency_price": float("nan")}, "latency_price"),
        ({"vectr": "paper"}, "no option 'vectr'; did you mean 'vector'"),
    ],
)
def test_fixed_refuses(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        FixedCosts(STAGES, no_forecast, **options)


def test_fixed_versions_tell_prices_apart() -> None:
    made = [FixedCosts(STAGES, no_forecast, **o) for o in ({}, {"vector": "paper"}, {"latency_price": 1.0})]
    assert len({costs.version for costs in made}) == 3
    assert FixedCosts(STAGES, slow).version == made[0].version


# ── price list ───────────────────────────────────────────────────────────────


def test_price_list_in_usd() -> None:
    costs = PriceListCosts(PRICED, no_forecast)
    request = make_request("x" * 4000, max_tokens=100)
    assert costs.expected(PRICED[0], request).resource == pytest.approx(1000 * 2e-6 + 100 * 10e-6)
    assert costs.billed(PRICED[0], Attempt("small", usage=Usage(500, 20))) == pytest.approx(500 * 2e-6 + 20 * 10e-6)
    assert costs.billed(PRICED[0], Attempt("small", fault=Fault("connect", "no"))) == 0.0


def test_price_list_prices_seconds() -> None:
    cost = PriceListCosts(PRICED, slow, latency_price=0.5).expected(PRICED[0], make_request("x", max_tokens=50))
    assert (cost.seconds, cost.latency) == (1.0, 0.5)


def test_price_list_needs_both_prices() -> None:
    with pytest.raises(ConfigError, match=r"stages\.small\.price_out: missing"):
        PriceListCosts(make_ladder("small", price_in=1.0).stages, no_forecast)
    with pytest.raises(UsageError, match="no option 'vector'"):
        PriceListCosts(PRICED, no_forecast, vector="paper")
