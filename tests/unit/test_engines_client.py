"""The HTTP client of the stages: replies in any pieces, connections kept and cut, what goes wrong told apart."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines import client
from stepladder.engines.client import Connection, HTTPError, Pool, address_of, request_head

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: "
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@asynccontextmanager
async def serving(serve: Serve) -> AsyncGenerator[client.Origin, None]:
    """A server that speaks bytes."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    try:
        yield client.Origin(*server.sockets[0].getsockname()[:2], False)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def always(*pieces: bytes, stay: bool = True) -> Serve:
    """Sends these to each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if len(pieces) > 1:
                    await asyncio.sleep(0.001)
            if not stay:
                return

    return serve


async def asked(pool: Pool, origin: client.Origin, body: bytes = b"{}") -> tuple[int, bytes, Connection]:
    connection = await pool.connection(origin, 5)
    try:
        connection.ask(HEAD, body)
        await connection.head()
        pieces = []
        while piece := await connection.piece():
            pieces.append(piece)
        return connection.status, b"".join(pieces), connection
    finally:
        connection.release()


def on(loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work)


# ── replies ──────────────────────────────────────────────────────────────────


@given(data=st.data(), reply=st.sampled_from([WHOLE, CHUNKED, TO_THE_END, EARLY + WHOLE, EARLY + CHUNKED]))
def test_replies_may_come_in_any_pieces(data: st.DataObject, reply: bytes) -> None:
    """What was read is what was written, whatever the pieces; and only a reply with an end of its own is kept."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(reply) - 1), max_size=6)))
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    found = fed(pieces)
    assert found == (200, b"hello", not reply.endswith(TO_THE_END))


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        self.paused = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


def fed(pieces: list[bytes]) -> tuple[int, bytes, bool]:
    """Status and body of a reply that comes so, then the end of the connection, and whether it could have been kept."""

    async def read() -> tuple[int, bytes, bool]:
        async with Pool(4.0) as pool:
            connection = Connection(pool, client.Origin("h", 80, False))
            connection.connection_made(FakeTransport())
            connection.ask(HEAD, b"{}")
            for piece in pieces:
                connection.data_received(piece)
            whole = connection.is_whole
            if not whole:
                connection.connection_lost(None)
            await connection.head()
            body = b""
            while piece := await connection.piece():
                body += piece
            return connection.status, body, whole

    return asyncio.run(read())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("reply", [WHOLE, CHUNKED, EARLY + WHOLE])
def test_a_connection_is_used_again(loop: Callable[[], asyncio.AbstractEventLoop], reply: bytes) -> None:
    async def work() -> None:
        async with serving(always(reply[:30], reply[30:])) as origin, Pool(4.0) as pool:
            first = await asked(pool, origin)
            second = await asked(pool, origin)
            assert first[:2] == second[:2] == (200, b"hello")
            assert first[2] is second[2]
            assert second[2].reused

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_reply_without_a_length_ends_with_its_connection(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        async with serving(always(TO_THE_END, stay=False)) as origin, Pool(4.0) as pool:
            assert (await asked(pool, origin))[:2] == (200, b"hello")
            again = await asked(pool, origin)
            assert again[:2] == (200, b"hello")
            assert not again[2].reused

    on(loop, work())


async def test_a_large_body_arrives_and_a_fast_server_is_held_back() -> None:
    got: list[int] = []
    size = 8 * client.BUFFERED_BYTES

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(len(await read_request(reader)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(8):
            writer.write(b"x" * (size // 8))
            await writer.drain()

    async with serving(serve) as origin, Pool(4.0) as pool:
        connection = await pool.connection(origin, 5)
        connection.ask(HEAD, b"y" * 3_000_000)
        await connection.head()
        await asyncio.sleep(0.1)
        assert connection._size <= 3 * client.BUFFERED_BYTES
        read = 0
        while piece := await connection.piece():
            read += len(piece)
        connection.release()
    assert (read, got[0] > 3_000_000) == (size, True)


# ── connections that are not kept ────────────────────────────────────────────


async def reused_after(serve: Serve, keep_s: float = 4.0, wait: float = 0.0) -> bool:
    async with serving(serve) as origin, Pool(keep_s) as pool:
        await asked(pool, origin)
        await asyncio.sleep(wait)
        return (await asked(pool, origin))[2].reused


async def test_what_is_not_used_again() -> None:
    assert await reused_after(always(WHOLE))
    assert not await reused_after(always(WHOLE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")))
    assert not await reused_after(always(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")))
    assert not await reused_after(always(WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"))
    assert not await reused_after(always(WHOLE + b"noise"))
    assert not await reused_after(always(WHOLE), keep_s=0.02, wait=0.05)


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(WHOLE)
            await asyncio.sleep(0.01)
            writer.write(WHOLE.replace(b"hello", b"wrong"))

    assert not await reused_after(serve, wait=0.05)


async def test_a_reader_that_leaves_cuts_the_connection() -> None:
    cut = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED[:60])
        assert not await reader.read()
        cut.set()

    async with serving(serve) as origin, Pool(4.0) as pool:
        connection = await pool.connection(origin, 5)
        connection.ask(HEAD, b"{}")
        await connection.head()
        connection.release()
        connection.release()
        await asyncio.wait_for(cut.wait(), 5)


async def test_idle_connections_are_closed_in_time() -> None:
    async with serving(always(WHOLE)) as origin, Pool(0.02) as pool:
        both = [await pool.connection(origin, 5) for _ in range(2)]
        for connection in both:
            connection.ask(HEAD, b"{}")
            await connection.head()
            await connection.piece()
            connection.release()
        assert all(connection.is_open for connection in both)
        await asyncio.sleep(0.1)
        assert not any(connection.is_open for connection in both)
        assert not pool._idle
        assert not pool._all


# ── what goes wrong ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", client.UnansweredError),
        (b"HTTP/1.1 200", client.UnfinishedError),
        (WHOLE[:-2], client.UnfinishedError),
        (CHUNKED[:-30], client.UnfinishedError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", client.UnreadableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", client.UnreadableError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", client.UnreadableError),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", client.HTTPError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * client.HEAD_BYTES, client.UnreadableError),
    ],
)
def test_bad_replies(loop: Callable[[], asyncio.AbstractEventLoop], reply: bytes, error: type[HTTPError]) -> None:
    async def work() -> None:
        async with serving(always(reply, stay=False)) as origin, Pool(4.0) as pool:
            with pytest.raises(error):
                await asked(pool, origin)
            await asyncio.sleep(0.01)
            assert not pool._all

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_who_cannot_be_reached(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        async with serving(always(WHOLE)) as gone:
            pass
        async with Pool(4.0) as pool:
            for host, reason in ((gone.host, "connection refused"), ("localhost", "connection refused")):
                with pytest.raises(client.UnreachedError) as found:
                    await pool.connection(client.Origin(host, gone.port, False), 5)
                assert found.value.reason == reason
            with pytest.raises(client.UnreachedError, match="no such host"):
                await pool.connection(client.Origin("a..b", 80, False), 5)

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pool_that_is_closed_ends_those_who_wait(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        async with serving(always(b"HTTP/1.1 200 OK\r\n")) as origin:
            pool = Pool(4.0)
            waiting = asyncio.create_task(asked(pool, origin))
            await asyncio.sleep(0.05)
            await pool.close()
            with pytest.raises(client.ClosedError):
                await waiting
            with pytest.raises(client.ClosedError):
                await pool.connection(origin, 5)

    on(loop, work())


async def test_a_connection_that_does_not_come_in_time() -> None:
    """A TLS handshake that nobody answers: the bytes are taken, nothing comes back."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as origin, Pool(4.0) as pool:
        with pytest.raises(client.ConnectTimeoutError):
            await pool.connection(origin._replace(tls=True), 0.1)


# ── TLS ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "-", "-out", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    path.write_bytes(made.stdout)
    return path


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_is_spoken_with_those_who_are_trusted(
    loop: Callable[[], asyncio.AbstractEventLoop], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(certificate)
        server = await asyncio.start_server(always(WHOLE), "127.0.0.1", 0, ssl=theirs)
        origin = client.Origin("localhost", server.sockets[0].getsockname()[1], True)
        async with server, Pool(4.0) as pool:
            with pytest.raises(client.UnreachedError, match="TLS failed") as found:
                await pool.connection(origin, 5)
            assert found.value.is_tls
            ours = ssl.create_default_context(cafile=str(certificate))
            monkeypatch.setattr(client, "trusted", lambda: ours)
            assert (await asked(pool, origin))[:2] == (200, b"hello")
            assert (await asked(pool, origin))[2].reused
            with pytest.raises(client.UnreachedError, match="TLS failed"):
                await pool.connection(origin._replace(host="127.0.0.1"), 5)  # the certificate is not for that name

    on(loop, work())


def test_the_system_is_trusted_and_no_more() -> None:
    context = client.trusted()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


# ── addresses and heads ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://h", ("h", 80, False), ""),
        ("https://h/v1/", ("h", 443, True), "/v1"),
        ("http://[::1]:8000/v1", ("::1", 8000, False), "/v1"),
        ("http://bücher.example/ä", ("xn--bcher-kva.example", 80, False), "/%C3%A4"),
    ],
)
def test_addresses(url: str, origin: tuple[str, int, bool], path: str) -> None:
    assert address_of(url) == (origin, path)


@pytest.mark.parametrize("url", ["", "h", "ftp://h", "http://", "http://h:99999", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        address_of(url)


def test_heads() -> None:
    head = request_head(client.Origin("::1", 8000, False), "/v1/x", {"Authorization": "Bearer k"})
    assert head.split(b"\r\n")[:3] == [b"POST /v1/x HTTP/1.1", b"Host: [::1]:8000", b"Authorization: Bearer k"]
    assert head.endswith(b"\r\nContent-Length: ")
    assert b"Host: h\r\n" in request_head(client.Origin("h", 443, True), "/", {})
    for value in ("a\r\nX: b", "a\nb", "\x00", "\x7f"):
        with pytest.raises(ValueError, match="control characters"):
            request_head(client.Origin("h", 80, False), "/", {"X": value})
