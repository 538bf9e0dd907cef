"""Looks at a stage as it is: whether it answers, how fast, and what it can really do. For ``stepladder check --live``.

Everything is tried by asking, the way requests would: a declaration is what somebody wrote down once. It costs a few
tokens of each stage.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from stepladder.contracts import Engine
from stepladder.engines.http import Target
from stepladder.types import Attempt, Capability, Fault, Request, Stage

CONTEXT_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window", "n_ctx", "n_ctx_train")
"""What servers call the context of a model in their list of models, the more telling first."""

SHOWN_MODELS = 5
MAX_LIST_BYTES = 4 * 2**20
REFUSED = ("bad_request", "context")

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a trial showed: ``able`` is None where it showed nothing either way; ``why`` is for people."""

    able: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server's list of models told. ``connect_s`` is the time for a new connection, TLS included."""

    connect_s: float | None = None
    models: tuple[str, ...] | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One stage as it is. ``fault`` is set where it did not answer, and then nothing else was tried.

    ``total_s`` is the time of an answer of one token, ``first_s`` the time to the first piece of a stream.
    """

    stage: Stage
    fault: Fault | None = None
    total_s: float | None = None
    first_s: float | None = None
    listing: Listing = Listing()
    shown: Mapping[Capability, Shown] = field(default_factory=dict)

    @property
    def wrong(self) -> Iterator[str]:
        """Declarations that are not so, each as a sentence."""
        declared = self.stage.capabilities
        for name, shown in self.shown.items():
            if name in declared and shown.able is False:
                yield f"declares '{name}', but {shown.why}"
            elif name not in declared and shown.able:
                yield f"can do '{name}' and does not declare it: requests that need it are not sent there"
        told, listed = self.listing.context, self.listing.models
        if told is not None and self.stage.context is not None and self.stage.context > told:
            yield f"declares a context of {self.stage.context} tokens, but its server says {told}"
        if listed is not None and self.stage.model not in listed:
            some = ", ".join(listed[:SHOWN_MODELS]) + (", …" if len(listed) > SHOWN_MODELS else "")
            yield f"asks for the model '{self.stage.model}', which its server does not list ({some or 'it lists none'})"

    @property
    def notes(self) -> Iterator[str]:
        """What is worth knowing and is not wrong."""
        for name, shown in self.shown.items():
            if name in self.stage.capabilities and shown.able is None:
                yield f"declares '{name}', which could not be seen: {shown.why}"
        if self.listing.context is not None and self.stage.context is None:
            yield f"its server tells a context of {self.listing.context} tokens; set context so that it is kept to"


async def probe(engine: Engine, stage: Stage, *, timeout_s: float = 30.0, target: Target | None = None) -> Finding:
    """Ask one stage for one token, then try what it can do. Each try has ``timeout_s`` seconds. Never raises for what
    the stage does; ``target`` is where its server is, for engines that have one."""
    listing = Listing() if target is None else await _listed(target, timeout_s)
    ask = partial(_asked, engine, stage, timeout_s)
    first = await ask("Hi", max_tokens=1)
    if first.fault is not None:
        return Finding(stage, first.fault, listing=listing)
    streamed = await ask("Count to five.", max_tokens=8, stream=True)
    shown: dict[Capability, Shown] = {"stream": _streams(streamed)}
    for name, trial in TRIALS.items():
        shown[name] = await trial(ask)
    return Finding(stage, None, first.seconds, streamed.first_token_s, listing, shown)


async def _asked(engine: Engine, stage: Stage, timeout_s: float, prompt: Any, **params: Any) -> Attempt:
    message = {"role": "user", "content": prompt}
    request = Request(f"check-{stage.name}", messages=(message,), params={"temperature": 0, **params})
    try:
        async with asyncio.timeout(timeout_s), aclosing(engine.generate(request, stage)) as events:
            async for event in events:
                if isinstance(event, Attempt):
                    return event
    except TimeoutError:
        return Attempt(stage.name, fault=Fault("timeout", f"no answer within {timeout_s:g} s"))
    return Attempt(stage.name, fault=Fault("protocol", "no attempt was made"))


# ── what it can do ───────────────────────────────────────────────────────────

Ask = Callable[..., Awaitable[Attempt]]


def _failed(attempt: Attempt) -> Shown | None:
    """A refusal speaks against the ability; any other fault says nothing of it."""
    if attempt.fault is None:
        return None
    refused = attempt.fault.kind in REFUSED
    told = attempt.fault.message
    return Shown(False, f"refuses it: {told}") if refused else Shown(None, f"the trial failed: {told}")


def _streams(attempt: Attempt) -> Shown:
    came = attempt.first_token_s is not None
    return _failed(attempt) or (Shown(True) if came else Shown(False, "a stream brought no piece before its end"))


async def _tells_logprobs(ask: Ask) -> Shown:
    attempt = await ask("Hi", max_tokens=1, logprobs=True, top_logprobs=1)
    return _failed(attempt) or (Shown(True) if attempt.logprobs else Shown(False, "a reply had none"))


async def _calls_tools(ask: Ask) -> Shown:
    """Asked to call one; a server that does not know ``required`` may still leave it to the model."""
    prompt = "What is the weather in Paris? Call the tool."
    refused = None
    for choice in ("required", "auto"):
        attempt = await ask(prompt, max_tokens=64, tools=[_WEATHER], tool_choice=choice)
        if attempt.fault is None and _first_message(attempt).get("tool_calls"):
            return Shown(True)
        refused = _failed(attempt) or refused
    return refused or Shown(None, "it takes tools, but the model called none")


async def _writes_json(ask: Ask) -> Shown:
    attempt = await ask('Answer with the JSON object {"a": 4}.', max_tokens=64, response_format={"type": "json_object"})
    failed = _failed(attempt)
    if failed is not None:
        return failed
    try:
        return Shown(isinstance(orjson.loads(attempt.text), dict), "what it wrote is no object")
    except orjson.JSONDecodeError:
        return Shown(
            None, "it takes response_format, but what it wrote is no JSON (64 tokens may not have been enough)"
        )


async def _sees_images(ask: Ask) -> Shown:
    parts = [
        {"type": "text", "text": "What colour is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(_red_square()).decode()}"}},
    ]
    attempt = await ask(parts, max_tokens=4)
    if attempt.fault is not None and attempt.fault.kind == "server":
        return Shown(False, f"fails on one: {attempt.fault.message}")  # llama.cpp answers 500 where it cannot
    return _failed(attempt) or Shown(True)


TRIALS: Mapping[Capability, Callable[[Ask], Awaitable[Shown]]] = {
    "logprobs": _tells_logprobs,
    "tools": _calls_tools,
    "json": _writes_json,
    "images": _sees_images,
}


def _first_message(attempt: Attempt) -> Mapping[str, Any]:
    choices = (attempt.raw or {}).get("choices") or [{}]
    return choices[0].get("message") or {}


def _red_square(side: int = 64) -> bytes:
    """A PNG that no server can call too small or empty."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * side) * side
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


# ── what its server tells ────────────────────────────────────────────────────


async def _listed(target: Target, timeout_s: float) -> Listing:
    """The server's list of models, where it has one; most do. What it says of errors is not repeated."""
    times: dict[str, float] = {}
    limits = aiohttp.ClientTimeout(total=timeout_s, connect=target.limits.connect_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, trace_configs=[_timing(times)]) as session,
            session.get(f"{target.base_url}/models", headers=target.headers, allow_redirects=False) as response,
        ):
            body = orjson.loads(await _read(response)) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        body = None
    return read_listing(body, target.model, times.get("connected"))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, cut at ``MAX_LIST_BYTES``; one call of ``read`` gives what has come so far and no more."""
    body = b""
    while len(body) < MAX_LIST_BYTES and (piece := await response.content.read(MAX_LIST_BYTES - len(body))):
        body += piece
    return body


def read_listing(body: Any, model: str, connect_s: float | None = None) -> Listing:
    """What a list of models says, of whatever shape it is."""
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        return Listing(connect_s)
    known = {each["id"]: each for each in data if isinstance(each, Mapping) and isinstance(each.get("id"), str)}
    return Listing(connect_s, tuple(known), _context(known.get(model)))


def _context(entry: Any) -> int | None:
    if not isinstance(entry, Mapping):
        return None
    meta = entry.get("meta")
    places = (entry, meta if isinstance(meta, Mapping) else {})
    told = (place.get(key) for key in CONTEXT_KEYS for place in places)
    return next((value for value in told if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)


def _timing(times: dict[str, float]) -> aiohttp.TraceConfig:
    """How long the connection took, into ``times``."""

    async def begin(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        context.began = time.perf_counter()

    async def end(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        times["connected"] = time.perf_counter() - context.began

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(begin)
    trace.on_connection_create_end.append(end)
    return trace
