"""Every built-in policy keeps the contract, and the check finds those that do not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from stepladder.contracts import Policy
from stepladder.errors import AnswerError
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.random_split import RandomSplitPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.router import Parts, Router
from stepladder.testing import (
    FakeCosts,
    FakeFeaturizer,
    FakePredictor,
    MemoryTraceStore,
    check_policy,
    make_attempt,
    make_fault,
    make_ladder,
    make_request,
    make_view,
)
from stepladder.types import (
    Attempt,
    Call,
    Capability,
    Decision,
    Delta,
    EngineEvent,
    Fail,
    Fault,
    Request,
    Stage,
    Stop,
    View,
)

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


class Echo:
    """An engine whose stages answer with their own names, but for those that fail."""

    def __init__(self, failing: frozenset[str]) -> None:
        self.failing = failing

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        return frozenset({"stream"})

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        if stage.name in self.failing:
            yield make_attempt(stage.name, fault="server")
            return
        yield Delta(stage.name)
        yield replace(make_attempt(stage.name, stage.name), first_token_s=0.0)

    def expected_cost(self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None) -> None:
        return None

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("failing", [(), ("small",), ("medium", "large"), STAGES])
@pytest.mark.parametrize("name", BUILT_IN)
async def test_built_in_policies_in_the_loop(name: str, failing: tuple[str, ...]) -> None:
    """What was streamed is the answer, whole and once; what was asked is billed; a failure of all is an error."""
    engine, store = Echo(frozenset(failing)), MemoryTraceStore()
    parts = Parts(
        ladder=make_ladder(*STAGES),
        engines=dict.fromkeys(STAGES, engine),
        featurizer=FakeFeaturizer(),
        predictor=FakePredictor({"small": 0.5, "medium": 0.8, "large": 0.9}),
        costs=FakeCosts({"small": 1.0, "medium": 2.0, "large": 4.0}),
        policies={"route": BUILT_IN[name]},
        store=store,
        lam=5.0,
    )
    events: list[object] = []
    with suppress(AnswerError):
        async for event in Router(parts).stream(make_request()):
            events.append(event)  # noqa: PERF401 - what came before an error counts too
    (trace,) = store.read()
    answered = [attempt for attempt in trace.attempts if attempt.is_answer]
    assert trace.cost == sum(FakeCosts({"small": 1.0, "medium": 2.0, "large": 4.0}).table[a.stage] for a in answered)
    streamed = "".join(event.text for event in events if isinstance(event, Delta))
    if trace.answer_index is None:
        assert streamed == ""
        assert trace.fault == make_fault("server")
    else:
        assert streamed in ("", trace.attempts[trace.answer_index].text)


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
