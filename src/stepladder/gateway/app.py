"""The gateway: OpenAI's API in front of a router. It reads, asks the router, and writes; it decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from stepladder.errors import AccessError, RequestError
from stepladder.gateway.access import ACCESS, FreeGate, Gate, access_of
from stepladder.gateway.export import export, read_query, trace_body
from stepladder.gateway.exposition import CONTENT_TYPE
from stepladder.gateway.faults import BAD_REQUEST, error_body, error_reply
from stepladder.gateway.feedback import keep, read_feedback
from stepladder.gateway.health import readiness
from stepladder.gateway.leaving import LEAVING, until_left, while_connected
from stepladder.gateway.media import Urls, check_urls
from stepladder.gateway.openapi import document
from stepladder.gateway.replies import WRITE_IDLE_S, EventStream, Reply, Sendable, json_reply
from stepladder.gateway.report import (
    Headers,
    answer_headers,
    call_headers,
    decision_headers,
    route_body,
)
from stepladder.gateway.stream import ChunkWriter, frames, opened, sse
from stepladder.gateway.watch import Visit, Watch
from stepladder.gateway.wire import Names, answer_body, dumps, models_body, parse_object, read_model, read_request
from stepladder.router import Router
from stepladder.types import EMPTY, Endpoint, Request

_CUT_OFF_S = 1.0
_EVENT_STREAM = b"text/event-stream"


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """``model_name`` is the model under which the policy decides; larger bodies than ``max_body_bytes`` are refused.

    ``image_urls`` says which URLs in messages go on to the stages.
    A stream ends where its client takes nothing for ``write_idle_s`` seconds. ``presets`` are dials by name
    (``wire.Names``); ``baseline`` is the stage that savings are told against, None for the ladder's last.
    """

    model_name: str = "stepladder"
    max_body_bytes: int = 8 * 1024 * 1024
    write_idle_s: float = WRITE_IDLE_S
    image_urls: Urls = "data"
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: EMPTY)
    baseline: str | None = None


def create_app(
    router: Router,
    settings: GatewaySettings | None = None,
    *,
    manage_router: bool = False,
    watch: Watch | None = None,
    gate: Gate | None = None,
) -> Starlette:
    """The ASGI application. With ``manage_router`` its lifespan starts and closes the router, else the caller does.

    Without a ``watch`` it has one of its own. The ``gate`` lets requests in (everybody's, without one); the lifespan
    closes it.
    """
    settings = settings or GatewaySettings()
    watch = watch or Watch()
    router.watch(partial(watch.on_trace, against=settings.baseline))
    doors = Doors(router, settings, watch)
    gate = gate or FreeGate()
    router.watch(gate.settle)
    door = partial(Door, limit=settings.max_body_bytes, watch=watch, gate=gate)
    free = partial(door, gate=FreeGate())  # whoever watches the process must not hold a key

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            if manage_router:
                await router.start()
            yield
        finally:
            if manage_router:
                await router.close()
            await gate.close()

    routes = [
        Route("/v1/chat/completions", door(doors.chat), methods=["POST"]),
        Route("/v1/completions", door(doors.completion), methods=["POST"]),
        Route("/v1/route", door(doors.route), methods=["POST"]),
        Route("/v1/models", door(doors.models), methods=["GET"]),
        Route("/v1/models/{model:path}", door(doors.model), methods=["GET"]),
        Route("/v1/decisions", door(doors.decisions), methods=["GET"]),
        Route("/v1/decisions/{id}", door(doors.decision), methods=["GET"]),
        Route("/v1/feedback", door(doors.feedback), methods=["POST"]),
        Route("/health", free(doors.health), methods=["GET"]),
        Route("/ready", free(doors.ready), methods=["GET"]),
        Route("/metrics", door(doors.metrics), methods=["GET"]),
        Route("/openapi.json", free(doors.openapi), methods=["GET"]),
    ]
    handlers: Mapping[Any, Any] = {HTTPException: partial(_no_such_door, watch)}
    app = Gateway(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would lose the body with some clients
    return app


class Gateway(Starlette):
    """Starlette with a short way to the routes that are one fixed address each.

    What it would do for them, it does for all else: matching patterns, and telling of addresses and methods that there
    are not. What a door lets through of an exception is the server's to tell, as it would be behind Starlette.
    """

    def __init__(self, routes: Sequence[Route], **starlette: Any) -> None:
        super().__init__(routes=routes, **starlette)
        self._doors = {
            (method, route.path): route.app
            for route in routes
            if isinstance(route.app, Door) and not route.param_convertors
            for method in route.methods or ()
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        door: Door | None = None
        if scope["type"] == "http" and not scope.get("root_path"):
            door = self._doors.get((scope["method"], scope["path"]))
        return super().__call__(scope, receive, send) if door is None else door(scope, receive, send)


class Doors:
    """One method per route, each from a parsed HTTP request to a reply."""

    def __init__(self, router: Router, settings: GatewaySettings, watch: Watch) -> None:
        self.router = router
        self._watch = watch
        self._write_idle_s = settings.write_idle_s
        self._image_urls = settings.image_urls
        ladder = router.parts.ladder
        self._names = Names(settings.model_name, ladder.names, tuple(router.parts.policies), settings.presets)
        self._baseline = settings.baseline
        owners = {stage.name: stage.engine for stage in ladder.stages}
        self._models = models_body(self._names, owners, created=int(router.parts.clock()))

    def chat(self, scope: Scope, body: bytes) -> Awaitable[Sendable]:
        """POST /v1/chat/completions"""
        return self._answer(self._request(scope, body, "chat"))

    def completion(self, scope: Scope, body: bytes) -> Awaitable[Sendable]:
        """POST /v1/completions"""
        return self._answer(self._request(scope, body, "completion"))

    async def route(self, scope: Scope, body: bytes) -> Sendable:
        """POST /v1/route: the decision alone; nothing is called and nothing is stored."""
        trace = self.router.decide(self._request(scope, body, None))
        return json_reply(route_body(trace, self._baseline), decision_headers(trace))

    async def models(self, scope: Scope, body: bytes) -> Sendable:
        """GET /v1/models"""
        may_use = access_of(scope).may_use
        mine = [
            model for model in self._models["data"] if model["id"] not in self._names.stages or may_use(model["id"])
        ]
        return json_reply({**self._models, "data": mine})

    async def model(self, scope: Scope, body: bytes) -> Sendable:
        """GET /v1/models/{model}"""
        asked = scope["path_params"]["model"]
        read_model(asked, self._names)  # refuses what is none
        return json_reply(next(model for model in self._models["data"] if model["id"] == asked))

    async def decision(self, scope: Scope, body: bytes) -> Sendable:
        """GET /v1/decisions/{id}: the trace, and the outcomes that were reported for it."""
        asked, reader = scope["path_params"]["id"], access_of(scope).reads()
        return await asyncio.to_thread(self._stored, asked, reader)  # others do not wait for the disk

    async def decisions(self, scope: Scope, body: bytes) -> Sendable:
        """GET /v1/decisions: many of them, as JSON lines."""
        wanted = read_query(scope["query_string"], access_of(scope).reads())
        return await export(self.router.parts.store, wanted, self._write_idle_s)

    async def feedback(self, scope: Scope, body: bytes) -> Sendable:
        """POST /v1/feedback: the measured quality of an answer; 200 once it is kept for good."""
        outcome, reader = read_feedback(parse_object(body)), access_of(scope).reads()
        if reader is not None:
            await asyncio.to_thread(self._check_reader, outcome.decision_id, reader)
        return await keep(self.router.parts.store, outcome)

    async def openapi(self, scope: Scope, body: bytes) -> Sendable:
        """GET /openapi.json: what every route takes and answers."""
        return json_reply(document(self._names))

    async def health(self, scope: Scope, body: bytes) -> Sendable:
        """GET /health: this process answers; it says nothing of the stages behind it."""
        ladder = self.router.parts.ladder
        return json_reply({"status": "ok", "ladder": ladder.name, "stages": list(ladder.names)})

    async def ready(self, scope: Scope, body: bytes) -> Sendable:
        """GET /ready: 200 where a request can be taken now, else 503."""
        status, told = readiness(self._watch.state, self.router.snapshot())
        return json_reply(told, status=status)

    async def metrics(self, scope: Scope, body: bytes) -> Sendable:
        """GET /metrics, for Prometheus."""
        return Reply(200, self._watch.expose(self.router), content_type=CONTENT_TYPE)

    def _stored(self, asked: str, reader: str | None) -> Reply:
        store = self.router.parts.store
        trace = store.get(asked)
        if trace is None or reader not in (None, trace.request.caller):
            raise _no_decision(asked)
        return json_reply(trace_body(trace, store.outcomes(asked)))

    def _check_reader(self, decision: str, reader: str) -> None:
        """Nobody judges the answers to others; of a decision that is not known nobody can say whose it is."""
        trace = self.router.parts.store.get(decision)
        if trace is not None and trace.request.caller != reader:
            raise _no_decision(decision)

    def _request(self, scope: Scope, body: bytes, endpoint: Endpoint | None) -> Request:
        access = access_of(scope)
        asked, headers = parse_object(body), scope["headers"]
        request = read_request(asked, self._names, headers, endpoint, caller=access.caller, only=access.only)
        check_urls(request.messages, self._image_urls)
        return access.constrain(request, self.router.parts)

    async def _answer(self, request: Request) -> Sendable:
        if request.params.get("stream"):
            return await self._stream(request)
        answer = await self.router.answer(request)
        return Reply(200, dumps(answer_body(answer, self._baseline)), answer_headers(answer, self._baseline))

    async def _stream(self, request: Request) -> EventStream:
        events = self.router.stream(request)
        try:
            opening = await opened(events)
        except BaseException:  # re-raised: a stream that never began is still closed
            await events.aclose()
            raise
        writer = ChunkWriter(request, opening, int(self.router.parts.clock()), self._baseline)
        if opening.answer is None:
            headers = call_headers(opening.decision_id, opening.step, opening.stage)
        else:
            headers = answer_headers(opening.answer, self._baseline)
        return EventStream(frames(opening, events, writer), events, headers, self._write_idle_s)


def _no_decision(asked: str) -> RequestError:
    return RequestError(f"no decision '{asked}' is stored", param="id", code="decision_not_found")


# ── around every door ────────────────────────────────────────────────────────


class Door:
    """An ASGI application around one handler: reads the body, stands by for a client that leaves, tells errors."""

    def __init__(
        self, handle: Callable[[Scope, bytes], Awaitable[Sendable]], limit: int, watch: Watch, gate: Gate
    ) -> None:
        self._handle = handle
        self._gate = gate
        self._limit = limit
        self._watch = watch
        self._name: str = getattr(handle, "__name__", "other")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = self._watch.begin(self._name, scope)
        sent = Sent(send, visit)
        try:
            await self._serve(scope, receive, sent)
        except asyncio.CancelledError:
            # The server ends and will wait no longer. Passed on, this would make it write a stack trace to the log
            # and a bare 500 to the client, so it ends here: the work is over, and the client is told.
            visit.ending = "cut_off"
            await cut_off(sent)
        finally:
            self._watch.end(visit)

    async def _serve(self, scope: Scope, receive: Receive, sent: Sent) -> None:
        try:
            access = self._gate.enter(scope)  # before anything is read
        except AccessError as error:
            await error_reply(error)(sent)
            return
        scope[ACCESS], sent.headers, sent.visit.caller = access, access.headers, access.caller
        try:
            body = await read_body(scope, receive, self._limit)
            sent.visit.bytes_in = len(body)
            work, leaving = self._reply(scope, body, sent), scope.get(LEAVING)
            stayed = while_connected(receive, work) if leaving is None else until_left(leaving, work)
            if not await stayed:
                sent.visit.ending = "left"
        except RequestError as error:  # of the body: what the work raises becomes its reply
            await error_reply(error)(sent)
        except ClientDisconnect:
            sent.visit.ending = "left"
        finally:
            access.leave()

    async def _reply(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            reply = await self._handle(scope, body)
        except Exception as error:  # noqa: BLE001 - the one place that turns what was raised into a reply
            reply = error_reply(error)
        await reply(send)


class Sent:
    """``send``, remembering how much of the reply has left."""

    __slots__ = ("_head", "_send", "headers", "streaming", "visit")

    def __init__(self, send: Send, visit: Visit) -> None:
        self.visit = visit
        self._send = send
        self._head: Message | None = None
        self.headers: Headers = ()
        """What is added to the reply's own."""
        self.streaming = False

    @property
    def begun(self) -> bool:
        """Whether anything has left."""
        return self._head is not None

    @property
    def events(self) -> bool:
        """Whether it is a stream of events."""
        head = self._head or {"headers": ()}
        return any(value.startswith(_EVENT_STREAM) for _, value in head["headers"])

    def __call__(self, message: Message) -> Awaitable[None]:
        if not self.streaming or not message.get("more_body"):
            return self._turn(message)
        self.visit.bytes_out += len(message.get("body", b""))  # amid a reply nothing else is new
        return self._send(message)

    async def _turn(self, message: Message) -> None:
        if self.headers and not self.begun:
            message = {**message, "headers": [*message["headers"], *self.headers]}
        await self._send(message)
        if self._head is None:
            self._head, self.visit.status = message, message["status"]
        else:
            self.visit.bytes_out += len(message.get("body", b""))
        self.streaming = bool(message.get("more_body"))


async def cut_off(sent: Sent) -> None:
    """Tell a client that its request was cut off: a 503, or an error event where a stream has begun."""
    body = error_body("the server is shutting down; try again", "server_error", code="shutting_down")
    with suppress(TimeoutError):
        async with asyncio.timeout(_CUT_OFF_S):  # it may not be reading
            if not sent.begun:
                await json_reply(body, ((b"retry-after", b"5"), (b"connection", b"close")), 503)(sent)
            elif sent.streaming and sent.events:  # an export that broke off stays unfinished
                await sent({"type": "http.response.body", "body": sse(body), "more_body": True})
                await sent({"type": "http.response.body", "body": b""})


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body; raises RequestError for one that is too large or says that it is no plain JSON."""
    length = _check_headers(scope)
    if length > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _check_headers(scope: Scope) -> int:
    """The announced length, 0 where there is none. A body that is no plain JSON by its own account is refused.

    So is one without an account: a web page may make a browser send that, and text/plain, to any address unasked.
    """
    length, kind = 0, None
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            length = int(value)
        elif name == b"content-type":
            kind = value.decode("latin-1")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _unsupported(f"a body of content-encoding '{value.decode('latin-1')}'; send it as it is")
    if scope["method"] == "POST" and not _is_json(kind):
        found = "without content-type" if kind is None else f"of content-type '{kind}'"
        raise _unsupported(f"a body {found}; send the header 'content-type: application/json'")
    return length


def _is_json(content_type: str | None) -> bool:
    if content_type == "application/json":
        return True
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than the {limit} bytes taken here", code="request_too_large")


def _unsupported(what: str) -> RequestError:
    return RequestError(f"cannot read {what}", code="unsupported_media_type")


async def _no_such_door(watch: Watch, request: HTTPRequest, error: Exception) -> Response:
    """404 and 405 in OpenAI's shape."""
    visit = watch.begin("none", request.scope)
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = error.headers if isinstance(error, HTTPException) else None
    code, message = "not_found", f"no such address here: {request.method} {request.url.path}"
    if status == 405:
        code, message = "method_not_allowed", f"{request.url.path} does not take {request.method}"
    body = dumps(error_body(message, BAD_REQUEST, code=code))
    visit.status, visit.bytes_out = status, len(body)
    watch.end(visit)
    return Response(body, status, headers, media_type="application/json")
