"""Small stand-ins for every part but engines, for tests of routers, policies and plug-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepladder.traces.memory import MemoryTraceStore
from stepladder.types import (
    EMPTY,
    Attempt,
    Cost,
    CostUnit,
    Dials,
    Estimate,
    Estimates,
    Fault,
    FaultKind,
    Features,
    Ladder,
    Request,
    Stage,
    Usage,
    View,
)

__all__ = [
    "FakeCosts",
    "FakeFeaturizer",
    "FakePredictor",
    "MemoryTraceStore",
    "make_attempt",
    "make_fault",
    "make_ladder",
    "make_request",
    "make_view",
    "no_forecast",
]


class FakeFeaturizer:
    """The text and the attempts, and no numbers but those given."""

    def __init__(self, values: Mapping[str, float] = EMPTY) -> None:
        self.values = values

    def features(self, request: Request, history: tuple[Attempt, ...] = ()) -> Features:
        return Features(dict(self.values), request.text, history)


class FakePredictor:
    """The same means for every request: ``table`` is stage → mean, or stage → (mean, sd)."""

    version = "fake"

    def __init__(self, table: Mapping[str, float | tuple[float, float]], *, calibrated: bool = True) -> None:
        self.table = {stage: _estimate(value) for stage, value in table.items()}
        self.calibrated = calibrated

    def predict(self, features: Features) -> Estimates:
        return Estimates(dict(self.table), calibrated=self.calibrated)


class FakeCosts:
    """The same cost for every call: ``table`` is stage → resource cost, billed in full where the stage answered."""

    version = "fake"

    def __init__(self, table: Mapping[str, float]) -> None:
        self.table = dict(table)

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        return Cost(self.table[stage.name])

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        return self.table[stage.name] if attempt.is_answer else 0.0


def no_forecast(stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None) -> None:
    """The forecast of an engine that has nothing to go by yet."""


def make_ladder(*names: str, cost_unit: CostUnit = "relative", engine: str = "scripted", **fields: Any) -> Ladder:
    """A ladder of stages with these names (small, medium and large by default), and costs 1, 2, 3 …"""
    costs = enumerate(names or ("small", "medium", "large"), start=1)
    stages = (Stage(**{"name": n, "engine": engine, "model": n, "cost": float(cost), **fields}) for cost, n in costs)
    return Ladder("test", tuple(stages), cost_unit)


def make_request(
    text: str = "What is 2+2?", *, name: str = "req-1", lam: float | None = None, **params: Any
) -> Request:
    """A chat request with one user message; ``name`` is its id."""
    return Request(name, messages=({"role": "user", "content": text},), params=params, dials=Dials(lam=lam))


def make_attempt(
    stage: str, text: str = "4", *, fault: FaultKind | None = None, cost: float = 0.0, output_tokens: int = 1
) -> Attempt:
    """An answer, or a failed attempt where ``fault`` names its kind."""
    if fault is not None:
        return Attempt(stage, cost=cost, fault=make_fault(fault))
    return Attempt(stage, text, Usage(prompt_tokens=4, output_tokens=output_tokens), finish_reason="stop", cost=cost)


def make_fault(kind: FaultKind = "server") -> Fault:
    """A fault of this kind."""
    return Fault(kind, f"{kind}, on purpose")


def make_view(
    quality: Mapping[str, float | Estimate],
    costs: Mapping[str, float] | Sequence[float],
    *,
    lam: float = 5.0,
    allowed: Sequence[str] | None = None,
    attempts: Sequence[Attempt] = (),
    coin: float = 0.0,
    lot: float = 0.0,
) -> View:
    """A view of the stages that ``quality`` names, by means or estimates; ``costs`` by name or in the same order."""
    known = {stage: each if isinstance(each, Estimate) else Estimate(each) for stage, each in quality.items()}
    prices = dict(costs) if isinstance(costs, Mapping) else dict(zip(quality, costs, strict=True))
    return View(
        stages=tuple(quality if allowed is None else allowed),
        lam=lam,
        estimates=Estimates(known),
        costs={stage: Cost(price) for stage, price in prices.items()},
        attempts=tuple(attempts),
        spent=sum(attempt.cost for attempt in attempts),
        coin=coin,
        lot=lot,
    )


def _estimate(value: float | tuple[float, float]) -> Estimate:
    return Estimate(*value) if isinstance(value, tuple) else Estimate(value)
