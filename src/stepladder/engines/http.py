"""One call to an OpenAI-compatible server: the code that the ``openai`` and ``llama`` engines share."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stepladder.engines import client, wire
from stepladder.engines.deadline import Deadline, timed_out
from stepladder.engines.options import Options
from stepladder.engines.sse import Event, SSEParser
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
    _heads: dict[str, tuple[client.Origin, bytes]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def head(self, path: str) -> tuple[client.Origin, bytes]:
        """Where a request for ``path`` goes, and its head, written once. Raises ValueError where it cannot be sent."""
        found = self._heads.get(path)
        if found is None:
            where = client.address_of(self.base_url)
            headers = {**JSON_HEADERS, **self.headers}
            found = where.origin, client.request_head(where.origin, where.path + path, headers)
            self._heads[path] = found
        return found


def read_limits(options: Options) -> Limits:
    """The four time limits from a stage's options."""
    usual = Limits()
    return Limits(
        connect_s=options.seconds("connect_timeout_s", usual.connect_s),
        first_byte_s=options.seconds("first_byte_timeout_s", usual.first_byte_s),
        idle_s=options.seconds("idle_timeout_s", usual.idle_s),
        total_s=options.seconds("total_timeout_s", usual.total_s),
    )


def new_pool() -> client.Pool:
    """Connections for any number of stages. Needs a running event loop."""
    return client.Pool(KEEP_ALIVE_S)


async def exchange(
    pool: client.Pool,
    target: Target,
    request: Request,
    deadline: Deadline | None = None,
    *,
    reply: wire.Reply | None = None,
    chance: Callable[[], float] = random.random,
    tell: Callable[[Attempt], None] | None = None,
) -> AsyncGenerator[EngineEvent, None]:
    """Ask, and yield what ``Engine.generate`` yields: deltas where the request streams, then one attempt.

    Closing the generator early, or cancelling the task that reads it, closes the connection at once, which is how
    servers learn that nobody waits. ``seconds`` counts from here. The usage of a stream that broke off before its
    server counted is estimated (``tokens.usage_of``): what was written is paid for. The ``deadline`` (by default
    the target's total limit from here) cuts the connection also while nobody takes the next event. A caller that wants
    to see more than the attempt tells hands in the ``reply`` that is to be filled. Pauses before the server is asked
    again (``Target.retries``) are drawn by ``chance``, numbers in [0, 1); they count as seconds and keep the deadline.
    ``tell`` is told of the attempt before it is yielded.
    """
    call = _Call(pool, target, request, deadline or Deadline(target.stage, target.limits.total_s))
    call.reply = reply or call.reply
    while True:
        fault = None
        try:
            await call.open()
            while (deltas := await call.pieces()) is not None:
                for delta in deltas:
                    yield delta
        except wire.WireError as error:
            fault = error.fault
        except (client.HTTPError, ValueError) as error:  # ValueError: an address or header that cannot be sent
            call.was_unreached = isinstance(error, client.UnreachedError) and not error.is_tls
            fault = _broken(error, target)
        finally:
            call.close()
        pause = call.pause(fault, chance)
        if pause is None:
            break
        await asyncio.sleep(pause)
        call.begin_again()
    attempt = call.attempt(_redacted(fault, target))
    if tell is not None:
        tell(attempt)
    yield attempt


End = wire.WireError | Literal["done", "closed"] | None
"""How a stream ended: broken, at [DONE], with its connection, or not yet."""


class _Call:
    """The state of one exchange: ``open``, ``pieces`` until there are none, ``close``."""

    def __init__(self, pool: client.Pool, target: Target, request: Request, deadline: Deadline) -> None:
        self.pool, self.target, self.request, self.deadline = pool, target, request, deadline
        self.reply = wire.Reply(target.stage)
        self.was_refused = self.was_unreached = False
        self.tries = 1
        self.hides_usage = target.ask_usage and not wire.wants_usage(request)
        """The usage of a stream was asked for by us alone, and is not passed on."""
        self.started = time.perf_counter()
        self._connection: client.Connection | None = None
        self._parser: SSEParser | None = None
        self._end: End = None
        self._clock = _Clock(deadline, self._fail)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def pause(self, fault: Fault | None, chance: Callable[[], float]) -> float | None:
        """Seconds until it is asked again; None where it is not, since that is not safe or not worth the time."""
        if fault is None or self.tries > self.target.retries:
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
        self._clock = _Clock(self.deadline, self._fail)

    def attempt(self, fault: Fault | None) -> Attempt:
        """What came of it."""
        attempt = self.reply.attempt(self.elapsed, fault)
        if self.tries > 1:
            attempt = replace(attempt, tries=self.tries)
        if fault is None:
            return attempt
        written = self.reply.written
        return replace(attempt, usage=_larger(attempt.usage, usage_of(self.request, "".join(written), len(written))))

    # ── asking ───────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Ask, and wait for the head of the reply, or for all of one that is no stream. Raises WireError, HTTPError."""
        connection = await self._asked()
        if connection.status // 100 != 2:
            self.was_refused = True
            raise wire.WireError(wire.refusal(connection.status, _text_headers(connection), await self._whole()))
        if wire.is_stream(self.request):
            _expect_type(connection, "text/event-stream")
            self._parser = SSEParser()
        else:
            _expect_type(connection, "json")
            self.reply.read_whole(await self._whole())

    async def pieces(self) -> Sequence[Delta] | None:
        """What the next bytes of the stream hold of the answer; None once it is over. Raises WireError, HTTPError."""
        if self._parser is None:
            return None
        if self._end is not None:
            await self._ended(self._end)
            return None
        deltas, self._end = await self._next(self._parser)
        return deltas

    def close(self) -> None:
        """Nobody waits any more: a connection whose reply was read to its end is kept, another is cut."""
        self._clock.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    async def _asked(self) -> client.Connection:
        """A connection on which the head of the reply has come."""
        target, limits = self.target, self.target.limits
        body = wire.body(self.request, target.model, ask_usage=target.ask_usage)
        origin, head = target.head(wire.path(self.request))
        while True:
            sent = self.elapsed
            connection = self._connection = await self._connected(origin)
            self._clock.wait("no reply", limits.first_byte_s, "first_byte_timeout_s")
            try:
                connection.ask(head, body)
                await connection.head()
            except client.UnansweredError:
                # A server may close a kept-alive connection just as we use it; llama.cpp does after each stream,
                # without a word. Then nobody read the request, and it is sent again. One that was at work for a
                # while, or that broke on a new connection, is not.
                if not connection.reused or self.elapsed - sent > STALE_S:
                    raise
                connection.release()
            else:
                self._clock.rest()
                return connection

    async def _connected(self, origin: client.Origin) -> client.Connection:
        left, allowed = self.deadline.left, self.target.limits.connect_s
        if left <= 0:
            raise self.deadline.over()
        try:
            return await self.pool.connection(origin, min(allowed, left))
        except client.ConnectTimeoutError as error:
            if left < allowed:
                raise self.deadline.over() from error
            missing = f"no connection to the server of stage '{self.target.stage}'"
            raise timed_out(missing, allowed, "connect_timeout_s") from error

    def _fail(self, error: wire.WireError) -> None:
        if self._connection is not None:
            self._connection.fail(error)

    # ── reading ──────────────────────────────────────────────────────────────

    async def _next(self, parser: SSEParser) -> tuple[list[Delta], End]:
        """The pieces of the answer that the next bytes of the stream hold, and how it ends with them."""
        piece = await self._piece()
        try:
            events = parser.feed(piece) if piece else parser.finish()
        except ValueError as error:
            return [], wire.protocol_error(f"the server's stream cannot be read: {error}")
        deltas, end = self._read_events(events)
        if len(deltas) > 1:
            deltas = wire.together(deltas)
        if end is None and not piece:
            cut = wire.protocol_error("the server's stream ended before the answer did")
            return deltas, "closed" if self.reply.finish_reason is not None else cut
        return deltas, end

    async def _ended(self, end: wire.WireError | str) -> None:
        if isinstance(end, wire.WireError):
            raise end
        if end == "done":
            await self._drain()

    def _read_events(self, events: Sequence[Event]) -> tuple[list[Delta], End]:
        deltas: list[Delta] = []
        now = self.elapsed
        for event in events:
            if event.data.strip() == DONE:
                return deltas, "done"
            if event.type == "error":
                return deltas, wire.error_event(event.data)
            try:
                delta = self.reply.read_chunk(event.data, now, hides_usage=self.hides_usage)
            except wire.WireError as error:
                return deltas, error
            if not (self.hides_usage and wire.is_usage_only(delta)):
                deltas.append(delta)
        return deltas, None

    async def _drain(self) -> None:
        connection = self._connection
        if connection is None or connection.is_whole:
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                while await connection.piece():
                    pass
        except (TimeoutError, client.HTTPError):
            pass  # the answer is whole; only the connection cannot be used again

    async def _whole(self) -> bytes:
        pieces, size = [], 0
        while piece := await self._piece():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_REPLY_BYTES:
                raise wire.protocol_error(f"the server's reply is longer than {MAX_REPLY_BYTES} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _piece(self) -> bytes:
        """The next bytes of the reply, none at its end."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - open has set it
        if not connection.has_more:
            self._clock.wait("no further piece of the reply", self.target.limits.idle_s, "idle_timeout_s")
        piece = await connection.piece()
        self._clock.rest()
        return piece


class _Clock:
    """The end of a call's time and of the wait under way, at the price of one timer: a stream waits for every piece.

    ``fail`` is called with what is to be said, from the event loop, once.
    """

    def __init__(self, deadline: Deadline, fail: Callable[[wire.WireError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._fail = fail
        self._end = self._due = self._loop.time() + deadline.left
        self._wait: tuple[str, float, str] | None = None
        self._set_for = self._end
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, missing: str, seconds: float, option: str) -> None:
        """What is ``missing`` may take so long from now, as ``option`` sets; all in all no longer than there is."""
        self._due = self._loop.time() + seconds
        self._wait = (missing, seconds, option)
        if self._due >= self._end:
            self.rest()
        if self._timer is None or self._due < self._set_for:
            self._set()

    def rest(self) -> None:
        """Nothing is waited for: the reader's time is not the server's."""
        self._due, self._wait = self._end, None

    def cancel(self) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self.cancel()
        self._set_for = self._due
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        if self._loop.time() < self._due:
            self._set()
        elif self._wait is None:
            self._fail(self._deadline.over())
        else:
            missing, seconds, option = self._wait
            self._fail(timed_out(f"{missing} of stage '{self._deadline.stage}'", seconds, option))


def _expect_type(connection: client.Connection, wanted: str) -> None:
    found = connection.headers.get(b"content-type")
    if found is not None and wanted.encode() not in found.lower():
        told = found.decode("latin-1")
        raise wire.protocol_error(f"the server answered with {told}, not {wanted}", connection.status)
    coding = connection.headers.get(b"content-encoding", b"identity").decode("latin-1")
    if coding.lower() != "identity":
        raise wire.protocol_error(f"the server answered with {coding}, though it was asked not to", connection.status)


def _text_headers(connection: client.Connection) -> Mapping[str, str]:
    """As people write their names: Retry-After."""
    return {name.decode("latin-1").title(): value.decode("latin-1") for name, value in connection.headers.items()}


def _larger(told: Usage, estimated: Usage) -> Usage:
    """A server may have counted for a part, such as one choice of two, before it broke off."""
    return Usage(
        max(told.prompt_tokens, estimated.prompt_tokens),
        max(told.output_tokens, estimated.output_tokens),
        told.cached_tokens,
    )


def _broken(error: client.HTTPError | ValueError, target: Target) -> Fault:
    LOG.warning("stage '%s' at %s: %s", target.stage, target.base_url, str(error) or type(error).__name__)
    return Fault("connect", _described(error, target.stage))


def _described(error: client.HTTPError | ValueError, stage: str) -> str:
    """What happened, without an address."""
    server = f"the server of stage '{stage}'"
    match error:
        case client.UnreachedError(reason=reason):
            return f"{server} cannot be reached ({reason}); base_url of that stage says where"
        case client.UnfinishedError(reason=reason):
            return f"the reply of {server} broke off" + (f" ({reason})" if reason else "")
        case client.UnansweredError(reason=reason) if reason:
            return f"the connection to {server} broke ({reason})"
        case client.UnreadableError():
            return f"{server} does not speak HTTP as it should ({error.reason})"
        case client.HTTPError():
            return f"the connection to {server} was closed"
    return f"{server} cannot be asked ({type(error).__name__}); base_url and headers of that stage say how"


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
