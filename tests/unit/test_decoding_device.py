"""The planner where a round is one launch: step times measured on an H100, rounds that are timed as a whole.

Seconds are those of ``benchmarks/results/gpu/decode_*_h100.json``, in milliseconds; where a length was not measured,
they lie on the line between its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_simulator import Device, DeviceRun, run_device

SHAPES: dict[str, Device] = {
    "7B": Device(
        (0.5795, (0.0, 5.21, 5.243, 5.237, 5.263, 5.273, 5.279, 5.281, 5.306, 5.319)),
        (5.428, 6.071, 6.714, 7.320, 7.927, 8.534, 9.142, 9.749, 10.357),
        (0.8,),
        reading=1.5,
    ),
    "13B": Device(
        (1.1472, (0.0, 9.619, 9.636, 9.667, 9.653, 9.692, 9.697, 9.715, 9.738, 9.768)),
        (9.838, 10.957, 12.076, 13.142, 14.207, 15.284, 16.361, 17.437, 18.514),
        (0.8,),
        reading=1.5,
    ),
}
shapes = pytest.mark.parametrize("shape", SHAPES)
STATED_ANSWERS = 4
"""Answers of 128 tokens after which a planner that knew nothing must run at 95 % of the best set length."""


def dearest(run: DeviceRun, plain: float) -> float:
    """Least ratio of plain decoding's time to the time taken, over all beginnings that end with an answer."""
    tokens, spent, least = 0, 0.0, 1.0
    for wrote, seconds in zip(run.tokens, run.seconds, strict=True):
        tokens, spent = tokens + wrote, spent + seconds
        least = min(least, tokens * plain / spent)
    return least


@shapes
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("follow", [True, False])
def test_it_runs_near_the_best_set_length_soon(shape: str, rate: float, follow: bool) -> None:
    device = replace(SHAPES[shape], rates=(rate,))
    ratios = [
        run_device(replace(device, seed=seed), 24, follow=follow).rate(STATED_ANSWERS) / device.best_static()
        for seed in (1, 2, 3)
    ]
    assert sum(ratios) / 3 >= 0.95


@shapes
def test_drafts_are_as_long_as_pays(shape: str) -> None:
    usual = {
        rate: max((run := run_device(replace(SHAPES[shape], rates=(rate,)), 20)).lengths, key=run.lengths.__getitem__)
        for rate in (0.0, 0.3, 0.8, 0.97)
    }
    assert usual[0.0] == 0
    assert usual[0.3] == 1
    assert 4 <= usual[0.8] <= 7
    assert usual[0.97] == 8


@shapes
@pytest.mark.parametrize("once", [0.0, 100.0])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_a_hopeless_drafter_costs_less_than_three_per_cent(shape: str, once: float, told: bool, follow: bool) -> None:
    """``once``: in the first reading kernels are loaded, which nobody can foresee; all else is within the promise."""
    device = replace(SHAPES[shape], rates=(0.0,), once=once, told=told)
    run, plain = run_device(device, 24, follow=follow), device.rounds[0]
    assert dearest(without_first(run, once), plain) >= 0.97
    assert sum(run.tokens[8:]) * plain / sum(run.seconds[8:]) >= 0.98


def without_first(run: DeviceRun, once: float) -> DeviceRun:
    """The run without what was done once."""
    first = max(range(len(run.seconds)), key=lambda place: run.seconds[place] / run.tokens[place])
    seconds = [each - (once if place == first else 0.0) for place, each in enumerate(run.seconds)]
    return DeviceRun(run.tokens, seconds, run.lengths)


@shapes
@pytest.mark.parametrize("rates", [(0.0,), (0.8,)])
def test_what_is_done_once_is_paid_once_and_is_no_chains_pace(shape: str, rates: Sequence[float]) -> None:
    device = replace(SHAPES[shape], rates=rates)
    runs = [run_device(replace(device, once=once), 30) for once in (0.0, 100.0)]
    beyond = sum(runs[1].seconds) - sum(runs[0].seconds)
    assert beyond <= 100.0 + 0.03 * sum(runs[0].seconds)
    assert runs[1].rate(15) >= 0.96 * device.best_static()


@shapes
def test_readings_that_stay_dear_are_foreseen(shape: str) -> None:
    """Each takes as long as 10 to 18 tokens, so that hopeless trials must become rare."""
    device = replace(SHAPES[shape], rates=(0.0,), reading=95.0)
    for told in (True, False):
        run = run_device(replace(device, told=told), 60)
        assert sum(run.tokens) * device.rounds[0] / sum(run.seconds) >= 0.97
    useful = replace(device, rates=(0.8,))
    assert run_device(useful, 40).rate(10) >= 0.8 * useful.best_static()


@shapes
@pytest.mark.parametrize(
    ("rates", "gain"), [((0.8, 0.0), 1.15), ((0.3, 0.6, 0.9), 1.05), ((0.9, 0.9, 0.0, 0.0), 1.2), ((0.02, 0.95), 1.2)]
)
def test_where_answers_differ_it_beats_every_set_length(shape: str, rates: Sequence[float], gain: float) -> None:
    device = replace(SHAPES[shape], rates=rates)
    found = run_device(device, 36).rate()
    assert found >= gain * device.best_static()
    assert found > run_device(device, 36, follow=False).rate()  # the control: all answers are taken for one text


@settings(max_examples=12, deadline=None)
@given(
    rates=st.lists(st.floats(0.0, 0.97), min_size=1, max_size=4),
    cost=st.floats(0.03, 0.8),
    widening=st.floats(0.0, 0.05),
    beside=st.floats(0.0, 0.2),
    reading=st.floats(0.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_whatever_answers_are_like_it_loses_less_than_three_per_cent(
    rates: list[float], cost: float, widening: float, beside: float, reading: float, seed: int
) -> None:
    passes = (cost, (0.0, *(1.0 + widening * width for width in range(9))))
    rounds = [beside + length * (cost + 0.02) + passes[1][length + 1] for length in range(9)]
    device = Device(passes, rounds, tuple(rates), reading=reading, seed=seed)
    run = run_device(device, 20)
    assert sum(run.tokens) * rounds[0] / sum(run.seconds) >= 0.97
