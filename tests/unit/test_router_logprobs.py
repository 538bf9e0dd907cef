"""Log probabilities for the predictor: who is asked for them, and that no caller sees any that it did not ask for."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import gateway_fakes
from gateway_fakes import ALL, PRICE, STAGES, World, post, world
from openai_server import FakeServer, Handler, serving
from stepladder.contracts import LOGPROBS
from stepladder.engines.openai import OpenAIEngine
from stepladder.errors import AnswerError
from stepladder.evaluate.replay import differences
from stepladder.policies.candidates import best_answer, give_up
from stepladder.policies.greedy import GreedyPolicy
from stepladder.router import REFUSALS, asks_logprobs, with_lam, with_logprobs, without_wire_logprobs
from stepladder.testing import make_request
from stepladder.traces.codec import decode, encode
from stepladder.types import (
    Attempt,
    Call,
    Capability,
    Decision,
    Estimate,
    Estimates,
    Features,
    Ladder,
    Request,
    Stage,
    Stop,
    View,
)

MUTE: frozenset[Capability] = ALL - {"logprobs"}
TOLD = (-0.25, -0.5)


@dataclass
class Reader:
    """Believes an answer as far as its log probabilities do; without any it keeps to its prior."""

    reads: frozenset[str] = frozenset({LOGPROBS})
    version: str = "reader"
    seen: list[tuple[float, ...] | None] = field(default_factory=list)

    def predict(self, features: Features) -> Estimates:
        self.seen += [attempt.logprobs for attempt in features.attempts]
        sure = {a.stage: Estimate(1 + min(a.logprobs)) for a in features.attempts if a.logprobs}
        return Estimates({name: Estimate(mean) for name, mean in gateway_fakes.QUALITY.items()} | sure)


class Promises:
    """Calls the first stage, finally or not, and keeps what comes."""

    name = "promises"

    def __init__(self, *, final: bool) -> None:
        self.final = final

    def decide(self, view: View) -> Decision:
        if view.attempts:
            return Decision(Stop(view.attempts[-1]))
        return Decision(Call(view.stages[0], final=self.final))


class Once:
    """One call that is not final; then it gives up or keeps what there is."""

    name = "once"

    def decide(self, view: View) -> Decision:
        if not view.attempts:
            return Decision(Call(view.stages[0]))
        kept = best_answer(view)
        return give_up(view) if kept is None else Decision(Stop(kept))


def reading(found: World, predictor: Any, **policies: Any) -> World:
    """The same world with another predictor, and policies by mode."""
    found.router.parts = replace(
        found.router.parts, predictor=predictor, policies={**found.router.parts.policies, **policies}
    )
    return found


# ── who is asked ─────────────────────────────────────────────────────────────

ASKED = ({}, {"logprobs": None}, {"logprobs": False}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3})


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from(ASKED), st.booleans())
async def test_a_stage_is_asked_where_it_is_read_it_can_and_the_answer_may_be_dropped(
    reads: bool, can: bool, final: bool, asked: Mapping[str, Any], chat: bool
) -> None:
    predictor = Reader() if reads else Reader(reads=frozenset())
    found = reading(world(able=ALL if can else MUTE), predictor, route=Promises(final=final))
    request = make_request(temperature=0.5, **asked)
    request = request if chat else replace(request, messages=(), prompt="2+2")
    await found.router.answer(request)
    ((_, sent),) = found.engine.calls
    added = reads and can and not final and not asks_logprobs(request)
    assert sent == with_lam(with_logprobs(request) if added else request, found.router.parts.lam)
    assert {**sent.params, **request.params, "logprobs": None} == {**request.params, **sent.params, "logprobs": None}


def test_what_is_asked_for() -> None:
    chat = make_request(seed=7, logprobs=False)
    assert with_logprobs(chat).params == {"seed": 7, "logprobs": True, "top_logprobs": 1}
    text = Request("r", prompt="2+2", params={"seed": 7})
    assert with_logprobs(text).params == {"seed": 7, "logprobs": 1}
    assert not asks_logprobs(chat)
    assert not asks_logprobs(text)
    assert asks_logprobs(Request("r", prompt="2+2", params={"logprobs": 0}))
    assert asks_logprobs(make_request(top_logprobs=2))


async def test_a_predictor_that_says_nothing_of_what_it_reads_reads_nothing() -> None:
    found = reading(world(), gateway_fakes.FakePredictor(), route=Promises(final=False))
    await found.router.answer(make_request())
    assert found.engine.calls[0][1] == with_lam(make_request(), found.router.parts.lam)


# ── what the caller sees ─────────────────────────────────────────────────────


def test_only_log_probabilities_are_taken_from_a_wire_reply() -> None:
    choice = {"index": 0, "text": "4", "logprobs": {"content": [{"logprob": -1.0}]}, "finish_reason": "stop"}
    raw = {"id": "x", "choices": [choice, {"index": 1, "text": "5"}, "odd"], "usage": {"completion_tokens": 2}}
    made = Attempt("a", "4", logprobs=(-1.0,), raw=raw)
    bare = without_wire_logprobs(made)
    assert bare == made
    assert bare.raw == {**raw, "choices": [{**choice, "logprobs": None}, {"index": 1, "text": "5"}, "odd"]}
    for odd in (None, {}, {"choices": None}):
        assert without_wire_logprobs(replace(made, raw=odd)).raw == odd


def wire_logprobs(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a server tells: of chats where the flag is set, of completions where there is a number."""
    if body.get("logprobs") in (None, False):
        return None
    top = body.get("top_logprobs", body["logprobs"] if "prompt" in body else 0)
    rest = [{"token": "x", "logprob": -9.0}] * top
    return {"content": [{"token": "t", "logprob": each, "top_logprobs": rest} for each in TOLD]}


def replied(body: Mapping[str, Any]) -> dict[str, Any]:
    words = {"text": "four"} if "prompt" in body else {"message": {"role": "assistant", "content": "four"}}
    choice = {"index": 0, **words, "logprobs": wire_logprobs(body), "finish_reason": "stop"}
    return {"id": "x", "created": 5, "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


async def tells(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(replied(body))


async def refuses(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A server that knows no log probabilities."""
    if body.get("logprobs"):
        return web.json_response({"error": {"message": "logprobs is not supported"}}, status=400)
    return web.json_response(replied(body))


async def refuses_all(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "temperature must be at most 2"}}, status=400)


@asynccontextmanager
async def behind(handler: Handler, predictor: Any) -> AsyncGenerator[tuple[World, FakeServer], None]:
    """A gateway whose cascade asks this server, at every stage."""
    async with serving(handler) as server:
        options = {"base_url": server.url}
        stages = tuple(
            Stage(name, "openai", name, cost=PRICE[name], capabilities=ALL, options=options) for name in STAGES
        )
        engine = OpenAIEngine(stages)
        found = reading(world(), predictor, cascade=GreedyPolicy(cascade=True))
        parts = found.router.parts
        found.router.parts = replace(parts, ladder=Ladder("l", stages), engines=dict.fromkeys(STAGES, engine))
        await engine.start()
        try:
            yield found, server
        finally:
            await engine.close()


BODIES = (
    {"messages": [{"role": "user", "content": "2+2?"}]},
    {"messages": [{"role": "user", "content": "2+2?"}], "stream": True, "stream_options": {"include_usage": True}},
    {"messages": [{"role": "user", "content": "2+2?"}], "logprobs": False},
    {"prompt": "2+2?"},
    {"prompt": "2+2?", "stream": True},
)


async def said(handler: Handler, predictor: Any, body: Mapping[str, Any]) -> tuple[Any, FakeServer, World]:
    """What a caller of the cascade gets, without Stepladder's own block."""
    async with behind(handler, predictor) as (found, server):
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        got = await post(found.app, path, {"model": "stepladder", **body, "stepladder": {"mode": "cascade"}})
        told = got.events if body.get("stream") else got.json
        if isinstance(told, dict):
            told.pop("stepladder", None)
        return (got.status, told), server, found


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("handler", [tells, refuses])
async def test_replies_are_the_same_whether_the_predictor_reads_or_not(
    handler: Handler, body: Mapping[str, Any]
) -> None:
    blind, _, _ = await said(handler, Reader(reads=frozenset()), body)
    got, server, found = await said(handler, Reader(), body)
    assert blind == got
    assert got[0] == 200
    assert server.bodies[0]["logprobs"] == (1 if "prompt" in body else True)
    expected = TOLD if handler is tells else None
    assert {attempt.logprobs for attempt in found.store.traces[-1].attempts} == {expected}


@pytest.mark.parametrize("top", [{}, {"top_logprobs": 3}])
async def test_who_asks_gets_what_it_asked_for(top: Mapping[str, Any]) -> None:
    asked = {**BODIES[0], "logprobs": True, **top}
    blind, plain, _ = await said(tells, Reader(reads=frozenset()), asked)
    got, server, _ = await said(tells, Reader(), asked)
    assert blind == got
    assert server.bodies[0] == plain.bodies[0]
    told = got[1]["choices"][0]["logprobs"]["content"]
    assert [(each["logprob"], len(each["top_logprobs"])) for each in told] == [(p, len(top) * 3) for p in TOLD]


async def test_the_predictor_sees_them_and_the_trace_replays() -> None:
    predictor = Reader()
    _, _, found = await said(tells, predictor, BODIES[0])
    assert set(predictor.seen) == {TOLD}
    (trace,) = found.store.traces
    again = decode(encode(trace))
    assert [attempt.logprobs for attempt in again.attempts] == [TOLD] * len(again.attempts)
    assert not differences([trace, again], GreedyPolicy(cascade=True))


# ── servers that refuse ──────────────────────────────────────────────────────


async def test_a_refusal_of_what_we_added_is_put_right_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    async with behind(refuses, Reader()) as (found, server):
        found.router.parts = replace(found.router.parts, policies={"route": Promises(final=False)})
        with caplog.at_level(logging.WARNING, "stepladder.router"):
            for _ in range(REFUSALS + 1):
                answer = await found.router.answer(make_request())
                assert (answer.text, answer.attempt.logprobs) == ("four", None)
                assert len(answer.trace.attempts) == 1
        assert [body.get("logprobs") for body in server.bodies] == [*[True, None] * REFUSALS, None]
        (told,) = caplog.messages
        assert "stage 'small'" in told


async def test_refusals_that_pass_are_forgotten() -> None:
    refusing = iter([True, True, False, True, True, False])

    async def moody(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (refuses if body.get("logprobs") and next(refusing) else tells)(request, body)

    async with behind(moody, Reader()) as (found, server):
        found.router.parts = replace(found.router.parts, policies={"route": Promises(final=False)})
        for _ in range(6):
            await found.router.answer(make_request())
        assert sum(body.get("logprobs") is True for body in server.bodies) == 6


async def test_a_request_that_is_wrong_by_itself_says_nothing_of_log_probabilities() -> None:
    async with behind(refuses_all, Reader()) as (found, server):
        found.router.parts = replace(found.router.parts, policies={"route": GreedyPolicy(cascade=True)})
        for _ in range(2):
            with pytest.raises(AnswerError, match="temperature must be at most 2"):
                await found.router.answer(make_request())
        assert server.bodies[-2]["logprobs"] is True


@pytest.mark.parametrize("kind", ["timeout", "server", "rate_limit", "context"])
async def test_other_faults_are_told_as_they_are(kind: str) -> None:
    found = reading(world(gateway_fakes.plays(gateway_fakes.fault("small", kind))), Reader(), route=Once())
    with pytest.raises(AnswerError):
        await found.router.answer(make_request())
    assert len(found.engine.calls) == 1


async def test_an_engine_that_makes_no_attempt_is_not_asked_twice() -> None:
    found = reading(world(gateway_fakes.plays()), Reader(), route=Once())
    with pytest.raises(AnswerError, match="no attempt was made"):
        await found.router.answer(make_request())
    assert len(found.engine.calls) == 1
