"""What a family makes before a task is finished: one question with its group, not yet assigned to a split."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from stepladder.evaluate.tasks import Level


class Draft(NamedTuple):
    """One instance. `render(rng, heldout)` words it; `group` is the same whenever the operands (or the fact) are."""

    render: Callable[[Random, bool], str]
    answer: str
    grader: str
    group: str


Maker = Callable[[Random, Level], Draft]
"""Draws one instance of a family at a level."""
