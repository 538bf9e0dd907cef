"""Samples of aligned outcomes keep groups whole where they can, and are never empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import make_row
from stepladder.evaluate.aligned import Aligned, align
from stepladder.train.rows import FEWEST_GROUPS, drawn, folds, sample


def grouped(sizes: list[int]) -> Aligned:
    rows = [
        make_row(f"{group}-{n}", "a", 1.0, prompt=f"p{group}-{n}", group_id=f"g{group}")
        for group, size in enumerate(sizes)
        for n in range(size)
    ]
    return align(rows, ("a",), pricing=(1,))


def test_small_groups_are_taken_whole():
    data = grouped([3] * 60)
    found = drawn(data, 100, np.random.default_rng(0))
    assert 97 <= len(found) <= 100
    assert set(np.bincount(data.groups[found])) <= {0, 3}
    assert drawn(data, 180, np.random.default_rng(0)).tolist() == list(range(180))


@pytest.mark.parametrize("sizes", [[70] * 4, [200] + [1] * 20, [120] * 12, [1] * 9 + [200] + [1] * 9])
def test_groups_larger_than_the_sample_are_thinned(sizes):
    data = grouped(sizes)
    some = sample(data, 60, np.random.default_rng(1))
    assert len(some) == 60
    assert len(np.unique(some.groups)) >= min(FEWEST_GROUPS, len(sizes))
    assert len(np.unique(folds(some, 4, np.random.default_rng(2)))) > 1


@given(
    st.lists(st.integers(1, 4) | st.integers(1, 80), min_size=1, max_size=25),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_samples_are_full_and_of_many_groups(sizes, most, seed):
    """They fall short by less than a group's share, and by nothing where a larger group could fill them."""
    data = grouped(sizes)
    found = drawn(data, most, np.random.default_rng(seed))
    share = max(most // FEWEST_GROUPS, 1)
    assert (np.diff(found) > 0).all()
    assert min(len(data), most) - share < len(found) <= most
    if sum(max(size - share, 0) for size in sizes) >= share:
        assert len(found) == min(len(data), most)
    assert len(np.unique(data.groups[found])) >= min(FEWEST_GROUPS, len(sizes), most)
    of_groups = np.bincount(data.groups[found], minlength=len(sizes))
    whole = np.bincount(data.groups)
    assert all(taken in (0, size) for taken, size in zip(of_groups, whole, strict=True) if size <= share)
