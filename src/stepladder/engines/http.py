"""One call to an OpenAI-compatible server over aiohttp: the code that the ``openai`` and ``llama`` engines share."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import aiohttp

from stepladder.engines import wire
from stepladder.engines.deadline import Deadline, timed_out
from stepladder.engines.options import Options
from stepladder.engines.sse import Event, SSEParser
from stepladder.patience import Patience
from stepladder.tokens import usage_of
from stepladder.types import Attempt, Delta, EngineEvent, Fault, Request, Usage

LOG = logging.getLogger("stepladder.engines")
"""Told where a server is that failed; faults go to clients, who are not to know."""

DONE = b"[DONE]"
KEEP_ALIVE_S = 4.0
"""Below the five seconds after which uvicorn (and so vLLM) drops an idle connection: ours is never the stale one."""

STALE_S = 1.0
"""A connection that was closed before we used it shows it at once; later it is the request that broke it."""

DRAIN_S = 0.05
"""How long a finished stream may take to end its body, so that its connection can be used again."""

AGAIN = frozenset({429, 502, 503})
"""Statuses behind which nothing was generated. 500 and 504 are not among them: somebody may have worked."""

PAUSE_S = 0.1
"""The least pause before a server is asked again that did not say when; by chance it is up to three times as long."""

PATIENCE_S = 2.0
"""A server that wants to be left alone for longer is not waited for: another stage may answer sooner."""

MAX_REPLY_BYTES = 64 * 2**20
JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait, in seconds.

    ``connect_s``: until the connection stands. ``first_byte_s``: from then to the first byte of the reply, which for
    an unstreamed answer comes when all of it is written. ``idle_s``: between two pieces of the reply. ``total_s``: for
    all of it, the wait for a free place before it included.
    """

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a stage is served. ``headers`` may hold secrets, so neither repr nor faults show their values.

    ``retries`` is how often a server is asked again that did nothing yet: it could not be reached, or refused with 502,
    503, or 429 and a short Retry-After.
    """

    stage: str
    model: str
    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Limits = Limits()
    ask_usage: bool = True
    retries: int = 0


def read_limits(options: Options) -> Limits:
    """The four time limits from a stage's options."""
    usual = Limits()
    return Limits(
        connect_s=options.seconds("connect_timeout_s", usual.connect_s),
        first_byte_s=options.seconds("first_byte_timeout_s", usual.first_byte_s),
        idle_s=options.seconds("idle_timeout_s", usual.idle_s),
        total_s=options.seconds("total_timeout_s", usual.total_s),
    )


def new_session() -> aiohttp.ClientSession:
    """A session without limits of its own: stages bring theirs. Needs a running event loop."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
    )


@dataclass(slots=True)
class _Connection:
    """What is known of the connection that a request goes out on."""

    reused: bool = False


async def _note_reuse(_session: aiohttp.ClientSession, context: Any, _params: Any) -> None:
    context.trace_request_ctx.reused = True


async def exchange(
    session: aiohttp.ClientSession,
    target: Target,
    request: Request,
    deadline: Deadline | None = None,
    *,
    reply: wire.Reply | None = None,
    chance: Callable[[], float] = random.random,
) -> AsyncGenerator[EngineEvent, None]:
    """Ask, and yield what ``Engine.generate`` yields: deltas where the request streams, then one attempt.

    Closing the generator early, or cancelling the task that reads it, closes the connection at once, which is how
    servers learn that nobody waits. ``seconds`` counts from here. The usage of a stream that broke off before its
    server counted is estimated (``tokens.usage_of``): what was written is paid for. The ``deadline`` (by default
    the target's total limit from here) cuts the connection also while nobody takes the next event. A caller that wants
    to see more than the attempt tells hands in the ``reply`` that is to be filled. Pauses before the server is asked
    again (``Target.retries``) are drawn by ``chance``, numbers in [0, 1); they count as seconds and keep the deadline.
    """
    call = _Call(session, target, request, deadline or Deadline(target.stage, target.limits.total_s))
    call.reply = reply or call.reply
    while True:
        fault = None
        try:
            async with aclosing(call.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
        except wire.WireError as error:
            fault = error.fault
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: what aiohttp says of an address or header
            call.was_unreached = _is_unreached(error)
            fault = call.deadline.over().fault if call.was_cut else _broken(error, target)
        pause = call.pause(fault, chance)
        if pause is None:
            break
        await asyncio.sleep(pause)
        call.begin_again()
    yield call.attempt(_redacted(fault, target))


End = wire.WireError | Literal["done", "closed"] | None
"""How a stream ended: broken, at [DONE], with its connection, or not yet."""


class _Call:
    """The state of one exchange."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, request: Request, deadline: Deadline) -> None:
        self.session, self.target, self.request, self.deadline = session, target, request, deadline
        self.reply = wire.Reply(target.stage)
        self.was_cut = self.was_refused = self.was_unreached = False
        self.tries = 1
        self.patience: Patience
        self.hides_usage = target.ask_usage and not wire.wants_usage(request)
        """The usage of a stream was asked for by us alone, and is not passed on."""
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def pause(self, fault: Fault | None, chance: Callable[[], float]) -> float | None:
        """Seconds until it is asked again; None where it is not, since that is not safe or not worth the time."""
        if fault is None or self.was_cut or self.tries > self.target.retries:
            return None
        if not (self.was_unreached or (self.was_refused and fault.status in AGAIN)):
            return None
        if fault.status == 429 and fault.retry_after is None:
            return None
        pause = PAUSE_S * (1.0 + 2.0 * chance()) if fault.retry_after is None else fault.retry_after
        return pause if pause <= PATIENCE_S and pause < self.deadline.left else None

    def begin_again(self) -> None:
        """The server is asked once more; nothing of what it said counts."""
        self.was_refused = self.was_unreached = False
        self.tries += 1

    def attempt(self, fault: Fault | None) -> Attempt:
        """What came of it."""
        attempt = self.reply.attempt(self.elapsed, fault)
        if self.tries > 1:
            attempt = replace(attempt, tries=self.tries)
        if fault is None:
            return attempt
        written = self.reply.written
        return replace(attempt, usage=_larger(attempt.usage, usage_of(self.request, "".join(written), len(written))))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The pieces of the answer; ``reply`` holds the whole. Raises WireError and aiohttp.ClientError."""
        response = await self._post()
        cut = self.deadline.at_end(lambda: self._cut(response))
        self.patience = Patience(self.target.limits.idle_s, response.close)
        try:
            if response.status // 100 != 2:
                self.was_refused = True
                raise wire.WireError(wire.refusal(response.status, response.headers, await self._read(response)))
            if not wire.is_stream(self.request):
                _expect_type(response, "json")
                self.reply.read_whole(await self._read(response))
                return
            _expect_type(response, "text/event-stream")
            parser, end = SSEParser(), None
            while end is None:
                deltas, end = await self._next(response, parser)
                for delta in deltas:
                    yield delta
            await self._ended(response, end)
        except aiohttp.ClientError as error:
            if self.patience.is_over:
                missing = f"no further piece of the reply of stage '{self.target.stage}'"
                raise timed_out(missing, self.target.limits.idle_s, "idle_timeout_s") from error
            raise
        finally:
            cut.cancel()
            self.patience.cancel()
            response.close()  # cuts the connection, except where the body was read to its end: then it is kept

    def _cut(self, response: aiohttp.ClientResponse) -> None:
        self.was_cut = True
        response.close()

    async def _post(self) -> aiohttp.ClientResponse:
        if self.session.closed:
            raise aiohttp.ClientConnectionError("the engine was closed")
        limits = self.target.limits
        data = wire.body(self.request, self.target.model, ask_usage=self.target.ask_usage)
        async with self.deadline.within("no reply", limits.connect_s + limits.first_byte_s, "first_byte_timeout_s"):
            while True:
                connection, sent = _Connection(), self.elapsed
                try:
                    return await self._send(data, connection)
                except aiohttp.ServerTimeoutError as error:
                    missing = f"no connection to the server of stage '{self.target.stage}'"
                    raise timed_out(missing, limits.connect_s, "connect_timeout_s") from error
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # A server may close a kept-alive connection just as we use it; llama.cpp does after each stream,
                    # without a word. Then nobody read the request, and it is sent again. One that was at work for a
                    # while, or that broke on a new connection, is not.
                    if not connection.reused or self.elapsed - sent > STALE_S:
                        raise

    async def _send(self, data: bytes, connection: _Connection) -> aiohttp.ClientResponse:
        return await self.session.post(
            self.target.base_url + wire.path(self.request),
            data=data,
            headers={**JSON_HEADERS, **self.target.headers},
            timeout=aiohttp.ClientTimeout(total=None, connect=self.target.limits.connect_s),
            allow_redirects=False,  # else the key would follow to wherever the server points
            trace_request_ctx=connection,
        )

    async def _next(self, response: aiohttp.ClientResponse, parser: SSEParser) -> tuple[list[Delta], End]:
        """The pieces of the answer that the next bytes of the stream hold, and how it ends with them."""
        piece = await self._piece(response)
        try:
            events = parser.feed(piece) if piece else parser.finish()
        except ValueError as error:
            return [], wire.protocol_error(f"the server's stream cannot be read: {error}")
        deltas, end = self._read_events(events)
        if len(deltas) > 1:
            deltas[:-1] = [replace(delta, more=True) for delta in deltas[:-1]]
        if end is None and not piece:
            cut = wire.protocol_error("the server's stream ended before the answer did")
            return deltas, "closed" if self.reply.finish_reason is not None else cut
        return deltas, end

    async def _ended(self, response: aiohttp.ClientResponse, end: End) -> None:
        if isinstance(end, wire.WireError):
            raise end
        if end == "done":
            await self._drain(response)

    def _read_events(self, events: Sequence[Event]) -> tuple[list[Delta], End]:
        deltas: list[Delta] = []
        for event in events:
            if event.data.strip() == DONE:
                return deltas, "done"
            if event.type == "error":
                return deltas, wire.error_event(event.data)
            try:
                delta = self.reply.read_chunk(event.data, self.elapsed, hides_usage=self.hides_usage)
            except wire.WireError as error:
                return deltas, error
            if not (self.hides_usage and wire.is_usage_only(delta)):
                deltas.append(delta)
        return deltas, None

    async def _drain(self, response: aiohttp.ClientResponse) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                while await response.content.readany():
                    pass
        except (TimeoutError, RuntimeError, aiohttp.ClientError):
            pass  # the answer is whole; only the connection cannot be used again

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        while piece := await self._piece(response):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_REPLY_BYTES:
                raise wire.protocol_error(f"the server's reply is longer than {MAX_REPLY_BYTES} bytes")
        return b"".join(pieces)

    async def _piece(self, response: aiohttp.ClientResponse) -> bytes:
        """The next bytes of the reply, none at its end. Its end of time comes by ``_cut`` or by the call's patience."""
        self.patience.begin()
        try:
            return await response.content.readany()
        except RuntimeError as error:  # what aiohttp says where the session was closed midway
            raise aiohttp.ClientConnectionError(str(error)) from error
        finally:
            self.patience.end()


def _expect_type(response: aiohttp.ClientResponse, wanted: str) -> None:
    found = response.headers.get("Content-Type")
    if found is not None and wanted not in found.lower():
        raise wire.protocol_error(f"the server answered with {found}, not {wanted}", response.status)


def _larger(told: Usage, estimated: Usage) -> Usage:
    """A server may have counted for a part, such as one choice of two, before it broke off."""
    return Usage(
        max(told.prompt_tokens, estimated.prompt_tokens),
        max(told.output_tokens, estimated.output_tokens),
        told.cached_tokens,
    )


def _broken(error: aiohttp.ClientError | ValueError, target: Target) -> Fault:
    LOG.warning("stage '%s' at %s: %s", target.stage, target.base_url, str(error) or type(error).__name__)
    return Fault("connect", _described(error, target.stage))


def _described(error: aiohttp.ClientError | ValueError, stage: str) -> str:
    """What happened, without the address that aiohttp's own words name."""
    server = f"the server of stage '{stage}'"
    if isinstance(error, aiohttp.ClientConnectorError):  # before ValueError, which untrusted certificates are too
        return f"{server} cannot be reached ({_os_reason(error)}); base_url of that stage says where"
    if isinstance(error, aiohttp.InvalidURL) or not isinstance(error, aiohttp.ClientError):
        return f"{server} cannot be asked ({type(error).__name__}); base_url and headers of that stage say how"
    if isinstance(error, aiohttp.ClientOSError):
        return f"the connection to {server} broke ({_os_reason(error)})"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"the reply of {server} broke off"
    return f"the connection to {server} was closed"


def _is_unreached(error: aiohttp.ClientError | ValueError) -> bool:
    """True where no connection stood, so that nothing was sent. Certificates that are not trusted stay so."""
    return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError)


def _os_reason(error: OSError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "no such host"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "no connection"


def _redacted(fault: Fault | None, target: Target) -> Fault | None:
    """Servers like to repeat the key that they refuse."""
    if fault is None:
        return None
    message = fault.message
    for value in target.headers.values():
        secret = value.removeprefix("Bearer ")
        if len(secret) >= 6:
            message = message.replace(secret, "***")
    return replace(fault, message=message)


def bearer(key: str | None) -> dict[str, Any]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}
