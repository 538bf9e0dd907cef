"""Samples of aligned outcomes keep groups whole where they can, and are never empty."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize("sizes", [[70] * 4, [200] + [1] * 20, [120] * 12])
def test_groups_larger_than_the_sample_are_thinned(sizes):
    data = grouped(sizes)
    some = sample(data, 60, np.random.default_rng(1))
    groups = min(FEWEST_GROUPS, len(sizes))
    assert groups <= len(some) <= 60
    assert len(np.unique(some.groups)) >= groups
    assert len(np.unique(folds(some, 4, np.random.default_rng(2)))) > 1
