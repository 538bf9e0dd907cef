"""Raw bytes on the gateway's socket: requests that are good but for what chance did to them.

Whatever comes, every connection comes to an end, each reply is HTTP with an error in OpenAI's shape where it is one,
no 5xx goes without a line of the log, good requests are answered all the while, and nothing is left over afterwards.
The same cases come with the same seed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from gateway_child import child
from gateway_fakes import world
from misbehaving import WAYS, Caller, good, is_busy, is_large, sockets, until
from stepladder import config
from stepladder.build import build
from stepladder.cli.serve import connection_limits, gateway_settings, make_gate
from stepladder.gateway.app import create_app
from stepladder.gateway.server import serving
from stepladder.gateway.watch import Visit, Watch
from stepladder.types import Attempt, EngineEvent, Request, Stage

HANG_S = 20.0
AT_ONCE = 40
LADDER = """\
[[stages]]
name = "low"
engine = "scripted"
model = "a"
cost = 1.0
capabilities = ["stream", "logprobs", "tools", "images", "json"]
options = { reply = "from low" }

[[stages]]
name = "high"
engine = "scripted"
model = "b"
cost = 3.0
options = { reply = "from high" }

[gateway]
port = 0
log = "json"
head_timeout_s = 1
body_timeout_s = 1
keep_alive_s = 1
max_body_bytes = 1000000

[traces]
path = "traces.sqlite3"
"""

FAILING = """\
[[stages]]
name = "only"
model = "m"
base_url = "{url}"
cost = 1.0
connect_timeout_s = 0.2
first_byte_timeout_s = 0.1
idle_timeout_s = 0.1
total_timeout_s = 0.3
retries = 0
breaker_failures = 0
max_concurrency = 100

[gateway]
port = 0
log = "json"
"""

# ── what is sent ─────────────────────────────────────────────────────────────

SAID = [{"role": "user", "content": "What is 2+2?"}]
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"model": "stepladder", "messages": SAID}),
    ("/v1/chat/completions", {"model": "low", "messages": SAID, "stream": True, "seed": 1}),
    ("/v1/chat/completions", {"messages": SAID, "stream": True, "stepladder": {"mode": "cascade", "lambda": 9.5}}),
    ("/v1/completions", {"prompt": ["2+2=", "3+3="], "max_tokens": 4}),
    ("/v1/route", {"messages": SAID, "stepladder": {"explain": True}}),
    ("/v1/feedback", {"decision_id": "dec-1", "score": 0.5, "key": "k"}),
)
PATHS = (
    "/v1/models",
    "/v1/models/low",
    "/v1/decisions?limit=2",
    "/v1/decisions/dec-1",
    "/health",
    "/ready",
    "/metrics",
)
JSONS: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[]",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe\x00",
    b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}',
    b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    rb'{"messages": [{"role": "user", "content": "\udc00\ud800 and \u0000"}]}',
    b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"[" * 200_000,
    b'{"messages": [{"role": "user", "content": "?"}], "x": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    b'{"messages": [{"role": "user", "content": "?"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "?"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "?"}], "temperature": -1e-999, "n": 1e308}',
    b'{"messages": [{"role": "user", "content": "?"}], "temperature": NaN, "top_p": Infinity}',
    b'{"messages": [{"role": "user", "content": "?"}], "stepladder": {"lambda": 1e400}}',
    b'{"messages": [{"role": "user", "content": "?"}], "stepladder": {"hold_back": 18446744073709551616}}',
    b'{"messages": 1, "messages": [{"role": "user", "content": "?"}], "model": "low", "model": "high"}',
    b'{"stream": true, "stream": false, "messages": [{"role": "user", "content": "?"}]}',
    b'{"messages": [{"role": "user", "content": "' + b"x" * 1_100_000 + b'"}]}',
    b'{"messages": [{"role": "user", "content": "' + b"\\u00e9" * 100_000 + b'"}]}',
    b'{"messages": [' + b'{"role": "user", "content": "?"},' * 20_000 + b'{"role": "user", "content": "?"}]}',
    b'{"messages": [{"role": "user", "content": [[[]]]}]}',
    b'{"messages": [{"role": "\\ud800", "content": {"a": 1}}], "model": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "?"}], "stepladder": {"session": "\\ud800"}}',
    b'{"decision_id": "\\ud800", "score": 1}',
    b'{"prompt": [1, -1, 1e3, 99999999999999999999]}',
    b'{"prompt": "\\u0000"}',
)
HEADERS: tuple[bytes, ...] = (
    b"x: " + b"y" * 100_000,
    b"\r\n".join(b"x-%d: y" % number for number in range(1000)),
    b"x: a\x00b",
    b"\x00: a",
    b": nothing",
    b"no colon",
    b"x : space",
    b"x: folded\r\n more",
    b"x: \xff\xfe\xc3\x28",
    b"x-stepladder-lambda: 1e999",
    b"x-stepladder-lambda: \xff",
    b"x-stepladder-session: " + b"s" * 300,
    b"x-stepladder-max-cost: nan",
    b"x-stepladder-nothing: 1",
    b"content-type: application/json; charset=\x00",
    b"content-encoding: gzip",
    b"content-length: 5",
    b"content-length: 0",
    b"content-length: 99999999999999999999999999",
    b"content-length: -1",
    b"content-length: 0x10",
    b"content-length: 5, 5",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: identity",
    b"transfer-encoding: chunked\r\ncontent-length: 4",
    b"expect: 100-continue",
    b"expect: whatever",
    b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x",
    b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAA",
    b"connection: close",
    b"connection: keep-alive, close, \xff",
    b"host: 127.0.0.1",
    b"host: evil.example",
    b"host:",
    b"authorization: Bearer \xff\x00",
    b"authorization: " + b"B" * 9000,
    b"accept-encoding: gzip",
    b"range: bytes=0-1",
)
LINES: tuple[bytes, ...] = (
    b"GET /%00 HTTP/1.1",
    b"GET /%ff%fe HTTP/1.1",
    b"GET /v1/decisions/%2e%2e%2f HTTP/1.1",
    b"GET /v1/models/\xff\xfe HTTP/1.1",
    b"GET /v1/decisions?limit=-1&since=x&cursor=%00&stage=%ff HTTP/1.1",
    b"GET /v1/decisions?limit=99999999999999999999 HTTP/1.1",
    b"GET /v1/decisions?" + b"limit=1&" * 5000 + b" HTTP/1.1",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
    b"GET http://127.0.0.1/health HTTP/1.1",
    b"GET //health HTTP/1.1",
    b"GET * HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT x:1 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"GET /health HTTP/1.0",
    b"GET /health HTTP/9.9",
    b"GET /health",
    b"get /health HTTP/1.1",
    b"HEAD /health HTTP/1.1",
    b"HEAD /v1/models HTTP/1.1",
    b"DELETE /v1/models HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 64,
    b"\r\n" * 500,
)
CHUNKS: tuple[bytes, ...] = (
    b"4\r\n{}{}\r\n0\r\n\r\n",
    b"zz\r\n{}\r\n0\r\n\r\n",
    b"-1\r\n{}\r\n",
    b"ffffffffffffffffffff\r\n{}\r\n",
    b"2\r\n{}0\r\n\r\n",
    b"2;ext=\xff\r\n{}\r\n0\r\nx: trailer\r\n\r\n",
    b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"2\r\n",
    b"0\r\n\r\n",
    b"1\r\n{\r\n" * 2000,
)


@dataclass
class Case:
    """What one connection sends: pieces with pauses between, and how the client ends it."""

    number: int
    what: str
    pieces: list[bytes]
    pause: float
    end: str


def request(chance: random.Random, *, line: bytes = b"", body: bytes | None = None, header: bytes = b"") -> bytes:
    """A good request, but for what is handed in."""
    path, value = chance.choice(BODIES)
    if not line and (body is not None or header or chance.random() < 0.7):
        data = json.dumps(value).encode() if body is None else body
        head = b"POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n" % path.encode()
        if b"content-length" not in header and b"transfer-encoding" not in header:
            head += b"content-length: %d\r\n" % len(data)
        return head + (header + b"\r\n" if header else b"") + b"\r\n" + data
    line = line or b"GET %s HTTP/1.1" % chance.choice(PATHS).encode()
    return line + b"\r\nhost: 127.0.0.1\r\n\r\n"


def of_json(chance: random.Random) -> bytes:
    return request(chance, body=chance.choice(JSONS))


def of_headers(chance: random.Random) -> bytes:
    return request(chance, header=chance.choice(HEADERS))


def of_lines(chance: random.Random) -> bytes:
    return request(chance, line=chance.choice(LINES))


def of_chunks(chance: random.Random) -> bytes:
    return request(chance, header=b"transfer-encoding: chunked", body=chance.choice(CHUNKS))


def lies(chance: random.Random) -> bytes:
    """A length that is not the body's."""
    return request(chance, header=b"content-length: %d" % chance.choice((0, 1, 40, 5000, 999_999, 2_000_000)))


def truncated(chance: random.Random) -> bytes:
    data = request(chance)
    return data[: chance.randrange(len(data))]


def flipped(chance: random.Random) -> bytes:
    data = bytearray(request(chance))
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def spliced(chance: random.Random) -> bytes:
    """A piece of one request within another."""
    data, other = request(chance), request(chance)
    begin, end = sorted(chance.randrange(len(other)) for _ in range(2))
    at = chance.randrange(len(data))
    return data[:at] + other[begin:end] + data[at + chance.choice((0, end - begin)) :]


def pipelined(chance: random.Random) -> bytes:
    return b"".join(chance.choice((request, request, flipped, of_headers))(chance) for _ in range(chance.randint(2, 8)))


def noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((1, 10, 1000, 100_000)))


MAKERS: tuple[Callable[[random.Random], bytes], ...] = (
    request,
    of_json,
    of_headers,
    of_lines,
    of_chunks,
    lies,
    truncated,
    flipped,
    spliced,
    pipelined,
    noise,
)


def cases(count: int, seed: int) -> Iterator[Case]:
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        make = chance.choice(MAKERS)
        data = make(chance)
        pieces, pause = [data], 0.0
        if chance.random() < 0.25:  # in pieces, some of them slow
            cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((1, 3, 20))))
            pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            pause = chance.choice((0.0, 0.001, 0.05))
        end = chance.choice(("stay", "stay", "eof", "leave", "reset"))
        yield Case(number, make.__name__, pieces, pause, end)


# ── what comes back ──────────────────────────────────────────────────────────


@dataclass
class Tally:
    statuses: Counter[int] = field(default_factory=Counter)
    connections: int = 0
    silent: int = 0


async def play(port: int, case: Case, tally: Tally) -> None:
    """One connection; fails where it does not come to an end, or where what comes back is no HTTP."""
    try:
        async with asyncio.timeout(HANG_S):
            data = await sent_and_heard(port, case)
    except TimeoutError:
        pytest.fail(f"a connection that does not end: {case.number} ({case.what}, {case.end}) {case.pieces[0][:300]!r}")
    tally.connections += 1
    tally.silent += not data
    try:
        tally.statuses.update(replies(data, whole=case.end == "stay"))
    except (AssertionError, ValueError) as error:
        pytest.fail(f"{error}: {case.number} ({case.what}, {case.end}) {case.pieces[0][:300]!r} -> {data[:600]!r}")


async def sent_and_heard(port: int, case: Case) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = asyncio.create_task(all_of(reader))
    try:
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(case.pause)
        if case.end == "eof":
            writer.write_eof()
        if case.end in ("stay", "eof"):
            return await heard
    except (ConnectionError, OSError):
        return await heard
    finally:
        if case.end == "reset":
            writer.transport.abort()
        writer.close()
        heard.cancel()
        await asyncio.wait((heard,))
    return b""


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes, also where a reset follows it."""
    data = b""
    try:
        while piece := await reader.read(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def replies(data: bytes, *, whole: bool) -> Iterator[int]:
    """The status of each reply; every error is one of ours. The last may be cut where the client did not stay."""
    while data:
        head, found, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), "no HTTP"
        status = int(head[9:12])
        if status == 100:
            data = rest
            continue
        assert found or not whole, "half a head"
        if not found:
            return
        body, data = body_of(head, rest, whole=whole)
        yield status
        if status >= 400 and body:  # none follows a HEAD
            error = json.loads(body)["error"]
            assert error["message"]
            assert set(error) == {"message", "type", "param", "code"}


def body_of(head: bytes, rest: bytes, *, whole: bool) -> tuple[bytes, bytes]:
    """(body, what follows it)"""
    names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"chunked" not in names.get(b"transfer-encoding", b""):
        length = int(names.get(b"content-length", b"0"))
        if rest.startswith(b"HTTP/1.1 ") or not rest:  # the reply to a HEAD
            return b"", rest
        assert len(rest) >= length or not whole, "half a body"
        return (rest[:length], rest[length:]) if len(rest) >= length else (b"", b"")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body, rest[2:]
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body, b""  # a stream that was broken off


async def fuzz(port: int, count: int, seed: int) -> Tally:
    """All cases, some at once; now and then a good request, which is always answered."""
    tally, waiting = Tally(), cases(count, seed)

    async def some() -> None:
        for case in waiting:
            await play(port, case, tally)
            if case.number % 20 == 0:
                await answers(port)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    await answers(port)
    return tally


def question(*headers: bytes) -> bytes:
    """A good request."""
    body = json.dumps(BODIES[0][1]).encode()
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"host: 127.0.0.1", b"content-type: application/json", *headers]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


async def answers(port: int) -> None:
    async with asyncio.timeout(HANG_S):
        data = await sent_and_heard(port, Case(-1, "good", [question(b"connection: close")], 0.0, "stay"))
    assert data.startswith(b"HTTP/1.1 200"), data[:300]
    assert b"from " in data


# ── the gateway ──────────────────────────────────────────────────────────────


@dataclass
class Place:
    port: int
    visits: list[Visit] = field(default_factory=list)
    watch: Watch | None = None


@asynccontextmanager
async def gateway(folder: Path) -> AsyncGenerator[Place, None]:
    """What ``stepladder serve`` serves, on the loop of the test."""
    (folder / "ladder.toml").write_text(LADDER, "utf-8")
    made = config.read(folder / "ladder.toml")
    place = Place(0)
    place.watch = Watch(tell=place.visits.append)
    app = create_app(
        build(made), gateway_settings(made), manage_router=True, watch=place.watch, gate=make_gate(made, "127.0.0.1")
    )
    async with serving(app, limits=connection_limits(made)) as url:
        place.port = int(url.rpartition(":")[2])
        yield place


async def test_nothing_that_is_sent_hangs_breaks_or_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(tmp_path) as place:
        assert place.watch is not None
        await answers(place.port)
        await until(lambda: not place.watch.in_flight, lambda: "a request under way")  # type: ignore[union-attr]
        tasks, held = asyncio.all_tasks(), sockets()
        tally = await fuzz(place.port, 300, seed=6)
        await until(lambda: asyncio.all_tasks() <= tasks, lambda: asyncio.all_tasks() - tasks)
        await until(lambda: sockets() <= held, lambda: (sockets(), held))
        assert place.watch.in_flight == 0
    assert tally.connections == 300
    assert tally.statuses[200] > 15
    assert {400, 404, 405, 408, 413, 431} <= set(tally.statuses)
    assert not [status for status in tally.statuses if status >= 500]
    assert not [visit for visit in place.visits if visit.status >= 500]
    bad = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL") or record.exc_info]
    assert not bad


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_nothing_that_is_sent_to_a_process_hangs_breaks_or_leaks(tmp_path: Path) -> None:
    async with child(tmp_path, LADDER) as served:
        port = int(served.url.removesuffix("/v1").rpartition(":")[2])
        await answers(port)
        held = sockets(served.process.pid)
        tally = await fuzz(port, 20_000, seed=20)
        await until(lambda: sockets(served.process.pid) <= held, lambda: (sockets(served.process.pid), held))
        requests = [event for event in served.events if event["event"] == "request"]
        failed = [event for event in served.events if event.get("status", 0) >= 500 or event["level"] == "error"]
    told = " ".join(f"{status}×{count}" for status, count in sorted(tally.statuses.items()))
    sys.stdout.write(f"\n{tally.connections} connections, {tally.silent} unanswered; {told}; {len(requests)} logged\n")
    assert tally.connections == 20_000
    assert not failed, json.dumps(failed[:3])[:6000]
    assert not [status for status in tally.statuses if status >= 500]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_no_5xx_goes_without_a_line(tmp_path: Path, stream: bool) -> None:
    """Before servers that fail in every way; each reply is read, so the log has as many as came."""
    chance = random.Random(6)
    ways = [way for way in WAYS.values() if way not in (is_large, is_busy)]  # after a 429 nobody would be asked

    async def any_of_them(caller: Caller) -> bool | None:
        return await chance.choice((good, *ways))(caller)

    body = json.dumps({"messages": SAID, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with misbehaving.serving(any_of_them) as server, child(tmp_path, FAILING.format(url=server.url)) as served:
        port, seen, left = int(served.url.removesuffix("/v1").rpartition(":")[2]), Counter[int](), iter(range(120))

        async def some() -> None:
            for _ in left:
                heard = await sent_and_heard(port, Case(0, "good", [head + body], 0.0, "stay"))
                seen.update(replies(heard, whole=True))

        async with asyncio.timeout(3 * HANG_S), asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(some())

        def logged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [event for event in events if event["event"] == "request"]

        await served.until(lambda events: len(logged(events)) == 120)
        told = logged(served.events)
    assert Counter(event["status"] for event in told) == seen
    failed = [event for event in told if event["status"] >= 500]
    assert {event["level"] for event in failed} == {"error"}
    assert all(event["decision_id"].startswith("dec-") for event in failed)
    assert seen[200] > 3, seen
    assert seen[502] + seen[503] + seen[504] > 20


# ── what was found ───────────────────────────────────────────────────────────


async def hangs(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
    """Never answers."""
    await asyncio.Event().wait()
    yield Attempt(stage.name)


async def test_a_client_that_leaves_behind_pipelined_requests_takes_the_first_along() -> None:
    made = world(hangs)
    async with serving(made.app) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(question() * 3)
        async with asyncio.timeout(HANG_S):
            await made.engine.under_way.wait()
            writer.close()
            await made.engine.cancelled.wait()
            await made.store.written.wait()
    assert len(made.engine.calls) == 1
    (trace,) = made.store.traces
    assert trace.fault is not None
    assert trace.fault.kind == "cancelled"


@pytest.mark.parametrize("good", [1, 3])
async def test_what_is_no_http_behind_requests_at_work_ends_them(good: int, caplog: pytest.LogCaptureFixture) -> None:
    made = world(hangs)
    async with serving(made.app) as url:
        case = Case(0, "pipelined", [question() * good, b"\x00\x01 no http\r\n\r\n"], 0.1, "stay")
        async with asyncio.timeout(HANG_S):
            heard = await sent_and_heard(int(url.rpartition(":")[2]), case)
            await made.engine.cancelled.wait()
    assert list(replies(heard, whole=True)) == [400]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_refused_client_is_not_told_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    made = world(hangs)
    head = request(random.Random(0), header=b"transfer-encoding: chunked\r\nexpect: 100-continue", body=b"")
    async with serving(made.app) as url:
        case = Case(0, "no chunks", [head + b"zz\r\n"], 0.0, "stay")
        async with asyncio.timeout(HANG_S):
            heard = await sent_and_heard(int(url.rpartition(":")[2]), case)
    assert list(replies(heard, whole=True)) == [400]
    assert b"100 Continue" not in heard
    assert not [record for record in caplog.records if record.exc_info]
