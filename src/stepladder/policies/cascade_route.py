"""Routing and cascading as one choice: which set of further answers is worth its cost, whatever stages it skips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stepladder.errors import refuse_unknown
from stepladder.policies.candidates import best_answer, climb, give_up, untried
from stepladder.policies.laws import LEVELS, MOST_LEVELS, Law, law_of, reservation
from stepladder.policies.options import whole
from stepladder.types import Decision, Stop, View

MOST_STAGES = 8
"""Every set of so many stages is looked at: 255 of them."""


class CascadeRoutePolicy:
    """Finds the set S of untried stages with the greatest λ·E[max(Q in hand, X_j for j in S)] − ΣC_j, and asks the
    cheapest of it; stops where no set is worth more than what is in hand. After every answer it chooses anew.

    X_j is what the estimate of stage j will be once its answer was seen (``laws``), and E[max] is computed from the
    product of the laws' distributions, signals being independent. Unlike a threshold cascade it may begin anywhere and
    skip stages; unlike ``pandora`` it values a set as if all of it were going to be asked, so it underrates sets that
    one will leave early. Where no estimate tells anything this is the greedy rule.

    Source: J. Dekoninck, M. Baader, M. Vechev, "A Unified Approach to Routing and Cascading for LLMs",
    arXiv 2410.10347. A stage whose reservation value is not above what is in hand would add to no set, and is left out
    first; should more than 8 still be left, those 8 with the greatest reservation values are looked at.

    ``levels`` is how many values a law has. A call is final only where nothing is in hand and nothing else could be
    called. The decision's values are the worth of the best set with each stage, less that of what is in hand. Raises
    UsageError for options that it does not have or cannot take.
    """

    name = "cascade-route"

    def __init__(self, *, levels: int = LEVELS, **unknown: object) -> None:
        refuse_unknown("policy 'cascade-route'", unknown, ("levels",))
        self.levels = whole("cascade-route", "levels", levels, least=1, most=MOST_LEVELS)

    def decide(self, view: View) -> Decision:
        """The next action."""
        left, kept = untried(view), best_answer(view)
        if not left:
            return give_up(view) if kept is None else Decision(Stop(kept), reason=f"{kept.stage} is the best of all")
        laws = {stage: law_of(view.estimates[stage], self.levels) for stage in left}
        held = None if kept is None else view.estimates[kept.stage].mean
        hopeful = _hopeful(view, laws, held)
        if kept is not None and not hopeful:
            return Decision(Stop(kept), reason=f"{kept.stage} is kept: no further answer is worth its cost")
        return self._choose(view, {stage: laws[stage] for stage in hopeful}, held)

    def _choose(self, view: View, laws: Mapping[str, Law], held: float | None) -> Decision:
        stages, costs = list(laws), [view.costs[stage].total for stage in laws]
        worth = set_values(list(laws.values()), costs, view.lam, held)
        values = {stage: _best_with(worth, number) for number, stage in enumerate(stages)}
        chosen = _best_set(worth, 0 if held is not None else 1, view.lam + sum(costs))
        members = [stage for number, stage in enumerate(stages) if chosen >> number & 1]
        told = f"{' + '.join(members) or 'nothing more'} is worth {worth[chosen]:+.2f} (λ={view.lam:g})"
        if members:
            first = min(members, key=lambda stage: view.costs[stage].total)
            return Decision(climb(view, first), values=values, reason=told)
        kept = best_answer(view)
        assert kept is not None  # noqa: S101 - the empty set is chosen only where something is in hand
        return Decision(Stop(kept), values=values, reason=f"{kept.stage} is kept: {told}")


def set_values(
    laws: Sequence[Law], costs: Sequence[float], lam: float, held: float | None = None
) -> npt.NDArray[np.float64]:
    """λ·(E[max(held, X_j for j in S)] − held) − ΣC_j of every set S of k independent stages, (2^k,).

    ``held`` None counts as 0. Bit j of a set's place says whether stage j is in it. ``laws`` hold rising values in
    [0, 1] that are equally likely. The expectation is held + ∫ 1 − Π F_j over the qualities above ``held``, summed
    exactly between the values.
    """
    floor = held or 0.0
    grid = np.sort(np.maximum(np.concatenate([[floor], *laws]), floor))
    below, spent = np.ones((1, len(grid) - 1)), np.zeros(1)
    for law, cost in zip(laws, costs, strict=True):
        known = np.searchsorted(law, grid[:-1], side="right") / len(law)
        below = np.concatenate([below, below * known])
        spent = np.concatenate([spent, spent + cost])
    found: npt.NDArray[np.float64] = lam * ((1.0 - below) @ np.diff(grid)) - spent
    return found


def _hopeful(view: View, laws: Mapping[str, Law], held: float | None) -> tuple[str, ...]:
    """The stages worth looking at, in the ladder's order."""
    prices = {stage: reservation(law, view.lam, view.costs[stage].total) for stage, law in laws.items()}
    hopeful = [stage for stage in laws if held is None or prices[stage] > view.lam * held]
    best = sorted(hopeful, key=lambda stage: -prices[stage])[:MOST_STAGES]
    return tuple(stage for stage in hopeful if stage in best)


def _best_set(worth: npt.NDArray[np.float64], least: int, scale: float) -> int:
    """The first set, so the smallest of those within each other, that is the best but for rounding."""
    best = worth[least:].max()
    return least + int(np.argmax(worth[least:] >= best - 1e-12 * scale))


def _best_with(worth: npt.NDArray[np.float64], number: int) -> float:
    """The best of the sets that have this stage: those whose place has this bit."""
    return float(worth.reshape(-1, 2, 1 << number)[:, 1].max())
