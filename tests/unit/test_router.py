"""The loop: what it calls, shows, bills and writes down, and whom it refuses."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import AnswerError, EngineError, NoStageError, RequestError
from stepladder.evaluate.replay import differences, replay
from stepladder.policies.candidates import climb, untried
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.router import Parts, Router, coin
from stepladder.testing import FakeCosts, FakeFeaturizer, FakePredictor, MemoryTraceStore, make_ladder, make_request
from stepladder.traces.codec import decode, encode
from stepladder.types import (
    Answer,
    Attempt,
    Call,
    Decided,
    Decision,
    Delta,
    Dials,
    Fault,
    Ladder,
    Request,
    Stop,
    View,
    draft_below,
)

QUALITY = {"small": 0.5, "medium": 0.75, "large": 0.9}
COSTS = {"small": 1.0, "medium": 1.3, "large": 1.8}
DOWN = Fault("server", "down", 500)


def make_router(script=None, *, lam: float = 5.0, mode="route", policies=None, **more) -> Router:
    ladder = make_ladder(*QUALITY, **more)
    engine = ScriptedEngine(ladder.stages, script)
    ticks, ids = iter(range(10_000_000)), iter(range(10_000_000))
    return Router(
        Parts(
            ladder=ladder,
            engines=dict.fromkeys(QUALITY, engine),
            featurizer=FakeFeaturizer(),
            predictor=FakePredictor(QUALITY),
            costs=FakeCosts(COSTS),
            policies={
                "route": GreedyPolicy(),
                "cascade": FixedPolicy(first="small", then="large"),
                "fixed": SinglePolicy(),
                **(policies or {}),
            },
            store=MemoryTraceStore(),
            lam=lam,
            mode=mode,
            clock=lambda: 1000.0,
            timer=lambda: float(next(ticks)),
            new_id=lambda: f"dec-{next(ids)}",
        )
    )


def with_dials(text: str = "hello", **dials) -> Request:
    return Request("req-1", messages=({"role": "user", "content": text},), dials=Dials(**dials))


async def events_of(router: Router, request: Request) -> list:
    return [event async for event in router.stream(request)]


async def test_the_policys_stage_answers_and_is_billed():
    router = make_router({"small": "s", "medium": "m", "large": "l"})
    answer = await router.answer(make_request())
    assert (answer.text, answer.stage, answer.cost) == ("l", "large", 1.8)


async def test_lambda_of_the_request_wins():
    answer = await make_router().answer(make_request(lam=0.5))
    assert answer.stage == "small"


async def test_a_fault_is_an_attempt_and_the_policy_goes_on():
    router = make_router({"small": "s", "medium": "m", "large": DOWN})
    answer = await router.answer(make_request())
    assert [(a.stage, a.is_answer) for a in answer.trace.attempts] == [("large", False), ("medium", True)]
    assert answer.cost == COSTS["medium"]


async def test_all_stages_fail():
    router = make_router(dict.fromkeys(QUALITY, DOWN))
    with pytest.raises(AnswerError, match="down") as caught:
        await router.answer(make_request())
    assert len(caught.value.trace.attempts) == 3
    assert router.parts.store.get(caught.value.trace.id) == caught.value.trace


async def test_a_pipeline_bills_both_stages_and_keeps_the_later():
    answer = await make_router(mode="cascade").answer(make_request())
    assert [a.stage for a in answer.trace.attempts] == ["small", "large"]
    assert answer.stage == "large"
    assert answer.cost == pytest.approx(2.8)


async def test_a_final_call_is_streamed_as_it_comes():
    router = make_router({"small": ["a", "b"], "medium": ["c"], "large": ["d", "e", "f"]})
    events = await events_of(router, make_request(stream=True))
    assert [type(event) for event in events] == [Decided, Delta, Delta, Delta, Attempt, Decided, Answer]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "def"


async def test_a_call_that_may_be_dropped_shows_nothing_and_is_asked_in_one_piece():
    router = make_router({"small": ["a", "b"], "medium": "", "large": ["c"]}, mode="cascade")
    events = await events_of(router, make_request(stream=True))
    engine = router.parts.engines["small"]
    assert not engine.calls[0][1].params.get("stream")
    assert [event.text for event in events if isinstance(event, Delta)] in ([], ["c"])


async def test_no_climb_after_the_first_byte():
    router = make_router({"small": "s", "medium": "m", "large": ["d", DOWN]})
    with pytest.raises(AnswerError) as caught:
        await events_of(router, make_request(stream=True))
    trace = caught.value.trace
    assert [attempt.stage for attempt in trace.attempts] == ["large"]
    assert "no climb after the first byte" in trace.steps[-1].decision.reason
    assert not differences([trace], GreedyPolicy())


async def test_a_caller_who_leaves_still_leaves_a_trace():
    router = make_router({"small": "s", "medium": "m", "large": ["d", "e", "f"]})
    async with aclosing(router.stream(make_request(stream=True))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    (trace,) = router.parts.store.read()
    assert trace.fault is not None
    assert trace.fault.kind == "cancelled"
    (attempt,) = trace.attempts
    assert (attempt.stage, attempt.text, attempt.usage.output_tokens) == ("large", "d", 1)
    assert attempt.fault is not None
    assert attempt.fault.kind == "cancelled"


async def test_cancelling_while_the_engine_works_leaves_a_trace():
    async def forever(seconds: float) -> None:
        await asyncio.Event().wait()

    router = make_router()
    engine = ScriptedEngine(router.parts.ladder.stages, delay_s=1.0, sleep=forever)
    router.parts.engines.update(dict.fromkeys(QUALITY, engine))
    task = asyncio.create_task(router.answer(make_request()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (trace,) = router.parts.store.read()
    assert trace.fault is not None
    assert [(a.stage, a.fault.kind, a.cost) for a in trace.attempts if a.fault] == [("large", "cancelled", 0.0)]


class Mute(ScriptedEngine):
    """Breaks the contract: ends without an attempt."""

    async def generate(self, request, stage, draft=None):
        for event in ():
            yield event


async def test_an_engine_that_makes_no_attempt_is_a_fault_and_no_endless_loop():
    router = make_router()
    router.parts.engines["large"] = Mute(router.parts.ladder.stages)
    answer = await router.answer(make_request())
    assert answer.trace.attempts[0].fault.kind == "protocol"
    assert answer.stage == "medium"


class Stubborn:
    """Breaks the contract: never comes to an end."""

    name = "stubborn"

    def decide(self, view: View) -> Decision:
        return Decision(Call("small"))


async def test_a_policy_that_never_ends_is_ended():
    router = make_router(policies={"route": Stubborn()})
    with pytest.raises(AnswerError, match="the policy 'stubborn' did not come to an end within 16 steps"):
        await router.answer(make_request())


class Failing(GreedyPolicy):
    """Raises what it should not."""

    def decide(self, view):
        raise ValueError("no such thing")


async def test_a_bug_is_not_called_a_caller_who_left():
    router = make_router(policies={"route": Failing()})
    with pytest.raises(ValueError, match="no such thing"):
        await router.answer(make_request())
    (trace,) = router.parts.store.read()
    assert (trace.fault.kind, trace.fault.message) == ("server", "ValueError: no such thing")


async def test_a_mistake_of_the_callers_does_not_climb():
    wrong = Fault("bad_request", "temperature must be at most 2", 400)
    router = make_router({"small": "s", "medium": "m", "large": wrong})
    with pytest.raises(AnswerError, match="at most 2") as caught:
        await router.answer(make_request())
    assert [attempt.stage for attempt in caught.value.trace.attempts] == ["large"]


async def test_after_a_prompt_too_long_only_roomier_stages_are_asked():
    ladder = Ladder("t", tuple(replace(s, context=c) for s, c in zip(make_ladder().stages, (64, 512, 64), strict=True)))
    full = Fault("context", "too long", 400)
    router = make_router({"small": "s", "medium": "m", "large": full})
    answer = await Router(replace(router.parts, ladder=ladder)).answer(make_request())
    assert [attempt.stage for attempt in answer.trace.attempts] == ["large", "medium"]


@pytest.mark.parametrize(
    "request_",
    [
        Request("r"),
        Request("r", prompt=" \n"),
        Request("r", messages=({"role": "user", "content": ""},)),
        Request("r", messages=({"role": "system", "content": "be kind"}, {"role": "user", "content": []})),
        Request("r", messages=({"role": "user"},)),
    ],
)
async def test_an_empty_prompt_is_refused_and_traced(request_):
    router = make_router()
    with pytest.raises(RequestError, match="the prompt is empty"):
        await router.answer(request_)
    (trace,) = router.parts.store.read()
    assert trace.fault.kind == "bad_request"


async def test_a_picture_alone_is_no_empty_prompt():
    content = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    answer = await make_router().answer(Request("r", messages=({"role": "user", "content": content},)))
    assert answer.stage == "large"


async def test_a_stage_by_name_bypasses_a_policy_of_mode_fixed():
    router = make_router({"small": "s", "medium": "m", "large": "l"}, policies={"fixed": SinglePolicy(stage="large")})
    parts = replace(router.parts, pinned=SinglePolicy())
    answer = await Router(parts).answer(with_dials(mode="fixed", min_stage="small", max_stage="small"))
    assert answer.stage == "small"
    assert (await Router(parts).answer(with_dials(mode="fixed"))).stage == "large"


# ── starting and closing ─────────────────────────────────────────────────────


class Watched(ScriptedEngine):
    """Counts its starts and closes; may refuse either."""

    def __init__(self, stages, *, refuses: str = "") -> None:
        super().__init__(stages)
        self.refuses, self.started, self.closed = refuses, 0, 0

    async def start(self) -> None:
        if self.refuses == "start":
            raise EngineError("cannot start")
        self.started += 1

    async def close(self) -> None:
        self.closed += 1
        if self.refuses == "close":
            raise EngineError("cannot close")


def with_engines(*refusals: str) -> tuple[Router, list[Watched]]:
    router = make_router()
    engines = [Watched(router.parts.ladder.stages, refuses=r) for r in refusals]
    return Router(replace(router.parts, engines=dict(zip(QUALITY, engines, strict=True)))), engines


async def test_what_was_started_is_closed_where_a_later_engine_cannot_start():
    router, engines = with_engines("", "", "start")
    with pytest.raises(EngineError, match="cannot start"):
        await router.start()
    assert [engine.closed for engine in engines] == [1, 1, 0]


async def test_all_engines_are_closed_where_one_cannot():
    router, engines = with_engines("", "close", "")
    with pytest.raises(EngineError, match="cannot close"):
        await router.close()
    assert [engine.closed for engine in engines] == [1, 1, 1]


# ── who may be asked ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dials", "stage"),
    [
        ({"max_stage": "medium"}, "medium"),
        ({"min_stage": "medium", "lam": 0.0}, "medium"),
        ({"max_cost": 1.5}, "medium"),
        ({"mode": "fixed"}, "large"),
        ({"mode": "fixed", "max_stage": "small"}, "small"),
    ],
)
async def test_bounds_of_the_request_hold(dials, stage):
    answer = await make_router().answer(with_dials(**dials))
    assert answer.stage == stage


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"min_stage": "smal"}, "min_stage: no stage 'smal'; did you mean 'small'?"),
        ({"min_stage": "large", "max_stage": "small"}, "min_stage 'large' stands above max_stage 'small'"),
        ({"max_cost": 0.5}, "the cheapest, 'small', takes 1"),
    ],
)
async def test_bounds_that_cannot_hold(dials, said):
    with pytest.raises(RequestError, match=said):
        await make_router().answer(with_dials(**dials))


async def test_a_mode_that_the_ladder_does_not_offer():
    router = make_router()
    del router.parts.policies["cascade"]
    with pytest.raises(RequestError, match="mode 'cascade' is not offered by this ladder; valid: route, fixed"):
        await router.answer(with_dials(mode="cascade"))


async def test_a_stage_that_cannot_is_not_asked():
    request = Request("r", messages=({"role": "user", "content": "x"},), needs=frozenset({"tools"}))
    with pytest.raises(NoStageError, match="small: cannot do tools; medium: cannot do tools"):
        await make_router().answer(request)


async def test_a_prompt_that_no_context_can_hold():
    router = make_router(context=8)
    with pytest.raises(NoStageError, match="too long") as caught:
        await router.answer(make_request("x" * 1000))
    assert caught.value.code == "context_length_exceeded"


async def test_max_cost_holds_over_a_whole_climb():
    answer = await make_router(mode="cascade", policies={"cascade": GreedyPolicy(cascade=True)}, lam=100.0).answer(
        with_dials(max_cost=2.0)
    )
    assert answer.cost <= 2.0


# ── what engines and prices are told ─────────────────────────────────────────


async def test_engines_are_told_the_price_in_force_and_traces_what_the_caller_said():
    for said, used in ((None, 5.0), (0.5, 0.5), (0.0, 0.0)):
        router = make_router(mode="cascade")
        request = make_request(lam=said)
        trace = (await router.answer(request)).trace
        assert [sent.dials.lam for _, sent, _ in router.parts.engines["small"].calls] == [used, used]
        assert trace.request == request
        assert {step.view.lam for step in trace.steps} == {used}


class Priced(FakeCosts):
    """Keeps what each stage was priced with."""

    def __init__(self, table):
        super().__init__(table)
        self.seen = []

    def expected(self, stage, request, history=(), draft=None):
        self.seen.append((len(history), stage.name, draft))
        return super().expected(stage, request, history, draft)


@pytest.mark.parametrize("budget", [None, 3.2, 4.2])
async def test_a_climb_is_priced_with_the_draft_that_it_is_handed(budget):
    """Also where the budget leaves no room for the stage that wrote it."""
    costs = Priced(COSTS)
    router = make_router({"small": "s", "medium": DOWN}, mode="cascade", policies={"cascade": Climbing()}, lam=100.0)
    router = Router(replace(router.parts, costs=costs))
    trace = (await router.answer(with_dials(max_cost=budget))).trace
    calls = [step for step in trace.steps if isinstance(step.decision.action, Call)]
    for step in calls:
        call = step.decision.action
        assert (len(step.view.attempts), call.stage, call.draft) in costs.seen
    drafts = [step.decision.action.draft for step in calls]
    assert drafts == [None, *[trace.attempts[0]] * (len(drafts) - 1)]
    assert len(drafts) > 1
    assert all(draft is None for attempts, stage, draft in costs.seen if not attempts or stage == "small")


means = st.floats(0, 1)


@given(
    tried=st.lists(st.builds(Attempt, st.sampled_from([*QUALITY, "gone"]), st.sampled_from(["", "a", "b"]))),
    down=st.sets(st.integers(0, 5)),
    quality=st.fixed_dictionaries(dict.fromkeys([*QUALITY, "gone"], means)),
    stage=st.sampled_from(list(QUALITY)),
)
def test_a_draft_is_the_best_answer_from_below(tried, down, quality, stage):
    tried = [replace(made, fault=DOWN) if place in down else made for place, made in enumerate(tried)]
    estimates = FakePredictor(quality).predict(None)
    order = list(QUALITY)
    found = draft_below(stage, order, tried, estimates)
    below = [made for made in tried if made.is_answer and made.text and made.stage in order[: order.index(stage)]]
    assert (found is None) == (not below)
    if found is not None:
        assert any(found is made for made in below)
        first = next(made for made in below if quality[made.stage] == max(quality[each.stage] for each in below))
        assert found is first


class Climbing:
    """From the bottom to the top."""

    name = "climbing"

    def decide(self, view: View) -> Decision:
        left = untried(view)
        return Decision(climb(view, left[0])) if left else Decision(Stop(view.attempts[0]))


# ── replay ───────────────────────────────────────────────────────────────────


def test_deciding_alone_calls_nothing_and_stores_nothing():
    router = make_router()
    trace = router.decide(make_request())
    assert trace.steps[0].decision.action.stage == "large"
    assert not router.parts.engines["small"].calls
    assert not list(router.parts.store.read())


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30), st.sampled_from(["route", "cascade", "fixed"]), st.sets(st.sampled_from(sorted(QUALITY)))
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_recorded_day_replays_to_the_same_actions(day):
    broken: set[str] = set()
    policies = {"cascade": GreedyPolicy(cascade=True)}
    router = make_router(lambda stage, request: DOWN if stage in broken else stage, policies=policies)

    async def live() -> None:
        for number, (lam, mode, failing) in enumerate(day):
            broken.clear()
            broken.update(failing)
            request = Request(f"r{number}", messages=({"role": "user", "content": "x"},), dials=Dials(lam, mode))
            try:
                await router.answer(request)
            except AnswerError:
                continue

    asyncio.run(live())
    traces = [decode(encode(trace)) for trace in router.parts.store.read()]
    assert len(traces) == len(day)
    for trace in traces:
        policy = router.parts.policies[trace.mode]
        assert all(pair.is_same for pair in replay(trace, policy))


def test_replay_shows_what_another_policy_would_do():
    router = make_router()
    trace = asyncio.run(router.answer(make_request())).trace
    changed = differences([trace], SinglePolicy(stage="small"))
    assert changed[0].then.action.stage == "large"
    assert changed[0].now.action.stage == "small"


@given(st.integers(), st.text(), st.integers(0, 9))
def test_the_coin_is_drawn_from_its_arguments_alone(seed, name, step):
    assert coin(seed, name, step) == coin(seed, name, step)
    assert 0 <= coin(seed, name, step) < 1


def test_coins_are_spread_evenly():
    drawn = [coin(0, str(number), 0) for number in range(4000)]
    assert abs(sum(drawn) / 4000 - 0.5) < 0.03


@pytest.mark.parametrize("lam", [float("inf"), float("nan"), -1.0])
async def test_a_lambda_that_is_no_price_is_refused(lam):
    with pytest.raises(RequestError, match="lambda: should be a number from 0 up"):
        await make_router().answer(make_request(lam=lam))
