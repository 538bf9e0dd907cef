"""What a client who streams sees of answers that may yet be dropped: nothing, their first tokens late, or all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_fakes import Got, World, attempt, chunk, post, world
from stepladder.engines.wire import together
from stepladder.evaluate.replay import replay
from stepladder.held import Held
from stepladder.traces.codec import decode, encode
from stepladder.types import (
    Attempt,
    Call,
    Decision,
    Delta,
    EngineEvent,
    Fail,
    Fault,
    Request,
    Stage,
    Stop,
    Trace,
    View,
)

CHAT = "/v1/chat/completions"


@dataclass
class ReadingPolicy:
    """Keeps an answer, whole or not, as soon as it says *good*; else the next stage; in the end the best it has."""

    name: str = "reading"

    def decide(self, view: View) -> Decision:
        answers = [each for each in view.attempts if each.is_answer]
        if answers and "good" in answers[-1].text:
            return Decision(Stop(answers[-1]), reason="good")
        tried = {each.stage for each in view.attempts}
        left = [stage for stage in view.stages if stage not in tried]
        if left:
            return Decision(Call(left[0]), reason=f"{left[0]} is next")
        whole = [each for each in answers if each.finish_reason is not None]
        if whole:
            return Decision(Stop(max(whole, key=lambda each: len(each.text))))
        return Decision(Fail(view.attempts[-1].fault or Fault("server", "nothing")))


def says(words: Mapping[str, Any]) -> Any:
    """An engine whose stages say these words, each a chunk; a Fault among them breaks the answer off."""

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        said = ""
        if request.params.get("stream"):
            yield chunk("", role="assistant")
        for word in words[stage.name]:
            if isinstance(word, Fault):
                yield Attempt(stage.name, said, first_token_s=0.1 if said else None, fault=word)
                return
            said += word
            if request.params.get("stream"):
                yield chunk(word)
                await asyncio.sleep(0)
        if request.params.get("stream"):
            yield chunk(None, finish="stop")
        yield attempt(stage.name, said, first_token_s=0.1)

    return script


def reading(words: Mapping[str, Any]) -> World:
    made = world(says(words))
    made.router.parts = replace(made.router.parts, policies={"cascade": ReadingPolicy()}, mode="cascade")
    return made


async def ask(made: World, **block: Any) -> Got:
    messages = [{"role": "user", "content": "What is 2+2?"}]
    return await post(made.app, CHAT, {"messages": messages, "stream": True, "stepladder": block})


def text(got: Got) -> str:
    """What a client shows in the end: a restart empties its page."""
    page = ""
    for event in got.events[:-1]:
        if "restart" in event.get("stepladder", {}):
            page = ""
        for choice in event.get("choices", []):
            page += choice["delta"].get("content") or ""
    return page


def trace_of(made: World) -> Trace:
    (trace,) = made.store.traces
    assert decode(encode(trace)) == trace
    assert all(pair.is_same for pair in replay(trace, ReadingPolicy()))
    assert all(pair.is_same for pair in replay(decode(encode(trace)), ReadingPolicy()))
    return trace


GOOD_EARLY = {"small": ["it ", "is ", "good ", "so ", "far"], "medium": ["m"], "large": ["l"]}
BAD_EARLY = {"small": ["it ", "is ", "bad ", "so ", "far"], "medium": ["a ", "good ", "one"], "large": ["l"]}


# ── held back ────────────────────────────────────────────────────────────────


async def test_an_answer_that_is_kept_early_streams_on() -> None:
    made = reading(GOOD_EARLY)
    got = await ask(made, stream_mode="hold-back", hold_back=3)
    assert text(got) == "it is good so far"
    assert got.headers["x-stepladder-stage"] == "small"
    assert got.events[-1] == "[DONE]"
    trace = trace_of(made)
    call, look, end = trace.steps
    assert call.attempt is not None
    assert call.attempt.text == "it is good so far"
    assert look.partial is not None
    assert (look.partial.text, look.partial.finish_reason, look.partial.fault) == ("it is good ", None, None)
    assert look.view.attempts == (look.partial,)
    assert look.decision.action == Stop(look.partial)
    assert end.decision.action == Stop(call.attempt)
    assert trace.answer_index == 0


async def test_its_first_tokens_are_there_before_it_is_whole() -> None:
    made = reading(GOOD_EARLY)
    request = Request("r", messages=({"role": "user", "content": "?"},), params={"stream": True})
    request = replace(request, dials=replace(request.dials, stream_mode="hold-back", hold_back=3))
    async with aclosing(made.router.stream(request)) as events:
        seen = [event.text if isinstance(event, Delta) else type(event).__name__ async for event in events]
    kinds = ["Decided", "Decided", "", "it ", "is ", "good ", "so ", "far", "", "Attempt", "Decided", "Answer"]
    assert seen == kinds
    (trace,) = made.store.traces
    assert trace.first_token_s is not None
    assert trace.first_token_s < trace.seconds


async def test_an_answer_that_is_dropped_early_is_cancelled_and_billed() -> None:
    made = reading(BAD_EARLY)
    got = await ask(made, stream_mode="hold-back", hold_back=3, report=True)
    assert text(got) == "a good one"
    assert made.engine.cancelled.is_set()
    assert {event["model"] for event in got.events[:-1]} == {"medium"}
    block = got.events[-2]["stepladder"]
    assert block["usage"]["small"]["calls"] == block["usage"]["small"]["faults"] == 1
    assert block["usage"]["small"]["output_tokens"] == 3
    assert block["usage"]["small"]["cost"] > 0
    small, medium = trace_of(made).attempts
    assert (small.text, small.fault and small.fault.kind) == ("it is bad ", "cancelled")
    assert small.fault is not None
    assert "after its first 3 tokens" in small.fault.message
    assert medium.text == "a good one"


async def test_an_answer_shorter_than_what_is_held_is_judged_whole() -> None:
    made = reading(BAD_EARLY)
    got = await ask(made, stream_mode="hold-back")
    assert text(got) == "a good one"
    small, medium = trace_of(made).attempts
    assert small.is_answer
    assert medium.is_answer
    assert [step.partial for step in made.store.traces[0].steps] == [None] * 3


async def test_a_lower_answer_that_is_kept_in_the_end_comes_in_its_own_chunks() -> None:
    made = reading({"small": ["the ", "longest ", "of ", "all"], "medium": ["mid"], "large": ["l"]})
    got = await ask(made, stream_mode="hold-back", hold_back=50)
    assert text(got) == "the longest of all"
    assert got.headers["x-stepladder-stage"] == "small"
    assert {event["model"] for event in got.events[:-1]} == {"small"}
    assert [event["choices"][0]["finish_reason"] for event in got.events[:-1]][-1] == "stop"
    assert trace_of(made).answer_index == 0


async def test_no_climb_after_what_was_let_out() -> None:
    broken = ["it ", "is ", "good ", Fault("protocol", "it broke")]
    made = reading({"small": broken, "medium": ["m"], "large": ["l"]})
    got = await ask(made, stream_mode="hold-back", hold_back=3)
    assert got.status == 200
    assert got.events[-1]["error"]["code"] == "upstream_protocol"
    assert {name for name, _ in made.engine.calls} == {"small"}
    (trace,) = made.store.traces
    assert decode(encode(trace)) == trace


async def test_a_fault_before_anything_was_let_out_climbs() -> None:
    broken = ["it ", "is ", Fault("protocol", "it broke")]
    made = reading({"small": broken, "medium": ["good"], "large": ["l"]})
    got = await ask(made, stream_mode="hold-back", hold_back=3)
    assert text(got) == "good"
    assert got.events[-1] == "[DONE]"


async def test_an_answer_that_was_dropped_is_asked_for_again_before_all_is_given_up() -> None:
    dead = [Fault("connect", "down")]
    made = reading({"small": BAD_EARLY["small"], "medium": dead, "large": dead})
    got = await ask(made, stream_mode="hold-back", hold_back=3)
    assert text(got) == "it is bad so far"
    assert [name for name, _ in made.engine.calls] == ["small", "medium", "large", "small"]
    assert trace_of(made).answer_index == 3


async def test_it_is_asked_for_once() -> None:
    dead = [Fault("connect", "down")]
    small = [*BAD_EARLY["small"], Fault("server", "broke")]
    made = reading({"small": small, "medium": dead, "large": dead})
    got = await ask(made, stream_mode="hold-back", hold_back=3)
    assert [name for name, _ in made.engine.calls] == ["small", "medium", "large", "small"]
    assert "error" in got.events[-1]


async def test_an_early_climb_hands_on_what_there_was_as_a_draft() -> None:
    @dataclass
    class Drafting(ReadingPolicy):
        def decide(self, view: View) -> Decision:
            decision = super().decide(view)
            drafts = [each for each in view.attempts if each.is_answer]
            if isinstance(decision.action, Call) and drafts:
                return replace(decision, action=replace(decision.action, draft=drafts[-1]))
            return decision

    made = reading(BAD_EARLY)
    made.router.parts = replace(made.router.parts, policies={"cascade": Drafting()})
    await ask(made, stream_mode="hold-back", hold_back=3)
    (trace,) = made.store.traces
    action = trace.steps[1].decision.action
    assert isinstance(action, Call)
    assert action.draft is trace.steps[1].partial
    assert decode(encode(trace)) == trace


async def test_log_probabilities_count_tokens_and_are_seen_by_who_decides() -> None:
    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield Delta("it is good", logprobs=(-0.5, -0.25, -0.125))
        yield Delta(" so far", logprobs=(-1.0,))
        yield attempt(stage.name, "it is good so far", first_token_s=0.1)

    made = world(script)
    made.router.parts = replace(made.router.parts, policies={"cascade": ReadingPolicy()}, mode="cascade")
    await ask(made, stream_mode="hold-back", hold_back=3)
    look = made.store.traces[0].steps[1]
    assert look.partial is not None
    assert look.partial.logprobs == (-0.5, -0.25, -0.125)
    assert look.partial.usage.output_tokens == 3


async def test_a_client_that_leaves_while_tokens_are_held_is_billed() -> None:
    made = reading({"small": ["a "] * 5, "medium": ["m"], "large": ["l"]})
    request = Request("r", messages=({"role": "user", "content": "?"},), params={"stream": True})
    request = replace(request, dials=replace(request.dials, stream_mode="hold-back", hold_back=90))
    async with aclosing(made.router.stream(request)) as events:
        task = asyncio.create_task(_read(events))
        await made.engine.under_way.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (trace,) = made.store.traces
    assert trace.attempts[0].fault is not None
    assert trace.attempts[0].fault.kind == "cancelled"
    assert trace.attempts[0].cost > 0
    assert made.engine.cancelled.is_set()


async def _read(events: AsyncGenerator[Any, None]) -> None:
    async for _ in events:
        pass


WORDS = st.lists(st.sampled_from(["good ", "bad ", "so "]), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.fixed_dictionaries({"small": WORDS, "medium": WORDS, "large": WORDS}), st.integers(1, 8))
def test_whatever_is_held_the_client_gets_the_kept_answer_whole_and_no_other(words: Any, hold: int) -> None:
    async def both() -> None:
        for mode in ("hold-back", "restart"):
            made = reading(words)
            got = await ask(made, stream_mode=mode, hold_back=hold)
            kept = trace_of(made)
            assert kept.answer_index is not None
            answer = kept.attempts[kept.answer_index]
            assert text(got) == answer.text == "".join(words[answer.stage])
            assert got.events[-1] == "[DONE]"
            if mode == "hold-back":
                assert {event["model"] for event in got.events[:-1]} == {answer.stage}

    asyncio.run(both())


def in_bursts(script: Any, sizes: list[int]) -> Any:
    """The same engine, whose pieces come several at once, as they are read from a server's socket."""

    async def bursts(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        wire_pieces: list[Delta] = []
        turn = 0
        async for event in script(request, stage):
            if isinstance(event, Delta):
                wire_pieces.append(replace(event, data=orjson.dumps(event.raw)))
            if not isinstance(event, Delta) or len(wire_pieces) >= sizes[turn % len(sizes)]:
                for delta in together(wire_pieces):
                    yield delta
                wire_pieces, turn = [], turn + 1
            if not isinstance(event, Delta):
                yield event

    return bursts


@settings(max_examples=60)
@given(
    st.fixed_dictionaries({"small": WORDS, "medium": WORDS, "large": WORDS}),
    st.sampled_from(["hold-back", "restart", "final"]),
    st.sampled_from(["cascade", "large"]),
    st.integers(1, 8),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_pieces_that_come_at_once_are_taken_as_if_they_came_one_by_one(
    words: Any, stream_mode: str, mode: str, hold: int, sizes: list[int]
) -> None:
    async def both() -> None:
        seen = []
        for script in (says(words), in_bursts(says(words), sizes)):
            made = world(script)
            policies = {**made.router.parts.policies, "cascade": ReadingPolicy()}
            made.router.parts = replace(made.router.parts, policies=policies, mode="cascade")
            pinned = {"mode": "fixed", "min_stage": mode, "max_stage": mode} if mode != "cascade" else {}
            got = await ask(made, stream_mode=stream_mode, hold_back=hold, **pinned)
            (trace,) = made.store.traces
            assert got.events[-1] == "[DONE]"
            events = [event if isinstance(event, str) else {**event, "created": 0} for event in got.events]
            seen.append((events, [(a.stage, a.text, a.fault, a.usage.output_tokens) for a in trace.attempts]))
        assert seen[0] == seen[1]

    asyncio.run(both())


# ── restarted ────────────────────────────────────────────────────────────────


async def test_a_restart_tells_the_client_to_drop_what_it_has() -> None:
    made = reading(BAD_EARLY)
    got = await ask(made, stream_mode="restart")
    words = [event["choices"][0]["delta"].get("content") for event in got.events[:-1] if event["choices"]]
    assert words == ["", "it ", "is ", "bad ", "so ", "far", None, "", "a ", "good ", "one", None]
    (restart,) = [event for event in got.events[:-1] if not event["choices"]]
    assert restart["stepladder"] == {
        "decision_id": "dec-1",
        "restart": {"dropped": "small", "stage": "medium", "reason": "medium is next"},
    }
    assert restart["model"] == "medium"
    assert text(got) == "a good one"
    trace = trace_of(made)
    assert trace.first_token_s is not None
    assert trace.attempts[0].is_answer


async def test_where_nothing_is_dropped_there_is_no_restart() -> None:
    got = await ask(reading(GOOD_EARLY), stream_mode="restart")
    assert text(got) == "it is good so far"
    assert all(event["choices"] for event in got.events[:-1])


async def test_a_restart_may_lead_back() -> None:
    made = reading({"small": ["the ", "longest"], "medium": ["mid"], "large": ["l"]})
    got = await ask(made, stream_mode="restart")
    turns = [event["stepladder"]["restart"]["stage"] for event in got.events[:-1] if not event["choices"]]
    assert turns == ["medium", "large", "small"]
    assert text(got) == "the longest"
    assert got.events[-2]["model"] == "small"


async def test_a_broken_answer_is_replaced_where_a_restart_is_understood() -> None:
    broken = ["it ", Fault("protocol", "it broke")]
    made = reading({"small": broken, "medium": ["good"], "large": ["l"]})
    got = await ask(made, stream_mode="restart")
    assert text(got) == "good"
    assert got.events[-1] == "[DONE]"


# ── as a whole, and unasked ──────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [None, "final"])
async def test_without_a_mode_nothing_of_a_dropped_answer_is_seen(mode: str | None) -> None:
    made = reading(BAD_EARLY)
    got = await ask(made, stream_mode=mode)
    assert text(got) == "a good one"
    assert {event["model"] for event in got.events[:-1]} == {"medium"}
    assert not any(request.params.get("stream") for _, request in made.engine.calls)
    assert all("stepladder" not in event for event in got.events[:-1])
    (trace,) = made.store.traces
    assert trace.first_token_s == trace.seconds


async def test_a_final_call_streams_truly_in_every_mode() -> None:
    for mode in ("final", "hold-back", "restart"):
        made = world(says(GOOD_EARLY))
        got = await ask(made, mode="route", stream_mode=mode)
        assert text(got) == "it is good so far"
        assert made.engine.calls[0][1].params["stream"]
        (trace,) = made.store.traces
        assert trace.first_token_s is not None
        assert trace.first_token_s < trace.seconds


async def test_modes_mean_nothing_to_who_does_not_stream() -> None:
    for mode in ("hold-back", "restart"):
        made = reading(BAD_EARLY)
        got = await post(
            made.app, CHAT, {"messages": [{"role": "user", "content": "?"}], "stepladder": {"stream_mode": mode}}
        )
        assert got.json["choices"][0]["message"]["content"] == "a good one"
        assert made.store.traces[0].first_token_s is None


async def test_the_account_at_the_end_comes_only_where_it_is_asked_for() -> None:
    made = world(says(GOOD_EARLY))
    plain, told = await ask(made), await ask(made, report=True)
    assert all("stepladder" not in event for event in plain.events[:-1])
    last = told.events[-2]
    assert last["choices"] == []
    assert last["stepladder"]["usage"]["small"]["calls"] == 1
    assert "steps" not in last["stepladder"]


def test_a_preamble_is_no_token() -> None:
    ticks = iter(range(100))
    held = Held(Request("r"), "small", 2, lambda: float(next(ticks)))
    held.take(chunk("", role="assistant"))
    assert held.tokens == 0
    held.take(chunk("a"))
    assert not held.is_due
    held.take(chunk("b"))
    assert held.is_due
    partial = held.partial()
    assert (partial.text, partial.usage.output_tokens, partial.first_token_s) == ("ab", 2, 1.0)
