"""Answers from a script: for tests, examples and dry runs. No model, no chance, no clock."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from stepladder.engines.options import Options
from stepladder.errors import EngineError, UsageError, nearest
from stepladder.types import (
    NGRAM,
    Attempt,
    Capability,
    Delta,
    Drafting,
    EngineCost,
    EngineEvent,
    Fault,
    Request,
    Speculation,
    Stage,
    Usage,
)

Line = str | Attempt | Fault | Sequence[str | Fault]
"""A text, a whole attempt, a fault, or pieces of a text in the order they are streamed; a fault among them ends it."""

Script = Mapping[str, Line] | Callable[[str, Request], Line]
"""What each stage says: by stage name, or a function of (stage name, request)."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a stage takes, in seconds: ``delay_s`` for a call and ``token_s`` for each token that it writes.

    Speculation writes ``speedup`` tokens in the time of one; of a draft that it is handed it keeps the share ``keeps``.
    """

    delay_s: float = 0.0
    token_s: float = 0.0
    speedup: float = 1.0
    keeps: float = 0.0

    def kept(self, tokens: int, draft: Attempt | None) -> int:
        """Tokens of the draft that stand in an answer of this many."""
        return 0 if draft is None else int(self.keeps * min(tokens, draft.usage.output_tokens))

    def seconds(self, tokens: int, draft: Attempt | None = None) -> float:
        """Of an answer of this many tokens."""
        return self.delay_s + self.token_s * (tokens - self.kept(tokens, draft)) / self.speedup

    def told(self, stage: str, tokens: int, draft: Attempt | None) -> Speculation | None:
        """What it says of an answer; None where it does not speculate."""
        if self.speedup == 1 and not self.keeps:
            return None
        kept = self.kept(tokens, draft)
        passes = ceil((tokens - kept) / self.speedup)
        accepted = tokens - kept - passes
        return Speculation(
            chain=(NGRAM, stage) if self.speedup > 1 else (stage,),
            pairs=(Drafting(NGRAM, stage, accepted, accepted),) if self.speedup > 1 else (),
            passes={stage: passes},
            climbed=draft.usage.output_tokens if draft is not None and self.keeps else 0,
            kept=kept,
            saved_s=kept * self.token_s / self.speedup,
        )


class ScriptedEngine:
    """Says what its script says; without one it echoes the request's text.

    ``delay_s`` passes on ``sleep`` before each answer and is the seconds that its attempts report. Tokens are counted
    as words. ``calls`` keeps (stage name, request, draft) of every call in order. A request with ``stream`` set gets
    its pieces as deltas. Options of a stage: ``reply`` (a fixed text, where the script is silent), ``delay_s``, and for
    a stage that forecasts by the token and plays at speculating ``token_s``, ``speedup`` (from 1, where it is off) and
    ``keeps`` (from 0 to 1), as ``Pace`` has them.
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
        self._paces: dict[str, Pace] = {}
        self._script = script
        self._sleep = sleep
        self._closed = False
        for stage in stages:
            self._read_options(stage, delay_s)
        if isinstance(script, Mapping):
            _check_names(script, tuple(self._paces))

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured."""
        return stage.capabilities

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """What the stage's options say, None where they say nothing of time."""
        pace = self._paces[stage.name]
        seconds = pace.seconds(output_tokens, draft)
        return EngineCost(seconds, seconds * stage.gpus) if pace.delay_s or pace.token_s else None

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
        attempt, pieces = self._said(stage.name, request, draft)
        seconds = self._paces[stage.name].seconds(attempt.usage.output_tokens, draft)
        if seconds:
            await self._sleep(seconds)
        if request.params.get("stream"):
            for piece in filter(None, pieces):
                attempt = replace(attempt, first_token_s=attempt.seconds)
                yield Delta(piece)
        yield attempt

    def _said(self, stage: str, request: Request, draft: Attempt | None) -> tuple[Attempt, list[str]]:
        """The stage's line as an attempt and the pieces it streams in."""
        line = self._line(stage, request)
        if isinstance(line, Attempt):
            return line, _words(line.text)
        if isinstance(line, str | Fault):
            line = _words(line) if isinstance(line, str) else [line]
        pieces: list[str] = []
        for part in line:
            if isinstance(part, Fault):
                return self._attempt(stage, request, draft, pieces, part), pieces
            pieces.append(part)
        return self._attempt(stage, request, draft, pieces, None), pieces

    def _line(self, stage: str, request: Request) -> Line:
        if callable(self._script):
            return self._script(stage, request)
        if self._script is not None and stage in self._script:
            return self._script[stage]
        return self._replies.get(stage, request.text)

    def _attempt(
        self, stage: str, request: Request, draft: Attempt | None, pieces: Sequence[str], fault: Fault | None
    ) -> Attempt:
        text, pace = "".join(pieces), self._paces[stage]
        tokens = len(text.split())
        return Attempt(
            stage=stage,
            text=text,
            usage=Usage(len(request.text.split()), tokens),
            seconds=pace.seconds(tokens, draft),
            finish_reason=None if fault else "stop",
            fault=fault,
            speculation=pace.told(stage, tokens, draft),
        )

    def _read_options(self, stage: Stage, delay_s: float) -> None:
        options = Options(stage)
        reply = options.text("reply")
        if reply is not None:
            self._replies[stage.name] = reply
        self._paces[stage.name] = Pace(
            delay_s=_seconds(options, stage, "delay_s", delay_s),
            token_s=_seconds(options, stage, "token_s", 0.0),
            speedup=_number(options, stage, "speedup", least=1.0),
            keeps=_number(options, stage, "keeps", least=0.0, most=1.0),
        )
        options.done()


def _seconds(options: Options, stage: Stage, key: str, default: float) -> float:
    """An option in seconds; only where it is not given it may be 0."""
    options.allow(key)
    return options.seconds(key, default) if key in stage.options else default


def _number(options: Options, stage: Stage, key: str, *, least: float, most: float = inf) -> float:
    """An option that is a number within bounds; the least of them where it is not given."""
    options.allow(key)
    value = stage.options.get(key, least)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and value < inf:
        return float(value)
    options.wrong(key, f"must be a number from {least:g}{'' if most == inf else f' to {most:g}'}, not {value!r}")
    return least


def _words(text: str) -> list[str]:
    """A text in pieces of one word each, spaces kept, so that they join to the same text."""
    return re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)


def _check_names(script: Mapping[str, Line], stages: Sequence[str]) -> None:
    for name in script:
        if name not in stages:
            raise UsageError(f"the script names a stage '{name}' that is not there; {nearest(name, stages)}")
