"""Real clients, as people have them, against the real gateway over real servers.

The official client, pydantic-ai and smolagents know nothing of Stepladder: they were given a ``base_url`` and a model.
Behind the gateway stand the embedded models on llama.cpp, a server that replays what vLLM 0.26 said to the same
requests, and one that calls tools, which neither of these does.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from smolagents import OpenAIServerModel, ToolCallingAgent, tool

from stepladder import config
from stepladder.build import build
from stepladder.gateway.app import create_app
from stepladder.gateway.server import running

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/vllm/replies-0.26.json").read_text("utf-8"))
SAID: Any = [{"role": "user", "content": "What is 12 + 7?"}]
TO_VLLM: Any = [{"role": "user", "content": "What is 2+2?"}]
LONG = "word " * 50
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


class Sum(BaseModel):
    """What is asked for as JSON."""

    answer: int


Named = Callable[[str], OpenAIChatModel]


# ── servers ──────────────────────────────────────────────────────────────────


class Speaker(BaseHTTPRequestHandler):
    """Answers each POST with what ``answer`` makes of its body: (status, content type, data)."""

    protocol_version = "HTTP/1.1"

    @staticmethod
    def answer(body: dict[str, Any]) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, kind, data = self.answer(body)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Replay(Speaker):
    """vLLM 0.26, as far as it was recorded."""

    @staticmethod
    def answer(body: dict[str, Any]) -> tuple[int, str, bytes]:
        case = GOLDEN[recorded(body)]
        return case["status"], case["content_type"], case["body"].encode()


def recorded(body: dict[str, Any]) -> str:
    """The recording that this request would have made."""
    errors = {
        "error_model": body["model"] != "tiny",
        "error_temperature": (body.get("temperature") or 0) < 0,
        "error_max_tokens": body.get("max_tokens") == 0,
        "error_context": "word word word" in str(body.get("messages")),
    }
    for name, fits in errors.items():
        if fits:
            return name
    if "prompt" in body:
        return "completion_stream" if body.get("stream") else "completion_logprobs"
    if body.get("stream"):
        return "chat_stream_usage_logprobs" if body.get("logprobs") else "chat_stream"
    asked = {"chat_logprobs": body.get("logprobs"), "chat_n2": body.get("n") == 2, "chat_stop": body.get("stop")}
    return next((name for name, is_so in asked.items() if is_so), "chat")


class Caller(Speaker):
    """A model that adds by a tool, tells what came of it, and ends by a tool where there is one for that."""

    @staticmethod
    def answer(body: dict[str, Any]) -> tuple[int, str, bytes]:
        tools = {each["function"]["name"] for each in body.get("tools") or ()}
        # A result comes as a message of its role, or, from clients that flatten their history, as a user's.
        is_done = any("19" in str(each.get("content")) for each in body["messages"] if each["role"] != "system")
        if not is_done and "add" in tools:
            message: dict[str, Any] = call("add", {"a": 12, "b": 7})
        elif "final_answer" in tools:
            message = call("final_answer", {"answer": "It is 19."})
        else:
            message = {"role": "assistant", "content": "It is 19."}
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        head = {"id": "c-1", "created": 5, "model": body["model"]}
        usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            reply = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return 200, "application/json", json.dumps(reply).encode()
        head["object"] = "chat.completion.chunk"
        events = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas(message)]
        events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        events.append({**head, "choices": [], "usage": usage})
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return 200, "text/event-stream", data.encode()


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A message in pieces, the arguments of its calls broken in two."""
    yield {"role": "assistant", "content": None}
    if message["content"]:
        yield from ({"content": word} for word in message["content"].split(" "))
    for number, each in enumerate(message.get("tool_calls") or ()):
        text = each["function"]["arguments"]
        yield {"tool_calls": [{"index": number, **each, "function": {**each["function"], "arguments": ""}}]}
        for part in (text[:5], text[5:]):
            yield {"tool_calls": [{"index": number, "function": {"arguments": part}}]}


@contextmanager
def speaking(kind: type[Speaker]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One gateway: the embedded models decided among; vLLM, one that it does not serve, and the caller by name."""
    able = ["stream", "logprobs", "json"]
    with speaking(Replay) as vllm, speaking(Caller) as caller:
        nano = [
            {"name": name, "engine": "llama", "model": str(config.PRESETS / "nano" / f"nano-{name}.gguf"), "cost": cost}
            for name, cost in (("small", 1.0), ("large", 3.0))
        ]
        stages = [
            *({**stage, "context": 512, "capabilities": able} for stage in nano),
            {"name": "vllm", "model": "tiny", "base_url": vllm, "cost": 5.0, "capabilities": [*able, "tools"]},
            {"name": "gone", "model": "nope", "base_url": vllm, "cost": 6.0},
            {"name": "caller", "model": "m", "base_url": caller, "cost": 7.0, "capabilities": [*able, "tools"]},
        ]
        router = build(config.parse({"stages": stages, "policy": {"lambda": 0.0}}))
        with running(create_app(router, manage_router=True)) as base:
            yield f"{base}/v1"


# ── the official client ──────────────────────────────────────────────────────


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("mode", ["route", "cascade"])
def test_openai_asks_llama(client: openai.OpenAI, mode: str) -> None:
    block = {"stepladder": {"mode": mode, "max_stage": "large"}}
    raw = client.chat.completions.with_raw_response.create(
        model="stepladder", messages=SAID, temperature=0, max_tokens=16, extra_body=block
    )
    got = raw.parse()
    assert (got.choices[0].message.content, got.choices[0].finish_reason, got.model) == ("19", "stop", "small")
    assert raw.headers["x-stepladder-stage"] == "small"
    assert raw.headers["x-stepladder-decision-id"] == (got.model_extra or {})["stepladder"]["decision_id"]
    assert got.usage is not None
    assert (got.usage.completion_tokens, got.usage.total_tokens) == (3, 15)


def test_openai_says_its_dials_once_for_all_requests(client: openai.OpenAI) -> None:
    bound = client.with_options(default_headers={"x-stepladder-min-stage": "large", "x-stepladder-max-stage": "large"})
    got = bound.chat.completions.create(model="stepladder", messages=SAID, temperature=0, max_tokens=16)
    assert (got.choices[0].message.content, got.model) == ("19", "large")


@pytest.mark.parametrize("mode", ["route", "cascade"])
def test_openai_streams_from_llama(client: openai.OpenAI, mode: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model="stepladder",
            messages=SAID,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"stepladder": {"mode": mode, "max_stage": "large"}},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "19"
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [3]


def test_openai_gets_choices_log_probabilities_and_completions_from_llama(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="large", messages=SAID, temperature=0, max_tokens=8, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.message.content for choice in got.choices] == ["19", "19"]
    told = got.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [each.token for each in told.content][:2] == ["1", "9"]
    assert {len(each.top_logprobs) for each in told.content} == {2}
    assert client.completions.create(model="small", prompt="What is 2+2?", max_tokens=4, temperature=0).choices[0].text


def test_openai_parses_what_llama_wrote(client: openai.OpenAI) -> None:
    got = client.chat.completions.parse(
        model="stepladder", messages=SAID, response_format=Sum, temperature=0, max_tokens=40
    )
    assert isinstance(got.choices[0].message.parsed, Sum)
    with client.chat.completions.stream(
        model="large", messages=SAID, response_format=Sum, temperature=0, max_tokens=40
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sum)


async def test_the_async_openai_client_asks_many_at_once(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"What is {number} + 7?"}]
            stream = await client.chat.completions.create(
                model="large", messages=messages, temperature=0, max_tokens=8, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        said = await asyncio.gather(*(one(number) for number in range(11, 19)))
        assert said == [str(number + 7) for number in range(11, 19)]
        got = await client.chat.completions.create(model="small", messages=SAID, temperature=0, max_tokens=8)
        assert got.choices[0].message.content == "19"


def test_openai_gets_what_vllm_said(client: openai.OpenAI) -> None:
    asked: Any = {"model": "vllm", "messages": TO_VLLM, "max_tokens": 12, "temperature": 0, "seed": 1}
    plain = client.chat.completions.create(**asked)
    assert (plain.choices[0].message.content, plain.choices[0].finish_reason) == ("_{_{_{_{_{_{", "length")
    assert plain.system_fingerprint == "vllm-0.26.0-c89eeb79"
    assert plain.model == "vllm"
    told = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert told is not None
    assert len(told.content or ()) == 12
    assert [choice.index for choice in client.chat.completions.create(**asked, n=2).choices] == [0, 1]
    assert client.chat.completions.create(**asked, stop=["e"]).choices[0].message.content == "_{_{_{_{_{_{"
    text = client.completions.create(model="vllm", prompt="2+2=", max_tokens=6, logprobs=2, temperature=0).choices[0]
    assert text.logprobs is not None
    assert len(text.logprobs.tokens or ()) == 6


def test_openai_streams_what_vllm_said(client: openai.OpenAI) -> None:
    asked: Any = {"model": "vllm", "messages": TO_VLLM, "max_tokens": 12, "stream": True}
    plain = list(client.chat.completions.create(**asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain if chunk.choices) == "_{_{_{_{_{_{"
    options: Any = {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1}
    chunks = list(client.chat.completions.create(**asked, **options))
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage and not chunk.choices] == [12]
    assert sum(len((c.choices[0].logprobs and c.choices[0].logprobs.content) or ()) for c in chunks if c.choices) == 12
    texts = client.completions.create(model="vllm", prompt="2+2=", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts if chunk.choices).startswith("losed")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (
            {"messages": [{"role": "user", "content": "word " * 50}]},
            "context_length_exceeded",
            "maximum context length",
        ),
        ({"temperature": -1.0}, None, "temperature must be non-negative"),
        ({"max_tokens": 0}, None, "max_tokens must be at least 1"),
        ({"model": "gone"}, None, "does not exist"),
    ],
)
def test_openai_raises_what_vllm_refused(
    client: openai.OpenAI, change: dict[str, Any], code: str | None, words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.chat.completions.create(**{"model": "vllm", "messages": TO_VLLM, "stream": stream, **change})
    assert caught.value.code == code


def test_openai_calls_a_tool(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="caller", messages=SAID, tools=[TOOL]) as stream:
        message = stream.get_final_completion().choices[0].message
    plain = client.chat.completions.create(model="caller", messages=SAID, tools=[TOOL]).choices[0].message
    for said in (message, plain):
        assert said.tool_calls is not None
        assert json.loads(said.tool_calls[0].function.arguments) == {"a": 12, "b": 7}
    result: Any = {"role": "tool", "tool_call_id": "c1", "content": "19"}
    history: Any = [*SAID, plain.model_dump(exclude_none=True), result]
    got = client.chat.completions.create(model="stepladder", messages=history, tools=[TOOL], extra_body=TOOLS_AT)
    assert (got.choices[0].message.content, got.model) == ("It is 19.", "caller")


TOOLS_AT: Any = {"stepladder": {"min_stage": "caller"}}
"""Tools can be told of at ``vllm`` too, which was not recorded with any."""


# ── pydantic-ai ──────────────────────────────────────────────────────────────


@pytest.fixture
async def model(url: str) -> AsyncIterator[Named]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield lambda name: OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


async def test_pydantic_ai_asks_streams_and_is_told_what_was_spent(model: Named) -> None:
    dials = {"stepladder": {"lambda": 0, "max_stage": "large"}}
    agent = Agent(model("stepladder"), model_settings={"temperature": 0.0, "max_tokens": 16, "extra_body": dials})
    got = await agent.run("What is 12 + 7?")
    assert got.output == "19"
    assert got.usage.output_tokens == 3
    assert got.response.model_name == "small"
    async with agent.run_stream("What is 12 + 7?") as stream:
        assert [text async for text in stream.stream_text(delta=True)] in (["1", "9"], ["19"])


async def test_pydantic_ai_reads_structure(model: Named) -> None:
    agent = Agent(model("large"), output_type=NativeOutput(Sum), model_settings={"temperature": 0.0, "max_tokens": 40})
    assert isinstance((await agent.run("What is 12 + 7?")).output, Sum)


@pytest.mark.parametrize("stream", [False, True])
async def test_pydantic_ai_calls_a_tool(model: Named, stream: bool) -> None:
    calls = []
    agent = Agent(model("caller"))

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """The sum of two numbers."""
        calls.append((a, b))
        return a + b

    if stream:
        async with agent.run_stream("What is 12 + 7?") as run:
            said = await run.get_output()
    else:
        said = (await agent.run("What is 12 + 7?")).output
    assert calls == [(12, 7)]
    assert said.replace(" ", "") == "Itis19."


async def test_pydantic_ai_raises_what_was_refused(model: Named) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model("vllm")).run(LONG)
    assert caught.value.status_code == 400
    assert "maximum context length" in str(caught.value.body)


# ── smolagents ───────────────────────────────────────────────────────────────


@pytest.fixture
def served(url: str) -> Iterator[Callable[..., OpenAIServerModel]]:
    made: list[OpenAIServerModel] = []

    def make(name: str, **settings: Any) -> OpenAIServerModel:
        made.append(OpenAIServerModel(model_id=name, api_base=url, api_key="none", **settings))
        return made[-1]

    yield make
    for each in made:
        each.client.close()


def test_smolagents_asks_and_streams(served: Callable[..., OpenAIServerModel]) -> None:
    made = served("stepladder", temperature=0, max_tokens=16)
    said: Any = [{"role": "user", "content": [{"type": "text", "text": "What is 12 + 7?"}]}]
    got = made.generate(said)
    assert got.content == "19"
    assert got.token_usage is not None
    assert got.token_usage.output_tokens == 3
    assert "".join(delta.content or "" for delta in made.generate_stream(said)) == "19"


@pytest.mark.parametrize("stream", [False, True])
def test_smolagents_calls_its_tools_until_it_has_an_answer(
    served: Callable[..., OpenAIServerModel], stream: bool
) -> None:
    calls = []

    @tool
    def add(a: int, b: int) -> int:
        """The sum of two numbers.

        Args:
            a: One number.
            b: Another one.
        """
        calls.append((a, b))
        return a + b

    agent = ToolCallingAgent(tools=[add], model=served("caller"), stream_outputs=stream, verbosity_level=0, max_steps=4)
    assert agent.run("What is 12 + 7?") == "It is 19."
    assert calls == [(12, 7)]
