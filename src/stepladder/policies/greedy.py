"""The paper's greedy rule (§2.2.2), and the same rule asked again after every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.candidates import best_answer, draft_for, give_up, untried
from stepladder.types import Attempt, Call, Decision, Stop, View


class GreedyPolicy:
    """Calls the stage with the greatest V = λ·Q − C; the cheaper (earlier) of equals.

    Plain, it keeps the first answer, so its calls are final. With ``cascade`` it looks again after every answer, and
    climbs where λ·(Q_j − Q_best) − C_j > 0 for some stage j not yet tried: Q are the current posterior means, Q_best
    that of the best answer in hand, and C_j is what j costs from here (what was spent is sunk). It climbs to the best
    such stage, hands it the lower answer as a draft, and in the end keeps the answer with the highest posterior mean.
    A call of a cascade is final only where nothing is in hand and nothing else could be called: only then is it
    certain to be kept. Either way a stage that failed is left out, and the best of the rest is called.

    Raises UsageError for options that it does not have or cannot take.
    """

    name = "greedy"

    def __init__(self, *, cascade: bool = False, **unknown: object) -> None:
        refuse_unknown("policy 'greedy'", unknown, ("cascade",))
        if not isinstance(cascade, bool):
            raise UsageError(f"policy 'greedy': 'cascade' should be true or false, not {cascade!r}")
        self.cascade = cascade

    def decide(self, view: View) -> Decision:
        """The next action."""
        kept = best_answer(view) if view.attempts else None
        if kept is None:
            return self._first(view, untried(view))
        if not self.cascade:
            return Decision(Stop(kept), reason=f"{kept.stage} answered")
        return _climb_or_stop(view, untried(view), kept)

    def _first(self, view: View, left: tuple[str, ...]) -> Decision:
        if not left:
            return give_up(view)
        values = {stage: view.value(stage) for stage in left}
        ranked = sorted(values, key=values.__getitem__, reverse=True)
        final = not self.cascade or len(left) == 1
        return Decision(Call(ranked[0], final), values=values, reason=_told(ranked, values, view.lam))


def _climb_or_stop(view: View, left: tuple[str, ...], kept: Attempt) -> Decision:
    held = view.lam * view.estimates[kept.stage].mean
    gains = {stage: view.value(stage) - held for stage in left}
    if not gains:
        return Decision(Stop(kept), reason=f"{kept.stage} is the best of all that were asked")
    best = _best(gains)
    told = f"climbing to {best} is worth {gains[best]:+.2f} (λ={view.lam:g})"
    if gains[best] > 0:
        return Decision(Call(best, draft=draft_for(view, best)), values=gains, reason=told)
    return Decision(Stop(kept), values=gains, reason=f"{kept.stage} is kept: {told}")


def _best(values: Mapping[str, float]) -> str:
    return max(values, key=values.__getitem__)


def _told(ranked: Sequence[str], values: Mapping[str, float], lam: float) -> str:
    head = f"{ranked[0]} is worth {values[ranked[0]]:.2f}"
    if len(ranked) == 1:
        return f"{head}, the only stage left (λ={lam:g})"
    return f"{head}, next best {ranked[1]} {values[ranked[1]]:.2f} (λ={lam:g})"
