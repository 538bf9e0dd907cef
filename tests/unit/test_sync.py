"""The synchronous wrapper: it answers, it can be interrupted, and it closes in order whatever is under way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import EngineError
from stepladder.policies.greedy import GreedyPolicy
from stepladder.router import Parts, Router
from stepladder.sync import Stepladder
from stepladder.testing import FakeCosts, FakeFeaturizer, FakePredictor, MemoryTraceStore, make_ladder
from stepladder.types import Trace


class Pause:
    """A sleep that lasts until it is cancelled, and then a little longer, as a model takes to let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()

    async def __call__(self, seconds: float) -> None:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)


def made(pause: Pause | None = None) -> Stepladder:
    ladder = make_ladder()
    delay = {} if pause is None else {"delay_s": 1.0, "sleep": pause}
    engine = ScriptedEngine(ladder.stages, dict.fromkeys(ladder.names, "Four."), **delay)
    parts = Parts(
        ladder=ladder,
        engines=dict.fromkeys(ladder.names, engine),
        featurizer=FakeFeaturizer(),
        predictor=FakePredictor(dict.fromkeys(ladder.names, 0.5)),
        costs=FakeCosts({name: float(index + 1) for index, name in enumerate(ladder.names)}),
        policies={"route": GreedyPolicy()},
        store=MemoryTraceStore(),
        lam=1.0,
    )
    return Stepladder(Router(parts))


def interrupt_main(pause: Pause) -> None:
    """Ctrl-C once the work is under way: a real signal, since only that wakes a thread that waits for a lock."""
    assert pause.entered.wait(5)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def stored(ladder: Stepladder) -> list[Trace]:
    return list(ladder.router.parts.store.read())


@pytest.fixture
def pause() -> Pause:
    return Pause()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made_pool:
        yield made_pool


def test_it_answers_from_many_threads(pool: ThreadPoolExecutor) -> None:
    with made() as ladder:
        answers = list(pool.map(ladder.ask, ["What is 2+2?"] * 20))
    assert {answer.text for answer in answers} == {"Four."}
    assert len(stored(ladder)) == 20


@pytest.fixture
def _sigint() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where whoever runs the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_ctrl_c_ends_the_work_and_leaves_its_trace(pause: Pause, pool: ThreadPoolExecutor) -> None:
    ladder = made(pause)
    interrupted = pool.submit(interrupt_main, pause)
    with pytest.raises(KeyboardInterrupt):
        ladder.ask("What is 2+2?")
    interrupted.result()
    assert [trace.fault and trace.fault.kind for trace in stored(ladder)] == ["cancelled"]
    ladder.close()


def test_closing_ends_what_others_ask(pause: Pause, pool: ThreadPoolExecutor) -> None:
    ladder = made(pause)
    asked = [pool.submit(ladder.ask, "What is 2+2?") for _ in range(3)]
    assert pause.entered.wait(5)
    ladder.close()
    for each in asked:
        with pytest.raises(EngineError, match="closed"):
            each.result(5)
    assert {trace.fault and trace.fault.kind for trace in stored(ladder)} == {"cancelled"}
    assert not ladder._thread.is_alive()


def test_asking_after_close() -> None:
    ladder = made()
    ladder.close()
    ladder.close()
    with pytest.raises(EngineError, match="this ladder was closed"):
        ladder.ask("What is 2+2?")
    with pytest.raises(EngineError, match="this ladder was closed"):
        ladder.start()


def test_a_router_that_cannot_close_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = made()

    async def cannot() -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(ladder.router, "close", cannot)
    with pytest.raises(OSError, match="the disk is gone"):
        ladder.close()
    assert not ladder._thread.is_alive()
    assert ladder._loop.is_closed()


def test_what_an_engine_left_running_ends_with_it() -> None:
    ladder = made()
    ended = threading.Event()

    async def leave() -> None:
        async def left() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        ladder._left = asyncio.create_task(left())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    ladder._run(leave())
    ladder.close()
    assert ended.is_set()


SCRIPT = """
import signal, sys, threading
sys.path[:0] = {path!r}
from test_sync import Pause, interrupt_main, made
signal.signal(signal.SIGINT, signal.default_int_handler)
pause = Pause()
ladder = made(pause)
threading.Thread(target=interrupt_main, args=[pause], daemon=True).start()
try:
    ladder.ask("What is 2+2?")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_script_that_is_interrupted_ends_without_complaints() -> None:
    path = [*sys.path, __file__.rpartition("/")[0]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(path=path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)
