"""SIGHUP under traffic: another configuration is in force, and no request was lost for it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

import openai_server
from gateway_child import HANG_S, Child, Got, asked, child, drips, fetched, ladder, sse, whole
from openai_server import chunk
from stepladder.gateway.keys import add_key

CLIENTS = 8
RELOADS = 5
NANO = Path(__file__).parents[2] / "src" / "stepladder" / "presets" / "nano"


async def echoes_the_model(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Says which model was asked for, after a moment; as a stream, in pieces with moments between them."""
    await asyncio.sleep(0.005)
    if not body.get("stream"):
        return web.json_response(whole(body["model"]))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for letter in body["model"]:
        await response.write(sse(chunk({"content": letter})))
        await asyncio.sleep(0.002)
    await response.write(sse(chunk({}, "stop")) + b"data: [DONE]\n\n")
    return response


async def metric(session: aiohttp.ClientSession, url: str, name: str, **labels: str) -> float:
    text = (await fetched(session, url, "/metrics")).body.decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return sum(each.value for each in samples if each.name == name and each.labels.items() >= labels.items())


async def test_no_request_is_lost_over_five_reloads(tmp_path: Path) -> None:
    """Eight clients on connections that stay open, half of their requests streams, while both servers' names change."""
    got: list[tuple[bool, Got]] = []
    over = asyncio.Event()

    async def client(number: int) -> None:
        async with aiohttp.ClientSession() as session:
            for turn in count(number):
                if over.is_set():
                    return
                got.append((turn % 2 == 0, await asked(session, made.url, stream=turn % 2 == 0)))

    async with (
        openai_server.serving(echoes_the_model) as server,
        child(tmp_path, ladder(server.url)) as made,
        aiohttp.ClientSession() as session,
        asyncio.timeout(HANG_S),
    ):
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(number))
            for number in range(1, RELOADS + 1):
                seen = len(got)
                while len(got) < seen + 30:  # noqa: ASYNC110 - traffic between any two reloads
                    await asyncio.sleep(0.005)
                text = ladder(server.url, cost=1.0 + number).replace("low-model", f"low-model-{number}")
                made.ladder.write_text(text, "utf-8")
                made.tell(signal.SIGHUP)
                await made.logged("reloaded: configuration", times=number)
            while len(got) < 240:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            over.set()
        reloads = await metric(session, made.url, "stepladder_reloads_total", outcome="done")
        counted = await metric(session, made.url, "stepladder_requests_total", outcome="answered")
        at_work = await metric(session, made.url, "stepladder_in_flight")
    assert len(got) >= 240
    assert Counter(each.status for _, each in got) == {200: len(got)}
    assert all(each.events[-1] == "[DONE]" for stream, each in got if stream)
    said = Counter(each.text for _, each in got)
    assert set(said) == {"low-model", *(f"low-model-{number}" for number in range(1, RELOADS + 1))}
    assert abs(sum(stream for stream, _ in got) - len(got) / 2) <= CLIENTS
    assert (reloads, counted, at_work) == (RELOADS, len(got), 1)  # the scrape itself
    assert not [event for event in made.events if event["level"] in ("warning", "error")]


async def test_a_stream_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with (
        openai_server.serving(drips(gate)) as server,
        openai_server.serving(echoes_the_model) as other,
        child(tmp_path, ladder(server.url)) as made,
        aiohttp.ClientSession() as session,
        asyncio.timeout(HANG_S),
    ):
        stream = asyncio.create_task(asked(session, made.url, stream=True))
        while not server.bodies:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
        made.ladder.write_text(ladder(other.url), "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("0 of 1 engines go on as they are")
        assert (await asked(session, made.url)).text == "low-model"
        assert not stream.done()
        gate.set()
        assert ((await stream).text, (await stream).events[-1]) == ("four", "[DONE]")


async def test_a_bad_configuration_changes_nothing(tmp_path: Path) -> None:
    async with (
        openai_server.serving(echoes_the_model) as server,
        child(tmp_path, ladder(server.url)) as made,
        aiohttp.ClientSession() as session,
    ):
        good = made.ladder.read_text("utf-8")
        for number, (bad, told) in enumerate(
            [
                (good.replace('name = "low"', 'nmae = "low"'), "did you mean 'name'?"),
                (good.replace('name = "high"', 'name = "high"\nthreads = "x"'), "threads"),
                (good + '\n[predictor]\nartifact = "nowhere"\n', "nowhere"),
                ("[[stages]\n", "is no valid TOML"),
            ],
            start=1,
        ):
            made.ladder.write_text(bad, "utf-8")
            made.tell(signal.SIGHUP)
            await made.logged("not reloaded, what was in force stays so", times=number)
            assert told in made.events[-1]["message"]
            assert (await asked(session, made.url)).text == "low-model"
        assert await metric(session, made.url, "stepladder_reloads_total", outcome="refused") == 4
        made.ladder.write_text(good.replace("low-model", "mended"), "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("reloaded: configuration")
        assert (await asked(session, made.url)).text == "mended"


async def test_what_cannot_start_changes_no_key(tmp_path: Path) -> None:
    """A stage is renamed, in the keys' file too, and a model beside it is not the one that its checksum names."""
    pytest.importorskip("xllamacpp")
    keys = tmp_path / "keys.toml"
    key = add_key(keys, "a", {"stages": ("low",)}, now=0.0, chance=os.urandom)
    broken = f'[[stages]]\nname = "local"\nengine = "llama"\nmodel = "{NANO}/nano-small.gguf"\nsha256 = "{"0" * 64}"\n'
    async with (
        openai_server.serving(echoes_the_model) as server,
        child(tmp_path, ladder(server.url, gateway='keys = "keys.toml"')) as made,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session,
    ):
        old_keys, old = keys.read_text("utf-8"), made.ladder.read_text("utf-8")
        assert (await asked(session, made.url, model="low")).text == "low-model"
        new_keys, new = old_keys.replace('"low"', '"cheap"'), old.replace('name = "low"', 'name = "cheap"')
        for number, (theirs, said) in enumerate([(new_keys, "its SHA-256 is"), (old_keys, "no stage 'low'")], start=1):
            keys.write_text(theirs, "utf-8")
            made.ladder.write_text(f"{broken}cost = 0.5\n{new}", "utf-8")
            made.tell(signal.SIGHUP)
            await made.logged("not reloaded, what was in force stays so", times=number)
            assert said in next(told for told in reversed(made.events) if "not reloaded" in str(told))["message"]
            for model in ("low", "stepladder"):
                assert (await asked(session, made.url, model=model)).text == "low-model"
            assert (await asked(session, made.url, model="high")).status == 403
        keys.write_text(new_keys, "utf-8")
        made.ladder.write_text(new, "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("reloaded: configuration")
        assert (await asked(session, made.url, model="cheap")).text == "low-model"
        assert (await asked(session, made.url, model="low")).status == 404


async def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    async with openai_server.serving(echoes_the_model) as server, child(tmp_path, ladder(server.url)) as made:
        text = ladder(server.url, gateway="drain_s = 7.0", traces='[traces]\npath = "new.sqlite3"\n')
        made.ladder.write_text(text.replace("port = 0", 'port = 1\nmodel_name = "auto"'), "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("reloaded")
        warned = [event["message"].split()[0] for event in made.events if event["level"] == "warning"]
        assert warned == ["gateway.port", "gateway.drain_s", "traces.path"]
        async with aiohttp.ClientSession() as session:
            models = (await fetched(session, made.url, "/v1/models")).json["data"]
        assert models[0]["id"] == "auto"
        assert not (tmp_path / "new.sqlite3").exists()


def children(made: Child) -> set[int]:
    """Processes that the gateway has started."""
    tasks = Path(f"/proc/{made.process.pid}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text("ascii").split()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are told by /proc")
async def test_a_model_that_did_not_change_is_not_loaded_again(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")

    def text(context: int, cost: float) -> str:
        stages = "".join(
            f'[[stages]]\nname = "{name}"\nengine = "llama"\nmodel = "{NANO}/nano-{name}.gguf"\n'
            f"context = {context}\nn_parallel = 1\nthreads = 1\ncost = {price}\n"
            for name, price in (("small", 1.0), ("medium", cost))
        )
        return f'{stages}[gateway]\nport = 0\nlog = "json"\n'

    async with child(tmp_path, text(256, 2.0)) as made, aiohttp.ClientSession() as session, asyncio.timeout(HANG_S):
        loaded = children(made)
        made.ladder.write_text(text(256, 3.0), "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("1 of 1 engines go on as they are")
        assert children(made) == loaded
        assert (await asked(session, made.url, max_tokens=4)).status == 200
        made.ladder.write_text(text(128, 3.0), "utf-8")
        made.tell(signal.SIGHUP)
        await made.logged("0 of 1 engines go on as they are")
        assert (await asked(session, made.url, max_tokens=4)).status == 200
        while children(made) & loaded:  # noqa: ASYNC110 - the old ones are let go
            await asyncio.sleep(0.02)
        assert len(children(made)) == len(loaded) == 2
        made.tell(signal.SIGTERM)
        assert await made.ended() == 0
