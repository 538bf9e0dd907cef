"""Laws of what keys bound: rates, budgets, and that callers do not touch each other. Time is made up."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_fakes import STAGES, attempt, world
from stepladder.errors import AccessError
from stepladder.gateway.access import KeyGate
from stepladder.gateway.keys import add_key
from stepladder.gateway.limits import BUDGET_PERIODS, Purse, Quota, TokenBucket, period_of, read_quota
from stepladder.types import Call, Decision, Estimates, Request, Step, Trace, Versions, View

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
periods = st.sampled_from(("second", "minute", "hour", "day"))
quotas = st.builds(Quota, st.floats(0.1, 500), periods)
waits = st.one_of(st.floats(-5, 30), st.just(0.0), st.floats(0, 90_000))


@given(quotas, st.lists(waits, max_size=80))
def test_no_stretch_of_time_lets_more_through_than_burst_and_rate(quota, steps):
    now, latest, passed = 0.0, 0.0, []
    bucket = TokenBucket(quota, now)
    for step in steps:
        now += step
        latest = max(latest, now)
        if not bucket.take(now):
            passed.append(latest)
    for first, last in itertools.combinations(range(len(passed)), 2):
        length = passed[last] - passed[first]
        assert last - first + 1 <= bucket.size + bucket.per_s * length + 1e-6


@given(quotas, st.lists(waits, max_size=40))
def test_the_wait_that_is_told_is_enough_and_no_more(quota, steps):
    now = 0.0
    bucket = TokenBucket(quota, now)
    for step in steps:
        now = max(now, now + step)
        wait = bucket.take(now)
        if wait:
            assert bucket.take(now + 0.99 * wait) > 0
            now += wait * (1 + 1e-6) + 1e-9
            assert bucket.take(now) == 0


def test_a_bucket_tells_what_is_left_and_when_it_is_full():
    bucket = TokenBucket(Quota(60, "minute"), 0.0)
    for _ in range(6):
        assert bucket.take(0.0) == 0
    assert (bucket.left, bucket.full_in) == (54, 6.0)
    assert bucket.take(3.0) == 0
    assert (bucket.left, bucket.full_in) == (56, 4.0)


ops = st.one_of(
    st.tuples(st.just("reserve"), st.floats(0, 8)),
    st.tuples(st.just("settle"), st.floats(0, 12)),
    st.tuples(st.just("wait"), st.one_of(st.floats(-4000, 4000), st.floats(0, 200_000))),
)


@given(st.floats(0.5, 40), st.sampled_from(BUDGET_PERIODS), st.lists(ops, max_size=80))
def test_what_is_spent_passes_a_budget_only_by_what_was_billed_above_its_reservation(budget, period, steps):
    purse, now, open_, above = Purse(Quota(budget, period)), NOON, [], 0.0
    for what, number in steps:
        if what == "wait":
            now += number
        elif what == "reserve" and purse.reserve(number, now):
            open_.append(number)
            above = 0.0  # what was billed before is counted in what this one found
            assert purse.spent + purse.reserved <= budget + 1e-9
        elif what == "settle" and open_:
            reserved = open_.pop(len(open_) // 2)
            purse.settle(reserved, number, now)
            above += max(0.0, number - reserved)
        assert purse.reserved == pytest.approx(sum(open_), abs=1e-9)
        assert purse.spent <= budget + above + 1e-9


@given(st.floats(0, 4e9), st.sampled_from(("hour", "day", "month")))
def test_a_period_holds_its_moment_and_meets_the_next(now, period):
    begin, end = period_of(period, now)
    assert begin <= now < end
    assert period_of(period, end)[0] == end
    assert period_of(period, begin) == (begin, end)


def test_a_new_period_opens_the_purse_and_a_clock_that_steps_back_does_not():
    purse = Purse(Quota(10, "day"))
    assert purse.reserve(10, NOON)
    purse.settle(10, 10, NOON)
    assert not purse.reserve(1, NOON + 3600)
    assert purse.resets_in(NOON) == 12 * 3600
    assert purse.reserve(10, NOON + 12 * 3600)
    purse.settle(10, 10, NOON + 12 * 3600)
    assert not purse.reserve(1, NOON)  # yesterday again
    assert Purse(Quota(1, "total")).resets_in(NOON) is None


@pytest.mark.parametrize(
    ("text", "told"), [("60/min", "60/minute"), ("1.5/h", "1.5/hour"), (" 3 / day ", "3/day"), ("7/month", "7/month")]
)
def test_quotas_are_read(text, told):
    assert str(read_quota(text, ("second", "minute", "hour", "day", "month"))) == told


@pytest.mark.parametrize(
    "text", ["", "60", "60/week", "-1/day", "0/day", "1e3/day", "x/day", "1/day/2", "9" * 400 + "/day"]
)
def test_other_quotas_are_refused(text):
    with pytest.raises(ValueError, match="such as 100/day"):
        read_quota(text, BUDGET_PERIODS)


# ── the gate ─────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """A file of keys, and the scope of a request under each. Gates that are not closed write nothing beside it."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    callers = {"a": {"rate": "10/min", "concurrent": 3}, "b": {"rate": "10/min", "concurrent": 3}}
    callers["thrifty"] = {"budget": "9/day"}
    scopes = {}
    for name, limits in callers.items():
        key = add_key(path, name, limits, now=NOON, chance=random.Random(name).randbytes)
        scopes[name] = {"headers": [(b"authorization", f"Bearer {key}".encode())]}
    return path, scopes


visits = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("come", "go")), st.floats(0, 20)), max_size=60)


@given(visits)
def test_what_one_caller_does_changes_nothing_for_another(keys, visits):
    path, scopes = keys

    def admitted(shown: str) -> list[bool]:
        """Whether b was let in each time, where only the visits of ``shown`` take place."""
        clock = Clock()
        gate = KeyGate(path, STAGES, clock=clock, timer=clock)
        inside: dict[str, list] = {"a": [], "b": []}
        answers = []
        for name, what, wait in visits:
            clock.now += wait
            if name in shown and what == "go" and inside[name]:
                inside[name].pop().leave()
            elif name in shown and what == "come":
                access = entered(gate, scopes[name])
                if access is not None:
                    inside[name].append(access)
                assert len(inside[name]) <= 3
                if name == "b":
                    answers.append(access is not None)
        return answers

    assert admitted("ab") == admitted("b")


def entered(gate, scope):
    """The access, None where there are too many."""
    try:
        return gate.enter(scope)
    except AccessError as error:
        if error.status != 429:
            raise
        return None


def constrained(access, request, parts):
    """The request, None where the budget is used up."""
    try:
        return access.constrain(request, parts)
    except AccessError as error:
        if (error.status, error.code) != (429, "insufficient_quota"):
            raise
        return None


calls = st.lists(
    st.tuples(st.sampled_from(("come", "bill", "leave", "wait")), st.floats(0, 6), st.integers(0, 9)), max_size=60
)


@given(calls)
def test_a_gate_never_lets_reservations_and_bills_pass_a_budget(keys, calls):
    """Through ``enter``, ``constrain`` and ``settle``; every request settles or leaves once, and not twice."""
    parts = world().router.parts
    budget = 9.0

    path, scopes = keys

    async def play() -> None:
        clock = Clock()
        gate = KeyGate(path, STAGES, clock=clock, timer=clock)
        purse = gate._accounts["thrifty"].purse
        under_way, numbers, above = [], itertools.count(), 0.0
        for what, cost, which in calls:
            if what == "wait":
                clock.now += cost * 3600
            elif what == "come":
                access = gate.enter(scopes["thrifty"])
                asked = Request(f"r{next(numbers)}", ({"role": "user", "content": "hello"},))
                request = constrained(access, asked, parts)
                if request is None:
                    access.leave()
                    continue
                above = 0.0
                assert request.caller == "thrifty"
                assert purse.spent + purse.reserved <= budget + 1e-9
                under_way.append((access, request))
            elif under_way:
                access, request = under_way.pop(which % len(under_way))
                if what == "bill":
                    above += max(0.0, cost - access.reserved)
                    gate.settle(billed(request, cost))
                    gate.settle(billed(request, cost))  # a second trace of it changes nothing
                access.leave()
            assert purse.spent <= budget + above + 1e-9
        for access, _ in under_way:
            access.leave()
        assert purse.reserved == 0
        assert gate._accounts["thrifty"].under_way == 0

    asyncio.run(play())


def billed(request: Request, cost: float) -> Trace:
    """The trace of a request that was billed this much."""
    step = Step(View((), 5.0, Estimates({}), {}), Decision(Call("small")), attempt=replace(attempt("small"), cost=cost))
    return Trace("d", 0.0, request, "l", STAGES, "p", "route", "relative", Versions(), (step,))
