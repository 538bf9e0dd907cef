"""Hand-set costs: one number for a call of each stage, whatever the request (paper §2.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepladder.contracts import Forecast
from stepladder.costs.settings import price, settings_version, stage_prices
from stepladder.costs.tokens import TYPICAL_OUTPUT, expected_seconds, expected_tokens, is_work
from stepladder.errors import UsageError, nearest, refuse_unknown
from stepladder.types import Attempt, Cost, Request, Stage

VECTORS: Mapping[str, tuple[float, ...]] = {
    "paper": (1.0, 1.3, 1.8),
    "first": (1.0, 2.5, 5.0),
    "fine": (1.0, 1.2, 1.5),
}
"""The paper's costs of 13B, 34B and 70B: those of its results (§2.2.2), those it began with (§5.2.2), and those it
proposes for finer control (§6.1)."""

OPTIONS = ("vector", "latency_price", "typical_output")


class FixedCosts:
    """The same cost for every call of a stage, in the ladder's unit.

    ``vector`` is a name from ``VECTORS``, a list with one number for each stage, or None for each stage's own ``cost``.
    ``latency_price`` (cost units a second) prices the seconds that the engine forecasts, with ``typical_output`` tokens
    to an answer; where the engine has no forecast yet, the seconds count as 0.

    Raises ConfigError for stages without a cost, UsageError for a vector of another length and for options that it
    does not have.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        forecast: Forecast,
        *,
        vector: str | Sequence[float] | None = None,
        latency_price: float = 0.0,
        typical_output: float = TYPICAL_OUTPUT,
        **unknown: object,
    ) -> None:
        refuse_unknown("cost model 'fixed'", unknown, OPTIONS)
        self._costs = _costs(stages, vector)
        self._forecast = forecast
        self._latency_price = price(latency_price, "costs.latency_price")
        self._typical_output = price(typical_output, "costs.options.typical_output")
        self.version = settings_version(
            kind="fixed", costs=self._costs, latency_price=self._latency_price, typical_output=self._typical_output
        )

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        """The stage's number, and the price of its expected seconds."""
        seconds = expected_seconds(self._forecast, stage, expected_tokens(request, self._typical_output), draft)
        return Cost(self._costs[stage.name], seconds, self._latency_price * seconds)

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        """The stage's number where it answered or wrote anything, else 0."""
        return self._costs[stage.name] if is_work(attempt) else 0.0


def _costs(stages: tuple[Stage, ...], vector: str | Sequence[float] | None) -> dict[str, float]:
    if vector is None:
        return stage_prices(stages, "cost", "fixed")
    if isinstance(vector, str) and vector not in VECTORS:
        raise UsageError(f"cost model 'fixed' has no vector '{vector}'; {nearest(vector, tuple(VECTORS))}")
    if not isinstance(vector, Sequence):
        raise UsageError(f"cost model 'fixed': 'vector' should be a name or a list of numbers, not {vector!r}")
    numbers = VECTORS[vector] if isinstance(vector, str) else tuple(vector)
    if len(numbers) != len(stages):
        raise UsageError(f"cost model 'fixed': vector {list(numbers)} is for {len(numbers)} stages, not {len(stages)}")
    return {stage.name: price(n, f"cost of '{stage.name}'") for stage, n in zip(stages, numbers, strict=True)}
