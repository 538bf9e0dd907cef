"""Ask stages for answers to graded tasks, and grade them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stepladder.contracts import Engine
from stepladder.errors import EngineError
from stepladder.evaluate.graders import grade
from stepladder.evaluate.tasks import Task
from stepladder.types import Attempt, Request, Stage

GREEDY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 96}


class Measured(NamedTuple):
    """One graded answer; ``quality`` in [0, 1]."""

    task: Task
    stage: str
    quality: float
    attempt: Attempt


async def measure(
    engine: Engine,
    stage: Stage,
    tasks: Sequence[Task],
    *,
    at_once: int = 1,
    params: Mapping[str, Any] = GREEDY,
    tick: Callable[[], None] = lambda: None,
) -> list[Measured]:
    """One stage on every task, in the tasks' order; ``tick`` is called after each.

    Raises EngineError at the first attempt that fails: a failure is no measured quality.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(task: Task) -> Measured:
        async with gate:
            attempt = await _ask(engine, stage, task, params)
        tick()
        return Measured(task, stage.name, grade(task.grader, attempt.text, task.answer), attempt)

    return list(await asyncio.gather(*(one(task) for task in tasks)))


async def _ask(engine: Engine, stage: Stage, task: Task, params: Mapping[str, Any]) -> Attempt:
    request = Request(task.query_id, messages=({"role": "user", "content": task.prompt},), params=params)
    async for event in engine.generate(request, stage):
        if isinstance(event, Attempt):
            if event.fault is not None:
                raise EngineError(f"stage '{stage.name}' failed at {task.query_id}: {event.fault.message}")
            return event
    raise EngineError(f"stage '{stage.name}' ended without an attempt at {task.query_id}")
