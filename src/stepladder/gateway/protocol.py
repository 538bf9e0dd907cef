"""HTTP on one connection, with an end to what a client may send and how long it may take.

uvicorn's protocol bounds neither a request's head nor the time for it. This one does, at next to no cost for requests
that come in one piece: counting is by pieces of what was read, and a timer runs only while something is missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stepladder.gateway.faults import BAD_REQUEST, error_body
from stepladder.gateway.leaving import LEAVING, Leaving
from stepladder.gateway.sending import Sending
from stepladder.gateway.wire import dumps

log = logging.getLogger("stepladder.gateway")

MIN_BODY_RATE = 16 * 1024
"""Bytes a second that a body must bring to be waited for beyond its first time."""

LINGER_S = 1.0
"""How long a refused client may go on sending: a connection closed upon unread bytes would lose it the refusal."""

USUAL_FILES = 1024


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may send before it is let in, and in what time.

    ``head_bytes`` and ``headers`` bound a request's line and headers, ``head_s`` is the time for them. ``body_s`` is
    the time for a body, and a second more for each ``MIN_BODY_RATE`` bytes of it that came. ``keep_alive_s`` is how
    long a connection may stay idle between requests. ``connections`` in all (None: half as many as the process may
    open files), ``per_address`` from one address (None: no bound of its own).
    """

    head_bytes: int = 64 * 1024
    headers: int = 128
    head_s: float = 15.0
    body_s: float = 30.0
    keep_alive_s: int = 20
    connections: int | None = None
    per_address: int | None = None


def guarded(limits: ConnectionLimits) -> Callable[..., asyncio.Protocol]:
    """What uvicorn makes its connections with, for one server."""
    addresses: Counter[str] = Counter()
    most = limits.connections or half_of_files()

    def make(**uvicorn: Any) -> asyncio.Protocol:
        return GuardedProtocol(limits, most, addresses, **uvicorn)

    return make


def half_of_files() -> int:
    """Half of the files that this process may open: each connection may need another to a stage's server."""
    try:
        import resource
    except ImportError:  # not a Unix
        return USUAL_FILES // 2
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (USUAL_FILES if allowed == resource.RLIM_INFINITY else allowed) // 2


Missing = Literal["head", "body"]


class _Refused(Exception):  # noqa: N818 - raised through the parser, which turns it into an error of its own
    """A head that is not taken."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within limits; refusals have OpenAI's error shape."""

    def __init__(self, limits: ConnectionLimits, most: int, addresses: Counter[str], **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits, self._most, self._addresses = limits, most, addresses
        self._address: str | None = None
        self._quiet = self._piece = 0
        """Bytes read since the last piece of a body, or since a message ended; bytes of the last read."""
        self._missing: Missing | None = None
        self._timed: Missing | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._body_bytes = 0
        self._refused = False
        self._too_large = ""
        self._earlier: list[Any] = []
        """Requests without a whole reply that came before uvicorn's ``cycle``: it forgets them as soon as the next
        comes, and would tell only the last that its client has left."""

    # ── the connection ───────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses it where there are too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if len(self.connections) > self._most:
            self.connections.discard(self)  # one that is being refused takes nobody's place
            self._refuse(503, "too many connections; try again", "too_many_connections")
        elif self._limits.per_address is not None and self._addresses[address] >= self._limits.per_address:
            self._refuse(503, "too many connections from this address", "too_many_connections")
        else:
            self._addresses[address] += 1
            self._address = address
            self._missing = "head"
            self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        """The address has a place again."""
        if self._address is not None:
            self._addresses[self._address] -= 1
            if not self._addresses[self._address]:
                del self._addresses[self._address]
            self._address = None
        self._stop_timer()
        left = self._at_work()
        super().connection_lost(exc)
        _tell_left(left)

    def data_received(self, data: bytes) -> None:
        """Counts, hands on, and sees what is still missing."""
        if self._refused:
            return
        self._piece = len(data)
        self._quiet += self._piece
        super().data_received(data)
        if self._is_over():
            return
        if self._quiet > self._limits.head_bytes:
            self._too_large = self._bytes_told()
            self.send_400_response("")
            return
        if self._missing is None and not self._is_answering():
            self._missing = "head"  # bytes that begin nothing have just ended the server's own wait for a request
        self._time()

    # ── what the parser tells ────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._missing = "head"

    def on_headers_complete(self) -> None:
        """Raises _Refused for a head above the limits. What comes after it are no headers: trailers are dropped."""
        if len(self.headers) > self._limits.headers:
            self._too_large = f"more than {self._limits.headers} headers"
            raise _Refused
        if self._quiet + self._piece > self._limits.head_bytes and self._head_size() > self._limits.head_bytes:
            self._too_large = self._bytes_told()
            raise _Refused
        self._missing, self._body_bytes = "body", 0
        if self._is_answering():
            self._earlier = [*self._unanswered(), self.cycle]
        elif self._earlier:
            self._earlier = []
        self.scope[LEAVING] = Leaving(self.flow)  # type: ignore[literal-required]
        super().on_headers_complete()
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        super().on_body(body)
        self._quiet = 0
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """Nothing is missing."""
        super().on_message_complete()
        self._missing, self._quiet = None, 0

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        cycle.send = Sending(cycle)  # which uvicorn hands to the application
        super()._start_asgi_task(cycle, app)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _bytes_told(self) -> str:
        return f"a request line and headers of more than {self._limits.head_bytes} bytes"

    def _is_over(self) -> bool:
        return self._refused or self.transport.is_closing()

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, which its declared type does not tell
        return cycle is not None and not cycle.response_complete

    def _at_work(self) -> list[Any]:
        """The requests whose reply is not whole, in their order."""
        return [*self._unanswered(), self.cycle] if self._is_answering() else []

    def _unanswered(self) -> list[Any]:
        """The same without the last."""
        return [cycle for cycle in self._earlier if not cycle.response_complete]

    # ── time ─────────────────────────────────────────────────────────────────

    def _time(self) -> None:
        if self._timed == self._missing:
            return
        self._stop_timer()
        self._timed = self._missing
        if self._missing is not None:
            self._since = self.loop.time()
            self._timer = self.loop.call_later(self._allowed(), self._late)

    def _allowed(self) -> float:
        if self._missing == "head":
            return self._limits.head_s
        return self._limits.body_s + self._body_bytes / MIN_BODY_RATE

    def _late(self) -> None:
        self._timer = None
        if self._is_over():
            return
        if self.flow.read_paused or (
            self._missing == "head" and self._is_answering()
        ):  # it is not the client that is slow
            self._since = self.loop.time()
        left = self._since + self._allowed() - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._late)
        elif self._missing == "head" and not self._quiet:
            self.transport.close()  # connected and never asked
        else:
            self._refuse(408, f"the request's {self._missing} did not come in time", "request_timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = None

    # ── refusing ─────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the parser gives up."""
        if self._too_large:
            self._refuse(431, f"{self._too_large} are not taken", "request_header_fields_too_large")
        else:
            self._refuse(400, "this is no valid HTTP request", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Say why, unless a reply is on its way, read what else comes for a moment, and close."""
        self._refused = True
        self._stop_timer()
        waiting = self._at_work()
        if waiting and waiting[0].response_started:
            self.transport.close()
            return
        _tell_left(waiting)  # the application's replies would follow ours
        log.log(
            logging.INFO if status < 500 else logging.WARNING, "a connection is refused with %d: %s", status, message
        )
        kind = BAD_REQUEST if status < 500 else "server_error"
        body = dumps(error_body(message, kind, code=code))
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        retry = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(f"{head}{retry}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _tell_left(cycles: list[Any]) -> None:
    """Nobody waits for these replies any more: whoever receives is told, and who asked to be told directly."""
    for cycle in cycles:
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        cycle.scope[LEAVING].tell()
