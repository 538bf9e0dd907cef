from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.engines.forecast import Forecasts, SpeedEstimate
from stepladder.types import Attempt, Fault, Stage, Usage


def attempt(prompt: int, output: int, seconds: float, cached: int = 0, fault: Fault | None = None) -> Attempt:
    return Attempt("s", "x", Usage(prompt, output, cached), seconds, fault=fault)


def told(speed: SpeedEstimate, prompt: int, output: int) -> float:
    seconds = speed.seconds(prompt, output)
    assert seconds is not None
    return seconds


def taught(count: int, *, outliers: float = 0.0, seed: int = 1) -> SpeedEstimate:
    """Truth: 0.05 s + 0.2 ms for a prompt token + 10 ms for an output token, with 10 % noise."""
    chance, speed = random.Random(seed), SpeedEstimate()
    for _ in range(count):
        prompt, output = chance.randint(10, 4000), chance.randint(1, 400)
        seconds = (0.05 + 0.0002 * prompt + 0.01 * output) * chance.gauss(1, 0.1)
        speed.observe(attempt(prompt, output, seconds * (50 if chance.random() < outliers else 1)))
    return speed


def test_silent_before_three_answers() -> None:
    speed = SpeedEstimate()
    for _ in range(2):
        speed.observe(attempt(10, 10, 1.0))
    speed.observe(attempt(10, 10, 1.0, fault=Fault("server", "x")))
    speed.observe(attempt(10, 0, 1.0))
    assert speed.seconds(10, 10) is None
    speed.observe(attempt(10, 10, 1.0))
    assert abs(told(speed, 10, 10) - 1.0) < 0.01


def test_learns_the_parts() -> None:
    speed = taught(200)
    for prompt, output in ((100, 100), (2000, 50), (50, 400)):
        truth = 0.05 + 0.0002 * prompt + 0.01 * output
        assert abs(told(speed, prompt, output) / truth - 1) < 0.2


def test_outliers_move_it_little() -> None:
    assert told(taught(200, outliers=0.03), 1000, 200) < 2 * told(taught(200), 1000, 200)
    first = SpeedEstimate()
    for seconds in (1.0, 100.0, 1.0):
        first.observe(attempt(10, 10, seconds))
    assert told(first, 10, 10) < 3


def test_a_change_that_stays_is_believed() -> None:
    speed = taught(100)
    before = told(speed, 500, 100)
    for _ in range(30):
        speed.observe(attempt(500, 100, 10 * before))
    assert told(speed, 500, 100) > 6 * before


def test_cached_prompt_tokens_are_not_counted() -> None:
    speed = SpeedEstimate()
    for _ in range(5):
        speed.observe(attempt(5000, 10, 0.1, cached=5000))
    assert told(speed, 0, 10) > 0.09


rows = st.tuples(st.integers(0, 10**6), st.integers(0, 10**5), st.floats(1e-6, 1e5))


@settings(deadline=None)
@given(st.lists(rows, min_size=3, max_size=40))
def test_always_finite_from_zero_and_rising(seen: list[tuple[int, int, float]]) -> None:
    speed = SpeedEstimate()
    for row in seen:
        speed.observe(attempt(*row))
    if speed.seconds(1, 1) is None:
        return
    sizes = [0, 1, 10, 1000, 10**5]
    table = [[told(speed, prompt, output) for output in sizes] for prompt in sizes]
    assert all(0 <= value < float("inf") for line in table for value in line)
    assert all(line == sorted(line) for line in table)
    assert all(list(column) == sorted(column) for column in zip(*table, strict=True))


def test_device_seconds_count_every_gpu() -> None:
    forecasts, stage = Forecasts(), Stage("s", "e", "m", gpus=4)
    assert forecasts.cost(stage, 10, 10) is None
    for _ in range(3):
        forecasts.observe(attempt(10, 10, 1.0))
    cost = forecasts.cost(stage, 10, 10)
    assert cost is not None
    assert cost.device_s == 4 * cost.seconds
