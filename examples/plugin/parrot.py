"""One engine, one predictor, one policy: all that a plug-in package needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from stepladder.types import (
    Attempt,
    Call,
    Capability,
    Decision,
    Delta,
    EngineCost,
    EngineEvent,
    Estimate,
    Estimates,
    Fail,
    Fault,
    Features,
    Request,
    Stage,
    Stop,
    Usage,
    View,
)


class ParrotEngine:
    """Says the question again, word by word; a stage's ``model`` is what it says first."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        return frozenset({"stream"})

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        return EngineCost(seconds=0.001 * output_tokens, device_s=0.0)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        words = [stage.model, *request.text.split()]
        text = " ".join(words)
        streams = bool(request.params.get("stream"))
        if streams:
            for number, word in enumerate(words):
                yield Delta(word if number == 0 else f" {word}")
        yield Attempt(
            stage.name,
            text,
            Usage(len(words), len(words)),
            first_token_s=0.0 if streams else None,
            finish_reason="stop",
        )


class LengthPredictor:
    """The longer the question, the more the higher stages are worth. A guess, so it says that it is uncalibrated."""

    version = "by-length-1"

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.stages = stages

    def predict(self, features: Features) -> Estimates:
        hardness = min(len(features.text) / 200, 1.0)
        last = max(len(self.stages) - 1, 1)
        qualities = {name: Estimate(1 - hardness * (1 - i / last)) for i, name in enumerate(self.stages)}
        return Estimates(qualities, calibrated=False)


class ThriftyPolicy:
    """The cheapest stage that is expected to be good enough; the best one where none is."""

    name = "thrifty"

    def __init__(self, floor: float = 0.8) -> None:
        self.floor = floor

    def decide(self, view: View) -> Decision:
        values = {stage: view.value(stage) for stage in view.stages}
        if view.attempts and view.attempts[-1].is_answer:
            return Decision(Stop(view.attempts[-1]), values=values, reason="answered")
        failed = {attempt.stage for attempt in view.attempts}
        left = [stage for stage in view.stages if stage not in failed]
        if not left:
            fault = view.attempts[-1].fault if view.attempts else None
            return Decision(Fail(fault or Fault("server", "no stage is allowed")), values=values)
        enough = [stage for stage in left if view.estimates[stage].mean >= self.floor]
        chosen = enough[0] if enough else max(left, key=lambda stage: view.estimates[stage].mean)
        return Decision(Call(chosen, final=True), values=values, reason=f"first at or above {self.floor:g}")
