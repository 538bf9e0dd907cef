from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.engines.threads import ThreadBudget, available_cores


async def work(budget: ThreadBudget, log: list[str], stage: str, threads: int, turns: int, *, name: str = "") -> None:
    async with budget.hold(stage, threads):
        assert 0 < budget.used <= budget.cores
        log.append(name or stage)
        for _ in range(turns):
            await asyncio.sleep(0)
            assert 0 < budget.used <= budget.cores


JOBS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(1, 6),  # threads asked for
        st.integers(0, 4),  # turns of the loop at work
        st.integers(0, 8),  # turns before it starts
        st.none() | st.integers(0, 8),  # turns until it is cancelled
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(JOBS, st.integers(1, 4))
def test_never_above_the_cores_and_nothing_leaks(jobs: Sequence[tuple[str, int, int, int, int | None]], n: int) -> None:
    async def one(budget: ThreadBudget, log: list[str], job: tuple[str, int, int, int, int | None]) -> None:
        stage, threads, turns, before, until_cancel = job
        for _ in range(before):
            await asyncio.sleep(0)
        task = asyncio.create_task(work(budget, log, stage, threads, turns))
        if until_cancel is not None:
            for _ in range(until_cancel):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() or task.exception() is None

    async def run() -> None:
        budget, log = ThreadBudget(n), list[str]()
        async with asyncio.timeout(5):
            await asyncio.gather(*(one(budget, log, job) for job in jobs))
        assert len(log) >= sum(job[4] is None for job in jobs)
        assert budget.used == 0
        async with asyncio.timeout(1), budget.hold("last", n):
            assert budget.used == n

    asyncio.run(run())


async def test_a_stage_shares_its_threads() -> None:
    budget = ThreadBudget(2)
    async with budget.hold("a", 2), budget.hold("a", 2):
        assert budget.used == 2
    assert budget.used == 0


async def test_a_busy_stage_cannot_starve_another() -> None:
    budget, log = ThreadBudget(2), list[str]()
    async with asyncio.TaskGroup() as group:
        group.create_task(work(budget, log, "a", 2, 5, name="a1"))
        await asyncio.sleep(0)
        group.create_task(work(budget, log, "a", 2, 1, name="a2"))
        await asyncio.sleep(0)
        group.create_task(work(budget, log, "b", 1, 1, name="b1"))
        await asyncio.sleep(0)
        group.create_task(work(budget, log, "a", 2, 1, name="a3"))
    assert log == ["a1", "a2", "b1", "a3"]


async def test_a_cancelled_head_lets_those_behind_it_pass() -> None:
    budget, log = ThreadBudget(3), list[str]()
    async with budget.hold("a", 2):
        big = asyncio.create_task(work(budget, log, "b", 3, 0))
        await asyncio.sleep(0)
        small = asyncio.create_task(work(budget, log, "c", 1, 0))
        await asyncio.sleep(0)
        big.cancel()
        await asyncio.wait_for(small, 1)
        with pytest.raises(asyncio.CancelledError):
            await big
    assert log == ["c"]


async def test_more_threads_than_cores_are_cut() -> None:
    budget = ThreadBudget(2)
    async with budget.hold("a", 64):
        assert budget.used == 2


def test_available_cores() -> None:
    assert available_cores() >= 1
