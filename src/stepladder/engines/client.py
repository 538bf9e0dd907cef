"""HTTP/1.1 to the servers of stages: POST a body, read the reply, keep the connection. Nothing else.

It stands where a general client would, since it is in the path of every request: of the 200 µs of CPU that a bare
pass-through takes with such a client, 130 are the client's (docs/design/0011-hot-path.md). What that buys is not needed
here: no redirects, cookies, proxies, compression or HTTP/2. The parser is llhttp by way of httptools, as in the server.

A connection that its reader leaves before the reply was whole is aborted, which is how servers learn that nobody waits.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, cast
from urllib.parse import quote, urlsplit

import httptools

HEAD_BYTES = 256 * 1024
"""A reply's head that is longer is no honest one."""

BUFFERED_BYTES = 256 * 1024
"""A server that writes faster than its reader reads is held back from here on."""

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PATH_CHARS = "/%:@!$&'()*+,;=~-._"
_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


class HTTPError(Exception):
    """A reply that did not come, or not whole. ``reason`` is for people, and names no address."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class UnreachedError(HTTPError):
    """No connection came to stand, so nothing was sent. ``is_tls`` where the server was there but is not trusted."""

    def __init__(self, reason: str, *, is_tls: bool = False) -> None:
        self.is_tls = is_tls
        super().__init__(reason)


class ConnectTimeoutError(HTTPError):
    """No connection came to stand in time."""


class UnansweredError(HTTPError):
    """The connection was closed before a byte of the reply came; ``reason`` is empty where it was done in order."""


class UnfinishedError(HTTPError):
    """The reply broke off."""


class UnreadableError(HTTPError):
    """What came is no HTTP."""


class ClosedError(HTTPError):
    """The pool was closed meanwhile."""


class Origin(NamedTuple):
    """Where a connection goes."""

    host: str
    port: int
    tls: bool


class Address(NamedTuple):
    """A server, and the path below which its endpoints are."""

    origin: Origin
    path: str


@lru_cache(maxsize=1024)
def address_of(base_url: str) -> Address:
    """Raises ValueError for what is no http(s) URL with a host."""
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("no http(s) address")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    origin = Origin(host, parts.port or _PORTS[parts.scheme], parts.scheme == "https")
    return Address(origin, quote(parts.path.rstrip("/"), safe=_PATH_CHARS))


def request_head(origin: Origin, path: str, headers: Mapping[str, str]) -> bytes:
    """A POST's head up to the value of ``content-length``. Raises ValueError for a header that HTTP does not allow."""
    usual = origin.port == _PORTS["https" if origin.tls else "http"]
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}" if usual else f"Host: {host}:{origin.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    written = [line.encode("utf-8") for line in (*lines, "Accept-Encoding: identity")]
    if any(_UNSAFE.search(line) for line in written):
        raise ValueError("a header with control characters")
    return b"\r\n".join(written) + b"\r\nContent-Length: "


class Pool:
    """Connections that are kept for ``keep_s`` seconds after a reply. For one event loop."""

    def __init__(self, keep_s: float) -> None:
        self.closed = False
        self._keep_s = keep_s
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def connection(self, origin: Origin, connect_s: float) -> Connection:
        """One that is free, the newest first, or a new one. Raises UnreachedError, ConnectTimeoutError, ClosedError."""
        if self.closed:
            raise ClosedError("the engine was closed")
        idle = self._idle.get(origin)
        oldest = self._loop.time() - self._keep_s
        while idle:
            connection = idle.pop()
            if connection.is_open and connection.since > oldest:
                connection.reused = True
                return connection
            connection.abort()
        return await self._connected(origin, connect_s)

    def keep(self, connection: Connection) -> None:
        """Its reply was read to the end: the next call may use it."""
        connection.since = self._loop.time()
        self._idle.setdefault(connection.origin, deque()).append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._keep_s, self._drop_stale)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self._all.discard(connection)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut every connection; whoever waits at one gets ClosedError."""
        self.closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._all):
            connection.fail(ClosedError("the engine was closed"))
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _connected(self, origin: Origin, connect_s: float) -> Connection:
        tls = trusted() if origin.tls else None
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=tls,
                    server_hostname=origin.host if origin.tls else None,
                )
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {connect_s:g} s") from error
        except (OSError, UnicodeError) as error:
            raise UnreachedError(_why(error), is_tls=isinstance(error, ssl.SSLError)) from error
        if self.closed:
            connection.abort()
            raise ClosedError("the engine was closed")
        self._all.add(connection)
        return connection

    def _drop_stale(self) -> None:
        self._sweep = None
        oldest = self._loop.time() - self._keep_s
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].since <= oldest:
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            next_s = min(idle[0].since for idle in self._idle.values()) - oldest
            self._sweep = self._loop.call_later(max(0.0, next_s), self._drop_stale)


class Connection(asyncio.Protocol):
    """One at a time: ``ask``, ``head``, ``piece`` until it is empty, ``release``.

    ``status`` is 0 and ``headers`` (names in small letters) are empty until the head has come. ``reused`` says that an
    earlier reply came over it.
    """

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.reused = False
        self.since = 0.0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._pool = pool
        self._loop = pool._loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._pieces: list[bytes] = []
        self._size = self._head_size = 0
        self._busy = self._heard = self._whole = self._keeps = self._paused = False

    @property
    def is_open(self) -> bool:
        """True while a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    # ── for the reader ───────────────────────────────────────────────────────

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request: ``request_head``, and its body."""
        assert self._transport is not None  # noqa: S101 - made by create_connection
        self.status, self.headers = 0, {}
        self._size = self._head_size = 0
        self._busy, self._heard, self._whole = True, False, False
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    async def head(self) -> None:
        """Wait for the reply's head. Raises HTTPError."""
        while not self.status:
            await self._more()

    async def piece(self) -> bytes:
        """What has come of the body, waited for where nothing has; empty at its end. Raises HTTPError."""
        while not self._pieces and not self._whole:
            await self._more()
        return self._taken()

    def _taken(self) -> bytes:
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def is_whole(self) -> bool:
        """True once all of the reply has come."""
        return self._whole

    @property
    def has_more(self) -> bool:
        """True where the next ``piece`` need not wait."""
        return bool(self._pieces) or self._whole

    def release(self) -> None:
        """The reader is done: a connection whose reply was whole is kept, any other is cut."""
        if not self._busy:
            return
        self._busy = False
        self._pieces.clear()
        if self._whole and self._keeps and self.is_open and not self._pool.closed:
            self._pool.keep(self)
        else:
            self.abort()

    def fail(self, error: Exception) -> None:
        """Cut it, and let its reader have this error, unless there is one already."""
        if self._error is None:
            self._error = error
        self.abort()
        self._wake()

    def abort(self) -> None:
        """Cut it without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ── from the transport ───────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands. A long answer may keep it silent for minutes, so that something must show that it still does."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Hand it to the parser."""
        if not self._busy or self._whole:  # nobody asked for that
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(UnreadableError(f"no HTTP reply: {type(error).__name__}"))
            return
        if not self.status:
            self._head_size += len(data)
            if self._head_size > HEAD_BYTES:
                self.fail(UnreadableError(f"a head of more than {HEAD_BYTES} bytes"))
        elif self._size > BUFFERED_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: the end of a reply that says no length, a fault otherwise."""
        self._pool.forget(self)
        if self._error is None and self._busy and not self._whole:
            if self.status and exc is None and not self._tells_length():
                self._whole, self._keeps = True, False
            else:
                self._error = self._lost(exc)
        self._transport = None
        self._wake()

    def _lost(self, exc: Exception | None) -> HTTPError:
        reason = _why(exc) if isinstance(exc, OSError) else ""
        return UnfinishedError(reason) if self._heard else UnansweredError(reason)

    def _tells_length(self) -> bool:
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    # ── from the parser ──────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if not self.status:  # after it come trailers
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is whole; one of 1xx comes before the real one."""
        status = self._parser.get_status_code()
        if self._whole:  # a reply after the reply: where one ends and the other begins is nobody's guess
            self._keeps = False
        elif status // 100 != 1:
            self.status = status
            self._keeps = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._whole:
            self._pieces.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        """The reply is whole."""
        if self.status:
            self._whole = True
        else:
            self.headers = {}


@lru_cache(maxsize=1)
def trusted() -> ssl.SSLContext:
    """TLS as the system trusts it; reads files, the first time."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _why(error: Exception) -> str:
    """What the system says of it, without an address."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no such host"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    number = getattr(error, "errno", None)
    if not number:  # several addresses were tried: the event loop joins what was said of each
        told = _ERRNO.findall(str(error))
        number = int(told[-1]) if told else 0
    return os.strerror(number).lower() if number > 0 else "no connection"
