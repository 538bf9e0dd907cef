"""Weitzman's rule: every stage has a price at which looking into it just pays, and the dearest box is opened next."""

from __future__ import annotations

from stepladder.errors import refuse_unknown
from stepladder.policies.candidates import best_answer, climb, give_up, untried
from stepladder.policies.laws import LEVELS, MOST_LEVELS, law_of, reservation
from stepladder.policies.options import whole
from stepladder.types import Decision, Stop, View


class PandoraPolicy:
    """Calls the untried stage with the greatest reservation value, while that exceeds λ·Q of the best answer in hand.

    A stage's reservation value σ solves E[(λX − σ)⁺] = C, where X is what its estimate will be once its answer was
    seen (``laws``) and C is what it costs from here. It is λ·Q − C where answers tell nothing, and more where they do,
    since a poor answer need not be kept. So a cheap stage whose answers say whether they are good may be asked before
    the one with the greatest V. Where no estimate tells anything this is the greedy rule.

    Source: M. Weitzman, "Optimal Search for the Best Alternative", Econometrica 47 (1979): no policy has a greater
    expected λ·Q − ΣC where the stages' signals are independent. An answer must be given, so before the first there is
    nothing to stop with: that is Weitzman's rule with an outside option too poor to take, and σ below 0 does not stop
    it. After every answer σ is found again from the estimates of then. A stage that failed is left out.

    ``levels`` is how many values a law has. A call is final only where nothing is in hand and nothing else could
    be called. The decision's values are σ before the first answer, and afterwards by how much σ exceeds λ·Q in hand.
    Raises UsageError for options that it does not have or cannot take.
    """

    name = "pandora"

    def __init__(self, *, levels: int = LEVELS, **unknown: object) -> None:
        refuse_unknown("policy 'pandora'", unknown, ("levels",))
        self.levels = whole("pandora", "levels", levels, least=1, most=MOST_LEVELS)

    def decide(self, view: View) -> Decision:
        """The next action."""
        left, kept = untried(view), best_answer(view)
        if not left:
            return give_up(view) if kept is None else Decision(Stop(kept), reason=f"{kept.stage} is the best of all")
        held = 0.0 if kept is None else view.lam * view.estimates[kept.stage].mean
        values = {stage: reservation_of(view, stage, self.levels) - held for stage in left}
        best = max(left, key=values.__getitem__)
        if kept is None:
            told = f"{best} has the greatest reservation value, {values[best]:.2f} (λ={view.lam:g})"
            return Decision(climb(view, best), values=values, reason=told)
        told = f"the reservation value of {best} is {values[best]:+.2f} from what {kept.stage} is worth"
        return Decision(climb(view, best) if values[best] > 0 else Stop(kept), values=values, reason=told)


def reservation_of(view: View, stage: str, levels: int) -> float:
    """The reservation value of calling this stage from here, in the ladder's cost unit."""
    return reservation(law_of(view.estimates[stage], levels), view.lam, view.costs[stage].total)
