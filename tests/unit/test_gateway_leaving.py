"""Work for a client ends when it leaves, whoever tells of it: a server that knows, or ASGI's ``receive``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from stepladder.gateway.leaving import Leaving, until_left, while_connected


class Reader:
    """What a server reads from; it begins as paused."""

    is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Told:
    """A client whose server tells directly."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.leaving = Leaving(self.reader)

    def serve(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, bool]:
        return until_left(self.leaving, work)

    def leave(self) -> None:
        self.leaving.tell()


class Asked:
    """A client of any ASGI server."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def serve(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, bool]:
        return while_connected(self._receive, work)

    def leave(self) -> None:
        self.gone.set()

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


Client = Told | Asked
both = pytest.mark.parametrize("make", [Told, Asked])


class Work:
    """Never done."""

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what closes may wait
            self.ended.set()


@both
async def test_work_ends_when_the_client_leaves(make: Callable[[], Client]) -> None:
    client, work = make(), Work()
    task = asyncio.create_task(client.serve(work()))
    await work.begun.wait()
    client.leave()
    assert await task is False
    assert work.ended.is_set()
    assert not task.cancelling()


@both
async def test_work_that_is_done_is_not_disturbed(make: Callable[[], Client]) -> None:
    client = make()

    async def work() -> None:
        await asyncio.sleep(0)

    assert await client.serve(work()) is True
    client.leave()
    await asyncio.sleep(0)


@both
async def test_being_cancelled_oneself_is_passed_on(make: Callable[[], Client]) -> None:
    client, work = make(), Work()
    task = asyncio.create_task(client.serve(work()))
    await work.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()


@both
async def test_what_work_raises_is_raised(make: Callable[[], Client]) -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await make().serve(work())


@both
async def test_nothing_is_left_running(make: Callable[[], Client]) -> None:
    before, client = asyncio.all_tasks(), make()
    await client.serve(asyncio.sleep(0))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_server_that_tells_twice_cancels_once() -> None:
    client, work = Told(), Work()
    task = asyncio.create_task(client.serve(work()))
    await work.begun.wait()
    client.leave()
    client.leave()
    assert await task is False
    assert work.ended.is_set()


async def test_a_server_that_ends_while_the_client_leaves_ends_the_work_too() -> None:
    client, work = Told(), Work()
    task = asyncio.create_task(client.serve(work()))
    await work.begun.wait()
    client.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_has_left_already_ends_the_work_where_it_first_waits() -> None:
    client, work = Told(), Work()
    client.leave()
    assert await asyncio.create_task(client.serve(work())) is False
    assert work.ended.is_set()


async def test_the_client_is_read_from_while_there_is_work() -> None:
    """Or nobody would see it leave: servers stop reading where a body comes faster than it is taken."""
    client = Told()

    async def work() -> None:
        assert not client.reader.is_paused

    assert await client.serve(work())
