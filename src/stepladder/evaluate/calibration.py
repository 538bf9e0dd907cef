"""Finding the λ at which a policy does what is asked of it, by replaying recorded outcomes."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import numpy as np

from stepladder.errors import UsageError
from stepladder.evaluate.compare import Played
from stepladder.evaluate.metrics import Vector
from stepladder.policies.budget import mix_for_budget
from stepladder.policies.quality_floor import risk_controlled

HALVINGS = 24
CLOSE = 1e-4
"""Neighbouring λ are told apart down to this share of themselves."""

COARSE = 41


class Mix(NamedTuple):
    """The ``higher`` λ for this ``share`` of the requests, the ``lower`` for the rest (policy ``budget``)."""

    lower: float
    higher: float
    share: float


class Setting(NamedTuple):
    """A λ, what became of every query there, and the mix that meets a budget exactly where one was asked for."""

    played: Played
    lam: float
    mix: Mix | None = None


class Replay:
    """One policy on the same rows at any λ, each λ played once. ``play`` gives what it does at a λ.

    ``grid`` spans the λ that matter; the search goes from 0 to 64 times its highest.
    """

    def __init__(self, play: Callable[[float], Played], grid: Vector) -> None:
        self._play, self._known = play, dict[float, Played]()
        self.coarse: list[float] = [0.0, *np.geomspace(grid[0] / 8, grid[-1] * 64, COARSE).tolist()]

    def __call__(self, lam: float) -> Played:
        """What the policy does at this λ."""
        if lam not in self._known:
            self._known[lam] = self._play(lam)
        return self._known[lam]

    def cost(self, lam: float) -> float:
        """Mean of what was billed."""
        return float(self(lam).cost.mean())

    def quality(self, lam: float) -> float:
        """Mean quality of the answers that were kept."""
        return float(self(lam).quality.mean())


def at_cost(replay: Replay, budget: float) -> Setting:
    """The greatest λ whose mean cost keeps within the budget, and the mix with the λ above it that meets it exactly.

    Found by halving the step between the two. Raises UsageError where no λ costs so little.
    """
    costs = {lam: replay.cost(lam) for lam in replay.coarse}
    found = mix_for_budget(costs, budget)
    for _ in range(HALVINGS):
        lower, higher, _ = found
        if higher - lower <= CLOSE * higher:
            break
        middle = _between(lower, higher)
        costs[middle] = replay.cost(middle)
        found = mix_for_budget(costs, budget)
    return Setting(replay(found[0]), found[0], Mix(*found))


def at_quality(replay: Replay, target: float) -> Setting:
    """The smallest λ whose mean quality is the target or more. Raises UsageError where none reaches it."""
    good = next((place for place, lam in enumerate(replay.coarse) if replay.quality(lam) >= target), None)
    if good is None:
        best = max(replay.coarse, key=replay.quality)
        told = f"the best is {replay.quality(best):.4f} (λ = {best:.4g})"
        raise UsageError(f"no λ reaches the mean quality {target:g} on these rows: {told}")
    high = replay.coarse[good]
    low = replay.coarse[good - 1] if good else high
    for _ in range(HALVINGS):
        if high - low <= CLOSE * high:
            break
        middle = _between(low, high)
        low, high = (low, middle) if replay.quality(middle) >= target else (middle, high)
    return Setting(replay(high), high)


def at_floor(replay: Replay, dearest: Vector, epsilon: float, delta: float) -> Setting:
    """The smallest λ for which P(quality < the dearest stage's − ε) ≤ δ on a fresh row.

    ``dearest`` (n,) is the dearest stage's quality. By conformal risk control (``policies.quality_floor``), which holds
    on average over draws of calibration rows. Raises UsageError where no λ keeps it.
    """
    drops = [replay(lam).quality < dearest - epsilon - 1e-12 for lam in replay.coarse]
    lam = replay.coarse[risk_controlled(np.column_stack(drops).astype(np.float64), delta)]
    return Setting(replay(lam), lam)


def _between(low: float, high: float) -> float:
    return sqrt(low * high) if low > 0 else high / 2
