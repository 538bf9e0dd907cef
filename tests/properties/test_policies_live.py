"""The stopping policies in the real loop: budgets hold, replays agree, promises are kept on fresh rows."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.contracts import Policy
from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import AnswerError, NoStageError
from stepladder.evaluate.replay import replay
from stepladder.policies.budget import BudgetPolicy, mix_for_budget
from stepladder.policies.cascade import CascadePolicy
from stepladder.policies.cascade_route import CascadeRoutePolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.latency_slo import LatencySLOPolicy
from stepladder.policies.optimal import OptimalPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.policies.quality_floor import QualityFloorPolicy, risk_controlled
from stepladder.router import Parts, Router
from stepladder.testing import FakeFeaturizer, MemoryTraceStore, check_policy, make_ladder
from stepladder.traces.codec import decode, encode
from stepladder.types import Attempt, Cost, Dials, Estimate, Estimates, Fault, Features, Request, Stage, View
from stopping_models import SHARES, independent, play, telling_views

POLICIES: tuple[Policy, ...] = (
    PandoraPolicy(),
    CascadeRoutePolicy(),
    OptimalPolicy(levels=3),
    OptimalPolicy(correlation=0.6, max_stages=3),
    CascadePolicy(thresholds=0.7),
    BudgetPolicy(lambdas=[1.0, 9.0], share=0.5),
    QualityFloorPolicy(floor=6.0),
    LatencySLOPolicy(slo_s=6.0),
    BudgetPolicy(base=LatencySLOPolicy(base=PandoraPolicy(), slo_s=6.0), lambdas=[1.0, 9.0], share=0.5),
)
DOWN = Fault("server", "down", 500)


class Telling:
    """Estimates that move with every attempt, drawn from the question and the stages that answered."""

    version = "telling"

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages

    def predict(self, features: Features) -> Estimates:
        made = "".join(f"{attempt.stage}{attempt.is_answer}" for attempt in features.attempts)
        chance = random.Random(f"{features.text}{made}")
        return Estimates({stage: self._one(chance) for stage in self.stages})

    def _one(self, chance: random.Random) -> Estimate:
        mean = chance.random()
        told = chance.random() * sqrt(mean * (1 - mean))
        return Estimate(mean, told, told)


class Priced:
    """Stage i costs i + 1 where it answers, and takes as many seconds."""

    version = "priced"

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        price = float(stage.name[1:]) + 1.0
        return Cost(price, seconds=price)

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        return float(stage.name[1:]) + 1.0 if attempt.is_answer else 0.0


def router_of(policy: Policy, count: int, failing: frozenset[str] = frozenset(), lam: float = 5.0) -> Router:
    ladder = make_ladder(*(f"s{i}" for i in range(count)))
    engine = ScriptedEngine(ladder.stages, lambda stage, _: DOWN if stage in failing else stage)
    return Router(
        Parts(
            ladder=ladder,
            engines=dict.fromkeys(ladder.names, engine),
            featurizer=FakeFeaturizer(),
            predictor=Telling(ladder.names),
            costs=Priced(),
            policies={"route": policy},
            store=MemoryTraceStore(),
            lam=lam,
        )
    )


def ask(router: Router, number: int, **dials: float) -> None:
    """Put one request; that nobody could answer is no matter here, its trace tells."""
    request = Request(f"r{number}", messages=({"role": "user", "content": f"q{number}"},), dials=Dials(**dials))
    with suppress(AnswerError, NoStageError):
        asyncio.run(router.answer(request))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(
    count=st.integers(2, 8),
    lam=st.sampled_from([0.0, 2.0, 20.0, 200.0]),
    budget=st.integers(0, 20).map(float),
    failing=st.frozensets(st.sampled_from(["s0", "s1", "s2"])),
    number=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_never_over_budget_and_a_replay_agrees(
    policy: Policy, count: int, lam: float, budget: float, failing: frozenset[str], number: int
) -> None:
    router = router_of(policy, count, failing, lam)
    ask(router, number, max_cost=budget)
    ask(router, number)
    capped, free = (decode(encode(trace)) for trace in router.parts.store.read())
    assert capped.cost <= budget
    for trace in (capped, free):
        called = [attempt.stage for attempt in trace.attempts]
        assert len(called) == len(set(called))
        assert all(pair.is_same for pair in replay(trace, policy))
    if not failing:
        assert free.answer_index is not None
        assert capped.answer_index is not None or budget < 1.0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_the_contract_holds_on_two_to_eight_stages(policy: Policy) -> None:
    for count in range(2, 9):
        check_policy(policy, tuple(f"s{i}" for i in range(count)), walks=40, seed=count)


# ── budget ───────────────────────────────────────────────────────────────────


@given(st.lists(telling_views(most=3), min_size=2, max_size=4), st.floats(0, 1))
@settings(max_examples=20)
def test_a_mix_costs_its_budget_on_average(views: list[View], share: float) -> None:
    """Mean cost over requests and lots, on the model; the two λ and the share are found from costs at a grid of λ."""
    grid = [0.0, 1.0, 3.0, 9.0, 27.0]

    def mean_cost(policy: Policy, lot: float, lam: float = 0.0) -> float:
        costs = []
        for view in views:
            calls = play(policy, independent(view, 3), replace(view, lam=lam, lot=lot), told=False).calls
            costs.append(sum(chance * view.costs[stage].total for stage, chance in calls.items()))
        return sum(costs) / len(costs)

    known = {lam: mean_cost(PandoraPolicy(levels=3), 0.0, lam) for lam in grid}
    budget = min(known.values()) + share * (known[grid[-1]] - min(known.values()))
    low, high, part = mix_for_budget(known, budget)
    policy = BudgetPolicy(base=PandoraPolicy(levels=3), lambdas=[low, high], share=part)
    below, above = mean_cost(policy, 0.0), mean_cost(policy, 1 - 2**-53)
    spent = part * below + (1 - part) * above if part > 0 else above
    assert spent == pytest.approx(budget, abs=1e-9)


@given(telling_views(most=5), st.integers(1, 9), SHARES)
def test_the_propensity_is_how_often_the_lot_leads_to_the_action(view: View, tenths: int, lot: float) -> None:
    policy = BudgetPolicy(base=GreedyPolicy(), lambdas=[1.0, 9.0], share=tenths / 10)
    decision = policy.decide(replace(view, lot=lot * 0.999))
    lots = [(ticket + 0.5) / 10 for ticket in range(10)]
    alike = sum(policy.decide(replace(view, lot=each)).action == decision.action for each in lots)
    assert decision.propensity == pytest.approx(alike / 10)


# ── quality-floor ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.3])
def test_the_promise_holds_on_fresh_rows_averaged_over_calibrations(delta: float) -> None:
    """Rows whose answer at λ is worse than the reference's with a chance that falls with λ, but comes and goes."""
    rng, levels, rows, draws = np.random.default_rng(7), 9, 60, 2000

    def losses(many: int) -> np.ndarray:
        hard = rng.random((many, 1))
        drops = rng.random((many, levels)) < 0.8 * hard * np.linspace(1.0, 0.0, levels)
        return drops.astype(float)  # the last column is the reference itself

    fresh = []
    naive = []
    for _ in range(draws):
        known, new = losses(rows), losses(1)[0]
        fresh.append(new[risk_controlled(known, delta)])
        safe = np.flatnonzero(known.mean(axis=0) <= delta)
        naive.append(new[safe[0]])
    noise = 3 * sqrt(delta * (1 - delta) / draws)
    assert np.mean(fresh) <= delta + noise
    assert np.mean(fresh) < np.mean(naive)  # the first λ that looks safe is less so


def test_a_promise_without_the_running_maximum_would_not_be_kept() -> None:
    """Losses that are not monotone, where the first λ that looks safe is a lucky one among many."""
    rng, levels, rows, draws, delta = np.random.default_rng(11), 200, 20, 2000, 0.1
    kept, lucky = [], []
    for _ in range(draws):
        known, new = ((rng.random((many, levels)) < 0.2).astype(float) for many in (rows, 1))
        known[:, -1] = new[:, -1] = 0.0
        kept.append(new[0, risk_controlled(known, delta)])
        lucky.append(new[0, int(np.argmax((known.sum(axis=0) + 1) / (rows + 1) <= delta))])
    assert np.mean(lucky) > delta + 0.05
    assert np.mean(kept) <= delta
