"""Answers from a script: for tests, examples and dry runs. No model, no chance, no clock."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from stepladder.engines.options import Options
from stepladder.errors import EngineError, UsageError, nearest
from stepladder.types import Attempt, Capability, Delta, EngineCost, EngineEvent, Fault, Request, Stage, Usage

Line = str | Attempt | Fault | Sequence[str | Fault]
"""A text, a whole attempt, a fault, or pieces of a text in the order they are streamed; a fault among them ends it."""

Script = Mapping[str, Line] | Callable[[str, Request], Line]
"""What each stage says: by stage name, or a function of (stage name, request)."""

Sleep = Callable[[float], Awaitable[None]]


class ScriptedEngine:
    """Says what its script says; without one it echoes the request's text.

    ``delay_s`` passes on ``sleep`` before each answer and is the seconds that its attempts report. Tokens are counted
    as words. ``calls`` keeps (stage name, request, draft) of every call in order. A request with ``stream`` set gets
    its pieces as deltas. Options of a stage: ``reply`` (a fixed text, where the script is silent) and ``delay_s``.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        script: Script | None = None,
        *,
        delay_s: float = 0.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.calls: list[tuple[str, Request, Attempt | None]] = []
        self._replies: dict[str, str] = {}
        self._delays: dict[str, float] = {}
        self._script = script
        self._sleep = sleep
        self._closed = False
        for stage in stages:
            self._read_options(stage, delay_s)
        if isinstance(script, Mapping):
            _check_names(script, tuple(self._delays))

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured."""
        return stage.capabilities

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """The stage's delay, None where it has none."""
        delay = self._delays[stage.name]
        return EngineCost(delay, delay * stage.gpus) if delay else None

    async def start(self) -> None:
        """Nothing to start."""
        self._closed = False

    async def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Say the stage's line. Raises EngineError after ``close`` only."""
        if self._closed:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        self.calls.append((stage.name, request, draft))
        attempt, pieces = self._said(stage.name, request)
        delay = self._delays[stage.name]
        if delay:
            await self._sleep(delay)
        if request.params.get("stream"):
            for piece in filter(None, pieces):
                attempt = replace(attempt, first_token_s=attempt.seconds)
                yield Delta(piece)
        yield attempt

    def _said(self, stage: str, request: Request) -> tuple[Attempt, list[str]]:
        """The stage's line as an attempt and the pieces it streams in."""
        line = self._line(stage, request)
        if isinstance(line, Attempt):
            return line, _words(line.text)
        if isinstance(line, str | Fault):
            line = _words(line) if isinstance(line, str) else [line]
        pieces: list[str] = []
        for part in line:
            if isinstance(part, Fault):
                return self._attempt(stage, request, pieces, part), pieces
            pieces.append(part)
        return self._attempt(stage, request, pieces, None), pieces

    def _line(self, stage: str, request: Request) -> Line:
        if callable(self._script):
            return self._script(stage, request)
        if self._script is not None and stage in self._script:
            return self._script[stage]
        return self._replies.get(stage, request.text)

    def _attempt(self, stage: str, request: Request, pieces: Sequence[str], fault: Fault | None) -> Attempt:
        text = "".join(pieces)
        return Attempt(
            stage=stage,
            text=text,
            usage=Usage(len(request.text.split()), len(text.split())),
            seconds=self._delays[stage],
            finish_reason=None if fault else "stop",
            fault=fault,
        )

    def _read_options(self, stage: Stage, delay_s: float) -> None:
        options = Options(stage)
        reply = options.text("reply")
        if reply is not None:
            self._replies[stage.name] = reply
        options.allow("delay_s")
        given = "delay_s" in stage.options
        self._delays[stage.name] = options.seconds("delay_s", delay_s) if given else delay_s  # none at all is 0
        options.done()


def _words(text: str) -> list[str]:
    """A text in pieces of one word each, spaces kept, so that they join to the same text."""
    return re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)


def _check_names(script: Mapping[str, Line], stages: Sequence[str]) -> None:
    for name in script:
        if name not in stages:
            raise UsageError(f"the script names a stage '{name}' that is not there; {nearest(name, stages)}")
