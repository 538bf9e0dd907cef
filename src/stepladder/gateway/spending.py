"""What callers have spent, kept in a small file so that a restart does not open their purses anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path

import orjson

from stepladder.errors import ConfigError, Problem
from stepladder.files import replace_file
from stepladder.gateway.limits import Purse, Quota

log = logging.getLogger("stepladder.gateway")

SAVE_S = 1.0
"""How long a change may wait before it is written."""

MODE = 0o600
FIELDS = ("spent", "since", "period")


class Spending:
    """Writes purses to a file, at most once in ``SAVE_S`` seconds and off the event loop.

    What was still reserved is written as spent. So a clean end forgets nothing; after a crash, requests that were
    under way at the last write count with what they were expected to cost, and what was settled within the last
    ``SAVE_S`` seconds (or since a write that failed, which is logged) with what had been reserved for it, or not at
    all. Raises ConfigError for a file that cannot be read: to begin from nothing would open every purse.
    """

    def __init__(self, path: Path, purses: Callable[[], Mapping[str, Purse]]) -> None:
        self._path = path
        self._purses = purses
        self._kept = _read(path)
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def purse(self, name: str, budget: Quota) -> Purse:
        """The purse of this caller, with what it had spent before."""
        spent, since, period = self._kept.get(name, (0.0, 0.0, ""))
        return Purse(budget, spent=spent, since=since) if period == budget.period else Purse(budget)

    def changed(self) -> None:
        """Something was spent or reserved: write it down soon."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SAVE_S, self._begin)

    async def close(self) -> None:
        """Write down everything now."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._writing is not None:
            await self._writing
        if self._purses():
            await self._write()

    def _begin(self) -> None:
        self._due = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        else:
            self.changed()  # the disk is slow: this one comes after

    async def _write(self) -> None:
        body = {name: dict(zip(FIELDS, kept, strict=True)) for name, kept in self._kept.items()}  # of revoked keys too
        body |= {
            name: {"spent": purse.spent + purse.reserved, "since": purse.since, "period": purse.quota.period}
            for name, purse in self._purses().items()
            if isfinite(purse.since)
        }
        try:
            await asyncio.to_thread(replace_file, self._path, orjson.dumps({"spent": body}), mode=MODE)
        except OSError as error:
            log.error("%s: what was spent cannot be written: %s", self._path, error)  # noqa: TRY400 - says it all


def _read(path: Path) -> dict[str, tuple[float, float, str]]:
    try:
        found = orjson.loads(path.read_bytes())["spent"]
        return {name: (float(each["spent"]), float(each["since"]), each["period"]) for name, each in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        told = f"cannot be read ({error!r}); mend it, or remove it to begin every budget anew"
        raise ConfigError(str(path), [Problem("file", told)]) from error
