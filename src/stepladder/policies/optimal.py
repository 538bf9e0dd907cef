"""Optimal stopping with recall: all that the answers to come may say, thought through to the end."""

from __future__ import annotations

from dataclasses import replace

from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.candidates import best_answer, climb, give_up, untried
from stepladder.policies.induction import best_called, chances, tree, worth_of_calls
from stepladder.policies.laws import LEVELS, MOST_LEVELS, law_of
from stepladder.policies.options import number, whole
from stepladder.policies.pandora import PandoraPolicy
from stepladder.types import Decision, Stop, View

LEVELS_FOR = (8, 8, 8, 5, 4, 3, 2, 2)
"""Values of a law where 1, 2, 3 … untried stages tell something: some thousands of states at the most."""

MOST_CORRELATION = 0.99
MOST_STATES = 200_000


class OptimalPolicy:
    """Calls the untried stage from which the best way on has the greatest expected λ·Q − ΣC; stops where none beats
    what is in hand. After every answer it thinks anew, with the estimates of then. Of equals it calls the one with the
    greatest V = λ·Q − C.

    Backward induction over every set of signals that the answers may give (``induction``). A stage's own signal fixes
    what its estimate will be (``laws``); ``correlation`` r in [0, 0.99] says how far the signals go together, as a
    question that is hard for one stage is hard for the next: a one-factor Gaussian copula, in which one answer's signal
    changes what the others are expected to be. With r = 0 the signals are independent, and this is worth what
    ``pandora`` is worth, which is found much quicker. A stage that tells nothing tells nothing about others either.

    ``levels`` is how many values a law has; by default 8 for up to three stages that tell something, then 5, 4, 3, 2.
    Where more than ``max_stages`` stages are untried ``pandora`` decides, and the reason says so. A call is final only
    where nothing is in hand and nothing else could be called. The decision's values are the expected worth of calling
    each stage and going on from there, less that of what is in hand. Raises UsageError for options that it does not
    have or cannot take, and for levels and stages that make more than 200,000 states.
    """

    name = "optimal"

    def __init__(
        self, *, correlation: float = 0.0, levels: int | None = None, max_stages: int = 5, **unknown: object
    ) -> None:
        refuse_unknown("policy 'optimal'", unknown, ("correlation", "levels", "max_stages"))
        self.correlation = number("optimal", "correlation", correlation, most=MOST_CORRELATION)
        self.max_stages = whole("optimal", "max_stages", max_stages, least=1, most=len(LEVELS_FOR))
        self.levels = None if levels is None else whole("optimal", "levels", levels, least=1, most=MOST_LEVELS)
        states = ((self.levels or 0) + 1) ** self.max_stages
        if states > MOST_STATES:
            told = f"{self.levels} levels of {self.max_stages} stages make {states:,} states"
            raise UsageError(f"policy 'optimal': {told}, more than {MOST_STATES:,}; lower 'levels' or 'max_stages'")
        self._beyond = PandoraPolicy(levels=self.levels or LEVELS)

    def decide(self, view: View) -> Decision:
        """The next action."""
        left, kept = untried(view), best_answer(view)
        if not left:
            return give_up(view) if kept is None else Decision(Stop(kept), reason=f"{kept.stage} is the best of all")
        if len(left) > self.max_stages:
            decision = self._beyond.decide(view)
            told = f"{len(left)} stages are more than {self.max_stages} to think through: {decision.reason}"
            return replace(decision, reason=told)
        held = None if kept is None else view.estimates[kept.stage].mean
        values = self._values(view, left, held)
        best = max(values.values())
        close = 1e-12 * (view.lam + sum(view.costs[stage].total for stage in left))
        stage = max((stage for stage in left if values[stage] >= best - close), key=view.value)
        told = f"to ask {stage} and go on is worth {best:+.2f} (λ={view.lam:g})"
        if kept is None:
            return Decision(climb(view, stage), values=values, reason=told)
        if best > close:
            return Decision(climb(view, stage), values=values, reason=f"{told} more than {kept.stage}")
        return Decision(Stop(kept), values=values, reason=f"{kept.stage} is kept: {told}")

    def _values(self, view: View, left: tuple[str, ...], held: float | None) -> dict[str, float]:
        telling = sum(1 for stage in left if len(law_of(view.estimates[stage], 2)) > 1)
        levels = self.levels or LEVELS_FOR[max(telling - 1, 0)]
        laws = [law_of(view.estimates[stage], levels) for stage in left]
        sizes = tuple(len(values) for values in laws)
        costs = [view.costs[stage].total for stage in left]
        sure = None if held is None else view.lam * held
        stopping = best_called(tree(sizes), [[view.lam * value for value in values] for values in laws], sure)
        found = worth_of_calls(tree(sizes), chances(sizes, self.correlation), stopping, costs)
        return {stage: value - (sure or 0.0) for stage, value in zip(left, found.tolist(), strict=True)}
