"""The official client, and bare sockets, against the real gateway under uvicorn, on a free port of this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway_fakes import STAGES, World, attempt, chunk, echoes, fault, plays, world
from stepladder.errors import EngineError
from stepladder.gateway import server
from stepladder.gateway.app import GatewaySettings
from stepladder.gateway.server import running, serving
from stepladder.types import Attempt, Delta, EngineEvent, Request, Stage

MESSAGES: Any = [{"role": "user", "content": "What is 2+2?"}]
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}


async def scripted(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
    """Fails as the question says, calls a tool where there is one, else echoes."""
    if request.text.startswith("fail "):
        yield fault(stage.name, request.text.removeprefix("fail "), retry_after=3)
    elif request.params.get("tools"):
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        raw = {"id": "up", "object": "chat.completion", "created": 1, "model": "up", "choices": [choice]}
        yield attempt(stage.name, "", finish_reason="tool_calls", raw=raw)
    elif request.text == "break":
        yield chunk("Fo")
        yield fault(stage.name, "protocol", "cut", first_token_s=0.1)
    else:
        async for event in echoes(request, stage):
            yield event


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(world(scripted, calibrated=False, manage_router=True).app) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


# ── the synchronous client ───────────────────────────────────────────────────


def test_chat(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="stepladder", messages=MESSAGES, extra_body={"stepladder": {"lambda": 2}}
    )
    assert got.choices[0].message.content == "What is 2+2?"
    assert got.model == "small"
    assert got.usage is not None
    assert got.usage.total_tokens == 9
    block = (got.model_extra or {})["stepladder"]
    assert (block["lambda"], block["calibrated"], block["baseline"]["cost"]) == (2.0, False, 1.8)


def test_headers_tell_of_the_decision(client: openai.OpenAI) -> None:
    got = client.chat.completions.with_raw_response.create(
        model="large", messages=MESSAGES, extra_headers={"x-stepladder-lambda": "1"}
    )
    told = {name.removeprefix("x-stepladder-"): value for name, value in got.headers.items() if "stepladder" in name}
    assert told.pop("decision-id").startswith("dec-")
    assert float(told.pop("seconds")) > 0
    assert float(told.pop("decide-ms")) > 0
    assert told == {
        "stage": "large",
        "predicted-quality": "0.9000",
        "uncalibrated": "true",
        "expected-cost": "1.8",
        "cost": "1.8",
        "cost-unit": "relative",
        "saved": "0",
    }
    assert got.parse().model == "large"


def test_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="stepladder",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stepladder": {"explain": True}},
    )
    chunks = list(stream)
    assert [each.choices[0].delta.content for each in chunks if each.choices] == ["What", "is", "2+2?", None]
    assert {each.model for each in chunks} == {"small"}
    assert len({each.id for each in chunks}) == 1
    assert [each.usage.total_tokens for each in chunks if each.usage] == [9]
    assert (chunks[-1].model_extra or {})["stepladder"]["cost"] == 1.0


def test_stream_of_a_cascade(client: openai.OpenAI) -> None:
    body = {"stepladder": {"mode": "cascade"}}
    chunks = list(client.chat.completions.create(model="stepladder", messages=MESSAGES, stream=True, extra_body=body))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "What is 2+2?"
    assert {each.model for each in chunks} == {"large"}
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("mode", ["route", "cascade"])
def test_tools_pass_through(client: openai.OpenAI, mode: str) -> None:
    body = {"stepladder": {"mode": mode}}
    got = client.chat.completions.create(model="stepladder", messages=MESSAGES, tools=[TOOL], extra_body=body)
    calls = got.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].model_dump() == CALL
    with client.chat.completions.stream(model="stepladder", messages=MESSAGES, tools=[TOOL], extra_body=body) as stream:
        final = stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.arguments == '{"a":2}'
    assert final.choices[0].finish_reason == "tool_calls"


def test_completions(client: openai.OpenAI) -> None:
    assert client.completions.create(model="medium", prompt="a b").choices[0].text == "a b"
    streamed = client.completions.create(model="medium", prompt="a b", stream=True)
    assert [each.choices[0].text for each in streamed] == ["a", "b", ""]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stepladder", *STAGES]
    assert client.models.retrieve("large").owned_by == "fake"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rate_limit", openai.RateLimitError),
        ("bad_request", openai.BadRequestError),
        ("context", openai.BadRequestError),
        ("server", openai.InternalServerError),
        ("timeout", openai.InternalServerError),
    ],
)
def test_faults_are_the_clients_own_errors(
    client: openai.OpenAI, kind: str, expected: type[openai.APIStatusError], stream: bool
) -> None:
    messages: Any = [{"role": "user", "content": f"fail {kind}"}]
    with pytest.raises(expected) as caught:
        client.chat.completions.create(model="small", messages=messages, stream=stream)
    assert caught.value.response.headers["retry-after"] == "3"
    assert "stage 'small': it broke" in str(caught.value)
    if kind == "context":
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("change", "param", "expected"),
    [
        ({"model": "smal"}, "model", openai.NotFoundError),
        ({"messages": []}, "messages", openai.BadRequestError),
        ({"messages": "hello"}, "messages", openai.BadRequestError),
        ({"extra_body": {"stream": "yes"}}, "stream", openai.BadRequestError),
        ({"extra_body": {"stepladder": {"lambda": "high"}}}, "stepladder.lambda", openai.BadRequestError),
        ({"extra_headers": {"x-stepladder-lambda": "high"}}, "x-stepladder-lambda", openai.BadRequestError),
        ({"extra_body": {"stepladder": {"min_stage": "huge"}}}, "min_stage", openai.BadRequestError),
    ],
)
def test_requests_that_are_refused(
    client: openai.OpenAI, change: dict[str, Any], param: str, expected: type[openai.APIStatusError]
) -> None:
    asked: dict[str, Any] = {"model": "stepladder", "messages": MESSAGES, **change}
    with pytest.raises(expected) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_empty_prompt_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        client.completions.create(model="stepladder", prompt="  ")


def test_a_body_that_is_too_large(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "x" * (9 * 1024 * 1024)}]
    with pytest.raises(openai.APIStatusError, match="8388608 bytes") as caught:
        client.chat.completions.create(model="stepladder", messages=messages)
    assert caught.value.status_code == 413


def test_a_fault_mid_stream_is_an_error_of_the_client(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "break"}]
    stream = client.chat.completions.create(model="small", messages=messages, stream=True)
    assert next(stream).choices[0].delta.content == "Fo"
    with pytest.raises(openai.APIError, match="stage 'small': cut"):
        next(stream)


# ── the asynchronous client ──────────────────────────────────────────────────


@asynccontextmanager
async def served(made: World) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(made.app) as base,
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_async_chat_and_stream() -> None:
    async with served(world()) as client:
        got = await client.chat.completions.create(model="stepladder", messages=MESSAGES)
        assert got.choices[0].message.content == "What is 2+2?"
        stream = await client.chat.completions.create(model="stepladder", messages=MESSAGES, stream=True)
        assert [each.choices[0].delta.content async for each in stream] == ["What", "is", "2+2?", None]


async def test_each_chunk_leaves_before_the_next_is_made() -> None:
    read = asyncio.Event()

    async def waits(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield chunk("first")
        await read.wait()  # only a client that has the first chunk already can bring the second about
        yield chunk("second", finish="stop")
        yield attempt(stage.name, "firstsecond", first_token_s=0.1)

    async with served(world(waits)) as client:
        stream = await client.chat.completions.create(model="stepladder", messages=MESSAGES, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "first"
        read.set()
        assert (await anext(stream)).choices[0].delta.content == "second"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


# ── bare sockets ─────────────────────────────────────────────────────────────


async def hangs(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
    """Says one word where a stream is asked for, then nothing for ever."""
    if request.params.get("stream"):
        yield Delta("Once")
    await asyncio.Event().wait()
    yield Attempt(stage.name)


@asynccontextmanager
async def connected(base: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def post(body: bytes, headers: str = "content-type: application/json\r\n") -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(("mode", "stream"), [("route", False), ("route", True), ("cascade", False), ("cascade", True)])
async def test_a_client_that_leaves_cancels_the_upstream(mode: str, stream: bool) -> None:
    made = world(hangs)
    body = json.dumps({"messages": MESSAGES, "stream": stream, "stepladder": {"mode": mode}}).encode()
    async with serving(made.app) as base:
        async with connected(base) as (reader, writer):
            writer.write(post(body))
            if stream and mode == "route":
                await reader.readuntil(b"Once")
            await asyncio.wait_for(made.engine.under_way.wait(), 2)
        await asyncio.wait_for(made.engine.cancelled.wait(), 0.2)
        await asyncio.wait_for(made.store.written.wait(), 0.2)
    (trace,) = made.store.traces
    assert trace.fault is not None
    assert trace.fault.kind == "cancelled"


async def test_one_that_leaves_takes_nobody_along() -> None:
    made = world(scripted)
    body = json.dumps({"messages": MESSAGES}).encode()
    async with serving(made.app) as base:
        async with connected(base) as (_, writer):
            writer.write(post(body)[:-5])
            await writer.drain()
        async with connected(base) as (reader, writer):
            for _ in range(3):  # on one kept-alive connection
                writer.write(post(body))
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
    assert len(made.store.traces) == 3


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b"no json"), b"400"),
        (post(b"{}", "content-type: text/plain\r\n"), b"415"),
        (post(b'{"messages": ["' + b"x" * 5000 + b'"]}'), b"413"),
    ],
)
async def test_bodies_that_no_client_would_send(request_bytes: bytes, status: bytes) -> None:
    app = world(settings=GatewaySettings(max_body_bytes=1000)).app
    async with serving(app) as base, connected(base) as (reader, writer):
        writer.write(request_bytes)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split(b" ")[1] == status
        assert b"server:" not in head


async def test_an_answer_is_still_given_while_others_hang() -> None:
    async def some_hang(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        script = hangs if request.text == "hang" else plays(attempt(stage.name))
        async for event in script(request, stage):
            yield event

    made = world(some_hang)
    async with served(made) as client:
        stuck = [_ask(client, "hang") for _ in range(10)]
        assert (await _ask(client, "2+2?")).choices[0].message.content == "Four."
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


def _ask(client: openai.AsyncOpenAI, text: str) -> asyncio.Task[Any]:
    messages: Any = [{"role": "user", "content": text}]
    return asyncio.create_task(client.chat.completions.create(model="stepladder", messages=messages))


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never_ends(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        while True:
            yield Delta("x" * 100_000)
            await asyncio.sleep(0)

    monkeypatch.setattr(server, "_STALLED_MS", 500)
    made = world(never_ends, settings=GatewaySettings(write_idle_s=0.3))
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    loop = asyncio.get_running_loop()
    async with serving(made.app) as base:
        host, port = base.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(client, post(body))
            await asyncio.wait_for(made.engine.cancelled.wait(), 5)
            await asyncio.wait_for(made.store.written.wait(), 1)
            if sys.platform == "linux":
                await _is_dropped(client)
    (trace,) = made.store.traces
    assert trace.fault is not None
    assert trace.fault.kind == "cancelled"


async def _is_dropped(client: socket.socket) -> None:
    """The server's end of the connection goes too: the kernel gives it up, though nobody ever reads."""
    ends = [f"0100007F:{end[1]:04X}" for end in (client.getpeername(), client.getsockname())]
    for _ in range(500):
        held = [line.split()[1:3] for line in Path("/proc/self/net/tcp").read_text().splitlines()]
        if ends not in held:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the connection was still held")


async def test_a_slow_reader_is_no_stalled_one() -> None:
    words = [Delta("x" * 100_000)] * 40
    made = world(plays(*words, attempt("small", first_token_s=0.1)), settings=GatewaySettings(write_idle_s=2.0))
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    async with serving(made.app) as base, connected(base) as (reader, writer):
        writer.write(post(body))
        got = b""
        while b"[DONE]" not in got[-100:]:
            got += await reader.read(100_000)
            await asyncio.sleep(0.01)
    assert len(got) > 4_000_000
    assert made.store.traces[0].fault is None


# ── the server ───────────────────────────────────────────────────────────────


def test_an_address_in_use_is_told(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="in use"), running(world().app, port=port):
        pass


async def _enter_beside(made: World) -> None:
    async with serving(made.app):
        pass


async def _enter_thread(made: World) -> None:
    await asyncio.to_thread(running(made.app).__enter__)


@pytest.mark.parametrize("enter", [_enter_beside, _enter_thread])
async def test_a_router_that_cannot_start_says_why(enter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(manage_router=True)

    async def cannot() -> None:
        raise EngineError("no model")

    monkeypatch.setattr(made.engine, "start", cannot)
    with pytest.raises(EngineError, match="no model"):
        await enter(made)


SERVE = """
import sys
sys.path[:0] = {path!r}
from gateway_fakes import world
from stepladder.gateway.server import Plain, serve
serve(Plain(world(manage_router=True).app), port={port})
print("closed in order")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = SERVE.format(path=sys.path, port=port)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    await _answers(f"http://127.0.0.1:{port}")
    child.send_signal(number)
    out, _ = await asyncio.wait_for(child.communicate(), 10)
    assert out == b"closed in order\n"
    assert child.returncode == 0


async def _answers(base: str) -> None:
    for _ in range(500):
        with suppress(ConnectionError):
            async with connected(base) as (reader, writer):
                writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                return
        await asyncio.sleep(0.02)
    raise AssertionError("it never answered")


def test_a_managed_router_is_started_and_closed() -> None:
    made = world(manage_router=True)
    with running(made.app):
        assert (made.engine.started, made.engine.closed) == (1, 0)
    assert (made.engine.closed, made.store.closed) == (1, 1)


CUT = """
import asyncio, sys
sys.path[:0] = {path!r}
from gateway_fakes import attempt, world
from stepladder.gateway.server import Drain, Plain, serve
from stepladder.types import Delta

async def hangs(request, stage):
    if request.params.get("stream"):
        yield Delta("Once")
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)  # an engine takes its time to let go
    yield attempt(stage.name)

made = world(hangs, manage_router=True)
written = []
append, close = made.store.append, made.store.close
made.store.append = lambda trace: (append(trace), written.append(made.store.closed))
serve(Plain(made.app), port={port}, drain=Drain({grace}))
print(*[(trace.fault.kind, closed) for trace, closed in zip(made.store.traces, written)])
"""


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
async def test_requests_that_are_cut_off_are_told_and_leave_their_traces(signals: list[signal.Signals]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    grace = 1 if len(signals) == 1 else 60
    program = CUT.format(path=sys.path, port=port, grace=grace)
    base = f"http://127.0.0.1:{port}"
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=pipe, stderr=pipe)
    await _answers(base)
    async with connected(base) as (plain, to_plain), connected(base) as (stream, to_stream):
        to_plain.write(post(json.dumps({"messages": MESSAGES}).encode()))
        to_stream.write(post(json.dumps({"messages": MESSAGES, "stream": True}).encode()))
        await stream.readuntil(b"Once")
        for number in signals:
            child.send_signal(number)
            await asyncio.sleep(0.3)
        out, err = await asyncio.wait_for(child.communicate(), 15)
        head, body = (await plain.read()).split(b"\r\n\r\n")
        tail = await stream.read()
    assert out == b"('cancelled', 0) ('cancelled', 0)\n"
    assert child.returncode == 0
    assert b"Traceback" not in err
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 5" in head
    assert json.loads(body)["error"]["code"] == "shutting_down"
    assert b'data: {"error":{"message":"the server is shutting down' in tail
    assert tail.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in tail


SLOW_START = """
import asyncio, sys
sys.path[:0] = {path!r}
from gateway_fakes import world
from stepladder.gateway.server import Plain, serve

made = world(manage_router=True)

async def start():
    print("loading", flush=True)
    await asyncio.Event().wait()

made.engine.start = start
serve(Plain(made.app), port=0, ready=lambda url: print("ready"))
print("closed", made.engine.closed > 0, made.store.closed > 0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_start_in_order(number: signal.Signals) -> None:
    program, pipe = SLOW_START.format(path=sys.path), asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=pipe, stderr=pipe)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"loading\n"
    child.send_signal(number)
    try:
        out, err = await asyncio.wait_for(child.communicate(), 5)
    finally:
        if child.returncode is None:
            child.kill()
    assert (out, err) == (b"closed True True\n", b"")
    assert child.returncode == 0


async def test_a_start_that_is_no_longer_wanted_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cancelled = world(manage_router=True), asyncio.Event()

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(made.engine, "start", start)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), serving(made.app):
            pytest.fail("it was entered")
    assert cancelled.is_set()
    assert made.store.closed
