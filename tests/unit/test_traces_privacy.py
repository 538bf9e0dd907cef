"""A private store holds every number, and nowhere in its files a word of the prompt, the answer or an error."""

from __future__ import annotations

import itertools
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from gateway_fakes import Script, attempt, fault, get, post, world
from stepladder.errors import TraceError
from stepladder.evaluate.replay import differences, missing, replay
from stepladder.gateway.app import create_app
from stepladder.policies.greedy import GreedyPolicy
from stepladder.router import Router
from stepladder.testing import make_trace
from stepladder.traces.codec import decode, encode
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.privacy import OMITTED, Veil, salt_beside, veiled
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Absence, Attempt, Dials, EngineEvent, Fallback, Outcome, Request, Stage, Trace

MARK = "MARKER"
CHAT = "/v1/chat/completions"


def marked() -> dict[str, object]:
    """A chat with a marker in every field that a client can fill, and in names of its own."""
    tool = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {MARK: MARK}}}
    call = {"id": MARK, "type": "function", "function": {"name": MARK, "arguments": f'{{"{MARK}": 1}}'}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{MARK}"}}
    return {
        "model": "stepladder",
        "messages": [
            {"role": "system", "content": f"Be {MARK}", "name": MARK},
            {"role": "user", "content": [{"type": "text", "text": f"Who is {MARK}?"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [call], MARK: MARK},
            {"role": "tool", "content": MARK, "tool_call_id": MARK},
            {"role": MARK, "content": MARK},
            {"role": "user", "content": f"And {MARK}?"},
        ],
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": MARK}},
        "response_format": {"type": "json_schema", "json_schema": {"name": MARK, "schema": {MARK: MARK}}},
        "user": MARK,
        "metadata": {MARK: MARK},
        "stop": [MARK],
        "logit_bias": {MARK: 1},
        "prediction": {"type": "content", "content": MARK},
        "safety_identifier": MARK,
        "prompt_cache_key": MARK,
        "temperature": 0.25,
        "max_tokens": 77,
        MARK: MARK,
        f"x-{MARK}": [[MARK]],
    }


def by_stage(make: Callable[[str], Attempt]) -> Script:
    """An engine whose every stage makes one attempt."""

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield make(stage.name)

    return script


def file_bytes(folder: Path) -> bytes:
    """All files of a folder, names and all."""
    return b"".join(each.name.encode() + each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file())


async def told(folder: Path, prompts: str) -> list[Trace]:
    """The traces of requests full of markers, answered, failed and refused; their files are looked at while open."""
    said = {"finish_reason": MARK, "logprobs": (-0.5,), "raw": {"choices": [{"text": MARK}]}}
    answers = by_stage(lambda stage: attempt(stage, f"It is {MARK}.", **said))
    fails = by_stage(lambda stage: fault(stage, "server", f"I cannot answer {MARK!r}", status=500))
    keeping = Keeping(prompts=prompts)
    with closing(SqliteTraceStore(folder / "t.sqlite3", keeping)) as store:
        for script in (answers, fails):
            made = world(script)
            ids = itertools.count()
            parts = replace(made.router.parts, store=store, new_id=lambda s=script, n=ids: f"dec-{id(s)}-{next(n)}")
            app = create_app(Router(parts))
            for block in ({}, {"min_stage": MARK}, {"mode": "cascade", "session": MARK}):
                await post(app, CHAT, {**marked(), "stepladder": block})
            await post(app, "/v1/completions", {"model": "stepladder", "prompt": MARK, "suffix": MARK, "user": MARK})
            await post(app, "/v1/feedback", {"decision_id": "dec-1", "score": 1, "comment": f"not {MARK} at all"})
        traces = list(store.read())
        assert MARK.encode() not in file_bytes(folder)
    assert MARK.encode() not in file_bytes(folder)
    return traces


@pytest.mark.parametrize("prompts", ["hash", "omit"])
async def test_no_word_is_in_the_file(tmp_path: Path, prompts, caplog) -> None:
    traces = await told(tmp_path, prompts)
    assert len(traces) == 8
    assert {trace.private for trace in traces} == {prompts}
    answered = [trace for trace in traces if trace.answer_index is not None]
    failed = [trace for trace in traces if trace.fault is not None]
    assert len(answered) == 3
    assert len(failed) == 5  # three by their stages, two whose stage is none
    for trace in answered:
        assert trace.attempts[0].usage.output_tokens == 2  # numbers stay
        assert trace.attempts[0].logprobs == (-0.5,)
        assert trace.cost > 0
    chats = [trace for trace in answered if trace.request.messages]
    assert all(trace.request.params == {"temperature": 0.25, "max_tokens": 77} for trace in chats)
    roles = [message["role"] for message in chats[0].request.messages]
    assert roles == ["system", "user", "assistant", "tool", "other", "user"]
    assert MARK not in caplog.text
    for trace in traces:
        assert [pair.step for pair in replay(trace, GreedyPolicy())] == list(range(len(trace.steps)))
        assert f"trace {trace.id} is private ([traces] prompts = '{prompts}')" in missing(trace)
    assert missing(make_trace("dec-1")) is None


async def test_the_marker_is_found_where_nothing_is_private(tmp_path) -> None:
    """The test above can fail."""
    with pytest.raises(AssertionError):
        await told(tmp_path, "full")


async def test_it_is_shown_as_it_is_kept(tmp_path) -> None:
    made = world()
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(prompts="omit"))) as store:
        app = create_app(Router(replace(made.router.parts, store=store)))
        await post(app, CHAT, {"model": "stepladder", "messages": [{"role": "user", "content": MARK}]})
        shown = (await get(app, "/v1/decisions/dec-1")).json
    assert (shown["private"], shown["schema"]) == ("omit", 2)
    assert shown["request"]["messages"] == [{"role": "user", "content": OMITTED}]


def test_what_the_router_writes_of_errors_is_veiled() -> None:
    """Words that come with a fault, a fallback or an absence may be the prompt's; the kinds are the ladder's."""
    trace = make_trace("dec-1")
    step = trace.steps[0]
    view = replace(
        step.view,
        absent={"large": Absence("rate_limit", MARK, 2.0)},
        fallback=Fallback("small", MARK),
        estimates=replace(step.view.estimates, notes={"class": "simple", "like": f"as {MARK} 1 was"}),
    )
    decision = replace(step.decision, reason=f"after {MARK}")
    partial = Attempt("small", MARK)
    whole = replace(trace, steps=(replace(step, view=view, decision=decision, partial=partial), *trace.steps[1:]))
    body = veiled(encode(whole), Veil("omit"))
    assert MARK not in orjson.dumps(body).decode()
    found = decode(body).steps[0].view
    assert found.absent == {"large": Absence("rate_limit", OMITTED, 2.0)}
    assert found.fallback == Fallback("small", OMITTED)
    assert found.estimates.notes == {"class": "simple", "like": OMITTED}


def test_a_field_that_comes_later_is_private_until_somebody_says_otherwise() -> None:
    body = {**encode(make_trace("dec-1")), "later": {"deep": [MARK, {"deeper": MARK}]}}
    assert MARK not in orjson.dumps(veiled(body, Veil("omit"))).decode()


def test_a_prompt_of_tokens_is_a_prompt() -> None:
    trace = make_trace("dec-1")
    asked = replace(trace.request, prompt=MARK, params={"prompt": [[77123, 9], [4]], "max_tokens": 5, "n": "77123"})
    found = decode(veiled(encode(replace(trace, request=asked)), Veil("omit")))
    assert found.request.params == {"max_tokens": 5}


def test_a_stage_that_is_none_is_a_word_of_the_caller() -> None:
    trace = make_trace("dec-1")
    asked = Dials(lam=2.0, mode="cascade", min_stage=MARK, max_stage="large", session=MARK, stream_mode="hold-back")
    found = decode(veiled(encode(replace(trace, request=replace(trace.request, dials=asked))), Veil("omit")))
    kept = replace(asked, min_stage=OMITTED, session=OMITTED)
    assert found.request.dials == kept


# ── what stays ───────────────────────────────────────────────────────────────


@given(strategies.traces(), st.sampled_from(["hash", "omit"]))
def test_numbers_stay_and_it_can_be_read_and_stored_again(trace, prompts) -> None:
    body = veiled(encode(trace), Veil(prompts, b"k" * 32))
    found = decode(orjson.loads(orjson.dumps(body)))
    assert found.private == prompts
    assert encode(found) == orjson.loads(orjson.dumps(body))
    assert [each.usage for each in found.attempts] == [each.usage for each in trace.attempts]
    assert [each.cost for each in found.attempts] == [each.cost for each in trace.attempts]
    assert [bool(each.text) for each in found.attempts] == [bool(each.text) for each in trace.attempts]
    for then, now in zip(trace.steps, found.steps, strict=True):
        assert now.view.costs == then.view.costs
        assert now.view.estimates.stages == then.view.estimates.stages
        assert (now.view.coin, now.decision.propensity) == (then.view.coin, then.decision.propensity)
        assert dict(now.decision.values) == dict(then.decision.values)


@pytest.mark.parametrize("prompts", ["hash", "omit"])
async def test_a_policy_can_be_asked_again(tmp_path, prompts) -> None:
    """Decisions rest on numbers, so a replay needs no text: the same traces, private or not, give the same."""
    made, policy = world(by_stage(attempt)), GreedyPolicy(cascade=True)
    plain = MemoryTraceStore()
    parts = replace(made.router.parts, policies={**made.router.parts.policies, "cascade": policy})
    with closing(SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(prompts=prompts))) as store:
        for kept in (plain, store):
            app = create_app(Router(replace(parts, store=kept)))
            body = {"model": "stepladder", "messages": [{"role": "user", "content": MARK}]}
            await post(app, CHAT, {**body, "stepladder": {"mode": "cascade", "lambda": 100}})
        (then,), (now,) = plain.read(), store.read()
    assert now.attempts
    assert differences([now], policy) == differences([then], policy) == ()
    assert [pair.now.values for pair in replay(now, policy)] == [pair.now.values for pair in replay(then, policy)]


def test_equal_prompts_match_within_one_store_alone(tmp_path) -> None:
    said = []
    for place in ("a", "b"):
        with closing(SqliteTraceStore(tmp_path / place / "t.sqlite3", Keeping(prompts="hash"))) as store:
            for number, text in enumerate(("Who?", "Who?", "Why?")):
                store.append(make_trace(f"dec-{number}", number, text=text))
            said.append([trace.request.text for trace in store.read()])
    first, second = said
    assert first[0] == first[1] != first[2]
    assert not set(first) & set(second)
    with closing(SqliteTraceStore(tmp_path / "a" / "t.sqlite3", Keeping(prompts="hash"))) as store:
        store.append(make_trace("dec-9", 9.0, text="Why?"))
        assert store.get("dec-9").request.text == first[2]  # the salt is kept


def test_memory_can_be_private_too() -> None:
    store = MemoryTraceStore(Keeping(prompts="hash"), chance=lambda n: b"\x07" * n)
    store.append(make_trace("dec-1", text=MARK))
    store.outcome(Outcome("dec-1", 1.0, "user", comment=MARK))
    assert store.get("dec-1").request.text == Veil("hash", b"\x07" * 32).text(MARK)
    assert MARK not in str(store.outcomes("dec-1"))


# ── the salt ─────────────────────────────────────────────────────────────────


def test_the_salt_is_its_owners_alone(tmp_path) -> None:
    path = tmp_path / "t.sqlite3"
    salt = salt_beside(path)
    place = tmp_path / "t.sqlite3.salt"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert salt_beside(path) == salt
    assert [each.name for each in tmp_path.iterdir()] == [place.name]
    assert salt.hex() not in repr(Veil("hash", salt))


@pytest.mark.parametrize("text", ["", "no hex", "abcd", "é"])
def test_a_salt_that_is_none(tmp_path, text) -> None:
    (tmp_path / "t.sqlite3.salt").write_text(text, "utf-8")
    with pytest.raises(TraceError, match=r"t\.sqlite3\.salt'"):
        SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(prompts="hash"))


def test_a_salt_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "t.sqlite3.salt").mkdir()
    with pytest.raises(TraceError, match="cannot be used"):
        SqliteTraceStore(tmp_path / "t.sqlite3", Keeping(prompts="hash"))
