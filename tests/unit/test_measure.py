"""Measuring a stage on graded tasks."""

from __future__ import annotations

import pytest

from stepladder.engines.scripted import ScriptedEngine
from stepladder.errors import EngineError
from stepladder.evaluate.measure import measure
from stepladder.evaluate.tasks import Task
from stepladder.testing import make_ladder
from stepladder.types import Fault

TASKS = [Task(f"q{n}", "sums", "simple", f"{n}+1", str(n + 1), "numeric", f"g{n}", "train") for n in range(20)]


@pytest.mark.parametrize("at_once", [1, 7])
async def test_answers_come_graded_and_in_order(at_once):
    ladder = make_ladder("a")
    ticks: list[int] = []
    engine = ScriptedEngine(ladder.stages, lambda stage, request: "3")
    found = await measure(engine, ladder["a"], TASKS, at_once=at_once, tick=lambda: ticks.append(1))
    assert [m.task for m in found] == TASKS
    assert [m.quality for m in found] == [float(n + 1 == 3) for n in range(20)]
    assert len(ticks) == 20


async def test_a_failure_is_no_measured_quality():
    ladder = make_ladder("a")
    engine = ScriptedEngine(ladder.stages, {"a": Fault("server", "down")})
    with pytest.raises(EngineError, match="stage 'a' failed at q0: down"):
        await measure(engine, ladder["a"], TASKS)
