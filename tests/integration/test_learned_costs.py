"""Prices learned from traces: the way that docs/concepts/costs.md shows, from a gateway's traffic to a decision."""

from __future__ import annotations

import asyncio

import pytest

from stepladder import config
from stepladder.build import build
from stepladder.costs.measured import fit_measured, save_timings, timing_rows
from stepladder.testing import make_request
from stepladder.traces.sqlite import SqliteTraceStore

STAGES = [
    {"name": "quick", "engine": "scripted", "model": "m", "cost": 1.0, "options": {"reply": "a b c", "delay_s": 0.1}},
    {"name": "slow", "engine": "scripted", "model": "m", "cost": 1.0, "options": {"reply": "a b c", "delay_s": 0.4}},
]


async def _traffic(router) -> None:
    for number in range(6):
        stage = "quick" if number % 2 else "slow"
        request = make_request(f"{'word ' * number}?", name=f"r{number}")
        dials = type(request.dials)(min_stage=stage, max_stage=stage)
        await router.answer(type(request)(request.id, request.messages, dials=dials))
    await router.close()


def test_from_traces_to_prices(tmp_path, monkeypatch):
    async def no_wait(seconds: float) -> None:
        """The scripted seconds are reported; nobody has to wait for them."""

    settings = config.parse({"stages": STAGES, "traces": {"path": "t.sqlite3"}}, folder=tmp_path)
    router = build(settings)
    for engine in set(router.parts.engines.values()):
        monkeypatch.setattr(engine, "_sleep", no_wait)
    asyncio.run(_traffic(router))

    store = SqliteTraceStore(tmp_path / "t.sqlite3")
    save_timings(fit_measured(timing_rows(store.read())), tmp_path / "costs.json")
    store.close()

    learned = {"model": "measured", "options": {"path": "costs.json"}}
    costs = build(config.parse({"stages": STAGES, "costs": learned}, folder=tmp_path)).parts.costs
    ladder = build(settings).parts.ladder
    quick, slow = (costs.expected(ladder[name], make_request()) for name in ("quick", "slow"))
    assert quick.resource == pytest.approx(1.0, rel=0.2)
    assert slow.resource / quick.resource == pytest.approx(4.0, rel=0.05)
