"""``send`` under uvicorn with one write where it makes two: each is a call of the system."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from starlette.types import Message


class Sending:
    """The ``send`` of one request: the head of a reply leaves together with what follows it, as ASGI allows.

    ``cycle`` is uvicorn's object for the request. What is written, and when it may be, stays uvicorn's own.
    """

    __slots__ = ("_cycle", "_head", "_send")

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._head: Message | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        head = self._head
        if message["type"] == "http.response.start" and not self._cycle.response_started:
            self._head = message
            return _DONE
        if head is None:
            return self._send(message)  # type: ignore[no-any-return]
        self._head = None
        return self._send_both(head, message)

    async def _send_both(self, head: Message, message: Message) -> None:
        cycle = self._cycle
        transport = cycle.transport
        if not cycle.flow.write_paused:  # else it waits in between
            cycle.transport = _Joined(transport)
        try:
            await self._send(head)
            await self._send(message)
        finally:
            joined, cycle.transport = cycle.transport, transport
            if joined is not transport:
                joined.flush()


class _Joined:
    """A transport that keeps what is written."""

    __slots__ = ("_pieces", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces = []


class _Done:
    """Nothing to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE = _Done()
