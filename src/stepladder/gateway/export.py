"""GET /v1/decisions: stored traces as JSON lines, a page at a time from the store to the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf, isfinite
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Message, Send

from stepladder.contracts import TraceStore
from stepladder.errors import RequestError, TraceError, nearest
from stepladder.gateway.keys import moment
from stepladder.gateway.replies import WRITE_IDLE_S
from stepladder.gateway.report import bill, outcomes_body
from stepladder.gateway.watch import note_stalled
from stepladder.gateway.wire import dumps
from stepladder.traces.codec import encode
from stepladder.types import Outcome, Trace

log = logging.getLogger("stepladder.gateway")

LIMIT = 1000
MAX_LIMIT = 1_000_000
PAGE = 100

_LINES = ((b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which traces: behind number ``after``, made from ``since`` on and before ``until`` (seconds since the epoch).

    ``stage`` is the one whose answer was kept (None: any), ``caller`` whose requests alone are shown (None: all).
    """

    since: float = 0.0
    until: float = inf
    stage: str | None = None
    after: int = 0
    limit: int = LIMIT
    caller: str | None = None


def read_query(query: bytes, caller: str | None = None) -> Wanted:
    """What a query string asks for; raises RequestError that names the parameter, the value and what would be right."""
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _PARAMS:
            raise RequestError(f"there is no parameter '{name}'; {nearest(name, tuple(_PARAMS))}", param=name)
        key, read = _PARAMS[name]
        if key in found:
            raise RequestError(f"{name} is given twice", param=name)
        found[key] = read(name, text)
    return Wanted(**found, caller=caller)


def trace_body(trace: Trace, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """A stored trace as GET /v1/decisions/{id} shows it, with the outcomes that were reported for it."""
    return {"object": "stepladder.trace", **encode(trace), **bill(trace), "outcomes": outcomes_body(outcomes)}


def page(store: TraceStore, wanted: Wanted, after: int, limit: int) -> tuple[list[bytes], int | None]:
    """The next lines, and the number of the last trace that was looked at: None where there was none.

    Each line has a ``cursor``, from which an export that broke off goes on. Raises TraceError.
    """
    found = store.scan(after=after, since=wanted.since, until=wanted.until, stage=wanted.stage, limit=min(limit, PAGE))
    lines = [
        dumps({**trace_body(each.trace, store.outcomes(each.trace.id)), "cursor": str(each.seq)}) + b"\n"
        for each in found
        if wanted.caller in (None, each.trace.request.caller)
    ]
    return lines, found[-1].seq if found else None


def pages(store: TraceStore, wanted: Wanted) -> Iterator[list[bytes]]:
    """Pages of whole lines, until ``limit`` or until nothing more is stored; one may be empty. Raises TraceError."""
    after: int | None = wanted.after
    left = wanted.limit
    while left > 0 and after is not None:
        found, after = page(store, wanted, after, left)
        left -= len(found)
        yield found


async def lines(store: TraceStore, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """The pages that are not empty, each in one piece. Others do not wait for the disk."""
    found = pages(store, wanted)
    while (some := await asyncio.to_thread(next, found, None)) is not None:
        if some:
            yield b"".join(some)


@dataclass(frozen=True, slots=True)
class Lines:
    """The reply: what ``first`` holds and then the rest, sent as it is read.

    A reply that cannot be finished stays unfinished, so that its reader does not take it for all there is.
    """

    first: bytes
    rest: AsyncGenerator[bytes, None]
    write_idle_s: float = WRITE_IDLE_S

    async def __call__(self, send: Send) -> None:
        async with aclosing(self.rest):
            try:
                await self._send(send, {"type": "http.response.start", "status": 200, "headers": list(_LINES)})
                await self._send(send, {"type": "http.response.body", "body": self.first, "more_body": True})
                async for part in self.rest:
                    await self._send(send, {"type": "http.response.body", "body": part, "more_body": True})
                await self._send(send, {"type": "http.response.body", "body": b""})
            except TimeoutError:
                note_stalled()
                log.warning("a client took nothing of its export for %g s and was given up", self.write_idle_s)
            except TraceError as error:
                log.error("an export broke off: %s", error)  # noqa: TRY400 - the message says it all

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self.write_idle_s):
            await send(message)


async def export(store: TraceStore, wanted: Wanted, write_idle_s: float = WRITE_IDLE_S) -> Lines:
    """The reply to an export. Raises TraceError where not even its beginning can be read: nothing was sent then."""
    found = lines(store, wanted)
    return Lines(await anext(found, b""), found, write_idle_s)


# ── parameters ───────────────────────────────────────────────────────────────


def read_time(name: str, text: str) -> float:
    """Seconds since the epoch, from a number of them or an ISO 8601 date or time (UTC where it names no zone)."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso(name, text)
    if not isfinite(seconds):
        raise _not_a_time(name, text)
    return seconds


def _iso(name: str, text: str) -> float:
    for written in (text, text.replace(" ", "+")):  # a zone's + that was not encoded comes as a space
        with suppress(ValueError, OverflowError):
            return moment(datetime.fromisoformat(written))
    raise _not_a_time(name, text)


def _not_a_time(name: str, text: str) -> RequestError:
    told = f"{name} '{text[:60]}' is no time; give seconds since the epoch or a date such as 2026-11-23T12:00:00Z"
    return RequestError(told, param=name)


def read_count(name: str, text: str, most: int = MAX_LIMIT) -> int:
    """A whole number from 1 up."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
        raise RequestError(f"{name} '{text[:60]}' is no whole number from 1 to {most}", param=name)
    return int(text)


def _cursor(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(f"{name} '{text[:60]}' is none; take one from an exported line", param=name)
    return int(text)


def _stage(name: str, text: str) -> str:
    if not text:
        raise RequestError(f"{name} is empty; name a stage, or leave it out", param=name)
    return text


_PARAMS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "since": ("since", read_time),
    "until": ("until", read_time),
    "limit": ("limit", read_count),
    "stage": ("stage", _stage),
    "cursor": ("after", _cursor),
}
