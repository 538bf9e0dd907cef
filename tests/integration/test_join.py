"""The join of the scales: what drafting between tokens saves is seen by the decisions before and between answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_fakes import get, post
from stepladder import config
from stepladder.build import build
from stepladder.contracts import CostModel
from stepladder.costs.measured import MeasuredCosts
from stepladder.gateway.app import create_app
from stepladder.policies.greedy import GreedyPolicy
from stepladder.router import Router
from stepladder.testing import FakePredictor, make_request
from stepladder.types import Answer, Call, Estimate, Estimates, Features, Request, Stage, Stop, View

TOKENS = 100
PLAIN_S = {"small": 0.001, "large": 0.01}
"""Seconds a token: an answer of TOKENS takes 0.1 s below and 1 s above."""

TIMING = {"call_s": 0.0, "prompt_s": 0.0, "prompt_tokens": 10, "output_tokens": TOKENS}
TIMINGS = {"stages": {name: {**TIMING, "output_s": seconds} for name, seconds in PLAIN_S.items()}}
SPECULATING: Mapping[str, Any] = {"speedup": 2.5}
READING: Mapping[str, Any] = {"keeps": 0.8}
LAM = 2.0


class ByPrompt:
    """The gain of the upper stage over the lower is what the prompt says."""

    version = "by-prompt"

    def predict(self, features: Features) -> Estimates:
        gain = float(features.text.split()[0])
        return Estimates({"small": Estimate(0.4), "large": Estimate(0.4 + gain)})


async def no_wait(seconds: float) -> None:
    """The scripted seconds are reported; nobody has to wait for them."""


def made(above: Mapping[str, Any], *, mode: str = "route", prefer: bool = True) -> Router:
    """A router over two scripted stages, the upper with these further options."""
    stages = [
        {"name": name, "engine": "scripted", "model": "m", "options": {"token_s": seconds, "reply": "word " * TOKENS}}
        for name, seconds in PLAIN_S.items()
    ]
    stages[-1]["options"] |= above
    tree = {
        "ladder": {"cost_unit": "gpu_s"},
        "stages": stages,
        "policy": {"lambda": LAM, "mode": mode},
        "costs": {"model": "measured", "options": {"params": TIMINGS, "prefer_forecast": prefer}},
    }
    router = build(config.parse(tree))
    for engine in router.parts.engines.values():
        engine._sleep = no_wait
    return Router(replace(router.parts, predictor=ByPrompt()))


async def routed(router: Router, gain: float) -> dict[str, Any]:
    """What /v1/route says of a prompt."""
    body = {"model": "stepladder", "messages": [{"role": "user", "content": f"{gain} is gained"}]}
    got = await post(create_app(router), "/v1/route", body)
    assert got.status == 200
    return got.json


def price(told: Mapping[str, Any], stage: str) -> float:
    return next(each["cost"]["total"] for each in told["stages"] if each["stage"] == stage)


@pytest.mark.parametrize(
    ("gain", "plain", "speculating"),
    [
        (0.1, "small", "small"),
        (0.2, "small", "large"),
        (0.3, "small", "large"),
        (0.4, "small", "large"),
        (0.5, "large", "large"),
        (0.6, "large", "large"),
    ],
)
async def test_speculation_lowers_the_price_and_moves_the_prompts_near_the_switch(gain, plain, speculating):
    """λ·gain against 1 − 0.1 without, and against 0.4 − 0.1 with."""
    before, after = await routed(made({}), gain), await routed(made(SPECULATING), gain)
    assert [price(told, "large") for told in (before, after)] == pytest.approx([1.0, 0.4])
    assert [price(told, "small") for told in (before, after)] == pytest.approx([0.1, 0.1])
    assert (before["stage"], after["stage"]) == (plain, speculating)


async def test_where_forecasts_are_not_asked_for_nothing_moves():
    told = [await routed(made(above, prefer=False), 0.3) for above in ({}, SPECULATING)]
    assert [price(each, "large") for each in told] == pytest.approx([1.0, 1.0])
    assert [each["stage"] for each in told] == ["small", "small"]


@pytest.mark.parametrize(
    ("gain", "fresh", "reading"), [(0.05, False, False), (0.2, False, True), (0.4, False, True), (0.6, True, True)]
)
async def test_a_climb_is_worth_more_where_the_lower_answer_is_read(gain, fresh, reading):
    """1 s for a whole answer; 0.2 s where four fifths of the lower one are kept."""
    for above, climbs in (({}, fresh), (READING, reading)):
        answer = await Pipeline(made(above, mode="cascade")).ask(gain)
        step = answer.trace.steps[1]
        assert step.view.costs["large"].total == pytest.approx(0.2 if above else 1.0)
        assert [step.decision.action.__class__, answer.stage] == ([Call, "large"] if climbs else [Stop, "small"])
        assert len(answer.trace.attempts) == 1 + climbs


class Pipeline:
    """A router that is asked the lower stage first, whatever the policy would have begun with."""

    def __init__(self, router: Router) -> None:
        self.router = Router(replace(router.parts, policies={"cascade": FromBelow()}))

    async def ask(self, gain: float) -> Answer:
        return await self.router.answer(make_request(f"{gain} is gained"))


class FromBelow(GreedyPolicy):
    """Greedy, but for its first call."""

    def __init__(self) -> None:
        super().__init__(cascade=True)

    def decide(self, view: View) -> Any:
        decision = super().decide(view)
        return decision if view.attempts else replace(decision, action=Call("small"))


async def test_what_was_kept_is_billed_as_read_and_shown():
    router = Pipeline(made({**READING, **SPECULATING}, mode="cascade")).router
    app = create_app(router)
    body = {"model": "stepladder", "messages": [{"role": "user", "content": "0.6 is gained"}]}
    got = (await post(app, "/v1/chat/completions", body)).json
    below, above = got["stepladder"]["spent"]
    assert "speculation" not in below
    found = above["speculation"]
    assert (found["chain"], found["climbed"], found["kept"]) == (["ngram", "large"], 100, 80)
    assert found["pairs"] == [{"drafter": "ngram", "target": "large", "drafted": 12, "accepted": 12}]
    assert (found["passes"], found["moved"]) == ({"large": 8}, None)
    assert found["saved_s"] == pytest.approx(80 * 0.01 / 2.5)
    assert above["cost"] == pytest.approx(0.2)  # by plain timings: 20 tokens written
    assert "completion_tokens_details" not in got["usage"]  # OpenAI's mean the caller's own prediction
    stored = (await get(app, f"/v1/decisions/{got['stepladder']['decision_id']}")).json
    assert stored["spent"][1]["speculation"] == found
    assert stored["steps"][1]["attempt"]["speculation"] == found
    assert "speculation" not in stored["steps"][0]["attempt"]


# ── laws ─────────────────────────────────────────────────────────────────────


@lru_cache
def costs_with(speedup: float) -> tuple[CostModel, tuple[Stage, ...]]:
    parts = made({"speedup": speedup}).parts
    assert isinstance(parts.costs, MeasuredCosts)
    return parts.costs, parts.ladder.stages


@given(
    speedup=st.sampled_from([1.0, 1.1, 2.0, 7.5]),
    lam=st.floats(0, 100),
    quality=st.fixed_dictionaries({"small": st.floats(0, 1), "large": st.floats(0, 1)}),
    limit=st.none() | st.integers(0, 400),
)
@settings(max_examples=200, deadline=None)
def test_a_stage_that_gets_cheaper_is_not_called_less(speedup, lam, quality, limit):
    """C with speculation ≤ C without, so that greedy, which takes the greatest λ·Q − C, never leaves the stage."""
    request = make_request(**({} if limit is None else {"max_tokens": limit}))
    views = [viewed(costs_with(rate), request, quality, lam) for rate in (1.0, speedup)]
    before, after = (view.costs for view in views)
    assert after["large"].total <= before["large"].total
    assert after["small"] == before["small"]
    plain, fast = (GreedyPolicy().decide(view).action for view in views)
    assert isinstance(plain, Call)
    assert isinstance(fast, Call)
    assert plain.stage == "small" or fast.stage == "large"


def viewed(
    priced: tuple[CostModel, tuple[Stage, ...]], request: Request, quality: Mapping[str, float], lam: float
) -> View:
    costs, stages = priced
    estimates = FakePredictor(quality).predict(Features({}, request.text))
    return View(tuple(quality), lam, estimates, {stage.name: costs.expected(stage, request) for stage in stages})


def test_the_drafts_words_reach_the_engine():
    router = Pipeline(made(READING, mode="cascade")).router
    answer = asyncio.run(router.answer(make_request("0.6 is gained")))
    calls = router.parts.engines["large"].calls
    assert [(stage, draft) for stage, _, draft in calls] == [("small", None), ("large", answer.trace.attempts[0])]
