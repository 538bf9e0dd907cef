"""Every built-in engine keeps the engines' contract; and the check notices those that do not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_maker import write_gguf
from openai_server import good, serving
from stepladder.config import PRESETS
from stepladder.engines.llama import LlamaEngine
from stepladder.engines.openai import OpenAIEngine
from stepladder.engines.replay import ReplayEngine
from stepladder.engines.scripted import ScriptedEngine
from stepladder.engines.torch import TorchEngine
from stepladder.testing.engines import check_engine
from stepladder.types import (
    Attempt,
    Delta,
    Drafting,
    EngineCost,
    EngineEvent,
    Fault,
    Request,
    Speculation,
    Stage,
)

ASK = Request("r", ({"role": "user", "content": "What is 2+2?"},), params={"max_tokens": 8})
NANO = PRESETS / "nano"
LOST = Request("r", ({"role": "user", "content": "Who knows?"},))


async def test_openai() -> None:
    async with serving(good) as server:
        stage = Stage("small", "openai", "m", options={"base_url": server.url})
        unwritable = Request("r", ASK.messages, params={"x": object()})
        await check_engine(OpenAIEngine((stage,)), stage, ASK, failing=unwritable)


async def test_scripted() -> None:
    stage = Stage("small", "scripted", "m", options={"delay_s": 0.001})
    engine = ScriptedEngine((stage,), lambda _, asked: Fault("server", "x") if asked is LOST else asked.text)
    await check_engine(engine, stage, ASK, failing=LOST)


async def test_replay(tmp_path: Path) -> None:
    table = tmp_path / "outcomes.jsonl"
    row = {"prompt": ASK.text, "model": "m", "response": "4", "output_tokens": 1, "latency_s": 0.5}
    table.write_text(json.dumps(row) + "\n")
    stage = Stage("small", "replay", "m", options={"table": str(table)})
    await check_engine(ReplayEngine((stage,)), stage, ASK, failing=LOST)


async def test_llama(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "noise.gguf")
    options = {"threads": 1, "n_parallel": 2}
    stage = Stage("small", "llama", str(model), context=256, options=options)
    too_long = Request("r", ({"role": "user", "content": "x" * 3000},))
    await check_engine(LlamaEngine((stage,)), stage, ASK, failing=too_long)


SPECULATIONS = {
    "chain": Speculation(("small", "below")),
    "accepted": Speculation(pairs=(Drafting("below", "small", 3, 4),)),
    "kept": Speculation(climbed=3, kept=4),
    "passes": Speculation(passes={"small": -1}),
    "saved": Speculation(saved_s=float("nan")),
    "moved": Speculation(moved=1.5),
}


@pytest.mark.parametrize("chain", ["auto", ["ngram", "small"]])
async def test_torch(chain: Any) -> None:
    """Over a drafter and alone; a climbed draft is read in both."""
    can = frozenset({"stream", "logprobs"})
    small = Stage("small", "torch", str(NANO / "nano-small.gguf"), context=64, capabilities=can)
    top = replace(small, name="top", model=str(NANO / "nano-medium.gguf"), options={"speculation": chain})
    too_long = Request("r", ({"role": "user", "content": "x" * 3000},))
    await check_engine(TorchEngine((small, top), trial_s=0.05), top, ASK, failing=too_long)


class Broken(ScriptedEngine):
    """Breaks one promise, named at construction."""

    def __init__(self, stage: Stage, how: str) -> None:
        super().__init__((stage,))
        self.how = how

    def capabilities(self, stage: Stage) -> Any:
        return {"list": ["stream"], "unknown": frozenset({"fly"})}.get(self.how, frozenset({"stream"}))

    def expected_cost(self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Any = None) -> Any:
        costs = {"negative": -1.0, "infinite": float("inf"), "falling": 1.0 / (1 + output_tokens)}
        return EngineCost(costs[self.how], 0.0) if self.how in costs else None

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        if self.how == "raises" and request is LOST:
            raise RuntimeError("boom")
        async for event in super().generate(request, stage, draft):
            if self.how == "stretches" and isinstance(event, Delta):
                yield Delta(event.text + "!")
            elif self.how in SPECULATIONS and isinstance(event, Attempt):
                yield replace(event, speculation=SPECULATIONS[self.how])
            elif self.how != "never ends" or isinstance(event, Delta):
                yield Attempt("other", event.text) if self.how == "misnames" else event
        if self.how == "twice":
            yield Attempt(stage.name, request.text)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("list", "frozenset"),
        ("unknown", "may hold"),
        ("negative", "finite"),
        ("infinite", "finite"),
        ("falling", "must not fall"),
        ("raises", "raised RuntimeError"),
        ("stretches", "must join"),
        ("never ends", "must end with an Attempt"),
        ("misnames", "must name stage"),
        ("twice", "before its one Attempt"),
        ("", "looks like an answer"),
        ("chain", "a chain must end with 'small'"),
        ("accepted", "accepted tokens must be among the drafted"),
        ("kept", "kept tokens must be among the climbed"),
        ("passes", "passes must be from 0"),
        ("saved", "saved_s must be from 0"),
        ("moved", "moved must be from 0 to 1"),
    ],
)
async def test_broken_promises_are_noticed(how: str, told: str) -> None:
    stage = Stage("small", "scripted", "m")
    with pytest.raises(AssertionError, match=told):
        await check_engine(Broken(stage, how), stage, ASK, failing=LOST)
