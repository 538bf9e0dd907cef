"""Costs learned from calls."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.costs.measured import (
    MeasuredCosts,
    StageTiming,
    TimingRow,
    fit_measured,
    load_timings,
    save_timings,
    timing_rows,
)
from stepladder.errors import UsageError
from stepladder.testing import make_attempt, make_ladder, make_request, make_view, no_forecast
from stepladder.types import (
    Attempt,
    Call,
    Decision,
    Drafting,
    EngineCost,
    Fault,
    Speculation,
    Stage,
    Step,
    Trace,
    Usage,
    Versions,
)

STAGES = make_ladder("small", "large").stages
TIMINGS = {
    "small": StageTiming(0.1, 0.001, 0.01, prompt_tokens=100, output_tokens=80),
    "large": StageTiming(0.2, 0.004, 0.04, prompt_tokens=100, output_tokens=100),
}
PARAMS = {"stages": TIMINGS}


def rows(count: int, noise: float, outliers: float, seed: int = 0) -> list[TimingRow]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, output = chance.randrange(10, 400), chance.randrange(1, 200)
        seconds = TIMINGS["small"].seconds(prompt, output) * (1 + chance.uniform(-noise, noise))
        if chance.random() < outliers:
            seconds *= chance.uniform(5, 50)
        made.append(TimingRow("small", prompt, output, seconds, chars=prompt * 3))
    return made


def coefficients(timing: StageTiming) -> tuple[float, float, float]:
    return timing.call_s, timing.prompt_s, timing.output_s


# ── fitting ──────────────────────────────────────────────────────────────────


def test_fit_is_exact_on_exact_rows() -> None:
    timing = fit_measured(rows(50, noise=0.0, outliers=0.0))["small"]
    assert coefficients(timing) == pytest.approx((0.1, 0.001, 0.01))
    assert timing.chars_per_token == 3.0
    assert timing.rows == 50


def test_fit_is_not_moved_by_calls_that_waited() -> None:
    timing = fit_measured(rows(500, noise=0.05, outliers=0.15))["small"]
    assert timing.output_s == pytest.approx(0.01, rel=0.05)
    assert timing.prompt_s == pytest.approx(0.001, rel=0.15)
    assert timing.call_s == pytest.approx(0.1, rel=0.25)


def test_fit_never_goes_below_zero() -> None:
    falling = [("s", prompt, 10, 5.0 - prompt / 100) for prompt in range(0, 400, 10)]
    timing = fit_measured(falling)["s"]
    assert min(coefficients(timing)) >= 0.0
    assert timing.prompt_s == 0.0
    assert timing.mean_seconds == pytest.approx(3.05, rel=0.1)


def test_fit_of_rows_that_cannot_tell_coefficients_apart() -> None:
    timing = fit_measured([("s", 100, 10, 2.0)] * 5)["s"]
    assert timing.seconds(100, 10) == pytest.approx(2.0)
    timing = fit_measured([("s", 0, 0, 0.5)])["s"]
    assert coefficients(timing) == (0.5, 0.0, 0.0)
    assert coefficients(fit_measured([("s", 10, 10, 0.0)])["s"]) == (0.0, 0.0, 0.0)


def test_fit_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="no answered calls"):
        fit_measured([])
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="cannot have taken"):
            fit_measured([("s", 1, 1, seconds)])


def test_rows_come_from_answers_without_a_draft() -> None:
    view = make_view({"small": 0.5, "large": 0.9}, (1.0, 2.0))
    answered = replace(make_attempt("small"), seconds=0.5)
    attempts = [
        (Call("small"), answered),
        (Call("large"), make_attempt("large", fault="timeout")),
        (Call("large", draft=answered), make_attempt("large")),
    ]
    steps = tuple(Step(view, Decision(call), attempt=attempt) for call, attempt in attempts)
    request = make_request("x" * 20)
    trace = Trace("t", 0.0, request, "test", ("small", "large"), "greedy", "cascade", "relative", Versions(), steps)
    assert list(timing_rows([trace])) == [TimingRow("small", 4, 1, 0.5, 20)]


# ── expecting and billing ────────────────────────────────────────────────────


def test_relative_is_in_mean_requests_of_the_cheapest() -> None:
    costs = MeasuredCosts(STAGES, no_forecast, params=PARAMS)
    mean_request = make_request("x" * 400)
    assert costs.expected(STAGES[0], mean_request).resource == pytest.approx(1.0)
    assert costs.expected(STAGES[1], mean_request).resource == pytest.approx(4.6)
    assert costs.expected(STAGES[0], mean_request).seconds == pytest.approx(1.0)


def test_units_are_in_proportion() -> None:
    stages = tuple(replace(stage, gpus=gpus) for stage, gpus in zip(STAGES, (1.0, 2.0), strict=True))
    request = make_request("x" * 400)
    units: list[dict[str, Any]] = [{"cost_unit": "gpu_s"}, {"cost_unit": "usd", "usd_per_gpu_hour": 3.6}, {}]
    gpu_s, usd, relative = (
        [MeasuredCosts(stages, no_forecast, params=PARAMS, **unit).expected(s, request).resource for s in stages]
        for unit in units
    )
    assert gpu_s == pytest.approx([1.0, 9.2])
    assert usd == pytest.approx([0.001, 0.0092])
    assert relative == pytest.approx([1.0, 9.2])


def test_latency_is_wall_clock_at_its_price() -> None:
    stages = tuple(replace(stage, gpus=4.0) for stage in STAGES)
    costs = MeasuredCosts(stages, no_forecast, params=PARAMS, cost_unit="gpu_s", latency_price=2.0)
    cost = costs.expected(stages[0], make_request("x" * 400))
    assert (cost.resource, cost.seconds, cost.latency) == pytest.approx((4.0, 1.0, 2.0))


def test_the_engines_forecast_counts_only_when_preferred() -> None:
    def forecast(
        stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        return EngineCost(seconds=10.0, device_s=20.0) if stage.name == "small" else None

    request = make_request("x" * 400)
    for prefer, expected in ((False, [1.0, 4.6]), (True, [20.0, 4.6])):
        costs = MeasuredCosts(STAGES, forecast, params=PARAMS, prefer_forecast=prefer)
        assert [costs.expected(stage, request).resource for stage in STAGES] == pytest.approx(expected)


def test_a_climb_is_priced_with_its_draft() -> None:
    def forecast(stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None) -> EngineCost:
        spared = 0 if draft is None else draft.usage.output_tokens
        return EngineCost(seconds=1.0, device_s=float(output_tokens - spared))

    costs = MeasuredCosts(STAGES, forecast, params=PARAMS, cost_unit="gpu_s", prefer_forecast=True)
    request, draft = make_request("x" * 400, max_tokens=50), make_attempt("small", output_tokens=30)
    assert costs.expected(STAGES[1], request, (draft,), None).resource == 50
    assert costs.expected(STAGES[1], request, (draft,), draft).resource == 20


def test_what_was_kept_of_a_draft_is_read_and_not_written() -> None:
    costs = MeasuredCosts(STAGES, no_forecast, params=PARAMS)
    climbed = Attempt("large", "yes", Usage(100, 80), speculation=Speculation(climbed=40, kept=30))
    alike = Attempt("large", "yes", Usage(140, 50))
    assert costs.billed(STAGES[1], climbed) == pytest.approx(costs.billed(STAGES[1], alike))
    drafted = Attempt("large", "yes", Usage(100, 80), speculation=Speculation(pairs=(Drafting("d", "large", 9, 5),)))
    assert costs.billed(STAGES[1], drafted) == costs.billed(STAGES[1], replace(drafted, speculation=None))
    more = replace(climbed, speculation=Speculation(climbed=900, kept=900))
    assert costs.billed(STAGES[1], more) == pytest.approx(costs.billed(STAGES[1], Attempt("large", "y", Usage(1000))))


def test_bills_go_by_tokens_and_not_by_the_clock() -> None:
    costs = MeasuredCosts(STAGES, no_forecast, params=PARAMS)
    for seconds in (0.1, 100.0):
        attempt = Attempt("small", "yes", Usage(100, 80), seconds=seconds)
        assert costs.billed(STAGES[0], attempt) == pytest.approx(1.0)
    fault = Fault("timeout", "too slow")
    assert costs.billed(STAGES[0], Attempt("small", usage=Usage(100, 0), fault=fault)) == 0.0
    assert costs.billed(STAGES[0], Attempt("small", usage=Usage(100, 80), fault=fault)) == pytest.approx(1.0)


def test_versions_tell_settings_apart() -> None:
    made: list[dict[str, Any]] = [{}, {"cost_unit": "gpu_s"}, {"latency_price": 1.0}, {"prefer_forecast": True}]
    versions = {MeasuredCosts(STAGES, no_forecast, params=PARAMS, **options).version for options in made}
    assert len(versions) == 4


# ── keeping ──────────────────────────────────────────────────────────────────


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "costs.json"
    save_timings(TIMINGS, path)
    assert load_timings(path) == TIMINGS
    from_file = MeasuredCosts(STAGES, no_forecast, path=path)
    assert from_file.version == MeasuredCosts(STAGES, no_forecast, params=PARAMS).version
    assert [found.name for found in path.parent.iterdir()] == ["costs.json"]
    as_settings = json.loads(path.read_text(encoding="utf-8"))
    assert MeasuredCosts(STAGES, no_forecast, params=as_settings).version == from_file.version


def entry(**changes: Any) -> dict[str, Any]:
    fields = {"call_s": 0.1, "prompt_s": 0.0, "output_s": 0.1, "prompt_tokens": 10, "output_tokens": 10}
    return {"stages": {"small": fields | changes}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("[]", "should have 'stages'"),
        ('{"stages": []}', "should have 'stages'"),
        ('{"schema": 9, "stages": {}}', "schema 9"),
        ('{"stages": {"small": 1}}', r"stages\.small should be a table"),
        ('{"stages": {"small": {}}}', r"stages\.small\.call_s should be a number"),
        (json.dumps(entry(call_s="x")), r"call_s should be a number"),
        (json.dumps(entry(call_s=-1)), "from 0 up"),
        (json.dumps(entry(call_s=float("nan"))), "from 0 up"),
        (json.dumps(entry(chars_per_token=0)), "chars_per_token"),
        (json.dumps(entry(extra=1)), r"stages\.small\.extra"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "costs.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        load_timings(tmp_path / "costs.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs 'params' or 'path'"),
        ({"params": entry()}, "no timing of the stage 'large'"),
        ({"path": "/nowhere/costs.json"}, "cannot be read"),
        ({"params": PARAMS, "cost_unit": "gpus"}, "did you mean 'gpu_s'"),
        ({"params": PARAMS, "cost_unit": "usd"}, "usd_per_gpu_hour"),
        ({"params": PARAMS, "latency_price": -1}, "latency_price"),
        ({"params": PARAMS, "prefer_forcast": True}, "did you mean 'prefer_forecast'"),
        ({"params": {"stages": dict.fromkeys(TIMINGS, StageTiming(0, 0, 0, 1, 1))}}, "takes 0 seconds"),
    ],
)
def test_measured_refuses(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MeasuredCosts(STAGES, no_forecast, **options)
