"""The join with real models: drafting that the torch engine measured to pay moves decisions at the same λ.

The clock is one that counts passes: a pass of a stage takes what its size says and a little more for each token, so
that nothing here rests on a busy machine. Acceptance is nano's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway_fakes import post
from stepladder import config
from stepladder.build import build
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.engines.torch import TorchEngine
from stepladder.evaluate.tasks.nano import generate
from stepladder.gateway.app import create_app
from stepladder.router import Router
from stepladder.types import Estimate, Estimates, Features, Request

NANO = Path(config.__file__).parent / "presets" / "nano"
PASS_S = {"small": 0.001, "large": 0.010}
TOKENS = 12
TIMING = {"call_s": 0.0, "prompt_s": 0.0, "output_s": 0.01, "prompt_tokens": 20, "output_tokens": TOKENS}
GAINS = [gain / 20 for gain in range(1, 19)]
LAM = 0.2
"""GPU-seconds for a unit of quality: a plain answer of the large stage takes some 0.13 s, one of the small .013."""


class Passes:
    """Seconds that passes take: a base for each model, a fiftieth more for each further token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        forward = LanguageModel.forward

        def counted(model: LanguageModel, feeds: Sequence[Feed]) -> list[torch.Tensor]:
            width = sum(len(feed.tokens) for feed in feeds)
            self.now += PASS_S[model.name] * (1 + 0.02 * (width - 1))
            return forward(model, feeds)

        monkeypatch.setattr(LanguageModel, "forward", counted)

    def __call__(self) -> float:
        return self.now


class ByPrompt:
    """The large stage's gain over the small one is what the prompt says."""

    version = "by-prompt"

    def predict(self, features: Features) -> Estimates:
        gain = float(features.text.split()[0])
        return Estimates({"small": Estimate(0.05), "large": Estimate(0.05 + gain)})


def made(speculation: Any, clock: Passes) -> Router:
    """nano's smallest and largest stage on the torch engine, priced by the engine's own forecasts."""
    own = {"engine": "torch", "context": 256, "capabilities": ["stream"], "options": {"speculation": speculation}}
    stages = [{"name": name, "model": str(NANO / f"nano-{name}.gguf"), **own} for name in PASS_S]
    stages[0] = {**stages[0], "options": {}}
    tree = {
        "ladder": {"cost_unit": "gpu_s"},
        "stages": stages,
        "policy": {"lambda": LAM},
        "costs": {
            "model": "measured",
            "options": {"params": {"stages": dict.fromkeys(PASS_S, TIMING)}, "prefer_forecast": True},
        },
    }
    router = build(config.parse(tree))
    for engine in router.parts.engines.values():
        assert isinstance(engine, TorchEngine)
        engine._timer = clock
    return Router(replace(router.parts, predictor=ByPrompt()))


async def choices(speculation: Any, clock: Passes) -> tuple[float, dict[float, str], list[str]]:
    """C of the large stage, what /v1/route chooses by gain, and what the large stage wrote before."""
    router = made(speculation, clock)
    await router.start()
    try:
        large, wrote = router.parts.ladder["large"], []
        for task in generate("judged", 24, seed=3):
            messages = ({"role": "user", "content": task.prompt},)
            asked = Request("r", messages, params={"temperature": 0, "max_tokens": TOKENS})
            async for event in router.parts.engines["large"].generate(asked, large):
                last = event
            wrote.append(last.text)
        chosen, price = {}, 0.0
        for gain in GAINS:
            body = {"model": "stepladder", "messages": [{"role": "user", "content": f"{gain} is gained here"}]}
            told = (await post(create_app(router), "/v1/route", body)).json
            chosen[gain] = told["stage"]
            price = next(each["cost"]["total"] for each in told["stages"] if each["stage"] == "large")
    finally:
        await router.close()
    return price, chosen, wrote


@pytest.mark.parametrize("speculation", [["small"], "auto"], ids=str)
async def test_speculation_moves_the_switch(speculation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Passes(monkeypatch)
    plain, before, texts = await choices("off", clock)
    drafted, after, same = await choices(speculation, clock)
    assert same == texts  # nothing but the cost has changed
    assert drafted < 0.8 * plain
    moved = [gain for gain in GAINS if (before[gain], after[gain]) == ("small", "large")]
    assert moved
    assert all(before[gain] == after[gain] for gain in GAINS if gain not in moved)
    assert "small" in after.values()
    assert "large" in before.values()
