"""Meeting a mean cost exactly: two values of λ, one for this share of the requests and one for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

from stepladder.contracts import Policy
from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.bases import base_of
from stepladder.policies.options import number, numbers
from stepladder.types import Decision, View


class BudgetPolicy:
    """Plays ``base`` at the higher of two ``lambdas`` for a ``share`` of the requests, and at the lower for the rest.

    λ is the Lagrange multiplier of a bound on the mean cost. A greater λ buys more, but the cost rises by jumps,
    so a budget within a jump is met by mixing the λ on its two sides (``mix_for_budget``). The lot says which of them
    a request gets, so that it is the same at all its steps; the request's own λ is not looked at.

    The propensity is that of the action over the lot: 1 where both λ lead to it. Since the lot stays, how likely a
    whole course was is the least of its steps' propensities, not their product. It is exact for a base that draws
    nothing itself, or draws without looking at λ. Raises UsageError for options that it does not have or cannot take.
    """

    def __init__(
        self,
        *,
        base: Policy | None = None,
        lambdas: Sequence[float] = (),
        share: float = 1.0,
        **unknown: object,
    ) -> None:
        refuse_unknown("policy 'budget'", unknown, ("base", "lambdas", "share"))
        self.base = base_of("budget", base)
        self.lambdas = numbers("budget", "lambdas", lambdas)
        if len(self.lambdas) != 2 or self.lambdas[0] > self.lambdas[1]:
            raise UsageError(f"policy 'budget' needs 'lambdas', the lower and the higher, not {list(lambdas)!r}")
        self.share = number("budget", "share", share, most=1.0)
        self.name = f"budget({self.base.name})"

    def decide(self, view: View) -> Decision:
        """The next action."""
        low, high = self.lambdas
        mine, other = (high, low) if view.lot < self.share else (low, high)
        decision = self.base.decide(replace(view, lam=mine))
        chance = (self.share if view.lot < self.share else 1.0 - self.share) * decision.propensity
        if 0.0 < self.share < 1.0:
            instead = self.base.decide(replace(view, lam=other))
            if instead.action == decision.action:
                chance += (1.0 - self.share if view.lot < self.share else self.share) * instead.propensity
        return replace(decision, propensity=min(1.0, chance), reason=f"{decision.reason}; λ={mine:g} by lot")


def mix_for_budget(costs: Mapping[float, float], budget: float) -> tuple[float, float, float]:
    """The two λ and the share of the higher whose mix has the mean cost ``budget``: (lower, higher, share).

    ``costs`` are mean costs measured at each λ, on calibration rows. The lower λ is the greatest that keeps within the
    budget, the higher the next one: (1 − share)·costs[lower] + share·costs[higher] = budget. Where even the greatest λ
    keeps within it there is nothing more to buy, and both are that one. Raises UsageError for numbers that are not
    finite, and for a budget below the cost at every λ.
    """
    if not costs or not all(isfinite(value) for value in (*costs, *costs.values(), budget)):
        raise UsageError("a mix for a budget needs mean costs at one λ or more, and a budget, all finite numbers")
    rising = sorted(costs)
    within = [lam for lam in rising if costs[lam] <= budget]
    if not within:
        least = min(rising, key=costs.__getitem__)
        told = f"the least that any λ costs is {costs[least]:g} (λ={least:g})"
        raise UsageError(f"no mix has the mean cost {budget:g}: {told}")
    lower = within[-1]
    if lower == rising[-1]:
        return lower, lower, 0.0
    higher = rising[rising.index(lower) + 1]
    return lower, higher, (budget - costs[lower]) / (costs[higher] - costs[lower])
