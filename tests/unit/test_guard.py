"""Breakers, gates and conversations, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stepladder.guard.breaker import JITTER, LONGEST, PROBE_S, WINDOW, Breaker, health
from stepladder.guard.conversations import Conversations
from stepladder.guard.gates import MOST_ASIDE_S, Entry, GateRules, Gates
from stepladder.testing import make_attempt, make_request
from stepladder.types import Absence, Attempt, Dials, Fault, Request


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, failures: int = 3, pause_s: float = 2.0, chance: float = 0.0) -> Breaker:
    return Breaker(failures, pause_s, clock=clock, chance=lambda: chance)


def fail(it: Breaker, times: int = 1, healthy: bool | None = False) -> None:
    for _ in range(times):
        it.end(it.begin(), healthy)


# ── breaker ──────────────────────────────────────────────────────────────────


def test_it_opens_after_failures_in_a_row_and_closes_after_a_probe() -> None:
    clock = Clock()
    it = breaker(clock)
    fail(it, 2)
    fail(it, healthy=True)
    fail(it, 2)
    assert (it.state, it.wait()) == ("closed", 0.0)
    fail(it)
    assert (it.state, it.wait(), it.opened) == ("open", 2.0, 1)
    clock.now += 2.0
    assert (it.state, it.wait()) == ("half_open", 0.0)
    probe = it.begin()
    assert it.wait() == PROBE_S
    it.end(probe, True)
    assert (it.state, it.wait()) == ("closed", 0.0)
    fail(it, 2)
    assert it.state == "closed"


def test_the_pause_doubles_with_each_failed_probe_up_to_a_limit_and_begins_anew_after_a_success() -> None:
    clock = Clock()
    it = breaker(clock, failures=1)
    fail(it)
    pauses = []
    for _ in range(8):
        pauses.append(it.wait())
        clock.now += it.wait()
        fail(it)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 2.0 * LONGEST, 2.0 * LONGEST]
    clock.now += it.wait()
    fail(it, healthy=True)
    fail(it)
    assert it.wait() == 2.0


def test_the_pause_is_longer_by_chance() -> None:
    it = breaker(Clock(), failures=1, chance=0.999)
    fail(it)
    assert it.wait() == pytest.approx(2.0 * (1 + 0.999 * JITTER))


def test_it_opens_where_half_of_many_calls_failed_though_never_in_a_row() -> None:
    it = breaker(Clock(), failures=5)
    for _ in range(WINDOW // 2 - 1):
        fail(it)
        fail(it, healthy=True)
    assert it.state == "closed"
    fail(it)
    fail(it)
    assert it.state == "open"


def test_a_call_from_before_says_nothing_once_it_opened() -> None:
    clock = Clock()
    it = breaker(clock, failures=1)
    early, late = it.begin(), it.begin()
    fail(it)
    it.end(early, True)
    assert it.state == "open"
    clock.now += 2.0
    probe = it.begin()
    it.end(late, False)
    assert it.wait() == PROBE_S  # the probe is still out
    it.end(probe, None)
    assert (it.state, it.wait()) == ("half_open", 0.0)  # it said nothing: the next one is a probe too


def test_off_it_never_opens() -> None:
    it = breaker(Clock(), failures=0)
    fail(it, 100)
    assert (it.state, it.wait(), it.opened) == ("off", 0.0, 0)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (None, True),
        (Fault("timeout", ""), False),
        (Fault("connect", ""), False),
        (Fault("server", "", 500), False),
        (Fault("protocol", "", 200), False),
        (Fault("crash", ""), False),
        (Fault("auth", "", 401), False),
        (Fault("auth", "", 403), True),
        (Fault("bad_request", "", 400), True),
        (Fault("bad_request", "cannot be written as JSON"), None),
        (Fault("context", "", 400), True),
        (Fault("rate_limit", "", 429), True),
        (Fault("cancelled", ""), None),
        (Fault("unavailable", ""), None),
    ],
)
def test_what_speaks_of_health(fault: Fault | None, found: bool | None) -> None:
    assert health(Attempt("s", seconds=1.0, fault=fault)) is found


def test_a_wait_for_a_place_and_a_call_that_came_to_nothing_say_nothing() -> None:
    assert health(Attempt("s", seconds=0.0, fault=Fault("timeout", "no free place"))) is None
    assert health(None) is None


# ── gates ────────────────────────────────────────────────────────────────────


def gates(clock: Clock, **rules: object) -> Gates:
    return Gates(("a", "b"), {"a": GateRules(**rules)}, clock=clock, chance=lambda: 0.0)  # type: ignore[arg-type]


def enter(it: Gates, stage: str = "a") -> Entry:
    entry = it.enter(stage)
    assert isinstance(entry, Entry)
    return entry


def why(it: Gates) -> Absence:
    absence = it.enter("a")
    assert isinstance(absence, Absence)
    return absence


def test_places_and_queue_are_bounded() -> None:
    it = gates(Clock(), places=2, max_queue=1)
    inside = [enter(it) for _ in range(3)]
    state = it.states()[0]
    assert (state.in_flight, state.waiting, state.places, state.calls) == (2, 1, 2, 3)
    found = why(it)
    assert (found.kind, found.message) == ("full", "is full: 2 calls are at work and 1 wait")
    assert it.absent(("a", "b")) == {"a": found}
    inside[0].leave(make_attempt("a"))
    assert it.absent(("a", "b")) == {}
    state = it.states()[0]
    assert (state.in_flight, state.waiting, state.absence) == (2, 0, None)
    assert state.left_out == {"full": 2, "rate_limit": 0, "breaker": 0}


def test_when_to_come_again_follows_how_long_calls_take() -> None:
    it = gates(Clock(), places=2, max_queue=0)
    for _ in range(200):
        enter(it).leave(Attempt("a", "4", seconds=6.0))
    for _ in range(2):
        enter(it)
    assert why(it).retry_after == pytest.approx(3.0)


def test_without_places_nothing_is_full() -> None:
    it = gates(Clock())
    for _ in range(5000):
        enter(it)
    state = it.states()[0]
    assert (state.in_flight, state.waiting, state.places, state.absence) == (5000, 0, None, None)


@pytest.mark.parametrize("kind", ["rate_limit", "server"])
def test_a_server_that_asks_for_rest_gets_it(kind: str) -> None:
    clock = Clock()
    it = gates(clock)
    enter(it).leave(Attempt("a", fault=Fault(kind, "", 429, retry_after=7.0)))  # type: ignore[arg-type]
    enter_b = it.enter("b")
    assert isinstance(enter_b, Entry)
    found = why(it)
    assert (found.kind, found.retry_after) == ("rate_limit", 7.0)
    clock.now += 6.9
    assert it.absent(("a",))
    clock.now += 0.1
    assert not it.absent(("a",))
    assert it.states()[0].breaker == "closed"


def test_the_longest_rest_asked_for_holds_within_reason() -> None:
    it = gates(Clock())
    first, second, third = enter(it), enter(it), enter(it)
    first.leave(Attempt("a", fault=Fault("rate_limit", "", 429, retry_after=1e9)))
    second.leave(Attempt("a", fault=Fault("rate_limit", "", 429, retry_after=5.0)))
    third.leave(Attempt("a", fault=Fault("rate_limit", "", 429)))
    assert why(it).retry_after == MOST_ASIDE_S


def test_a_broken_stage_is_left_out_and_one_probe_is_let_through() -> None:
    clock = Clock()
    it = gates(clock, failures=2, pause_s=4.0)
    for _ in range(2):
        enter(it).leave(make_attempt("a", fault="connect"))
    found = why(it)
    assert (found.kind, found.retry_after) == ("breaker", 4.0)
    assert "connect" in found.message
    clock.now += 4.0
    probe = enter(it)
    assert why(it).kind == "breaker"
    probe.heard()  # its stream has begun: others need not wait for its end
    assert not it.absent(("a",))
    probe.leave(make_attempt("a", fault="server"))  # it broke later, but that was the answer's, in the new round
    state = it.states()[0]
    assert (state.breaker, state.opened, state.failures, state.in_flight) == ("closed", 1, 3, 0)


def test_tries_are_counted_as_retries() -> None:
    it = gates(Clock())
    enter(it).leave(Attempt("a", "4", tries=3))
    enter(it).leave(None)
    assert (it.states()[0].retries, it.states()[0].in_flight) == (2, 0)


# ── conversations ────────────────────────────────────────────────────────────


def chat(*texts: str, caller: str | None = None, session: str | None = None) -> Request:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[place % 2], "content": text} for place, text in enumerate(texts))
    return Request("r", messages=messages, caller=caller, dials=Dials(session=session))


def test_a_follow_up_finds_the_stage_that_answered() -> None:
    it = Conversations()
    first = it.open(chat("hi"))
    assert first.home is None
    first.answered(Attempt("large", " hello\n"))
    assert it.open(chat("hi", "hello", "and now?")).home == "large"
    assert it.open(chat("hi", "hello!", "and now?")).home is None
    assert it.open(chat("hi")).home is None
    assert len(it) == 1


def test_turns_of_tools_are_follow_ups_too() -> None:
    it = Conversations()
    it.open(chat("weather?")).answered(Attempt("large", ""))
    asked = ({"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": [{}]})
    told = Request("r", messages=(*asked, {"role": "tool", "content": "rain"}))
    assert it.open(told).home == "large"


def test_the_newest_answer_counts_and_follow_ups_are_counted() -> None:
    it = Conversations()
    it.open(chat("a", session="s")).answered(Attempt("small", "x"))
    it.open(chat("b", session="s")).answered(Attempt("large", "y"))
    it.open(chat("c", session="s")).answered(Attempt("large", "z"))
    assert it.open(chat("d", session="s")).home == "large"
    assert (it.stayed, it.switched, len(it)) == (1, 1, 1)


def test_callers_and_sessions_are_kept_apart() -> None:
    it = Conversations()
    it.open(chat("a", caller="x", session="s")).answered(Attempt("small", "x"))
    assert it.open(chat("a", caller="x", session="s")).home == "small"
    assert it.open(chat("a", caller="y", session="s")).home is None
    assert it.open(chat("a", session="s")).home is None
    assert it.open(chat("a", caller="x", session="t")).home is None


def test_what_is_old_or_too_much_is_forgotten() -> None:
    clock = Clock()
    it = Conversations(most=2, ttl_s=10.0, clock=clock)
    for name in "abc":
        it.open(chat("q", session=name)).answered(Attempt("small", "x"))
    assert [it.open(chat("q", session=name)).home for name in "abc"] == [None, "small", "small"]
    clock.now += 10.0
    assert it.open(chat("q", session="c")).home is None
    it.open(chat("q", session="d")).answered(Attempt("small", "x"))
    assert len(it) == 1


def test_a_raw_prompt_is_of_no_conversation_unless_it_names_one() -> None:
    it = Conversations()
    it.open(Request("r", prompt="once")).answered(Attempt("small", "x"))
    assert (len(it), it.open(Request("r", prompt="once")).home) == (0, None)
    named = Request("r", prompt="once", dials=Dials(session="s"))
    it.open(named).answered(Attempt("small", "x"))
    assert it.open(named).home == "small"


def test_any_text_can_be_remembered() -> None:
    it = Conversations()
    it.open(make_request("\ud800")).answered(Attempt("small", "\udfff"))
    assert len(it) == 1
