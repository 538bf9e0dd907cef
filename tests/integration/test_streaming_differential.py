"""With a stage named as the model, the gateway is not there: but for the model's name, our block and our headers.

What reaches the server is the client's request, and what reaches the client is the server's reply, over recorded
replies of vLLM and over bodies that hypothesis made up. One field more goes upstream in streams, whose usage would not
be told otherwise; it can be switched off (``stream_usage``), and its chunk is taken out again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_fakes import Got, post
from openai_ladder import Ends, before

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/vllm/replies-0.26.json").read_text("utf-8"))
ANSWERED = sorted(name for name, case in GOLDEN.items() if case.get("status") == 200)
OURS = ("model", "messages", "prompt", "stream", "stream_options", "stepladder", "choices", "usage", "error", "id")


@dataclass
class Bench:
    """A gateway and the server behind it on a loop of their own; ``reply`` is what the server says next."""

    ends: dict[bool, Ends] = field(default_factory=dict)
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    reply: tuple[bytes, str] = (b"", "")

    async def answer(self, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        data, kind = self.reply
        return web.Response(body=data, headers={"Content-Type": kind})

    def ask(self, path: str, body: dict[str, Any], *, stream_usage: bool = True) -> tuple[dict[str, Any], Got]:
        """What the server was sent, and what came back."""
        ends = self.ends[stream_usage]
        got = self.runner.run(post(ends.made.app, path, {**body, "model": "medium", "stepladder": {"mode": "fixed"}}))
        return ends.server.bodies[-1], got


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made, stack = Bench(), AsyncExitStack()
    with made.runner:
        for usage in (True, False):
            made.ends[usage] = made.runner.run(stack.enter_async_context(before(made.answer, stream_usage=usage)))
        yield made
        made.runner.run(stack.aclose())


def events_of(data: bytes) -> list[Any]:
    parts = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part]
    return ["[DONE]" if part == b"[DONE]" else orjson.loads(part) for part in parts]


def named(value: Any) -> Any:
    return value if isinstance(value, str) else {**value, "model": "medium"}


def without_block(got: Got) -> dict[str, Any]:
    return {key: value for key, value in got.json.items() if key != "stepladder"}


# ── recorded ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream_usage", [True, False])
@pytest.mark.parametrize("name", ANSWERED)
def test_recorded_replies_pass_through(bench: Bench, name: str, stream_usage: bool) -> None:
    case = GOLDEN[name]
    bench.reply = (case["body"].encode(), case["content_type"])
    sent, got = bench.ask(case["path"], case["request"], stream_usage=stream_usage)
    expected = {**case["request"], "model": "upstream/medium"}
    if stream_usage and expected.get("stream"):
        expected["stream_options"] = {**expected.get("stream_options", {}), "include_usage": True}
    assert sent == expected
    assert got.status == 200
    if case["content_type"].startswith("application/json"):
        assert without_block(got) == named(json.loads(case["body"]))
    else:
        assert got.events == [named(event) for event in events_of(case["body"].encode())]


def test_there_are_recorded_replies() -> None:
    assert len(ANSWERED) >= 7


# ── made up ──────────────────────────────────────────────────────────────────

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["system_fingerprint", "service_tier", "seed", "n", "stop", "tools", "audio", "refusal", "user", "metadata"]
) | st.text(max_size=8)
FIELDS = st.dictionaries(KEYS.filter(lambda key: key not in OURS), VALUES, max_size=4)
INNER = st.dictionaries(
    KEYS.filter(lambda key: key not in (*OURS, "index", "message", "delta", "text", "finish_reason", "logprobs")),
    VALUES,
    max_size=3,
)
COUNTS = st.integers(0, 1000)
USAGES = st.builds(
    lambda more, read, written: {**more, "prompt_tokens": read, "completion_tokens": written}, INNER, COUNTS, COUNTS
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
MESSAGES = st.builds(
    lambda role, content, more: {**more, "role": role, "content": content},
    ROLES,
    st.text(min_size=1).filter(str.strip)
    | st.just([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:,"}, "x": 1}]),
    INNER.map(lambda more: {key: value for key, value in more.items() if key != "role"}),
)
CHATS = st.lists(MESSAGES, max_size=3).map(lambda rest: {"messages": [*rest, {"role": "user", "content": "2+2?"}]})
TOKENS = st.lists(st.integers(0, 9999), min_size=1, max_size=4)
PROMPTS = st.one_of(
    st.text(min_size=1).filter(str.strip),
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=3),
    TOKENS,
    st.lists(TOKENS, min_size=1, max_size=3),
).map(lambda prompt: {"prompt": prompt})


def path_of(question: dict[str, Any]) -> str:
    return "/v1/chat/completions" if "messages" in question else "/v1/completions"


@settings(max_examples=40)
@given(st.one_of(CHATS, PROMPTS), FIELDS, FIELDS, st.lists(INNER, min_size=1, max_size=3), INNER, USAGES)
def test_whole_replies_of_any_shape(
    bench: Bench,
    question: dict[str, Any],
    fields: dict[str, Any],
    beside: dict[str, Any],
    choices: list[dict[str, Any]],
    message: dict[str, Any],
    usage: dict[str, Any],
) -> None:
    said = {"message": {**message, "role": "assistant", "content": "4"}} if "messages" in question else {"text": "4"}
    listed = [{**choice, "index": i, **said, "finish_reason": "stop"} for i, choice in enumerate(choices)]
    reply = {**beside, "id": "x", "choices": listed, "usage": usage, "model": "upstream/medium"}
    bench.reply = (orjson.dumps(reply), "application/json")
    sent, got = bench.ask(path_of(question), {**fields, **question})
    assert sent == {**fields, **question, "model": "upstream/medium"}
    assert got.status == 200, got.json
    assert without_block(got) == named(reply)


@settings(max_examples=40)
@given(
    st.one_of(CHATS, PROMPTS),
    FIELDS,
    st.lists(st.tuples(FIELDS, INNER, INNER), min_size=1, max_size=4),
    USAGES | st.none(),
    st.booleans(),
    st.integers(0, 2),
)
def test_streams_of_any_shape(
    bench: Bench,
    question: dict[str, Any],
    fields: dict[str, Any],
    pieces: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]],
    usage: dict[str, Any] | None,
    stream_usage: bool,
    spaces: int,
) -> None:
    asked = {"stream": True, **({} if usage is None else {"stream_options": {"include_usage": True, "odd": 1}})}
    empty = {} if usage is None else {"usage": None}
    chunks = []
    for number, (beside, choice, delta) in enumerate(pieces):
        said = {"delta": {**delta, "content": f"w{number}"}} if "messages" in question else {"text": f"w{number}"}
        end = "stop" if number == len(pieces) - 1 else None
        only = {**choice, "index": 0, **said, "finish_reason": end}
        chunks.append({**beside, "id": "x", "model": "upstream/medium", "choices": [only], **empty})
    if usage is not None:
        chunks.append({"id": "x", "model": "upstream/medium", "choices": [], "usage": usage})
    ways: tuple[dict[str, Any], ...] = ({"separators": (",", ":")}, {}, {"ensure_ascii": False})
    data = "".join(f"data: {json.dumps(chunk, **ways[spaces])}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    bench.reply = (data.encode(), "text/event-stream")
    sent, got = bench.ask(path_of(question), {**fields, **question, **asked}, stream_usage=stream_usage)
    expected = {**fields, **question, **asked, "model": "upstream/medium"}
    if stream_usage:
        expected["stream_options"] = {**expected.get("stream_options", {}), "include_usage": True}
    assert sent == expected
    assert got.events == [*map(named, chunks), "[DONE]"]


@pytest.mark.parametrize("told", [{"prompt_tokens": 3, "completion_tokens": 1}, None])
def test_the_usage_that_only_we_asked_for_is_not_shown(bench: Bench, told: dict[str, Any] | None) -> None:
    chunk = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}]}
    chunks = [{**chunk, "usage": None}, *([] if told is None else [{"id": "x", "choices": [], "usage": told}])]
    data = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n"
    bench.reply = (data.encode(), "text/event-stream")
    _, got = bench.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "stream": True})
    assert got.events == [named(chunk), "[DONE]"]
