"""What a hostile client, upstream or neighbour can do to the real server: bare sockets, planted secrets."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from openai import AuthenticationError, OpenAI, PermissionDeniedError, RateLimitError

import openai_server
from gateway_fakes import World, attempt, world
from scripted_ladder import LADDER
from stepladder import config
from stepladder.build import build
from stepladder.cli import serve as verb
from stepladder.errors import ConfigError
from stepladder.gateway.access import KeyGate
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.keys import add_key
from stepladder.gateway.protocol import ConnectionLimits, half_of_files
from stepladder.gateway.server import serving

BODY = b'{"model": "stepladder", "messages": [{"role": "user", "content": "What is 2+2?"}]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WHOLE = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
HANG_S = 20


@asynccontextmanager
async def gateway(made: World | None = None, gate: Any = None, **limits: Any) -> AsyncIterator[tuple[str, int]]:
    """(host, port) of a real server over fakes."""
    made = made or world()
    app = create_app(made.router, GatewaySettings(max_body_bytes=200_000), gate=gate)
    async with serving(app, limits=ConnectionLimits(**limits)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        yield host, int(port)


async def tell(place: tuple[str, int], *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send these pieces; the first reply that comes back, nothing where the server closes without one."""
    reader, writer = await asyncio.open_connection(*place)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
    except ConnectionError:
        pass  # it was refused meanwhile; what it said is read all the same
    try:
        return await one_reply(reader)
    finally:
        writer.close()


async def one_reply(reader: asyncio.StreamReader) -> bytes:
    """A reply with its body; what there was of it where the server closed before its end."""
    async with asyncio.timeout(HANG_S):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length, head
            return head + await reader.readexactly(int(length[1]))
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""


def status_of(reply: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", reply)
    assert found, reply[:200]
    return int(found[1])


def error_of(reply: bytes) -> dict[str, Any]:
    return json.loads(reply.partition(b"\r\n\r\n")[2])["error"]


# ── what a head may be ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "pieces",
    [
        [POST + b"".join(b"x-%d: y\r\n" % number for number in range(10_000)) + b"\r\n"],
        [POST + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n"],
        [POST + b"x: ", *[b"y" * 10_000] * 100],
        [POST + b"y" * 1_000_000],
        [b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + b"\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 128 + b"\r\n"],
    ],
    ids=["10,000 headers", "a header of 1 MB", "of 1 MB in pieces", "a name of 1 MB", "a path of 1 MB", "70 kB", "129"],
)
async def test_heads_above_the_limits_are_refused(pieces):
    async with gateway() as place:
        reply = await tell(place, *pieces)
        assert status_of(reply) == 431
        assert error_of(reply)["code"] == "request_header_fields_too_large"
        assert b"connection: close" in reply
        assert status_of(await tell(place, WHOLE)) == 200


async def test_heads_within_the_limits_are_taken():
    wide = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 400) for number in range(120))
    async with gateway() as place:
        assert status_of(await tell(place, POST + wide + WHOLE.removeprefix(POST))) == 200
        tight = [bytes([byte]) for byte in WHOLE]
        assert status_of(await tell(place, *tight)) == 200


async def test_trailers_are_bounded_and_become_no_headers():
    chunked = POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
    made = world()
    async with gateway(made) as place:
        assert status_of(await tell(place, chunked + b"x-stepladder-mode: nonsense\r\n\r\n")) == 200
        reply = await tell(place, chunked, *[b"x: " + b"y" * 30_000] * 20)
        assert status_of(reply) == 431
    assert len(made.engine.calls) == 1


async def test_what_is_no_http_is_refused_in_openais_shape():
    async with gateway() as place:
        for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nx y: z\r\n\r\n"):
            reply = await tell(place, junk)
            assert status_of(reply) == 400
            assert error_of(reply)["code"] == "invalid_http"
        both = POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        assert status_of(await tell(place, both)) == 400  # two lengths: whose end would it be?


# ── how long it may take ─────────────────────────────────────────────────────


async def test_a_head_that_drips_is_given_up():
    async with gateway(head_s=0.3) as place:
        reply = await tell(place, *[bytes([byte]) for byte in WHOLE[:40]], pause=0.02)
        assert status_of(reply) == 408
        assert error_of(reply)["code"] == "request_timeout"


async def test_a_client_that_never_asks_is_dropped():
    async with gateway(head_s=0.2, keep_alive_s=HANG_S) as place:
        assert await tell(place) == b""
        assert status_of(await tell(place, b"\r\n")) == 408
        reader, writer = await asyncio.open_connection(*place)
        writer.write(WHOLE)
        assert status_of(await one_reply(reader)) == 200
        writer.write(b"\r\n")  # ends the wait for a next request, and begins none
        assert status_of(await one_reply(reader)) == 408
        writer.close()


async def test_a_body_that_stops_or_drips_is_given_up():
    made = world()
    async with gateway(made, body_s=0.3) as place:
        assert status_of(await tell(place, WHOLE[:-10])) == 408
        assert status_of(await tell(place, WHOLE[:-40], *[b"x"] * 30, pause=0.03)) == 408
        refused = POST + b"content-length: 999999\r\n\r\n"
        assert status_of(await tell(place, refused, *[b"x"] * 30, pause=0.03)) == 413
    assert not made.engine.calls


async def test_a_slow_body_that_comes_is_waited_for():
    body = BODY.replace(b"What", b"What" + b" " * 100_000)
    head = POST + b"content-length: %d\r\n\r\n" % len(body)
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    async with gateway(body_s=0.5) as place:  # in all it takes longer than that, and brings more than 16 kB a second
        assert status_of(await tell(place, head, *pieces, pause=0.1)) == 200


async def test_a_slow_answer_is_not_the_clients_fault():
    async def slow(request, stage):
        await asyncio.sleep(0.6)
        yield attempt(stage.name)

    async with gateway(world(slow), head_s=0.2, body_s=0.2, keep_alive_s=1) as place:
        assert status_of(await tell(place, WHOLE)) == 200
        reply = await tell(place, WHOLE + WHOLE[:30])  # a second head that lags behind a first answer
        assert status_of(reply) == 200


async def test_an_idle_connection_is_closed_and_a_used_one_kept():
    async with gateway(keep_alive_s=1) as place:
        reader, writer = await asyncio.open_connection(*place)
        for _ in range(3):
            writer.write(WHOLE)
            assert status_of(await one_reply(reader)) == 200
        async with asyncio.timeout(HANG_S):
            assert await reader.read() == b""
        writer.close()


# ── how many ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limits", [{"connections": 3}, {"per_address": 3}])
async def test_connections_are_bounded(limits):
    async with gateway(**limits) as place:
        held = [await asyncio.open_connection(*place) for _ in range(3)]
        reply = await tell(place, WHOLE)
        assert status_of(reply) == 503
        assert error_of(reply)["code"] == "too_many_connections"
        assert b"retry-after: 1" in reply
        held.pop()[1].close()
        async with asyncio.timeout(HANG_S):
            while status_of(await tell(place, WHOLE)) != 200:  # noqa: ASYNC110 - the server tells nobody of a free place
                await asyncio.sleep(0.01)
        for _, writer in held:
            writer.close()


def test_connections_leave_files_for_calls_to_stages():
    assert 0 < half_of_files() <= 2**31


# ── browsers ─────────────────────────────────────────────────────────────────


async def test_no_page_may_read_a_reply_or_ask_unasked():
    preflight = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://evil.example\r\n"
    preflight += b"access-control-request-method: POST\r\n\r\n"
    simple = WHOLE.replace(b"application/json", b"text/plain").replace(b"host: x", b"host: x\r\norigin: http://evil")
    async with gateway() as place:
        asked, sent, read = [await tell(place, each) for each in (preflight, simple, WHOLE)]
    assert [status_of(reply) for reply in (asked, sent, read)] == [405, 415, 200]
    assert not [reply for reply in (asked, sent, read) if b"access-control" in reply.lower()]


async def test_paths_lead_nowhere_else():
    odd = (
        "/../../etc/passwd",
        "/v1/decisions/..%2f..%2fetc%2fpasswd",
        "/v1/models/../../etc",
        "//evil.example/v1/models",
    )
    async with gateway() as place:
        for path in (*odd, "/v1/decisions/%00", "/v1/models/%0d%0ax-injected:%201"):
            reply = await tell(place, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert status_of(reply) == 404, path
            assert b"x-injected" not in reply.partition(b"\r\n\r\n")[0]
            assert b"location:" not in reply.lower()


def test_names_that_could_break_a_header_are_refused():
    for name in ("a\r\nx: y", "a b", "", "ä", "a/b"):
        tree = {"stages": [{"name": name, "model": "m", "engine": "scripted", "cost": 1.0}]}
        with pytest.raises(ConfigError, match="name"):
            config.parse(tree)


# ── what is bound ────────────────────────────────────────────────────────────

STAGE: dict[str, Any] = {"name": "a", "model": "m", "engine": "scripted", "cost": 1.0}


@pytest.mark.parametrize(
    ("gateway", "fine"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "127.9.9.9"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": "192.168.0.3"}, False),
        ({"host": "gateway.example"}, False),
        ({"host": "0.0.0.0", "open": True}, True),
        ({"host": "0.0.0.0", "keys": "keys.toml"}, True),
    ],
)
def test_an_address_that_others_reach_needs_keys(gateway, fine):
    tree = {"stages": [STAGE], "gateway": gateway}
    if fine:
        config.parse(tree)
    else:
        with pytest.raises(ConfigError, match=r"gateway\.host.*gateway\.open = true"):
            config.parse(tree)


def test_a_reload_cannot_take_the_keys_from_an_address_that_others_reach(tmp_path):
    add_key(tmp_path / "keys.toml", "a", {}, now=0.0, chance=os.urandom)
    tree = {"stages": [STAGE], "gateway": {"keys": "keys.toml"}}
    before = verb.make_gate(config.parse(tree, folder=tmp_path), "0.0.0.0")
    assert verb.make_gate(config.parse(tree, folder=tmp_path), "0.0.0.0", before) is before
    with pytest.raises(ConfigError, match=r"gateway\.keys: are gone"):
        verb.make_gate(config.parse({"stages": [STAGE]}), "0.0.0.0", before)


# ── keys, with the official client and a real process ────────────────────────

SERVED = (
    LADDER
    + """
[gateway]
port = 0
keys = "keys.toml"
log = "off"
"""
)


@contextmanager
def process(folder: Path) -> Iterator[str]:
    """The base URL of ``stepladder serve``; it is ended in order."""
    command = [sys.executable, "-m", "stepladder", "serve", str(folder / "ladder.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            found = re.search(r"(http://\S+/v1)", child.stderr.readline())
            assert found
            yield found[1]
            child.send_signal(signal.SIGTERM)
            assert child.wait(HANG_S) == 0
        finally:
            if child.poll() is None:
                child.kill()


def test_the_official_client_behind_keys_across_a_restart(tmp_path):
    (tmp_path / "ladder.toml").write_text(SERVED, "utf-8")
    limits = {"budget": "3/day", "stages": ("low",)}
    key = add_key(tmp_path / "keys.toml", "a", limits, now=0.0, chance=os.urandom)
    messages: Any = [{"role": "user", "content": "What is 2+2?"}]
    with process(tmp_path) as url, OpenAI(base_url=url, api_key=key) as client:
        for _ in range(2):
            made = client.chat.completions.create(model="stepladder", messages=messages)
            assert made.choices[0].message.content == "from low"
        with pytest.raises(PermissionDeniedError, match="this key does not allow stage 'high'; it may use low"):
            client.chat.completions.create(model="high", messages=messages)
        assert "high" not in {model.id for model in client.models.list()}
        stranger = client.with_options(api_key="sl-wrong")
        with pytest.raises(AuthenticationError, match="no key, or none that is good"):
            stranger.models.list()
    with process(tmp_path) as url, OpenAI(base_url=url, api_key=key) as client:
        client.chat.completions.create(model="stepladder", messages=messages)
        with pytest.raises(RateLimitError, match="budget of 3/day"):  # at once: the client is told not to try again
            client.chat.completions.create(model="stepladder", messages=messages)


# ── planted secrets ──────────────────────────────────────────────────────────

STAGE_KEY = "sk-stage-MARKER-4711"
HEADER_SECRET = "header-MARKER-4712"
CLIENT_TOKEN = "client-MARKER-4713"
MARKER = re.compile("MARKER")


async def upstream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Misbehaves as the question says, and repeats every secret that it was sent."""
    heard = " ".join(f"{name}: {value}" for name, value in request.headers.items())
    question = body["messages"][-1]["content"]
    if question == "401":
        return web.json_response({"error": {"message": f"bad key {heard}"}}, status=401)
    if question == "400":
        return web.json_response({"error": {"message": f"cannot take {heard}"}}, status=400)
    if question == "page":
        return web.Response(text=f"<html>{heard}</html>", status=502, content_type="text/html")
    if question == "not json":
        return web.Response(text=heard, content_type="application/json")
    if question == "redirect":
        return web.Response(status=302, headers={"location": "http://127.0.0.1:9/elsewhere"})
    if question == "error event":
        event = json.dumps({"error": {"message": f"cannot: {heard}"}})
        return web.Response(text=f"data: {event}\n\n", content_type="text/event-stream")
    if question == "cut":
        assert request.transport is not None
        request.transport.close()
    return web.json_response(openai_server.reply())


QUESTIONS = ("fine", "401", "400", "page", "not json", "redirect", "error event", "cut", "crash")


def secret_ladder(folder: Path, url: str) -> config.Settings:
    text = f"""\
[[stages]]
name = "far"
model = "m"
cost = 1.0
base_url = "{url}"
api_key_env = "FAR_KEY"
headers = {{ "X-Team" = "{HEADER_SECRET}" }}

[gateway]
keys = "keys.toml"

[traces]
path = "traces.sqlite3"
"""
    (folder / "ladder.toml").write_text(text, "utf-8")
    return config.read(folder / "ladder.toml")


async def test_planted_secrets_come_out_nowhere(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("FAR_KEY", STAGE_KEY)
    key = add_key(tmp_path / "keys.toml", "team-a", {"budget": "900/day"}, now=0.0, chance=os.urandom)
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        async with openai_server.serving(upstream) as fake:
            settings = secret_ladder(tmp_path, fake.url)
            router = build(settings)
            gate = KeyGate(tmp_path / "keys.toml", ("far",))
            predict, crashing = router.parts.featurizer.features, "crash"

            def features(request, history=()):
                if request.text == crashing:
                    raise RuntimeError("a bug of a part")
                return predict(request, history)

            monkeypatch.setattr(router.parts.featurizer, "features", features, raising=False)
            app = create_app(router, GatewaySettings(), manage_router=True, gate=gate)
            async with serving(app) as url, aiohttp.ClientSession() as client:
                for each in itertools.product(QUESTIONS, (False, True), (key, f"sl-{CLIENT_TOKEN}")):
                    told.append(await asked(client, url, *each))  # noqa: PERF401 - one after the other
                for path in ("/metrics", "/health", "/ready", "/v1/models", "/v1/decisions/none"):
                    async with client.get(f"{url}{path}", headers={"authorization": f"Bearer {key}"}) as reply:
                        told.append(f"{reply.headers}{await reply.text()}")
                decided = [trace.id for trace in router.parts.store.read()]
                for each in decided:
                    place = f"{url}/v1/decisions/{each}"
                    async with client.get(place, headers={"authorization": f"Bearer {key}"}) as reply:
                        assert reply.status == 200
                        told.append(await reply.text())
            heard = json.dumps(fake.headers)
    assert STAGE_KEY in heard  # the markers really were on the way
    assert HEADER_SECRET in heard
    assert CLIENT_TOKEN not in heard
    assert key not in heard
    assert len(decided) == 2 * len(QUESTIONS)
    shown = [repr(part) for part in (settings, router, router.parts, gate, gate.__dict__, app, GatewaySettings())]
    shown += [repr(each) for stage in router.parts.ladder.stages for each in (stage, router.parts.engines[stage.name])]
    shown += [repr(vars(router.parts.engines["far"]))]
    logged = [caplog.text, *capfd.readouterr()]
    stored = [path.read_bytes().decode("latin-1") for path in sorted(tmp_path.iterdir()) if path.name != "ladder.toml"]
    assert len(stored) >= 3
    for text in (*told, *shown, *logged, *stored):
        assert not MARKER.search(text), text[max(0, MARKER.search(text).start() - 300) :][:600]
        assert key not in text
        assert key.split("-", 2)[2] not in text


async def asked(client: aiohttp.ClientSession, url: str, question: str, stream: bool, token: str) -> str:
    body = {"model": "stepladder", "messages": [{"role": "user", "content": question}], "stream": stream}
    headers = {"authorization": f"Bearer {token}"}
    async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as reply:
        return f"{reply.status} {reply.headers} {await reply.text()}"


@pytest.mark.parametrize(
    "wrong",
    [
        'headers = "MARKER"',
        "headers = { X-Team = 4, Y = 'MARKER' }",
        'api_key_env = "sk-MARKER"',
        "api_key_env = ['MARKER']",
        'api_key = "MARKER"',
        'base_url = "http://user:MARKER@127.0.0.1/v1"',
    ],
)
def test_a_bad_configuration_repeats_no_secret(tmp_path, capsys, wrong):
    from stepladder import cli

    lines = ['[[stages]]\nname = "far"\nmodel = "m"\ncost = 1.0']
    lines += [] if "base_url" in wrong else ['base_url = "http://127.0.0.1:9/v1"']
    (tmp_path / "ladder.toml").write_text("\n".join([*lines, wrong, ""]), "utf-8")
    for words in (["check"], ["serve"]):
        assert cli.main([*words, str(tmp_path / "ladder.toml")]) == 2
        shown = capsys.readouterr()
        assert "far" in shown.err + shown.out or "stages[0]" in shown.err + shown.out
        assert "MARKER" not in shown.err + shown.out


def test_every_claim_names_a_test_that_there_is():
    root = Path(__file__).parents[2]
    claims = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", (root / "SECURITY.md").read_text("utf-8"))
    assert len(claims) > 20
    for file, name in claims:
        assert re.search(rf"def {name}\b", (root / "tests" / file).read_text("utf-8")), f"{file}::{name}"
