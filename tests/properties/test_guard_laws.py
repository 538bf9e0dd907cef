"""What holds whatever fails: breakers, queues, fallbacks of every policy, and the price of leaving a stage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.contracts import Conversations as Memory
from stepladder.contracts import Guard, Policy, Predictor
from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import AnswerError
from stepladder.evaluate.replay import replay
from stepladder.guard.breaker import LONGEST, Breaker
from stepladder.guard.conversations import Conversations
from stepladder.guard.gates import Entry, GateRules, Gates
from stepladder.policies.budget import BudgetPolicy
from stepladder.policies.cascade import CascadePolicy
from stepladder.policies.cascade_route import CascadeRoutePolicy
from stepladder.policies.fixed import FixedPolicy
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.latency_slo import LatencySLOPolicy
from stepladder.policies.optimal import OptimalPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.policies.quality_floor import QualityFloorPolicy
from stepladder.policies.random_split import RandomSplitPolicy
from stepladder.policies.single import SinglePolicy
from stepladder.router import Parts, Router
from stepladder.testing import (
    FakeCosts,
    FakeFeaturizer,
    FakePredictor,
    MemoryTraceStore,
    make_attempt,
    make_fault,
    make_ladder,
)
from stepladder.traces.codec import decode, encode
from stepladder.types import (
    Answer,
    Attempt,
    Dials,
    Estimate,
    Estimates,
    Fault,
    FaultKind,
    Features,
    Request,
    Trace,
)

NAMES = ("s0", "s1", "s2", "s3")
COSTS = {name: 1.0 + place for place, name in enumerate(NAMES)}
FAULTS: tuple[FaultKind, ...] = ("timeout", "connect", "rate_limit", "context", "auth", "server", "protocol", "crash")
FREE: tuple[Policy, ...] = (
    GreedyPolicy(),
    GreedyPolicy(cascade=True),
    PandoraPolicy(),
    CascadeRoutePolicy(),
    OptimalPolicy(levels=3),
    CascadePolicy(thresholds=0.7),
    CascadePolicy(thresholds=0.7, keep="last"),
    BudgetPolicy(lambdas=[1.0, 9.0], share=0.5),
    QualityFloorPolicy(floor=6.0),
    LatencySLOPolicy(slo_s=0.5),
    LatencySLOPolicy(base=SinglePolicy(), slo_s=100.0),
    SinglePolicy(),
    RandomSplitPolicy(stages=NAMES, weights=(1, 2, 3, 4)),
)
"""Policies that are bound to no stage by name."""


class Told:
    """Estimates as the test drew them, moved by every answer."""

    version = "told"

    def __init__(self, means: Mapping[str, float]) -> None:
        self.means = means

    def predict(self, features: Features) -> Estimates:
        seen = len(features.attempts)
        return Estimates({name: Estimate((mean + 0.37 * seen) % 1.0, 0.2, 0.1) for name, mean in self.means.items()})


class Broken:
    version = "broken"

    def predict(self, features: Features) -> Estimates:
        raise ZeroDivisionError


def shut(gates: Gates, absent: Sequence[str]) -> Gates:
    """With each of these left in peace for longer than any test."""
    for name in absent:
        entry = gates.enter(name)
        assert isinstance(entry, Entry)
        entry.leave(make_attempt(name, fault="crash"))
    return gates


def router_of(
    policy: Policy,
    faults: Mapping[str, Fault],
    predictor: Predictor,
    *,
    lam: float = 5.0,
    guard: Guard | None = None,
    memory: Memory | None = None,
    switch_cost: float = 0.0,
) -> Router:
    ladder = make_ladder(*NAMES)
    engine = ScriptedEngine(ladder.stages, lambda stage, _: faults.get(stage, stage))
    return Router(
        Parts(
            ladder=ladder,
            engines=dict.fromkeys(NAMES, engine),
            featurizer=FakeFeaturizer(),
            predictor=predictor,
            costs=FakeCosts(COSTS),
            policies={"route": policy},
            store=MemoryTraceStore(),
            guard=guard,
            conversations=memory,
            switch_cost=switch_cost,
            lam=lam,
        )
    )


def asked(router: Router, number: int = 0, *, stream: bool = False, **dials: str) -> tuple[str | None, Trace]:
    """The stage that answered, None where none did, and the trace."""
    messages = ({"role": "user", "content": f"q{number}"},)
    request = Request(f"r{number}", messages=messages, params={"stream": stream}, dials=Dials(**dials))  # type: ignore[arg-type]
    try:
        answer: Answer = asyncio.run(router.answer(request))
    except AnswerError as error:
        return None, error.trace
    return answer.stage, answer.trace


MEANS = st.fixed_dictionaries({name: st.floats(0, 1) for name in NAMES})
DEAD = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(FAULTS).map(make_fault))
AWAY = st.frozensets(st.sampled_from(NAMES))


# ── one dead stage is not the end ────────────────────────────────────────────


@pytest.mark.parametrize("policy", FREE, ids=lambda policy: policy.name)
@given(means=MEANS, dead=DEAD, away=AWAY, lam=st.sampled_from([0.0, 2.0, 20.0]), number=st.integers(0, 10**6))
@settings(max_examples=12)
def test_who_can_answer_does_whoever_else_is_dead_or_away(
    policy: Policy, means: dict[str, float], dead: dict[str, Fault], away: frozenset[str], lam: float, number: int
) -> None:
    rules = dict.fromkeys(NAMES, GateRules(failures=1, pause_s=1e6))
    guard = shut(Gates(NAMES, rules, chance=lambda: 0.0), sorted(away))
    router = router_of(policy, dead, Told(means), lam=lam, guard=guard)
    stage, trace = asked(router, number, stream=number % 2 == 0)
    called = [attempt.stage for attempt in trace.attempts]
    assert len(called) == len(set(called))
    assert not away & set(called)
    able = set(NAMES) - away - set(dead)
    assert (stage in able) if able else (stage is None)
    if away == set(NAMES):
        assert trace.fault is not None
        assert (trace.fault.kind, called) == ("unavailable", [])
        assert 0 < (trace.fault.retry_after or 0.0) < 1e6 + 1
    again = decode(encode(trace))
    assert again == trace
    assert all(pair.is_same for pair in replay(again, policy))


@pytest.mark.parametrize(
    ("policy", "bound"),
    [(SinglePolicy(stage="s1"), {"s1"}), (FixedPolicy(first="s0", then="s2"), {"s0", "s2"})],
    ids=lambda each: getattr(each, "name", ""),
)
@given(dead=DEAD, away=AWAY)
@settings(max_examples=10)
def test_a_baseline_answers_where_the_stages_that_it_names_do(
    policy: Policy, bound: set[str], dead: dict[str, Fault], away: frozenset[str]
) -> None:
    rules = dict.fromkeys(NAMES, GateRules(failures=1, pause_s=1e6))
    guard = shut(Gates(NAMES, rules, chance=lambda: 0.0), sorted(away))
    stage, trace = asked(router_of(policy, dead, FakePredictor(dict.fromkeys(NAMES, 0.5)), guard=guard))
    assert (stage in bound) == (not bound & (away | set(dead)))
    if bound & away:
        assert trace.fault is not None
        assert trace.fault.kind == "unavailable"


@given(dead=DEAD, away=AWAY, fallback=st.none() | st.sampled_from(NAMES))
@settings(max_examples=25)
def test_without_estimates_who_can_answer_does(
    dead: dict[str, Fault], away: frozenset[str], fallback: str | None
) -> None:
    rules = dict.fromkeys(NAMES, GateRules(failures=1, pause_s=1e6))
    guard = shut(Gates(NAMES, rules, chance=lambda: 0.0), sorted(away))
    router = router_of(GreedyPolicy(), dead, Broken(), guard=guard)
    object.__setattr__(router.parts, "fallback", fallback)
    stage, trace = asked(router)
    called = [attempt.stage for attempt in trace.attempts]
    able = [name for name in NAMES if name not in away and name not in dead]
    here = [name for name in NAMES if name not in away]
    assert len(called) == len(set(called))
    assert (stage in able) if able else (stage is None)
    if here:
        assert called[0] == (fallback if fallback in here else here[-1])
        assert router.snapshot().failed_open == {"predictor: ZeroDivisionError": len(trace.steps)}
    again = decode(encode(trace))
    assert all(pair.is_same for pair in replay(again, GreedyPolicy()))


# ── breakers and queues ──────────────────────────────────────────────────────

HAPPENINGS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "wait"]), st.sampled_from([True, False, None]), st.floats(0, 10)),
    max_size=80,
)


@given(HAPPENINGS, st.integers(1, 4), st.floats(0.1, 5), st.floats(0, 0.999))
@settings(max_examples=80)
def test_a_breaker_lets_one_call_through_at_a_time_until_one_succeeds(
    happenings: list[tuple[str, bool | None, float]], failures: int, pause_s: float, chance: float
) -> None:
    now = [0.0]
    it = Breaker(failures, pause_s, clock=lambda: now[0], chance=lambda: chance)
    out: list[tuple[int, bool]] = []  # (what end() wants, whether it is a probe of the present round)
    for what, healthy, seconds in happenings:
        before, opened = it.state, it.opened
        if what == "wait":
            now[0] += seconds
        elif what == "begin" and it.wait() == 0:
            assert before != "open"
            assert before == "closed" or not any(is_probe for _, is_probe in out)
            out.append((it.begin(), before == "half_open"))
        elif what == "end" and out:
            begun, is_probe = out.pop(0)
            it.end(begun, healthy)
            if before != "closed" and it.state == "closed":
                assert is_probe
                assert healthy
            if it.opened > opened:
                assert healthy is False
                assert pause_s - 1e-9 <= it.wait() <= pause_s * LONGEST * 1.25 + 1e-9
                assert is_probe or before == "closed"
        if it.opened > opened or (before != "closed" and it.state == "closed"):
            out = [(begun, False) for begun, _ in out]
        assert 0 <= it.wait() <= max(1.0, pause_s * LONGEST * 1.25) + 1e-9


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_no_more_calls_are_inside_than_places_and_queue_hold(coming: list[bool], places: int, queue: int) -> None:
    it = Gates(("a",), {"a": GateRules(places, queue)}, clock=lambda: 0.0, chance=lambda: 0.0)
    inside: list[Entry] = []
    for comes in coming:
        if comes:
            entry = it.enter("a")
            assert isinstance(entry, Entry) == (len(inside) < places + queue)
            if isinstance(entry, Entry):
                inside.append(entry)
        elif inside:
            inside.pop().leave(make_attempt("a"))
        (state,) = it.states()
        assert state.in_flight == min(len(inside), places)
        assert state.waiting == len(inside) - state.in_flight
        assert (state.absence is None) == (len(inside) < places + queue)


# ── the price of leaving a stage ─────────────────────────────────────────────

PRICES = st.floats(0, 10)


@pytest.mark.parametrize("policy", [policy for policy in FREE if policy.name != "random-split"], ids=lambda p: p.name)
@given(means=MEANS, number=st.integers(0, 10**6))
@settings(max_examples=10)
def test_without_a_price_a_memory_changes_no_decision(policy: Policy, means: dict[str, float], number: int) -> None:
    memory = Conversations()
    with_memory, without = (router_of(policy, {}, Told(means), memory=each) for each in (memory, None))
    for turn in range(3):
        (_, one), (_, other) = (asked(each, number + turn, session="s") for each in (with_memory, without))
        assert [step.decision for step in one.steps] == [step.decision for step in other.steps]


@pytest.mark.parametrize("policy", FREE[:5], ids=lambda policy: policy.name)
@given(means=MEANS, home=st.sampled_from(NAMES), low=PRICES, more=PRICES, lam=st.sampled_from([2.0, 5.0, 20.0]))
@settings(max_examples=12)
def test_a_higher_price_makes_nobody_leave_who_stayed_at_a_lower(
    policy: Policy, means: dict[str, float], home: str, low: float, more: float, lam: float
) -> None:
    first = []
    for price in (low, low + more):
        memory = Conversations()
        memory.open(Request("r", prompt="", dials=Dials(session="s"))).answered(Attempt(home))
        router = router_of(policy, {}, Told(means), memory=memory, switch_cost=price, lam=lam)
        _, trace = asked(router, session="s")
        first.append(trace.attempts[0].stage)
        switch = {name: cost.switch for name, cost in trace.steps[0].view.costs.items()}
        assert switch == {name: 0.0 if name == home else price for name in NAMES}
        assert trace.cost == pytest.approx(sum(COSTS[attempt.stage] for attempt in trace.attempts))  # never billed
    assert first[0] != home or first[1] == home


@given(
    means=st.lists(st.fixed_dictionaries({name: st.floats(0, 1) for name in NAMES[:2]}), min_size=2, max_size=8),
    low=st.floats(0.001, 2),
    more=st.floats(0, 2),
)
@settings(max_examples=25)
def test_between_two_stages_a_higher_price_never_makes_more_switches(
    means: list[dict[str, float]], low: float, more: float
) -> None:
    """For whole conversations, from one first answer: the bands in which one stays lie within each other."""

    def switches(price: float) -> int:
        memory, called = Conversations(), ["s0"]
        memory.open(Request("r", prompt="", dials=Dials(session="s"))).answered(Attempt("s0"))
        for turn, told in enumerate(means):
            predictor = FakePredictor({**dict.fromkeys(NAMES, 0.0), **told})
            router = router_of(GreedyPolicy(), {}, predictor, memory=memory, switch_cost=price)
            stage, _ = asked(router, turn, session="s", max_stage="s1")
            called.append(str(stage))
        return sum(one != other for one, other in pairwise(called))

    assert switches(low + more) <= switches(low)


def test_among_three_stages_it_may() -> None:
    """Why the law above is one of two stages: who stays at first may have to move twice later."""
    values = ((0.0, 0.5, 0.0), (0.0, 1.95, 2.0), (0.0, 5.0, 0.0))

    def switches(price: float) -> int:
        at, moves = 0, 0
        for turn in values:
            best = max(range(3), key=lambda stage: turn[stage] - (price if stage != at else 0.0))
            at, moves = best, moves + (best != at)
        return moves

    assert (switches(0.1), switches(1.0)) == (1, 2)
