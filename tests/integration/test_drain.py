"""A gateway that is told to end: nobody who is being answered is dropped, unless the time is over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import openai_server
from gateway_child import HANG_S, Child, Got, asked, child, drips, fetched, ladder
from gateway_fakes import world
from stepladder.gateway.server import serving
from stepladder.traces.sqlite import SqliteTraceStore

TRACES = '[traces]\npath = "traces.sqlite3"\n'


async def both_begun(made: Child, server: openai_server.FakeServer, session: aiohttp.ClientSession) -> list[Any]:
    """A whole answer and a stream, both at work upstream."""
    tasks = [asyncio.create_task(asked(session, made.url, stream=stream)) for stream in (False, True)]
    async with asyncio.timeout(HANG_S):
        while len(server.bodies) < 2:  # noqa: ASYNC110 - the server has no event for its second request
            await asyncio.sleep(0.01)
    return tasks


async def test_what_is_at_work_ends_and_nothing_new_begins(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with (
        openai_server.serving(drips(gate)) as server,
        child(tmp_path, ladder(server.url, traces=TRACES)) as made,
        aiohttp.ClientSession() as session,
    ):
        tasks = await both_begun(made, server, session)
        made.tell(signal.SIGTERM)
        await made.logged("draining: 2 requests at work, 30 s to end")
        await refused(made.url)
        gate.set()
        plain, stream = await asyncio.gather(*tasks)
        assert await made.ended() == 0
    assert (plain.status, plain.text) == (200, "four")
    assert (stream.status, stream.text, stream.events[-1]) == (200, "four", "[DONE]")
    assert made.events[-1]["event"] == "ended"
    assert [event["status"] for event in made.events if event.get("route") == "chat"] == [200, 200]
    store = SqliteTraceStore(tmp_path / "traces.sqlite3")
    assert [trace.answer_index for trace in store.read()] == [0, 0]
    store.close()


async def refused(url: str) -> None:
    """New connections are refused, at the latest a moment after the signal."""
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                async with aiohttp.ClientSession() as session:
                    await fetched(session, url, "/health")
            except aiohttp.ClientConnectorError:
                return


def is_cut_off(got: Got) -> bool:
    told = got.events[-1] if got.status == 200 else got.json
    return bool(told["error"]["code"] == "shutting_down") and b"[DONE]" not in got.body


@pytest.mark.parametrize("again", [False, True], ids=["the time is over", "told twice"])
async def test_who_takes_too_long_is_told_so(tmp_path: Path, again: bool) -> None:
    limit = "drain_s = 30" if again else "drain_s = 0.3"
    async with (
        openai_server.serving(drips(asyncio.Event())) as server,
        child(tmp_path, ladder(server.url, gateway=limit, traces=TRACES)) as made,
        aiohttp.ClientSession() as session,
    ):
        tasks = await both_begun(made, server, session)
        made.tell(signal.SIGTERM)
        await made.logged("draining")
        if again:
            made.tell(signal.SIGTERM)
        async with asyncio.timeout(20):  # below the 30 s that the second signal cut short
            plain, stream = await asyncio.gather(*tasks)
            assert await made.ended() == 0
        assert plain.status == 503
        assert is_cut_off(plain)
        assert stream.status == 200
        assert is_cut_off(stream)
        assert server.cut.is_set()  # upstream was let go
    ended = [event for event in made.events if event.get("route") == "chat"]
    assert [(event["ending"], event["level"]) for event in ended] == [("cut_off", "error")] * 2
    store = SqliteTraceStore(tmp_path / "traces.sqlite3")
    assert [trace.fault.kind for trace in store.read() if trace.fault] == ["cancelled"] * 2
    store.close()


async def test_the_notice_before_the_end(tmp_path: Path) -> None:
    """While a balancer still sends requests they are answered, and /ready tells it to stop."""

    async def answers(request: Any, body: dict[str, Any]) -> Any:
        return web.json_response(openai_server.reply("four", model="m"))

    async with (
        openai_server.serving(answers) as server,
        child(tmp_path, ladder(server.url, gateway="drain_notice_s = 60")) as made,
        aiohttp.ClientSession() as session,
    ):
        assert (await fetched(session, made.url, "/ready")).status == 200
        made.tell(signal.SIGTERM)
        await made.logged("draining")
        ready = await fetched(session, made.url, "/ready")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        assert (await asked(session, made.url)).text == "four"
        made.tell(signal.SIGTERM)  # enough
        assert await made.ended() == 0


async def test_a_terminal_that_is_closed_ends_what_was_started_there(tmp_path: Path) -> None:
    """SIGHUP asks for a reload while the terminal is there; a terminal that is closed sends it too."""
    master, slave = os.openpty()
    async with child(tmp_path, ladder("http://127.0.0.1:9/v1"), stdin=slave) as made:
        os.close(slave)
        made.tell(signal.SIGHUP)
        await made.logged("reloaded: configuration")
        os.close(master)
        made.tell(signal.SIGHUP)
        assert await made.ended() == 0
    assert "draining" in str(made.events)


async def test_requests_while_models_load_are_told_so() -> None:
    made = world(manage_router=True)
    loaded = asyncio.Event()
    made.engine.start = loaded.wait  # type: ignore[method-assign, assignment]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"

    async def serve() -> Got:
        async with serving(made.app, port=port), aiohttp.ClientSession() as session:
            return await fetched(session, url, "/ready")

    served = asyncio.create_task(serve())
    async with asyncio.timeout(HANG_S), aiohttp.ClientSession() as session:
        while True:
            try:
                ready = await fetched(session, url, "/ready")
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
        assert (ready.status, ready.json) == (503, {"status": "starting"})
        assert (await fetched(session, url, "/health")).status == 200
        assert (await asked(session, url)).json["error"]["code"] == "starting"
        loaded.set()
        assert (await served).status == 200
