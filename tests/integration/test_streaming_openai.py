"""What OpenAI's API can do, through the official client, the real gateway and the real engine, to a server behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from aiohttp import web

from openai_ladder import Ends, before
from openai_server import sse
from stepladder.gateway.app import GatewaySettings
from stepladder.gateway.server import serving
from stepladder.types import Call, Decision, Stop, View

MESSAGES: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def piece(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "up"}
    return {**head, "choices": [choice], "system_fingerprint": "fp-1", "service_tier": "default"}


def called(index: int, text: str, **more: Any) -> dict[str, Any]:
    function = {**more.pop("function", {}), "arguments": text}
    return piece({"tool_calls": [{"index": index, **more, "function": function}]})


def streamed(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a good server's reply to this body."""
    chunks = [piece({"role": "assistant", "content": ""}, index=i) for i in range(body.get("n") or 1)]
    if body.get("tools"):
        for index, name in enumerate(("add", "sub")):
            chunks.append(called(index, "", id=f"call_{index}", type="function", function={"name": name}))
            chunks += [called(index, text) for text in ('{"a"', ":", f"{index}}}")]
        chunks.append(piece({}, "tool_calls"))
    else:
        told = {"content": [{"token": "Fo", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        for index in range(body.get("n") or 1):
            more = {"logprobs": told} if body.get("logprobs") else {}
            chunks += [piece({"content": "Fo"}, index=index, **more), piece({"content": f"ur{index}"}, index=index)]
            chunks.append(piece({}, "stop", index))
    return chunks


def whole(body: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "Four", "refusal": None, "audio": None, "odd": [1]}
    finish = "stop"
    if body.get("tools"):
        functions = [{"name": name, "arguments": f'{{"a":{i}}}'} for i, name in enumerate(("add", "sub"))]
        calls = [{"id": f"call_{i}", "type": "function", "function": each} for i, each in enumerate(functions)]
        message, finish = {**message, "content": None, "tool_calls": calls}, "tool_calls"
    choices = [{"index": i, "message": message, "finish_reason": finish, "odd": i} for i in range(body.get("n") or 1)]
    head = {"id": "c-1", "object": "chat.completion", "created": 5, "model": "up", "service_tier": "default"}
    return {**head, "choices": choices, "usage": {**USAGE, "odd_tokens": 3}, "system_fingerprint": "fp-1"}


def texts(body: dict[str, Any]) -> dict[str, Any]:
    several = body["prompt"] if isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int) else [0]
    choices = [{"index": i, "text": f"t{i}", "finish_reason": "stop", "logprobs": None} for i in range(len(several))]
    return {"id": "c-1", "object": "text_completion", "created": 5, "model": "up", "choices": choices, "usage": USAGE}


async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A good server of OpenAI's API, for as much as is asked here."""
    if not body.get("stream"):
        return web.json_response(texts(body) if "prompt" in body else whole(body))
    asked = (body.get("stream_options") or {}).get("include_usage")
    chunks = [{**chunk, "usage": None} for chunk in streamed(body)] if asked else streamed(body)
    last = [{**piece({}), "choices": [], "usage": USAGE}] if asked else []
    return web.Response(body=sse([*chunks, *last]), headers={"Content-Type": "text/event-stream"})


@dataclass
class Climbing:
    """Keeps nothing but what the middle stage says."""

    name: str = "climbing"

    def decide(self, view: View) -> Decision:
        made = [each for each in view.attempts if each.is_answer]
        if made and made[-1].stage == "medium":
            return Decision(Stop(made[-1]), reason="medium answered")
        tried = {each.stage for each in view.attempts}
        return Decision(Call(next(stage for stage in view.stages if stage not in tried)), reason="up")


@asynccontextmanager
async def both(**settings: Any) -> AsyncIterator[tuple[Ends, openai.AsyncOpenAI]]:
    policies: Any = {"cascade": Climbing()}
    async with before(handler, settings=GatewaySettings(**settings)) as ends:
        ends.made.router.parts.policies.update(policies)  # type: ignore[attr-defined]
        async with serving(ends.made.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client:
            yield ends, client


def block(mode: str, **more: Any) -> dict[str, Any]:
    return {"stepladder": {"mode": mode, **more}}


WAYS = [block("route"), *(block("cascade", stream_mode=mode, hold_back=2) for mode in ("final", "hold-back"))]
ids = [way["stepladder"].get("stream_mode", "route") for way in WAYS]


@pytest.mark.parametrize("way", WAYS, ids=ids)
async def test_streamed_calls_of_several_tools_are_merged_right(way: dict[str, Any]) -> None:
    async with both() as (_, client):
        asked: Any = {"model": "stepladder", "messages": MESSAGES, "tools": [TOOL], "tool_choice": "auto"}
        async with client.chat.completions.stream(**asked, extra_body=way) as stream:
            final = await stream.get_final_completion()
        calls = final.choices[0].message.tool_calls
        assert calls is not None
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
            ("call_0", "add", '{"a":0}'),
            ("call_1", "sub", '{"a":1}'),
        ]
        assert final.choices[0].finish_reason == "tool_calls"
        assert final.model == ("small" if way == WAYS[0] else "medium")


@pytest.mark.parametrize("way", WAYS, ids=ids)
async def test_several_streamed_choices(way: dict[str, Any]) -> None:
    async with both() as (_, client):
        stream = await client.chat.completions.create(
            model="stepladder", messages=MESSAGES, n=2, stream=True, seed=7, stop=["x"], extra_body=way
        )
        found, ends = {0: "", 1: ""}, []
        async for chunk in stream:
            assert chunk.usage is None
            assert chunk.model == ("small" if way == WAYS[0] else "medium")
            for choice in chunk.choices:
                found[choice.index] += choice.delta.content or ""
                ends += [choice.finish_reason] if choice.finish_reason else []
        whole_answers = way["stepladder"].get("stream_mode") == "final"
        assert found == ({0: "Four", 1: "Four"} if whole_answers else {0: "Four0", 1: "Four1"})
        assert ends == ["stop", "stop"]


async def test_usage_is_null_until_it_is_told() -> None:
    async with both() as (_, client):
        stream = await client.chat.completions.with_raw_response.create(
            model="large", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        events = [line.removeprefix("data: ") async for line in stream.http_response.aiter_lines() if line]
    *chunks, last = [json.loads(event) for event in events if event != "[DONE]"]
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert {chunk["model"] for chunk in chunks} == {"large"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp-1"}


async def test_log_probabilities_and_every_unknown_field_come_back() -> None:
    async with both() as (ends, client):
        stream = await client.chat.completions.create(
            model="large", messages=MESSAGES, stream=True, logprobs=True, top_logprobs=2
        )
        told = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices[0].logprobs]
        assert told[0].content is not None
        assert told[0].content[0].logprob == -0.5
        content: Any = [{"type": "text", "text": "see"}, IMAGE]
        schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        got = await client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": content}],
            response_format=schema,
            n=2,
            extra_body={"odd": {"a": [1]}},
        )
        sent = ends.server.bodies[-1]
    assert sent["messages"][0]["content"] == content
    assert (sent["response_format"], sent["n"], sent["odd"]) == (schema, 2, {"a": [1]})
    assert (got.service_tier, got.system_fingerprint) == ("default", "fp-1")
    assert [(choice.index, (choice.model_extra or {})["odd"]) for choice in got.choices] == [(0, 0), (1, 1)]
    assert (got.choices[0].message.model_extra or {})["odd"] == [1]
    assert got.usage is not None
    assert (got.usage.model_extra or {})["odd_tokens"] == 3


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], [1, 2, 3]])
async def test_several_prompts_in_one_call(prompt: Any) -> None:
    async with both() as (ends, client):
        got = await client.completions.create(
            model="stepladder", prompt=prompt, echo=False, best_of=1, suffix="!", max_tokens=4
        )
        sent = ends.server.bodies[-1]
    assert (sent["prompt"], sent["suffix"], sent["best_of"], sent["echo"]) == (prompt, "!", 1, False)
    assert [choice.text for choice in got.choices] == ["t0", "t1"][: len(got.choices)]
    assert len(got.choices) == (1 if prompt == [1, 2, 3] else 2)


async def test_presets_are_listed_and_decide() -> None:
    async with both(presets={"research": {"lambda": 15.0}}) as (_, client):
        names = [model.id async for model in client.models.list()]
        assert names[:2] == ["stepladder", "stepladder/research"]
        got = await client.chat.completions.create(model="stepladder/research", messages=MESSAGES)
    assert (got.model_extra or {})["stepladder"]["lambda"] == 15.0


async def test_many_streams_at_once_do_not_mix() -> None:
    async with both() as (_, client):

        async def one(number: int) -> str:
            model, way = ("stepladder", WAYS[2]) if number % 2 else ("large", {})
            stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True, extra_body=way)
            chunks = [chunk async for chunk in stream]
            assert {chunk.model for chunk in chunks} == ({"medium"} if number % 2 else {"large"})
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        assert set(await asyncio.gather(*map(one, range(20)))) == {"Four0"}
