"""The router before stages that cannot take a call, parts that fail and conversations that go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from stepladder.contracts import Policy
from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import AnswerError, NoStageError, RequestError
from stepladder.evaluate.replay import differences
from stepladder.guard.conversations import Conversations
from stepladder.guard.gates import GateRules, Gates
from stepladder.policies.cascade import CascadePolicy
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import RandomSplitPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.router import Parts, Router, next_decision
from stepladder.testing import (
    FakeCosts,
    FakeFeaturizer,
    FakePredictor,
    MemoryTraceStore,
    make_ladder,
    make_request,
    make_view,
)
from stepladder.traces.codec import decode, encode
from stepladder.types import (
    Answer,
    Attempt,
    Call,
    Cost,
    Delta,
    Dials,
    EngineEvent,
    Estimate,
    Estimates,
    Fallback,
    Fault,
    Features,
    Request,
    Stage,
    Stop,
    Trace,
)

QUALITY = {"small": 0.5, "medium": 0.75, "large": 0.9}
COSTS = {"small": 1.0, "medium": 1.3, "large": 1.8}
DOWN = Fault("connect", "down")


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def world(
    script: Any = None, policy: Policy | None = None, *, rules: GateRules | None = None, **parts: Any
) -> tuple[Router, Clock]:
    ladder, clock = make_ladder(*QUALITY), Clock()
    engine = ScriptedEngine(ladder.stages, script)
    gates = Gates(
        QUALITY, dict.fromkeys(QUALITY, rules or GateRules(failures=2, pause_s=10.0)), clock=clock, chance=zero
    )
    made: dict[str, Any] = {
        "ladder": ladder,
        "engines": dict.fromkeys(QUALITY, engine),
        "featurizer": FakeFeaturizer(),
        "predictor": FakePredictor(QUALITY),
        "costs": FakeCosts(COSTS),
        "policies": {"route": policy or GreedyPolicy(), "cascade": GreedyPolicy(cascade=True), "fixed": SinglePolicy()},
        "pinned": SinglePolicy(),
        "store": MemoryTraceStore(),
        "guard": gates,
        "lam": 5.0,
    }
    return Router(Parts(**{**made, **parts})), clock


def zero() -> float:
    return 0.0


async def failing(router: Router, request: Request) -> Trace:
    with pytest.raises(AnswerError) as caught:
        await router.answer(request)
    return caught.value.trace


def pinned(stage: str) -> Request:
    return replace(make_request(), dials=Dials(mode="fixed", min_stage=stage, max_stage=stage))


def fault_of(trace: Trace) -> Fault:
    assert trace.fault is not None
    return trace.fault


# ── who is there ─────────────────────────────────────────────────────────────


async def test_a_stage_that_failed_repeatedly_is_left_out_until_a_probe_succeeds() -> None:
    answers: dict[str, Any] = {"large": DOWN}
    router, clock = world(lambda stage, _: answers.get(stage, stage))
    for _ in range(2):
        answer = await router.answer(make_request())
        assert [attempt.stage for attempt in answer.trace.attempts] == ["large", "medium"]
    answer = await router.answer(make_request())
    assert [attempt.stage for attempt in answer.trace.attempts] == ["medium"]
    view = answer.trace.steps[0].view
    assert (view.stages, view.absent["large"].kind) == (("small", "medium"), "breaker")
    assert decode(encode(answer.trace)) == answer.trace
    assert not differences([answer.trace], GreedyPolicy())
    clock.now += 10.0
    answers.clear()
    assert (await router.answer(make_request())).stage == "large"
    states = {state.stage: state for state in router.snapshot().stages}
    assert (states["large"].breaker, states["large"].opened, states["large"].failures) == ("closed", 1, 2)
    assert states["large"].left_out["breaker"] == 4  # of two decisions after it opened, and of two of the next request


async def test_a_failed_probe_costs_one_request_one_try() -> None:
    router, clock = world({"large": DOWN})
    for _ in range(2):
        await router.answer(make_request())
    for pause in (10.0, 20.0):
        clock.now += pause
        both = await asyncio.gather(router.answer(make_request()), router.answer(make_request()))
        assert sorted(len(answer.trace.attempts) for answer in both) == [1, 2]


async def test_all_broken_is_503_with_the_soonest_time() -> None:
    router, clock = world(dict.fromkeys(QUALITY, DOWN))
    await failing(router, make_request())
    clock.now += 4.0
    await failing(router, pinned("small"))
    clock.now += 2.0
    for stage in ("medium", "large"):
        await failing(router, pinned(stage))
    trace = await failing(router, make_request())
    fault = fault_of(trace)
    assert (fault.kind, fault.retry_after, trace.attempts) == ("unavailable", 8.0, ())
    assert all(f"stage '{stage}' is left in peace" in fault.message for stage in QUALITY)
    assert not differences([decode(encode(trace))], GreedyPolicy())
    assert fault_of(await failing(router, pinned("large"))).message.startswith("stage 'large' is left in peace")
    assert router.decide(make_request()).steps[0].decision.reason == fault.message


async def test_all_full_is_429_and_one_full_stage_is_stepped_over() -> None:
    release = asyncio.Event()

    async def sleeps(_: float) -> None:
        await release.wait()

    ladder = make_ladder(*QUALITY)
    engine = ScriptedEngine(ladder.stages, delay_s=1.0, sleep=sleeps)
    router, _ = world(rules=GateRules(places=1, max_queue=1), engines=dict.fromkeys(QUALITY, engine))
    waiting = [asyncio.create_task(router.answer(make_request())) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert [state.waiting for state in router.snapshot().stages] == [1, 1, 1]
    trace = await failing(router, make_request())
    fault = fault_of(trace)
    assert (fault.kind, fault.retry_after, trace.attempts) == ("rate_limit", 1.0, ())
    release.set()
    answers = await asyncio.gather(*waiting)
    assert sorted(answer.stage for answer in answers) == ["large"] * 2 + ["medium"] * 2 + ["small"] * 2
    assert [(state.in_flight, state.absence) for state in router.snapshot().stages] == [(0, None)] * 3


async def test_some_broken_and_some_resting_is_too_much_to_do() -> None:
    script = {"small": Fault("rate_limit", "slow down", 429, retry_after=30.0), "medium": DOWN, "large": DOWN}
    router, _ = world(script)
    for _ in range(2):
        await failing(router, make_request())
    fault = fault_of(await failing(router, make_request()))
    assert (fault.kind, fault.retry_after) == ("rate_limit", 10.0)


async def test_who_fails_with_others_away_says_when_to_come_again() -> None:
    router, _ = world({"small": Fault("rate_limit", "slow down", 429, retry_after=30.0), "large": DOWN, "medium": DOWN})
    fault = fault_of(await failing(router, make_request()))
    assert (fault.kind, fault.retry_after) == ("rate_limit", 30.0)  # large and medium were tried first
    fault = fault_of(await failing(router, make_request()))
    assert (fault.kind, fault.retry_after) == ("connect", 10.0)  # small rests for longer, the others were given up now


async def test_a_mistake_of_the_callers_names_no_time() -> None:
    router, _ = world(
        {"large": Fault("bad_request", "no", 400), "small": Fault("rate_limit", "", 429, retry_after=9.0)}
    )
    await failing(router, pinned("small"))
    fault = fault_of(await failing(router, make_request()))
    assert (fault.kind, fault.retry_after) == ("bad_request", None)


@pytest.mark.parametrize(
    "policy",
    [SinglePolicy(stage="large"), FixedPolicy(first="small", then="large"), RandomSplitPolicy(stages=["large"])],
    ids=lambda policy: policy.name,
)
async def test_a_policy_bound_to_a_stage_that_is_away_says_so(policy: Policy) -> None:
    router, _ = world({"large": DOWN}, policy)
    for _ in range(2):
        await failing(router, pinned("large"))
    fault = fault_of(await failing(router, make_request()))
    assert (fault.kind, fault.retry_after) == ("unavailable", 10.0)


async def test_the_last_place_may_be_gone_between_decision_and_call() -> None:
    router, _ = world(rules=GateRules(places=1, max_queue=0))
    guard = router.parts.guard
    assert guard is not None
    async with aclosing(router.stream(make_request())) as events:
        await anext(events)  # decided: large
        entry = guard.enter("large")
        rest = [event async for event in events]
    assert isinstance(rest[-1], Answer)
    assert [(made.stage, made.fault and made.fault.kind) for made in rest[-1].trace.attempts] == [
        ("large", "rate_limit"),
        ("medium", None),
    ]
    assert rest[-1].trace.attempts[0].cost == 0.0
    entry.leave(None)  # type: ignore[union-attr]


async def test_a_stage_that_comes_back_makes_no_climb_of_a_final_call() -> None:
    """All above are away, so the call of the cheapest is final; when it has answered, they are back."""
    clock_of: list[Clock] = []

    def script(stage: str, _: Request) -> Any:
        if stage == "small":
            clock_of[0].now += 1000.0
            return "four"
        return DOWN

    router, clock = world(script, CascadePolicy(thresholds=0.9))
    clock_of.append(clock)
    for stage in ("medium", "large"):
        for _ in range(2):
            await failing(router, pinned(stage))
    answer = await router.answer(make_request(stream=True))
    assert [attempt.stage for attempt in answer.trace.attempts] == ["small"]
    assert answer.trace.steps[0].decision.action.final  # type: ignore[union-attr]
    assert set(answer.trace.steps[1].view.absent) == {"medium", "large"}


async def test_over_budget_and_away_are_told_apart() -> None:
    router, _ = world({"small": DOWN})
    for _ in range(2):
        await failing(router, pinned("small"))
    capped = replace(make_request(), dials=Dials(max_cost=1.1))
    assert fault_of(await failing(router, capped)).kind == "unavailable"
    with pytest.raises(NoStageError, match="max_cost"):
        await router.answer(replace(capped, dials=Dials(max_cost=0.5)))


async def test_a_caller_who_leaves_frees_the_place_and_says_nothing_of_health() -> None:
    router, _ = world({"large": ["a", "b", "c"]}, rules=GateRules(places=1, failures=1))
    async with aclosing(router.stream(make_request(stream=True))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
        assert router.snapshot().stages[2].in_flight == 1
    state = router.snapshot().stages[2]
    assert (state.in_flight, state.failures, state.breaker) == (0, 0, "closed")


class Raising(ScriptedEngine):
    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        raise RuntimeError("a bug of an engine")
        yield Delta("")


async def test_an_engine_that_raises_frees_its_place() -> None:
    ladder = make_ladder(*QUALITY)
    router, _ = world(engines=dict.fromkeys(QUALITY, Raising(ladder.stages)))
    with pytest.raises(RuntimeError):
        await router.answer(make_request())
    assert [state.in_flight for state in router.snapshot().stages] == [0, 0, 0]


async def test_without_a_guard_everything_goes_on() -> None:
    router, _ = world({"large": DOWN}, guard=None)
    for _ in range(10):
        assert len((await router.answer(make_request())).trace.attempts) == 2
    assert router.snapshot().stages == ()


# ── parts that fail ──────────────────────────────────────────────────────────


class Failing:
    """A part that does what it should not, whichever part it is asked to be."""

    version = "failing"

    def __init__(self, error: BaseException = ValueError("no such thing")) -> None:  # noqa: B008 - only raised
        self.error = error

    def features(self, request: Request, history: tuple[Attempt, ...] = ()) -> Features:
        raise self.error

    def predict(self, features: Features) -> Estimates:
        raise self.error

    def expected(self, *_: object) -> Cost:
        raise self.error

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        raise self.error


@pytest.mark.parametrize(("part", "kind"), [("featurizer", "features"), ("predictor", "predictor"), ("costs", "costs")])
async def test_a_part_that_fails_costs_nobody_an_answer(part: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    router, _ = world(**{part: Failing()})
    with caplog.at_level(logging.ERROR, "stepladder.router"):
        answers = [await router.answer(make_request()) for _ in range(3)]
    assert {answer.stage for answer in answers} == {"large"}
    told = f"{kind}: ValueError"
    assert router.snapshot().failed_open[told] == 6  # two decisions each
    assert len([record for record in caplog.records if kind in record.message]) == 1
    trace = answers[0].trace
    fallback = trace.steps[0].view.fallback
    assert fallback is not None
    assert (fallback.stage, fallback.reason) == ("large", told)
    assert "decided without estimates" in trace.steps[0].decision.reason
    assert not trace.steps[0].view.estimates.calibrated or part == "costs"
    assert decode(encode(trace)) == trace
    assert not differences([trace], GreedyPolicy())


async def test_the_fallback_stage_is_a_setting_and_bounds_still_hold() -> None:
    router, _ = world(predictor=Failing(), fallback="small")
    assert (await router.answer(make_request())).stage == "small"
    assert (await router.answer(replace(make_request(), dials=Dials(min_stage="medium")))).stage == "large"


async def test_without_prices_a_bound_on_cost_is_kept_as_well_as_may_be() -> None:
    router, _ = world(costs=Failing())
    assert (await router.answer(replace(make_request(), dials=Dials(max_cost=1.0)))).stage == "small"


async def test_a_bad_request_ends_it_without_estimates_too() -> None:
    router, _ = world({"large": Fault("bad_request", "no", 400)}, predictor=Failing())
    trace = await failing(router, make_request())
    assert [attempt.stage for attempt in trace.attempts] == ["large"]


class NotANumber:
    version = "nan"

    def __init__(self, estimates: Mapping[str, Estimate]) -> None:
        self.estimates = estimates

    def predict(self, features: Features) -> Estimates:
        return Estimates(self.estimates)


@pytest.mark.parametrize(
    "estimates",
    [{**{name: Estimate(0.5) for name in QUALITY}, "large": Estimate(float("nan"))}, {"small": Estimate(1)}],
)
async def test_estimates_that_are_none_are_a_failure(estimates: Mapping[str, Estimate]) -> None:
    router, _ = world(predictor=NotANumber(estimates))
    answer = await router.answer(make_request())
    assert answer.trace.steps[0].view.fallback is not None


def test_without_estimates_too_a_dropped_answer_is_asked_for_again_before_all_is_given_up() -> None:
    dropped = Attempt("small", "fo", fault=Fault("cancelled", "dropped"))
    failed = [Attempt(stage, fault=DOWN) for stage in ("large", "medium")]
    view = replace(
        make_view(QUALITY, COSTS, attempts=[dropped, *failed]), fallback=Fallback("large", "costs: ValueError")
    )
    assert next_decision(GreedyPolicy(), view, None, step=3).action == Call("small", final=True)


async def test_a_cost_that_is_no_number_is_a_failure() -> None:
    router, _ = world(costs=FakeCosts({**COSTS, "small": float("inf")}))
    assert (await router.answer(make_request())).stage == "large"
    assert set(router.snapshot().failed_open) == {"costs: ValueError"}


async def test_a_bill_that_cannot_be_made_keeps_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Unbilled(FakeCosts):
        billed = Failing.billed
        error = ValueError("no bill")

    router, _ = world(costs=Unbilled(COSTS))
    with caplog.at_level(logging.ERROR):
        answer = await router.answer(make_request())
    assert (answer.stage, answer.cost) == ("large", 0.0)
    assert router.snapshot().failed_open == {"billing: ValueError": 1}


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), RequestError("not like this")])
async def test_what_is_no_failure_of_a_part_is_passed_on(error: BaseException) -> None:
    router, _ = world(predictor=Failing(error))
    with pytest.raises(type(error)):
        await router.answer(make_request())
    assert router.snapshot().failed_open == {}


async def test_an_answer_in_hand_is_kept_where_the_predictor_fails_at_it() -> None:
    class Later(FakePredictor):
        def predict(self, features: Features) -> Estimates:
            if features.attempts:
                raise ValueError("cannot read answers")
            return super().predict(features)

    router, _ = world(predictor=Later(QUALITY), policy=CascadePolicy(thresholds=0.99))
    answer = await router.answer(make_request())
    assert [attempt.stage for attempt in answer.trace.attempts] == ["small"]


# ── conversations ────────────────────────────────────────────────────────────


def follow_up(*texts: str, **dials: Any) -> Request:
    messages = tuple({"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts))
    return Request("r", messages=messages, dials=Dials(**dials))


async def test_a_follow_up_stays_where_leaving_is_not_worth_it() -> None:
    router, _ = world({"small": "s", "medium": "m", "large": "l"}, conversations=Conversations(), switch_cost=0.3)
    assert (await router.answer(follow_up("hi", lam=6.0))).stage == "large"
    again = await router.answer(follow_up("hi", "l", "and?", lam=3.0))  # alone it would go to medium, by 0.05
    assert again.stage == "large"
    costs = again.trace.steps[0].view.costs
    assert {name: cost.switch for name, cost in costs.items()} == {"small": 0.3, "medium": 0.3, "large": 0.0}
    assert costs["medium"].total == pytest.approx(1.6)
    assert again.cost == 1.8
    assert decode(encode(again.trace)) == again.trace
    left = await router.answer(follow_up("hi", "l", "and?", lam=0.1))
    assert left.stage == "small"
    snapshot = router.snapshot()
    assert (snapshot.stayed, snapshot.switched, snapshot.conversations) == (1, 1, 3)


async def test_where_the_stage_is_away_leaving_costs_nothing() -> None:
    answers: dict[str, Any] = {}
    router, _ = world(lambda stage, _: answers.get(stage, "x"), conversations=Conversations(), switch_cost=0.3)
    await router.answer(follow_up("hi", session="s"))
    answers["large"] = DOWN
    for _ in range(2):
        await failing(router, pinned("large"))
    answer = await router.answer(follow_up("more", session="s"))
    assert answer.stage == "medium"
    assert all(cost.switch == 0.0 for cost in answer.trace.steps[0].view.costs.values())


async def test_what_nobody_answered_is_not_remembered() -> None:
    router, _ = world(dict.fromkeys(QUALITY, DOWN), conversations=Conversations(), switch_cost=0.3)
    await failing(router, follow_up("hi", session="s"))
    assert router.snapshot().conversations == 0


# ── traces of before ─────────────────────────────────────────────────────────


async def test_what_says_nothing_is_not_written_so_that_older_readers_can_read() -> None:
    router, _ = world()
    body = encode((await router.answer(make_request())).trace)
    (first, _) = body["steps"]
    assert not {"absent", "fallback"} & set(first)
    assert "tries" not in first["attempt"]
    assert set(body["request"]["dials"]) == {"lam", "mode", "min_stage", "max_stage", "max_cost", "explain"}
    assert all("switch" not in cost for cost in first["costs"].values())


def test_tries_are_written_and_read() -> None:
    router, _ = world()
    trace = asyncio.run(router.answer(make_request())).trace
    (called, stopped) = trace.steps
    assert called.attempt is not None
    tried = replace(called.attempt, tries=2)
    decision = replace(stopped.decision, action=Stop(tried))
    seen = replace(stopped, view=replace(stopped.view, attempts=(tried,)), decision=decision)
    changed = replace(trace, steps=(replace(called, attempt=tried), seen))
    assert decode(encode(changed)).attempts[0].tries == 2
