"""The engine ``torch`` with whole rounds on their device, on a processor; ``tests/gpu`` has the same on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stepladder.decoding.loading import Loaded
from stepladder.decoding.models import LanguageModel
from stepladder.engines import torch_models
from stepladder.engines.torch import TorchEngine
from stepladder.errors import ConfigError
from stepladder.types import Stage
from tiny_models import tiny_network
from torch_fakes import LETTERS, VOCAB, Head, ask, attempt, nano, running, stage
from whole_rounds import CHECKS

WHERE = {"threads": 1, "rounds": "on"}


@dataclass
class Fresh(Head):
    """Three models that agree somewhat, made anew at each load: the lower ones are the top one with noise on them."""

    def load(self, **_: Any) -> Loaded:
        noise = {"small": 0.06, "medium": 0.03, "large": 0.0}[self.wanted.source]
        # In float64: here the order of sums follows the width of a pass, and near ties would be told apart by it.
        network = tiny_network(seed=5, vocab=VOCAB, sharpness=4.0, layers=1, hidden=16, context=160)
        made = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(torch.randn(weights.shape, generator=made, dtype=weights.dtype), alpha=noise)
        slots = self.wanted.slots
        return Loaded(LanguageModel(network, name=self.wanted.name, context=160, slots=slots), LETTERS)


def ladder(common: Mapping[str, Any], **options: Any) -> tuple[Stage, ...]:
    return (
        *(stage(name, **WHERE | common) for name in ("small", "medium")),
        stage("large", **WHERE | common | options),
    )


@pytest.mark.parametrize("check", CHECKS)
def test_whole_rounds(check, monkeypatch):
    monkeypatch.setattr(torch_models, "look", lambda wanted: Fresh(wanted, {}))
    asyncio.run(CHECKS[check](ladder))


def test_on_a_processor_rounds_are_run_pass_by_pass_unless_asked_for():
    async def whole(**options: str) -> bool:
        async with running(nano("small", threads=1, **options)) as engine:
            assert engine._running is not None
            return bool(engine._running.rounds)

    assert [asyncio.run(whole(**each)) for each in ({}, {"rounds": "off"}, {"rounds": "on"})] == [False, False, True]


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match=r"rounds.*no such value 'always'"):
        TorchEngine((nano("small", rounds="always"),))


def test_graphs_that_are_made_on_the_way_are_no_part_of_a_rounds_time():
    """What the planner hears of a round is less than the caller waited, where a graph was made in it."""

    async def told() -> tuple[float, float]:
        where = nano("small", **WHERE)
        async with running(where) as engine:
            assert engine._running is not None
            runner, heard = engine._running.rounds["small"], []
            planner = engine._running.planners["small"].planner
            observe = planner.observe_round
            planner.observe_round = lambda plan, took, **how: (heard.append(took), observe(plan, took, **how))[1]  # type: ignore[method-assign,func-returns-value]
            runner.ready = lambda asks: 5.0  # type: ignore[method-assign]
            await attempt(engine, where, ask("hi", max_tokens=3))
            return max(took.seconds for took in heard), min(took.passes[1] for took in heard)

    longest, passes = asyncio.run(told())
    assert longest < 5.0
    assert passes == 1
