"""Keeping a promise about quality: never play at a λ below the one that calibration rows say is safe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stepladder.contracts import Policy
from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.bases import base_of
from stepladder.policies.options import number
from stepladder.types import Decision, View


class QualityFloorPolicy:
    """Plays ``base`` at the request's λ, but at no less than ``floor``.

    ``floor`` is the λ that ``risk_controlled`` chose for this base on calibration rows. Its guarantee holds at the
    floor, and at any one higher λ among those calibrated, since it counts the worst of them. Raises UsageError for
    options that it does not have or cannot take.
    """

    def __init__(self, *, base: Policy | None = None, floor: float | None = None, **unknown: object) -> None:
        refuse_unknown("policy 'quality-floor'", unknown, ("base", "floor"))
        if floor is None:
            raise UsageError("policy 'quality-floor' needs 'floor', the least λ that it may play at")
        self.base = base_of("quality-floor", base)
        self.floor = number("quality-floor", "floor", floor)
        self.name = f"quality-floor({self.base.name})"

    def decide(self, view: View) -> Decision:
        """The next action."""
        if view.lam >= self.floor:
            return self.base.decide(view)
        decision = self.base.decide(replace(view, lam=self.floor))
        return replace(decision, reason=f"{decision.reason}; λ={self.floor:g} is the floor")


def risk_controlled(losses: npt.ArrayLike, delta: float, *, bound: float = 1.0) -> int:
    """The first column, so the smallest λ, whose expected loss on a fresh row is at most ``delta``.

    ``losses`` (n, L) are those of n calibration rows at L rising λ, in [0, ``bound``]: such as 1 where quality drops by
    more than ε against a reference, for P(drop > ε) ≤ δ. A row's loss need not fall as λ rises, and the theorem asks
    that it does; so each is replaced by the greatest at this λ or above, which never lies below it and never rises.
    The first column with (n·mean + bound) / (n + 1) ≤ delta is chosen.

    What is guaranteed: where the fresh row and the calibration rows are exchangeable, the fresh row's expected loss at
    the chosen λ is at most ``delta``. That is on average over calibration draws and not for each of them, and
    over all requests and not for each kind of them. Where no column will do this raises UsageError, and the guarantee
    counts such a draw as one without loss: let the last column be the reference itself, whose loss is 0, and with
    n ≥ bound/delta − 1 there always is one.

    Source: A. Angelopoulos, S. Bates, A. Fisch, L. Lei, T. Schuster, "Conformal Risk Control", arXiv 2208.02814,
    theorem 1, and the section on losses that are not monotone.
    """
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not ((table >= 0) & (table <= bound)).all():
        raise UsageError(f"losses should be (rows, λ), at least one of each, from 0 to {bound:g}")
    if not 0 <= delta <= bound:
        raise UsageError(f"delta should be from 0 to {bound:g}, not {delta!r}")
    falling = np.maximum.accumulate(table[:, ::-1], axis=1)[:, ::-1]
    many = len(table)
    risks = (falling.sum(axis=0) + bound) / (many + 1)
    safe = np.flatnonzero(risks <= delta)
    if len(safe) == 0:
        told = f"the least that these {many} rows allow is {risks.min():.4g}"
        raise UsageError(f"no λ keeps the risk at {delta:g}: {told}")
    return int(safe[0])
