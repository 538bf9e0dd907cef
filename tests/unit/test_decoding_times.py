"""Step times: what is known of a pass, from which passes."""

from __future__ import annotations

import random

import pytest

from stepladder.decoding.times import BUCKETS, WINDOW, StepTimes, rising


def seen(*passes: tuple[int, float], batch: int = 1) -> StepTimes:
    times = StepTimes()
    for width, seconds in passes:
        times.observe(0, width, batch, seconds)
    return times


def test_nothing_is_known_of_what_was_never_seen() -> None:
    assert StepTimes().seconds(0, 1) is None
    assert seen((1, 0.1)).seconds(1, 1) is None


def test_a_prompt_says_nothing_of_one_token() -> None:
    times = seen((500, 0.8))
    assert times.seconds(0, 500) == pytest.approx(0.8)
    assert times.seconds(0, 1) is None
    assert times.seconds(0, 400) == pytest.approx(0.8)


def test_widths_between_are_on_the_line() -> None:
    times = seen((1, 0.1), (3, 0.2))
    assert times.seconds(0, 2) == pytest.approx(0.15)


def test_beyond_the_widest_it_goes_on_as_it_went() -> None:
    assert seen((1, 0.1), (3, 0.2)).seconds(0, 5) == pytest.approx(0.3)
    assert seen((1, 0.1), (4, 0.1)).seconds(0, 16) == pytest.approx(0.1)


def test_one_width_alone_makes_wide_passes_dear() -> None:
    assert seen((1, 0.1)).seconds(0, 11) == pytest.approx(0.2)


def test_a_wider_pass_is_never_quicker() -> None:
    times = seen((1, 0.10), (2, 0.20), (3, 0.11), (4, 0.12))
    found = [times.seconds(0, width) or 0.0 for width in range(1, 9)]
    assert found == sorted(found)


def test_spikes_do_not_count_and_lasting_changes_do() -> None:
    chance, times = random.Random(0), StepTimes()
    for _ in range(100):
        times.observe(0, 1, 1, 5.0 if chance.random() < 0.15 else 0.1)
    assert times.seconds(0, 1) == pytest.approx(0.1)
    for _ in range(WINDOW):
        times.observe(0, 1, 1, 0.3)
    assert times.seconds(0, 1) == pytest.approx(0.3)


def test_a_first_pass_that_warms_up_is_outvoted_by_the_second() -> None:
    assert seen((1, 9.0), (1, 0.1)).seconds(0, 1) == pytest.approx(0.1)


def test_another_batch_is_read_at_equal_tokens() -> None:
    times = seen((1, 0.1), (2, 0.12), (4, 0.16), (8, 0.24))
    assert times.seconds(0, 1, batch=4) == pytest.approx(0.16)
    assert times.seconds(0, 2, batch=4) == pytest.approx(0.24)


def test_another_batchs_curve_is_hung_on_what_was_seen_of_this_one() -> None:
    times = seen((1, 0.1), (2, 0.12), (4, 0.16), (8, 0.24))
    times.observe(0, 1, 2, 0.24)  # twice what one row at width 2 takes
    assert times.seconds(0, 1, batch=2) == pytest.approx(0.24)
    assert times.seconds(0, 4, batch=2) == pytest.approx(0.48)


def test_a_batch_between_those_seen_goes_by_the_nearer() -> None:
    times = seen((1, 0.1))
    times.observe(0, 1, 8, 0.5)
    assert times.seconds(0, 1, batch=6) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("width", "batch", "seconds"), [(0, 1, 0.1), (1, 0, 0.1), (1, 1, 0.0), (1, 1, -1.0), (1, 1, float("inf"))]
)
def test_passes_that_cannot_be_say_nothing(width: int, batch: int, seconds: float) -> None:
    times = StepTimes()
    times.observe(0, width, batch, seconds)
    assert times.seconds(0, 1) is None


def test_known_tells_what_was_timed_itself() -> None:
    times = seen((5, 0.1))
    assert times.known(0, 6)  # 5 and 6 are one bucket
    assert not times.known(0, 4)
    assert not times.known(0, 5, batch=2)


def test_widths_beyond_the_last_bucket_are_kept_too() -> None:
    times = seen((1, 0.1), (2 * BUCKETS[-1], 4.0))
    assert times.seconds(0, 2 * BUCKETS[-1]) == pytest.approx(4.0)


def test_rising_keeps_the_weighted_mean_of_what_it_pools() -> None:
    assert rising([1.0, 3.0, 2.0], [1.0, 1.0, 3.0]) == pytest.approx([1.0, 2.25, 2.25])
    assert rising([3.0, 2.0, 1.0], [1.0, 1.0, 1.0]) == pytest.approx([2.0, 2.0, 2.0])
