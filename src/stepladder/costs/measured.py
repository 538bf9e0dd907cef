"""Costs from measurement: what a stage's calls really take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepladder.contracts import Forecast
from stepladder.costs.settings import price, settings_version
from stepladder.costs.timing import (
    StageTiming,
    TimingRow,
    fit_measured,
    load_timings,
    save_timings,
    timing_rows,
    timings_from,
)
from stepladder.costs.tokens import expected_tokens, is_work, read_and_written
from stepladder.errors import UsageError, nearest, refuse_unknown
from stepladder.types import Attempt, Cost, CostUnit, Request, Stage

__all__ = [
    "MeasuredCosts",
    "StageTiming",
    "TimingRow",
    "fit_measured",
    "load_timings",
    "save_timings",
    "timing_rows",
]

OPTIONS = ("params", "path", "latency_price", "usd_per_gpu_hour", "cost_unit", "prefer_forecast")
UNITS: tuple[CostUnit, ...] = ("relative", "gpu_s", "usd")
SECONDS_PER_HOUR = 3600


class MeasuredCosts:
    """Seconds of a call by ``StageTiming``, paid for as device-seconds: seconds × ``Stage.gpus``.

    ``cost_unit`` says in what: ``gpu_s`` as they are; ``usd`` at ``usd_per_gpu_hour``; ``relative`` divided by the
    mean request of the stage whose mean request is cheapest, so that 1 is that. Timings come as ``params`` (a mapping
    as ``save_timings`` writes it) or from the file ``path``. ``latency_price`` (cost units a second) prices wall-clock
    seconds. With ``prefer_forecast`` the engine's own forecast is used where it has one; it moves with what the engine
    saw last, so by default it is not, and the same request gets the same decision.

    A climb is priced with the draft that it would be handed only through that forecast: timings know nothing of
    drafts.

    Bills are reckoned from the tokens really used, by the same formula, and not from the clock: on a machine that
    others use too, measured seconds would bill a caller for a neighbour's load. Tokens of a lower answer that was read
    as a draft (``Speculation.climbed``) are read like a prompt's, and those of them that were kept are not written.

    Raises UsageError for timings that are missing or unreadable and for options that it does not have.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        forecast: Forecast,
        *,
        params: Mapping[str, Any] | None = None,
        path: str | Path | None = None,
        latency_price: float = 0.0,
        usd_per_gpu_hour: float | None = None,
        cost_unit: CostUnit = "relative",
        prefer_forecast: bool = False,
        **unknown: object,
    ) -> None:
        refuse_unknown("cost model 'measured'", unknown, OPTIONS)
        self._timings = _timings(stages, params, path)
        self._forecast = forecast
        self._prefer_forecast = prefer_forecast
        self._latency_price = price(latency_price, "costs.latency_price")
        self._per_device_s = _per_device_s(stages, self._timings, cost_unit, usd_per_gpu_hour)
        self.version = settings_version(
            kind="measured",
            stages={stage.name: [stage.gpus, asdict(self._timings[stage.name])] for stage in stages},
            rates=[cost_unit, self._per_device_s, self._latency_price, prefer_forecast],
        )

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost:
        """Cost of the request's expected tokens, and the price of the expected seconds."""
        timing = self._timings[stage.name]
        prompt, output = expected_tokens(request, timing.output_tokens, timing.chars_per_token)
        found = self._forecast(stage, prompt, output, draft) if self._prefer_forecast else None
        if found is None:
            seconds = timing.seconds(prompt, output)
            return self._paid(seconds, seconds * stage.gpus)
        return self._paid(found.seconds, found.device_s)

    def _paid(self, seconds: float, device_s: float) -> Cost:
        return Cost(device_s * self._per_device_s, seconds, self._latency_price * seconds)

    def billed(self, stage: Stage, attempt: Attempt) -> float:
        """Cost of the tokens used; 0 for an attempt that neither answered nor wrote anything."""
        if not is_work(attempt):
            return 0.0
        seconds = self._timings[stage.name].seconds(*read_and_written(attempt))
        return seconds * stage.gpus * self._per_device_s


def _timings(
    stages: tuple[Stage, ...], params: Mapping[str, Any] | None, path: str | Path | None
) -> dict[str, StageTiming]:
    if (params is None) == (path is None):
        raise UsageError("cost model 'measured' needs 'params' or 'path': the timings that were measured")
    found = timings_from(params, "costs.options.params") if path is None else load_timings(path)
    for stage in stages:
        if stage.name not in found:
            hint = nearest(stage.name, tuple(found)) if found else "it holds none"
            raise UsageError(f"cost model 'measured' has no timing of the stage '{stage.name}'; {hint}")
    return {stage.name: found[stage.name] for stage in stages}


def _per_device_s(
    stages: tuple[Stage, ...], timings: Mapping[str, StageTiming], unit: CostUnit, usd_per_gpu_hour: float | None
) -> float:
    """Cost units for one device-second."""
    if unit not in UNITS:
        raise UsageError(f"cost model 'measured' has no cost_unit '{unit}'; {nearest(unit, UNITS)}")
    if unit == "gpu_s":
        return 1.0
    if unit == "usd":
        if usd_per_gpu_hour is None:
            raise UsageError("cost model 'measured' in usd needs 'usd_per_gpu_hour'")
        return price(usd_per_gpu_hour, "costs.options.usd_per_gpu_hour") / SECONDS_PER_HOUR
    cheapest = min(timings[stage.name].mean_seconds * stage.gpus for stage in stages)
    if cheapest <= 0:
        raise UsageError("cost model 'measured': a stage whose mean request takes 0 seconds cannot be the unit")
    return 1 / cheapest
