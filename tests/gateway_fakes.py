"""A router of fakes that does what a test scripts, and an ASGI caller that needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any

import orjson
from starlette.applications import Starlette

from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.router import Parts, Router
from stepladder.types import (
    Attempt,
    Call,
    Capability,
    Cost,
    Decision,
    Delta,
    EngineCost,
    EngineEvent,
    Estimate,
    Estimates,
    Fail,
    Fault,
    Features,
    Ladder,
    Outcome,
    Receipt,
    Request,
    Stage,
    Stop,
    StoreCounts,
    Stored,
    Trace,
    Usage,
    View,
)

ALL: frozenset[Capability] = frozenset({"stream", "logprobs", "tools", "images", "json"})
STAGES = ("small", "medium", "large")
QUALITY = {"small": 0.6, "medium": 0.75, "large": 0.9}
PRICE = {"small": 1.0, "medium": 1.3, "large": 1.8}

Script = Callable[[Request, Stage], AsyncGenerator[EngineEvent, None]]


def attempt(stage: str, text: str = "Four.", **more: Any) -> Attempt:
    """A finished answer."""
    return Attempt(stage, text, **{"usage": Usage(7, 2), "seconds": 0.25, "finish_reason": "stop", **more})


def fault(stage: str, kind: str, message: str = "it broke", **more: Any) -> Attempt:
    """A failed try; ``first_token_s`` goes to the attempt, everything else to the fault."""
    first_token_s = more.pop("first_token_s", None)
    return Attempt(stage, first_token_s=first_token_s, fault=Fault(kind, message, **more))


def chunk(content: str | None = None, *, finish: str | None = None, role: str | None = None, **more: Any) -> Delta:
    """A chat chunk as an upstream sends it."""
    words = {key: value for key, value in (("role", role), ("content", content)) if value is not None}
    choice = {"index": 0, "delta": words, "finish_reason": finish}
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": 5, "model": "upstream/model"}
    return Delta(content or "", {**head, "choices": [choice], **more})


def plays(*events: EngineEvent) -> Script:
    """An engine that yields these events for whoever asks; an Attempt gets the name of the stage that was asked."""

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        for event in events:
            yield event

    return script


async def echoes(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
    """Answers with the question; in pieces where a stream is asked for."""
    if request.params.get("stream"):
        for word in request.text.split(" "):
            yield Delta(word)
    yield attempt(stage.name, request.text, first_token_s=0.1 if request.params.get("stream") else None)


@dataclass
class FakeEngine:
    """Plays a script; remembers what it was asked, and when it was closed before its end."""

    script: Script = echoes
    able: frozenset[Capability] = ALL
    calls: list[tuple[str, Request]] = field(default_factory=list)
    started: int = 0
    closed: int = 0
    under_way: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        return self.able

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        return None

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        self.calls.append((stage.name, request))
        self.under_way.set()
        events = self.script(request, stage)
        try:
            async for event in events:
                yield event
        except BaseException:
            self.cancelled.set()
            raise
        finally:
            await events.aclose()

    async def start(self) -> None:
        self.started += 1

    async def close(self) -> None:
        self.closed += 1


class FakeFeatures:
    def features(self, request: Request, history: tuple[Attempt, ...] = ()) -> Features:
        return Features({"chars": float(request.chars)}, request.text, history)


@dataclass
class FakePredictor:
    calibrated: bool = True
    version: str = "fake"

    def predict(self, features: Features) -> Estimates:
        stages = {name: Estimate(mean, 0.1) for name, mean in QUALITY.items()}
        return Estimates(stages, self.calibrated, {"class": "simple"})


class FakeCosts:
    version = "fake"

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        return Cost(PRICE[stage.name], seconds=0.5, latency=0.25)

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        return PRICE[stage.name]


@dataclass
class FirstPolicy:
    """Calls the first allowed stage for good; after a fault the next one, until none is left."""

    name: str = "first"

    def decide(self, view: View) -> Decision:
        values = {stage: view.value(stage) for stage in view.stages}
        tried = {attempt.stage for attempt in view.attempts}
        if view.attempts and view.attempts[-1].is_answer:
            return Decision(Stop(view.attempts[-1]), values=values, reason="answered")
        left = [stage for stage in view.stages if stage not in tried]
        if not left:
            return Decision(Fail(view.attempts[-1].fault or Fault("server", "none")), values=values)
        return Decision(Call(left[0], final=True), values=values, reason="the cheapest")


@dataclass
class ClimbPolicy:
    """Calls every allowed stage in turn and keeps the last answer."""

    name: str = "climb"

    def decide(self, view: View) -> Decision:
        tried = {attempt.stage for attempt in view.attempts}
        left = [stage for stage in view.stages if stage not in tried]
        if left:
            return Decision(Call(left[0]), reason="not yet good enough")
        answers = [attempt for attempt in view.attempts if attempt.is_answer]
        return Decision(Stop(answers[-1])) if answers else Decision(Fail(view.attempts[-1].fault))


class FakeStore:
    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.written = asyncio.Event()
        self.closed = 0

    def append(self, trace: Trace) -> None:
        self.traces.append(trace)
        self.written.set()

    def report(self, outcome: Outcome) -> Future[Receipt]:
        raise NotImplementedError

    def outcome(self, outcome: Outcome) -> Receipt:
        raise NotImplementedError

    def scan(
        self, *, after: int = 0, since: float = 0.0, until: float = inf, stage: str | None = None, limit: int = 256
    ) -> tuple[Stored, ...]:
        raise NotImplementedError

    def get(self, trace_id: str) -> Trace | None:
        return next((trace for trace in self.traces if trace.id == trace_id), None)

    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[Trace]:
        return iter(self.traces)

    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]:
        return (Outcome(trace_id, 0.5, "user"),)

    def counts(self) -> StoreCounts:
        return StoreCounts(appended=len(self.traces))

    def close(self) -> None:
        self.closed += 1


@dataclass
class World:
    """Everything that a test may look at."""

    app: Starlette
    router: Router
    engine: FakeEngine
    store: FakeStore


def world(
    script: Script = echoes,
    *,
    settings: GatewaySettings | None = None,
    calibrated: bool = True,
    able: frozenset[Capability] = ALL,
    manage_router: bool = False,
) -> World:
    """A gateway over fakes with clocks and ids that count."""
    engine, store = FakeEngine(script, able), FakeStore()
    ids, ticks = count(1), count()
    parts = Parts(
        ladder=Ladder("fakes", tuple(Stage(name, "fake", f"models/{name}") for name in STAGES)),
        engines=dict.fromkeys(STAGES, engine),
        featurizer=FakeFeatures(),
        predictor=FakePredictor(calibrated),
        costs=FakeCosts(),
        policies={"route": FirstPolicy(), "cascade": ClimbPolicy(), "fixed": FirstPolicy("fixed")},
        store=store,
        lam=5.0,
        clock=lambda: 1_700_000_000.0,
        timer=lambda: next(ticks) / 1024,
        new_id=lambda: f"dec-{next(ids)}",
    )
    router = Router(parts)
    return World(create_app(router, settings, manage_router=manage_router), router, engine, store)


# ── calling an app without a server ──────────────────────────────────────────


@dataclass(frozen=True)
class Got:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> Mapping[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of each server-sent event; the last one may be the word [DONE]."""
        datas = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [data.decode() if data == b"[DONE]" else orjson.loads(data) for data in datas]


async def post(app: Starlette, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Got:
    """POST a JSON value, or bytes as they are."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return await ask(app, "POST", path, [data], {"content-type": "application/json", **(headers or {})})


async def get(app: Starlette, path: str) -> Got:
    return await ask(app, "GET", path)


async def ask(
    app: Starlette,
    method: str,
    path: str,
    body: Iterable[bytes] = (b"",),
    headers: Mapping[str, str] | None = None,
    query: bytes = b"",
) -> Got:
    """One request; the client stays until the reply is whole."""
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    parts[-1]["more_body"] = False
    waiting, sent = iter(parts), []
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        message = next(waiting, None)
        if message is None:
            await never.wait()
        return message or {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({**_scope(method, path, headers or {}), "query_string": query}, receive, send)
    start = sent[0]
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return Got(start["status"], told, b"".join(message.get("body", b"") for message in sent[1:]))


def _scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
