"""``stepladder check --live`` against servers that are well, slow, wrong or not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway_child import sse, whole
from openai_server import chunk
from stepladder.cli import main

KEY = "sk-planted-0123456789"
NANO = Path(__file__).parents[2] / "src" / "stepladder" / "presets" / "nano"


@dataclass
class Model:
    """A server's one model: what it can do, and how it fails."""

    able: frozenset[str] = frozenset()
    listed: Any = None
    refuses: int | None = None
    waits_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await asyncio.sleep(self.waits_s)
            return await self.answer(request, body)
        finally:
            self.now -= 1

    async def answer(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        if self.refuses is not None:
            told = f"key {request.headers.get('Authorization')} is not good"
            return web.json_response({"error": {"message": told}}, status=self.refuses)
        wanted = needed(body)
        if wanted is not None and wanted not in self.able:
            return web.json_response({"error": {"message": f"no {wanted} here"}}, status=400)
        if wanted == "stream":
            return await streamed(request)
        reply = whole('{"a": 4}' if wanted == "json" else "four")
        if wanted == "tools":
            reply["choices"][0]["message"] = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}
        if wanted == "logprobs":
            reply["choices"][0]["logprobs"] = {"content": [{"token": "f", "logprob": -0.1}]}
        return web.json_response(reply)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(self.listed) if self.listed is not None else web.json_response({}, status=404)


def needed(body: Mapping[str, Any]) -> str | None:
    """What a request can only be answered with."""
    for key, name in (("tools", "tools"), ("response_format", "json"), ("logprobs", "logprobs"), ("stream", "stream")):
        if body.get(key):
            return name
    return "images" if isinstance(body["messages"][0]["content"], list) else None


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(sse(chunk({"content": "four"})) + sse(chunk({}, "stop")) + b"data: [DONE]\n\n")
    return response


@asynccontextmanager
async def serving(model: Model):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.chat)
    app.router.add_get("/v1/models", model.models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def stage(name: str, url: str, cost: float, more: str = "") -> str:
    return (
        f'[[stages]]\nname = "{name}"\nmodel = "m"\nbase_url = "{url}"\ncost = {cost}\n'
        f'api_key_env = "PLANTED"\nretries = 0\n{more}\n'
    )


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the verb in a thread (it has a loop of its own) and tells (exit code, what it printed, what it warned)."""
    monkeypatch.setenv("PLANTED", KEY)
    monkeypatch.setenv("COLUMNS", "200")

    async def run(text: str, *flags: str) -> tuple[int, str, str]:
        path = tmp_path / "ladder.toml"
        path.write_text(text, "utf-8")
        code = await asyncio.to_thread(main, ["check", "--live", *flags, str(path)])
        printed = capsys.readouterr()
        assert KEY not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


def row(out: str, name: str) -> list[str]:
    """The last row of a table that begins with this name."""
    rows = [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in out.splitlines() if "│" in line]
    return [cells for cells in rows if cells[0] == name][-1]


async def test_everything_as_declared(check: Callable[..., Any]) -> None:
    able = frozenset({"stream", "logprobs", "tools", "json", "images"})
    listed = {"data": [{"id": "m", "max_model_len": 4096}]}
    async with serving(Model(able, listed)) as url:
        more = f"context = 4096\ncapabilities = {json.dumps(sorted(able))}"
        code, out, err = await check(stage("low", url, 1.0, more) + stage("high", url, 2.0, more))
    assert code == 0
    assert "warning: " not in err.replace("predicted", "")
    name, answers, connect, first, total, can, cannot, context = row(out, "low")
    assert (name, answers, can, cannot) == ("low", "yes", "stream, logprobs, tools, json, images", "–")
    assert all(each.endswith("ms") for each in (connect, first, total))
    assert context == "4096"


async def test_declarations_that_are_not_so(check: Callable[..., Any]) -> None:
    listed = {"data": [{"id": "other", "max_model_len": 512}, {"id": "m", "meta": {"n_ctx_train": 1024}}]}
    async with serving(Model(frozenset({"stream", "json"}), listed)) as url, serving(Model()) as mute:
        declared = 'context = 2048\ncapabilities = ["stream", "tools"]'
        code, _, err = await check(stage("low", url, 1.0, declared) + stage("high", mute, 2.0))
    assert code == 0
    assert "stage 'low' declares 'tools', but refuses it: HTTP 400: no tools here" in err
    assert "stage 'low' can do 'json' and does not declare it" in err
    assert "stage 'low' declares a context of 2048 tokens, but its server says 1024" in err
    assert "stage 'high' declares 'stream', but refuses it: HTTP 400: no stream here" in err
    assert "does not list" not in err


async def test_a_model_that_its_server_does_not_list(check: Callable[..., Any]) -> None:
    listed = {"data": [{"id": f"m{number}", "context_length": 77} for number in range(9)]}
    async with serving(Model(frozenset({"stream"}), listed)) as url:
        code, _, err = await check(stage("low", url, 1.0))
    assert code == 0
    assert "asks for the model 'm', which its server does not list (m0, m1, m2, m3, m4, …)" in err


async def test_a_list_of_models_that_comes_in_many_pieces(check: Callable[..., Any]) -> None:
    listed = {"data": [{"id": f"m{number}", "about": "x" * 500} for number in range(2000)]}
    listed["data"].append({"id": "m", "max_model_len": 4096})
    async with serving(Model(frozenset({"stream"}), listed)) as url:
        _, _, err = await check(stage("low", url, 1.0))
    assert "its server tells a context of 4096 tokens" in err


async def test_a_context_that_is_told_and_not_declared(check: Callable[..., Any]) -> None:
    async with serving(Model(frozenset({"stream"}), {"data": [{"id": "m", "context_window": 77}]})) as url:
        _, _, err = await check(stage("low", url, 1.0))
    assert "note: stage 'low' its server tells a context of 77 tokens" in err


@pytest.mark.parametrize("listed", [[], {"data": None}, {"data": ["m", 3, {"id": 4}]}, "nothing"])
async def test_lists_of_any_shape(check: Callable[..., Any], listed: Any) -> None:
    async with serving(Model(frozenset({"stream"}), listed)) as url:
        code, out, _ = await check(stage("low", url, 1.0))
    assert (code, row(out, "low")[-1]) == (0, "not told")


async def test_a_stage_that_is_not_there(check: Callable[..., Any]) -> None:
    model = Model(frozenset({"stream"}))
    async with serving(model) as url:
        code, out, err = await check(stage("low", url, 1.0) + stage("high", "http://127.0.0.1:9/v1", 2.0))
    assert code == 1
    assert row(out, "high")[1] == "no: connect"
    assert row(out, "low")[1] == "yes"
    assert "stage 'high': the server of stage 'high' cannot be reached (connection refused)" in err


@pytest.mark.parametrize(("status", "kind"), [(401, "auth"), (500, "server"), (429, "rate_limit")])
async def test_a_stage_that_does_not_answer_us(check: Callable[..., Any], status: int, kind: str) -> None:
    async with serving(Model(refuses=status)) as url:
        code, out, err = await check(stage("low", url, 1.0))
    assert (code, row(out, "low")[1]) == (1, f"no: {kind}")
    assert "***" in err  # the server repeated the key


async def test_a_stage_that_takes_too_long(check: Callable[..., Any]) -> None:
    async with serving(Model(waits_s=30.0)) as url:
        code, _, err = await check(stage("low", url, 1.0), "--timeout", "0.2")
    assert code == 1
    assert "stage 'low': no answer within 0.2 s" in err


async def test_a_key_that_is_not_set_stops_it(check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED")
    code, _, err = await check(stage("low", "http://127.0.0.1:9/v1", 1.0))
    assert code == 2
    assert "the environment variable PLANTED is not set" in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
async def test_a_timeout_that_is_none(check: Callable[..., Any], seconds: str) -> None:
    code, _, err = await check(stage("low", "http://127.0.0.1:9/v1", 1.0), f"--timeout={seconds}")
    assert code == 2
    assert "--timeout" in err


async def test_few_stages_are_asked_at_once(check: Callable[..., Any]) -> None:
    model = Model(frozenset({"stream"}), waits_s=0.02)
    async with serving(model) as url:
        code, _, _ = await check("".join(stage(f"s{number}", url, number) for number in range(1, 10)))
    assert code == 0
    assert 2 <= model.most_at_once <= 4
    assert sum(body.get("max_tokens", 99) > 64 for body in model.asked) == 0


async def test_models_of_this_machine(check: Callable[..., Any]) -> None:
    pytest.importorskip("xllamacpp")
    text = (
        f'[[stages]]\nname = "small"\nengine = "llama"\nmodel = "{NANO}/nano-small.gguf"\ncontext = 256\n'
        'threads = 1\nn_parallel = 1\ncost = 1.0\ncapabilities = ["stream", "logprobs", "images"]\n'
    )
    code, out, err = await check(text)
    assert code == 0
    assert row(out, "small")[1:3] == ["yes", "–"]
    assert "stage 'small' declares 'images', but fails on one" in err


async def test_a_model_that_cannot_be_loaded(check: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    text = '[[stages]]\nname = "small"\nengine = "llama"\nmodel = "broken.gguf"\ncost = 1.0\n'
    code, out, err = await check(text)
    assert (code, row(out, "small")[1]) == (1, "no: crash")
    assert "stage 'small'" in err
