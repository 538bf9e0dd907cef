"""The local engine with real processes and real (random-weight) GGUF files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import xllamacpp  # noqa: F401 - who develops has it; a missing one is a failure here and no reason to skip

from gguf_maker import SPECIALS, byte_alphabet, write_gguf
from stepladder.engines import llama
from stepladder.engines.llama import LlamaEngine
from stepladder.engines.llama_trial import Trial
from stepladder.engines.openai import OpenAIEngine
from stepladder.errors import ConfigError, EngineError, MissingExtraError, ModelFileError
from stepladder.evaluate.tasks import nano
from stepladder.types import Attempt, Delta, EngineEvent, Fault, Request, Stage

CONTEXT = 2048
GREEDY = {"temperature": 0, "max_tokens": 8}


def request(text: str = "hi", **params: Any) -> Request:
    return Request("r", ({"role": "user", "content": text},), params={**GREEDY, **params})


LONG = request(stream=True, max_tokens=1900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "noise.gguf", layers=4, hidden=128)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", seed=2)


def stage(path: Path, name: str = "small", context: int | None = CONTEXT, **options: Any) -> Stage:
    return Stage(name, "llama", str(path), context=context, options={"n_parallel": 2, "threads": 1, **options})


@asynccontextmanager
async def running(*stages: Stage, **settings: Any) -> AsyncGenerator[LlamaEngine, None]:
    engine = LlamaEngine(stages, **settings)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def collect(engine: LlamaEngine | OpenAIEngine, where: Stage, asked: Request) -> list[EngineEvent]:
    async with aclosing(engine.generate(asked, where)) as events:
        return [event async for event in events]


async def attempt(engine: LlamaEngine | OpenAIEngine, where: Stage, asked: Request) -> Attempt:
    last = (await collect(engine, where, asked))[-1]
    assert isinstance(last, Attempt)
    return last


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ── answers ──────────────────────────────────────────────────────────────────


async def test_answers(model: Path) -> None:
    where = stage(model, sha256=hashlib.sha256(model.read_bytes()).hexdigest())
    async with running(where) as engine:
        whole = await attempt(engine, where, request(logprobs=True))
        assert (whole.fault, whole.finish_reason, len(whole.text)) == (None, "length", 8)
        assert len(whole.logprobs or ()) == 8
        assert whole.usage.output_tokens == 8
        assert whole.raw is not None
        assert str(model) not in json.dumps(whole.raw)
        *deltas, streamed = await collect(engine, where, request(stream=True))
        assert isinstance(streamed, Attempt)
        assert (streamed.text, streamed.usage.output_tokens) == (whole.text, 8)
        assert "".join(delta.text for delta in deltas) == whole.text
        assert all(delta.raw and delta.raw["choices"] for delta in deltas if isinstance(delta, Delta))
        raw = await attempt(engine, where, Request("r", prompt="hi", params=GREEDY))
        assert (raw.usage.prompt_tokens, len(raw.text)) == (2, 8)
        many = await asyncio.gather(*(attempt(engine, where, request()) for _ in range(5)))
        assert {each.text for each in many} == {whole.text}
        short, long = (engine.expected_cost(where, 100, tokens) for tokens in (8, 800))
        assert short is not None
        assert long is not None
        assert 0 < short.seconds <= long.seconds
        assert long.device_s == long.seconds * where.gpus
        pid = engine.pid("small")
        assert pid is not None
        await engine.start()
        assert engine.pid("small") == pid
    assert not is_running(pid)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("raw", [False, True])
async def test_every_choice_is_counted(model: Path, streamed: bool, raw: bool) -> None:
    where = stage(model)
    params = {**GREEDY, "n": 2, "stream": streamed}
    asked = Request("r", prompt="hi", params=params) if raw else request(**params)
    async with running(where) as engine:
        assert (await attempt(engine, where, asked)).usage.output_tokens == 2 * GREEDY["max_tokens"]


async def test_calls_one_after_another(model: Path) -> None:
    """The server closes connections after streams without saying so."""
    where = stage(model)
    async with running(where) as engine:
        for _ in range(10):
            for asked in (request(stream=True), request(), Request("r", prompt="hi", params=GREEDY)):
                assert (await attempt(engine, where, asked)).is_answer


async def test_a_prompt_longer_than_the_context(model: Path) -> None:
    where = stage(model, context=256)
    async with running(where) as engine:
        for asked in (request("x" * 300), request("x" * 300, stream=True)):
            found = await attempt(engine, where, asked)
            assert found.fault is not None
            assert (found.fault.kind, found.fault.status) == ("context", 400)
        bad = await attempt(engine, where, request(messages=1, temperature="hot"))
        assert bad.fault is not None
        assert bad.fault.kind == "bad_request"


async def test_the_models_own_context_and_two_stages_sharing_one_core(model: Path, small: Path) -> None:
    own, other = stage(model, context=None), stage(small, "other")
    async with running(own, other, cores=1) as engine:
        asked = [(where, request("x" * 3000 if where is own else "hi")) for where in (own, other) * 3]
        found = await asyncio.gather(*(attempt(engine, *each) for each in asked))
        assert [each.fault for each in found] == [None] * 6


async def test_early_close_frees_the_slot(model: Path) -> None:
    where = stage(model, n_parallel=1)
    async with running(where) as engine:
        for _ in range(3):
            events = engine.generate(LONG, where)
            await anext(events)
            await events.aclose()
        async with asyncio.timeout(2):
            assert (await attempt(engine, where, request())).is_answer


async def test_waiting_has_a_limit_too(model: Path, small: Path) -> None:
    where, other = stage(model, n_parallel=1, total_timeout_s=0.5), stage(small, "other", total_timeout_s=0.5)
    async with running(where, other, cores=1) as engine:
        host = engine._hosts["small"]
        async with host.places:
            no_place = await attempt(engine, where, request())
        async with engine._budget.hold("small", 1):
            no_threads = await attempt(engine, other, request())
        for found, missing in ((no_place, "place"), (no_threads, "threads")):
            told = f"no free {missing} of stage '{found.stage}' within 0.5 s (total_timeout_s)"
            assert found.fault == Fault("timeout", told)
        assert (await attempt(engine, where, request())).is_answer
        assert engine._budget.used == 0


async def test_a_call_that_nobody_reads_on_holds_nothing_beyond_its_time(model: Path) -> None:
    where = stage(model, n_parallel=1, total_timeout_s=1)
    async with running(where, cores=1) as engine:
        unread = engine.generate(LONG, where)
        await anext(unread)
        assert engine._budget.used == 1
        async with asyncio.timeout(10), engine._budget.hold("another", 1):
            pass
        assert (await attempt(engine, where, request())).is_answer
        await unread.aclose()
        assert engine._budget.used == 0


async def test_as_an_external_server(model: Path) -> None:
    with standalone(model) as port:
        where = Stage("far", "openai", "any", options={"base_url": f"http://127.0.0.1:{port}/v1/"})
        engine = OpenAIEngine((where,))
        assert len((await attempt(engine, where, request(stream=True))).text) == 8
        await engine.close()


@contextmanager
def standalone(model: Path) -> Iterator[int]:
    settings = {"model": str(model), "n_ctx": CONTEXT, "n_parallel": 1, "threads": 1, "load_timeout_s": 20}
    process = subprocess.Popen(
        [sys.executable, "-m", "stepladder.engines.llama_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())["port"]
        process.stdin.close()
        assert process.wait(2) == 0


async def test_the_child_is_not_open_to_others(model: Path) -> None:
    where = stage(model)
    async with running(where) as engine, aiohttp.ClientSession() as session:
        child = engine._hosts["small"].child
        assert child is not None
        url = f"http://127.0.0.1:{child.port}/v1/chat/completions"
        async with session.post(url, json={"messages": [{"role": "user", "content": "hi"}]}) as response:
            assert response.status == 401


def test_under_uvloop(model: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        where = stage(model)
        async with running(where) as engine:
            assert (await attempt(engine, where, request())).is_answer
            pid = engine.pid("small")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await attempt(engine, where, request())  # an answer or a crash, as it happens to be seen
            assert (await attempt(engine, where, request())).is_answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# ── deaths ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [True, False])
async def test_death_midway_is_a_crash_fault_and_the_next_call_works(model: Path, streamed: bool) -> None:
    where = stage(model)
    async with running(where) as engine:
        pid = engine.pid("small")
        assert pid is not None
        events = engine.generate(LONG if streamed else request(max_tokens=1900), where)
        if streamed:
            await anext(events)
            os.kill(pid, signal.SIGKILL)
        else:
            asyncio.get_running_loop().call_later(0.05, os.kill, pid, signal.SIGKILL)
        last = [event async for event in events][-1]
        assert isinstance(last, Attempt)
        assert last.fault is not None
        assert last.fault.kind == "crash"
        assert "SIGKILL" in last.fault.message
        assert engine.pid("small") is None
        assert (await attempt(engine, where, request())).is_answer
        assert engine.pid("small") not in (None, pid)


async def test_restarts_are_limited(model: Path) -> None:
    now = 0.0
    where = stage(model)
    async with running(where, timer=lambda: now) as engine:
        host = engine._hosts["small"]
        for _ in range(llama.RESTARTS + 1):
            assert (await attempt(engine, where, request())).is_answer
            assert host.child is not None
            os.kill(host.child.pid, signal.SIGKILL)
            assert await host.child.ended_within(1)
        refused = await attempt(engine, where, request())
        assert refused.fault is not None
        assert refused.fault.kind == "crash"
        assert "left alone" in refused.fault.message
        now = llama.RESTART_WINDOW_S + 1
        assert (await attempt(engine, where, request())).is_answer


async def test_close_midway_and_after(model: Path) -> None:
    where = stage(model)
    engine = LlamaEngine((where,))
    events = engine.generate(LONG, where)  # starts the process by itself
    await anext(events)
    pid = engine.pid("small")
    assert pid is not None
    await engine.close()
    assert not is_running(pid)
    last = [event async for event in events][-1]
    assert isinstance(last, Attempt)
    assert last.fault is not None
    with pytest.raises(EngineError, match="small"):
        await attempt(engine, where, request())
    await engine.close()


async def test_calls_that_wait_while_the_engine_closes_start_nothing(model: Path) -> None:
    where = stage(model, n_parallel=1)
    engine = LlamaEngine((where,))
    events = engine.generate(LONG, where)
    await anext(events)
    waiting = asyncio.create_task(attempt(engine, where, request()))
    await asyncio.sleep(0)
    await engine.close()
    await events.aclose()
    refused = await waiting
    assert refused.fault is not None
    assert "was closed" in refused.fault.message
    assert engine.pid("small") is None


async def test_a_cancelled_start_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()
    spawn = llama.start_child.__globals__["_spawn"]

    async def watched() -> asyncio.subprocess.Process:
        process = await spawn()
        spawned.set_result(process)
        return process

    monkeypatch.setitem(llama.start_child.__globals__, "_spawn", watched)
    task = asyncio.create_task(LlamaEngine((stage(model),)).start())
    process = await spawned
    assert process.returncode is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode is not None


def test_the_child_leaves_when_its_parent_is_killed(model: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from stepladder.engines.llama import LlamaEngine\n"
        "from stepladder.types import Stage\n"
        "async def main():\n"
        f"    engine = LlamaEngine((Stage('s', 'llama', {str(model)!r}, context=256),))\n"
        "    await engine.start()\n"
        "    print(engine.pid('s'), flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not is_running(pid) or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.02)
    raise AssertionError("the child outlived its parent")


# ── loading ──────────────────────────────────────────────────────────────────


class SlowLoads:
    """``start_child``, held back until ``go``; keeps how many were begun, and how many were given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.is_begun = asyncio.Event(), asyncio.Event()
        self.begun = self.given_up = 0
        self._start = llama.start_child
        monkeypatch.setattr(llama, "start_child", self)

    async def __call__(self, model: Any) -> Any:
        self.begun += 1
        self.is_begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await self._start(model)


async def test_impatient_callers_do_not_end_the_load(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, where = SlowLoads(monkeypatch), stage(model)
    engine = LlamaEngine((where,))
    for _ in range(2 * llama.RESTARTS):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(attempt(engine, where, request()), 0.02)
    loads.go.set()
    assert (await attempt(engine, where, request())).is_answer
    assert (loads.begun, loads.given_up) == (1, 0)
    await engine.close()


async def test_close_ends_a_load(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, where = SlowLoads(monkeypatch), stage(model)
    engine = LlamaEngine((where,))
    waiting = asyncio.create_task(attempt(engine, where, request()))
    await loads.is_begun.wait()
    await engine.close()
    found = await waiting
    assert found.fault is not None
    assert "was closed" in found.fault.message
    assert loads.given_up == 1
    loads.go.set()
    await engine.start()  # what was given up counts for nothing
    assert (await attempt(engine, where, request())).is_answer
    await engine.close()


class IdleChild:
    """Stands for a process that has loaded its model."""

    is_alive, pid = True, 0

    async def end(self) -> None:
        self.is_alive = False


@pytest.mark.parametrize("at_work", [0, 2])
async def test_loads_keep_within_the_cores(small: Path, monkeypatch: pytest.MonkeyPatch, at_work: int) -> None:
    """Beside each other, and beside an answer that another stage writes meanwhile."""
    cores, loading, most = 4, 0, 0

    async def load(model: Any) -> Any:
        nonlocal loading, most
        loading += model.threads
        most = max(most, loading)
        await asyncio.sleep(0.01)
        loading -= model.threads
        return IdleChild()

    monkeypatch.setattr(llama, "start_child", load)
    stages = [stage(small, f"s{threads}-{i}", threads=threads) for threads in (1, 2, 4) for i in range(3)]
    engine = LlamaEngine(tuple(stages), cores=cores)
    async with engine._budget.hold("at work", at_work):
        start = asyncio.create_task(engine.start())
        await asyncio.wait((start,), timeout=0.2)
        assert most == cores - at_work
    await start
    assert most == cores
    assert engine._budget.used == 0
    await engine.close()


async def test_a_load_does_not_wait_for_threads_that_its_caller_holds(
    model: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages need the only core, each to load and to answer."""
    stages = (stage(model), stage(small, "other"))
    engine = LlamaEngine(stages, cores=1)
    async with asyncio.timeout(20):
        found = await asyncio.gather(*(attempt(engine, where, request()) for where in stages * 3))
    assert [each.fault for each in found] == [None] * 6
    await engine.close()


async def test_loads_that_fail_are_limited(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    async def dies(_model: Any) -> Any:
        nonlocal begun
        begun += 1
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(llama, "start_child", dies)
    where = stage(small)
    engine = LlamaEngine((where,))
    faults = [(await attempt(engine, where, request())).fault for _ in range(llama.RESTARTS + 3)]
    assert begun == llama.RESTARTS + 1
    assert all(found is not None and found.kind == "crash" for found in faults)
    assert "temporarily unavailable" in str(faults[0])
    assert "left alone" in str(faults[-1])
    assert len(engine._hosts["small"]._deaths) == begun  # asking in vain does not prolong it
    await engine.close()


# ── files that cannot be used ────────────────────────────────────────────────


def no_gguf(folder: Path) -> Path:
    path = folder / "text.gguf"
    path.write_text("hello, I am no model")
    return path


def truncated(folder: Path) -> Path:
    path = write_gguf(folder / "half.gguf")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def duplicate_tokens(folder: Path) -> Path:
    tokens = [*SPECIALS, *byte_alphabet()]
    tokens[50] = tokens[51]
    return write_gguf(folder / "duplicates.gguf", tokens=tokens)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (no_gguf, "is no GGUF file"),
        (truncated, "not within the file bounds"),
        (duplicate_tokens, "SIGABRT"),
        (lambda folder: folder / "none.gguf", "No such file"),
        (lambda folder: folder, "Is a directory"),
    ],
)
async def test_bad_files(make: Any, told: str, tmp_path: Path, small: Path) -> None:
    bad = stage(make(tmp_path), "bad")
    engine = LlamaEngine((stage(small, "good"), bad))
    with pytest.raises(ModelFileError, match="'bad'") as caught:
        await engine.start()
    assert told in str(caught.value)
    assert bad.model in str(caught.value)
    assert engine.pid("good") is None
    lazy = LlamaEngine((bad,))
    found = await attempt(lazy, bad, request())
    assert found.fault is not None
    assert found.fault.kind == "crash"
    assert told in found.fault.message
    await lazy.close()


async def test_wrong_checksum(model: Path) -> None:
    with pytest.raises(ModelFileError, match="is not the one expected: its SHA-256 is"):
        await LlamaEngine((stage(model, sha256="0" * 64),)).start()


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    where = stage(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    await LlamaEngine((where,))._hosts["small"].check()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelFileError):
        await LlamaEngine((where,))._hosts["small"].check()


async def test_without_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[llama\]"):
        await LlamaEngine((stage(model),)).start()


async def test_an_extra_that_is_installed_but_broken(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('GLIBC_9.9 not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"installed but cannot be used: GLIBC_9\.9 not found"):
        await LlamaEngine((stage(model),)).start()


async def test_too_slow_to_load(model: Path) -> None:
    with pytest.raises(EngineError, match="load_timeout_s"):
        await LlamaEngine((stage(model, load_timeout_s=0.01),)).start()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"thread": 1}, "did you mean 'threads'"),
        ({"threads": 0}, "threads: must be a whole number"),
        ({"threads": 1.5}, "threads: must be a whole number"),
        ({"n_parallel": 999}, "from 1 to 256"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"base_url": "http://x"}, "no such option"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match="stage 'small'") as caught:
        LlamaEngine((Stage("small", "llama", "/x.gguf", options=options),))
    assert told in str(caught.value)


# ── speculation ──────────────────────────────────────────────────────────────

NANO = Path(llama.__file__).parents[1] / "presets" / "nano"
PROMPTS = [task.prompt for task in nano.generate("judged", 100, seed=3)]


def preset(name: str, **options: Any) -> Stage:
    return stage(NANO / f"nano-{name}.gguf", name, 512, **options)


async def written(engine: LlamaEngine, where: Stage, prompts: list[str] = PROMPTS) -> list[Attempt]:
    return [await attempt(engine, where, request(prompt, max_tokens=48)) for prompt in prompts]


async def test_drafting_changes_no_greedy_text() -> None:
    below, plain = preset("small"), preset("medium")
    async with running(plain) as engine:
        texts = [each.text for each in await written(engine, plain)]
        assert engine.speculates("medium") is False
    for speculation, name in (
        ({"draft": "small", "n_max": 8, "p_min": 0.6}, "small"),
        ({"draft": "ngram", "n_match": 2, "n_max": 4}, "ngram"),
    ):
        drafting = preset("medium", speculation=speculation)
        async with running(below, drafting) as engine:
            made = await written(engine, drafting)
            assert [each.text for each in made] == texts
            told = [each.speculation for each in made]
            assert all(each and each.chain == (name, "medium") for each in told)
            pairs = [pair for each in told if each for pair in each.pairs]
            assert {(pair.drafter, pair.target) for pair in pairs} == {(name, "medium")}
            assert sum(pair.drafted for pair in pairs) >= sum(pair.accepted for pair in pairs) > 0
            streamed = await attempt(engine, drafting, request(PROMPTS[0], max_tokens=48, stream=True))
            assert (streamed.text, streamed.speculation) == (texts[0], told[0])
            assert engine.speculates("medium") is True
            (unasked,) = await written(engine, below, PROMPTS[:1])
            assert unasked.speculation is None


async def test_a_drafter_with_other_tokens_is_refused_at_start(model: Path, tmp_path: Path) -> None:
    tokens = [*SPECIALS, *reversed(byte_alphabet())]
    stranger = stage(write_gguf(tmp_path / "stranger.gguf", tokens=tokens), "stranger")
    engine = LlamaEngine((stranger, stage(model, "large", speculation={"draft": "stranger"})))
    with pytest.raises(EngineError, match=r"'stranger' cannot draft for it, .* different vocabularies: token 3 is"):
        await engine.start()
    assert [engine.pid(name) for name in ("stranger", "large")] == [None, None]


def tried(engine: LlamaEngine) -> tuple[Trial, int]:
    """The trial of the stage `small`, and the process that drafts in it."""
    found = engine._trials["small"]
    assert found.host.child is not None
    return found.trial, found.host.child.pid


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not is_running(pid):
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("faster", [False, True])
async def test_auto_keeps_what_was_measured_faster(model: Path, caplog: pytest.LogCaptureFixture, faster: bool) -> None:
    where = stage(model, speculation="auto")
    caplog.set_level("INFO", "stepladder.engines.llama")
    async with running(where) as engine:
        plain, (trial, drafting) = engine.pid("small"), tried(engine)
        assert engine.speculates("small") is None
        made = [await attempt(engine, where, request()) for _ in range(4)]
        assert [each.speculation is not None for each in made] == [False, True] * 2
        assert len({each.text for each in made}) == 1
        assert (trial.plain.count, trial.drafting.count, trial.plain.tokens) == (2, 2, 16)
        assert 0 < trial.drafting.seconds < sum(each.seconds for each in made)
        for number in range(64):  # as if the next answers had been so much faster or slower
            for side in (False, True):
                trial.observe(drafting=side, tokens=100, seconds=1 + number / 640 + (side != faster) * 9)
        last = await attempt(engine, where, request())
        assert last.text == made[0].text
        assert engine.speculates("small") is faster
        assert engine.pid("small") == (drafting if faster else plain)
        assert await gone(plain if faster else drafting)
        assert f"stage 'small': drafting by ngram is {'on' if faster else 'off'}: " in caplog.text
        assert (await attempt(engine, where, request())).speculation == (made[1].speculation if faster else None)
        for _ in range(3):
            await attempt(engine, where, request())
        assert engine.expected_cost(where, 10, 10) is not None
    assert not any(is_running(pid) for pid in (plain, drafting))


async def test_the_last_user_of_the_loser_is_not_cut_off(model: Path) -> None:
    where = stage(model, speculation="auto")
    async with running(where) as engine:
        trial, drafting = tried(engine)
        await attempt(engine, where, request())
        async with aclosing(engine.generate(LONG, where)) as events:
            await anext(events)  # the second answer is the drafting one's
            trial.give_up("on purpose")
            await attempt(engine, where, request())
            assert engine.speculates("small") is False
            assert is_running(drafting)
            *_, last = [event async for event in events]
        assert isinstance(last, Attempt)
        assert last.fault is None
        assert await gone(drafting)


async def test_what_is_tried_out_costs_nobody_an_answer(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = llama.start_child
    fails = True

    async def start(wanted: llama.Model) -> llama.Child:
        if wanted.drafter is not None and fails:
            raise EngineError("no memory for it")
        return await real(wanted)

    monkeypatch.setattr(llama, "start_child", start)
    caplog.set_level("INFO", "stepladder.engines.llama")
    where = stage(model, speculation="auto")
    async with running(where) as engine:
        assert engine.speculates("small") is False
        assert "drafting by ngram is off: no memory for it" in caplog.text
        assert (await attempt(engine, where, request())).is_answer
    fails = False
    async with running(where) as engine:
        _, drafting = tried(engine)
        fails = True
        os.kill(drafting, signal.SIGKILL)
        assert await gone(drafting)
        made = [await attempt(engine, where, request()) for _ in range(4)]
        assert all(each.is_answer for each in made)
        assert engine.speculates("small") is False


async def test_a_drafting_process_that_dies_at_work_is_not_tried_again(model: Path) -> None:
    where = stage(model, speculation="auto")
    async with running(where) as engine:
        _, drafting = tried(engine)
        await attempt(engine, where, request())
        async with aclosing(engine.generate(LONG, where)) as events:
            await anext(events)
            os.kill(drafting, signal.SIGKILL)
            *_, last = [event async for event in events]
        assert isinstance(last, Attempt)
        assert last.fault is not None
        assert last.fault.kind == "crash"
        assert engine.speculates("small") is False
        assert (await attempt(engine, where, request())).is_answer


async def prepared(engine: LlamaEngine, where: Stage) -> None:
    """Wait for the trial that comes next, if one does."""
    if (coming := engine._to_come.get(where.name)) is not None:
        done, _ = await asyncio.wait((coming,), timeout=30)
        assert done


async def decide(engine: LlamaEngine, where: Stage, drafter: str, *, faster: bool) -> None:
    """Wait for a drafter's trial to begin, and end it as if its answers had been so much faster or slower."""
    await prepared(engine, where)
    found = engine._trials[where.name]
    assert (found.host.drafter, engine.speculates(where.name)) == (drafter, None)
    for number in range(64):
        for side in (False, True):
            found.trial.observe(drafting=side, tokens=100, seconds=1 + number / 640 + (side != faster) * 9)
    assert (await attempt(engine, where, request())).is_answer


@pytest.mark.parametrize(("ngram", "model"), [(False, True), (True, False), (False, False)])
async def test_auto_tries_a_model_after_the_ngrams_and_keeps_what_won(
    ngram: bool, model: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stepladder.engines.llama")
    small, medium = preset("small"), preset("medium", speculation="auto")
    async with running(small, medium) as engine:
        (plain,) = await written(engine, medium, PROMPTS[:1])
        await decide(engine, medium, "ngram", faster=ngram)
        assert engine.speculates("medium") is None
        await decide(engine, medium, "small", faster=model)
        await prepared(engine, medium)
        (last,) = await written(engine, medium, PROMPTS[:1])
        assert last.text == plain.text
        chain = ("small", "medium") if model else ("ngram", "medium") if ngram else None
        assert (last.speculation.chain if last.speculation else None) == chain
        assert engine.speculates("medium") is (ngram or model)
        assert [f"drafting by {name} is {'on' if on else 'off'}" in caplog.text
                for name, on in (("ngram", ngram), ("small", model))] == [True, True]  # fmt: skip
        pids = [engine.pid(name) for name in ("small", "medium")]
    assert not any(is_running(pid) for pid in pids if pid is not None)


async def test_a_model_that_has_no_room_or_cannot_draft_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", "stepladder.engines.llama")
    stranger = stage(write_gguf(tmp_path / "s.gguf", tokens=[*SPECIALS, *reversed(byte_alphabet())]), "stranger")
    small, medium = preset("small"), preset("medium", speculation="auto")

    def no_room(stage: str, path: str, drafter: Any, context: int) -> None:
        if drafter.name == "small":
            raise EngineError("no room")

    monkeypatch.setattr(llama, "check_room", no_room)
    async with running(stranger, small, medium) as engine:
        await decide(engine, medium, "ngram", faster=False)
        await prepared(engine, medium)
        assert engine.speculates("medium") is False
        assert "drafting by small is not tried: no room" in caplog.text
        assert re.search("drafting by stranger is not tried: .* different vocabularies", caplog.text)
        assert (await attempt(engine, medium, request())).is_answer


async def test_closing_calls_off_the_trial_that_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    began, children = asyncio.Event(), list[llama.Child]()
    real = llama.start_child

    async def start(wanted: llama.Model) -> llama.Child:
        if wanted.drafter is not None and wanted.drafter.path is not None:
            began.set()
            await asyncio.sleep(60)
        children.append(child := await real(wanted))
        return child

    monkeypatch.setattr(llama, "start_child", start)
    small, medium = preset("small"), preset("medium", speculation="auto")
    async with running(small, medium) as engine:
        await decide(engine, medium, "ngram", faster=False)
        await asyncio.wait_for(began.wait(), 30)
    assert not any(is_running(child.pid) for child in children)
    assert not engine._to_come
