"""Replacing what is served while it is served: who answers whom, what is started, what is closed and when."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway_fakes import FakeEngine, Got, attempt, get, post, world
from stepladder.build import build
from stepladder.cli import options
from stepladder.cli.serve import Kitchen, unread
from stepladder.config import Settings, parse
from stepladder.errors import ConfigError, EngineError, Problem
from stepladder.gateway.app import create_app
from stepladder.gateway.keys import add_key
from stepladder.gateway.reload import House, Houses
from stepladder.gateway.watch import Watch
from stepladder.router import Router
from stepladder.types import EngineEvent, Request, Stage

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2+2?"}]}


class Lively(FakeEngine):
    """Says whose it is; waits where it is told to; may be unable to start."""

    def __init__(self, name: str, *, broken: bool = False) -> None:
        super().__init__(self.says)
        self.name = name
        self.broken = broken
        self.hold: asyncio.Event | None = None

    async def says(self, request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        assert self.started > self.closed, f"{self.name} was asked while it did not run"
        if self.hold is not None:
            await self.hold.wait()
            assert self.started > self.closed, f"{self.name} was closed under a request"
        yield attempt(stage.name, self.name)

    async def start(self) -> None:
        await super().start()
        if self.broken:
            raise EngineError(f"{self.name} cannot start")


def served(engine: FakeEngine, like: Router | None = None) -> House:
    """A router all of whose stages are this engine's; with the store of another one."""
    parts = world().router.parts if like is None else like.parts
    router = Router(replace(parts, engines=dict.fromkeys(parts.ladder.names, engine)))
    return House(router, create_app(router, watch=WATCH[0]))


WATCH: list[Watch] = []


@pytest.fixture(autouse=True)
def _watch() -> None:
    WATCH[:] = [Watch()]


@asynccontextmanager
async def opened(first: FakeEngine, make: Callable[[Router], House]) -> AsyncGenerator[Houses, None]:
    houses = Houses(served(first), make, WATCH[0])
    async with asyncio.timeout(10), houses.lifespan():
        yield houses


async def said(houses: Houses, body: Any = QUESTION) -> str:
    got: Got = await post(houses.turnstile, CHAT, body)  # type: ignore[arg-type]
    return str(got.json["choices"][0]["message"]["content"])


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


def to(engine: FakeEngine) -> Callable[[Router], House]:
    return lambda old: served(engine, old)


async def test_before_it_is_open_it_says_so() -> None:
    houses = Houses(served(Lively("old")), to(Lively("new")), WATCH[0])
    app: Any = houses.turnstile
    assert (await get(app, "/health")).json == {"status": "ok"}
    ready = await get(app, "/ready")
    assert (ready.status, ready.json) == (503, {"status": "starting"})
    refused = await post(app, CHAT, QUESTION)
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "starting", "1")
    assert WATCH[0].state == "starting"


async def test_new_requests_get_the_new_and_old_ones_end_with_the_old() -> None:
    old, new = Lively("old"), Lively("new")
    async with opened(old, to(new)) as houses:
        assert WATCH[0].state == "serving"
        old.hold = asyncio.Event()
        waiting = [asyncio.create_task(said(houses)) for _ in range(3)]
        await old.under_way.wait()
        assert await houses.reload()
        assert await said(houses) == "new"
        assert (old.started, old.closed) == (1, 0)
        old.hold.set()
        assert await asyncio.gather(*waiting) == ["old"] * 3
        await until(lambda: old.closed == 1)
        assert await said(houses) == "new"
        assert new.closed == 0
    assert (old.closed, new.closed) == (1, 1)


async def test_an_engine_that_did_not_change_is_neither_started_nor_closed() -> None:
    same = Lively("same")
    async with opened(same, to(same)) as houses:
        for _ in range(3):
            assert await houses.reload()
            assert await said(houses) == "same"
        await asyncio.sleep(0.01)
        assert (same.started, same.closed) == (1, 0)
    assert (same.started, same.closed) == (1, 1)


async def test_an_engine_lives_as_long_as_anybody_who_was_served_by_it() -> None:
    """The first and the second house share it, the third does not; a request is still in the second."""
    shared, other = Lively("shared"), Lively("other")
    plan = iter([shared, other])
    async with opened(shared, lambda old: served(next(plan), old)) as houses:
        await houses.reload()
        shared.hold = asyncio.Event()
        waiting = asyncio.create_task(said(houses))
        await shared.under_way.wait()
        await houses.reload()
        await asyncio.sleep(0.01)
        assert (await said(houses), shared.closed) == ("other", 0)
        shared.hold.set()
        assert await waiting == "shared"
        await asyncio.sleep(0.01)
        assert shared.closed == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("ladder.toml", [Problem("policy.name", "no such part 'x'", 3)]), "line 3: policy.name: no such"),
        (OSError(2, "gone"), "gone"),
        (RuntimeError("a plug-in's bug"), "RuntimeError: a plug-in's bug"),
    ],
)
async def test_what_cannot_be_used_changes_nothing(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = Lively("old")

    def make(_: Router) -> House:
        raise error

    async with opened(old, make) as houses:
        assert not await houses.reload()
        assert await said(houses) == "old"
    assert told in caplog.text
    assert WATCH[0].metrics.reloads.get(("refused",)) == 1


async def test_an_engine_that_cannot_start_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    old, well, broken = Lively("old"), Lively("well"), Lively("broken", broken=True)

    def make(before: Router) -> House:
        router = served(well, before).router
        engines = {"small": well, "medium": broken, "large": broken}
        router = Router(replace(router.parts, engines=engines))
        return House(router, create_app(router, watch=WATCH[0]))

    async with opened(old, make) as houses:
        assert not await houses.reload()
        assert (await said(houses), old.closed) == ("old", 0)
        assert (well.started, well.closed) == (1, 1)
    assert "broken cannot start" in caplog.text
    assert old.closed == 1


async def test_what_is_shared_changes_last_and_may_still_refuse(caplog: pytest.LogCaptureFixture) -> None:
    old, new = Lively("old"), Lively("new")
    seen: list[tuple[int, str]] = []

    def make(before: Router) -> House:
        def take_over() -> None:
            seen.append((new.started, "first" if not seen else "again"))
            if len(seen) == 1:
                raise ConfigError("keys.toml", [Problem("stages", "no stage 'low'")])

        house = served(new, before)
        return House(house.router, house.app, take_over)

    async with opened(old, make) as houses:
        assert not await houses.reload()
        assert (await said(houses), old.closed) == ("old", 0)
        assert (new.started, new.closed) == (1, 1)
        assert await houses.reload()
        assert await said(houses) == "new"
    assert seen == [(1, "first"), (2, "again")]
    assert "no stage 'low'" in caplog.text


async def test_a_house_that_is_never_entered_leaves_the_gate_as_it_is(tmp_path: Path) -> None:
    """What was counted for a key goes on, whichever file of keys was asked for in between."""
    key, other = (
        add_key(tmp_path / name, "a", {"rate": "1/hour"}, now=0.0, chance=os.urandom) for name in ("k.toml", "o.toml")
    )
    ladder = tmp_path / "ladder.toml"

    def says(keys: str, stage: str) -> None:
        text = f'[[stages]]\nname = "{stage}"\nengine = "scripted"\nmodel = "m"\ncost = 1.0\n'
        ladder.write_text(f'{text}[gateway]\nkeys = "{keys}"\n', "utf-8")

    async def status(house: House, key: str) -> int:
        return (await post(house, CHAT, QUESTION, {"authorization": f"Bearer {key}"})).status  # type: ignore[arg-type]

    says("k.toml", "low")
    args = argparse.Namespace(ladder=str(ladder), overrides=[])
    kitchen = Kitchen(args, options.read_settings(args), WATCH[0])
    first = kitchen.first()
    first.take_over()
    assert [await status(first, key) for _ in range(2)] == [200, 429]
    says("o.toml", "high")
    refused = kitchen.again(first.router)
    says("k.toml", "low")
    again = kitchen.again(first.router)
    again.take_over()
    assert [await status(again, key), await status(refused, other)] == [429, 200]


async def test_a_first_start_that_fails_leaves_nothing_running() -> None:
    broken = Lively("broken", broken=True)
    houses = Houses(served(broken), to(broken), WATCH[0])
    store = houses._first.router.parts.store
    with pytest.raises(EngineError, match="broken cannot start"):
        async with houses.lifespan():
            pytest.fail("it was opened")
    assert store.closed == 1  # type: ignore[attr-defined]


async def test_asked_twice_it_reloads_once_more_at_the_most(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stepladder")
    made = []

    def make(old: Router) -> House:
        made.append(Lively(str(len(made))))
        return served(made[-1], old)

    async with opened(Lively("old"), make) as houses:
        for _ in range(5):
            houses.ask_reload()
        await until(lambda: made and made[0].started == 1)
        await asyncio.sleep(0.05)
        assert len(made) == 1
        houses.ask_reload()
        await until(lambda: len(made) == 2 and made[1].started == 1)
        assert await said(houses) == "1"
    assert [(each.started, each.closed) for each in made] == [(1, 1), (1, 1)]
    assert "0 of 1 engines go on as they are" in caplog.text


async def test_an_engine_that_cannot_be_closed_keeps_nothing_else_open(caplog: pytest.LogCaptureFixture) -> None:
    old, new = Lively("old"), Lively("new")
    tries = []

    async def close() -> None:
        tries.append("close")
        raise RuntimeError("it will not go")

    old.close = close  # type: ignore[method-assign]
    store: Any = None
    with pytest.raises(RuntimeError, match="it will not go"):  # noqa: PT012 - it is the block's end that raises
        async with opened(old, to(new)) as houses:
            await houses.reload()
            await until(lambda: tries)
            assert await said(houses) == "new"
            store = houses.now.router.parts.store
    assert "could not be closed" in caplog.text
    assert (len(tries), new.closed, store.closed) == (2, 1, 1)


async def test_the_end_waits_for_nobody_who_never_leaves() -> None:
    """Requests that the server gave up on do not keep the engines of an old house from being closed."""
    old, new = Lively("old"), Lively("new")
    async with opened(old, to(new)) as houses:
        old.hold = asyncio.Event()
        waiting = asyncio.create_task(said(houses))
        await old.under_way.wait()
        await houses.reload()
    assert (old.closed, new.closed) == (1, 1)
    waiting.cancel()


async def test_the_same_store_goes_on_and_is_closed_at_the_end() -> None:
    async with opened(Lively("old"), to(Lively("new"))) as houses:
        store: Any = houses.now.router.parts.store
        await said(houses)
        await houses.reload()
        await said(houses)
        assert (len(store.traces), store.closed) == (2, 0)
    assert store.closed == 1


# ── what is taken over ───────────────────────────────────────────────────────


def settings(stages: list[dict[str, Any]], **more: Any) -> Settings:
    usual = [{"engine": "openai", "base_url": "http://127.0.0.1:9/v1", "cost": 1.0, **stage} for stage in stages]
    return parse({"stages": usual, **more})


LOW, HIGH = {"name": "low", "model": "a"}, {"name": "high", "model": "b", "cost": 2.0}


def test_a_new_price_keeps_the_engine_and_what_is_known_of_its_stages() -> None:
    before = build(settings([LOW, HIGH]))
    after = build(settings([LOW, {**HIGH, "cost": 3.0, "capabilities": ["stream", "tools"]}]), reuse=before)
    assert after.parts.engines == before.parts.engines
    assert after.parts.store is before.parts.store
    assert after.parts.conversations is before.parts.conversations
    assert [stage.cost for stage in after.parts.ladder.stages] == [1.0, 3.0]
    assert after.parts.guard is not before.parts.guard
    assert after.parts.guard._gates == before.parts.guard._gates


@pytest.mark.parametrize("change", [{"model": "c"}, {"base_url": "http://127.0.0.1:8/v1"}, {"max_concurrency": 3}])
def test_another_server_needs_another_engine(change: dict[str, Any]) -> None:
    before = build(settings([LOW, HIGH]))
    after = build(settings([LOW, {**HIGH, **change}]), reuse=before)
    assert after.parts.engines["high"] is not before.parts.engines["high"]
    assert after.parts.guard._gates["high"] is not before.parts.guard._gates["high"]


def test_engines_are_taken_over_one_by_one() -> None:
    scripted = {"name": "mid", "model": "m", "engine": "scripted", "base_url": None, "cost": 1.5}
    before = build(settings([LOW, scripted, HIGH]))
    after = build(settings([LOW, {**scripted, "options": {"reply": "new"}}, HIGH]), reuse=before)
    same = {name: after.parts.engines[name] is engine for name, engine in before.parts.engines.items()}
    assert same == {"low": True, "mid": False, "high": True}


def test_other_limits_make_another_gate() -> None:
    before = build(settings([LOW, HIGH]))
    after = build(settings([{**LOW, "breaker_failures": 3}, HIGH]), reuse=before)
    old, new = before.parts.guard._gates, after.parts.guard._gates
    assert {name: new[name] is old[name] for name in new} == {"low": False, "high": True}


def test_what_a_reload_does_not_read_is_named(tmp_path: Path) -> None:
    before = settings([LOW], gateway={"port": 1, "model_name": "a"})
    after = settings([LOW], gateway={"port": 2, "model_name": "b", "log": "json"}, traces={"path": str(tmp_path)})
    assert list(unread(before, after)) == ["gateway.port", "gateway.log", "traces.path"]
    assert list(unread(before, before)) == []
