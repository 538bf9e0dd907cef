"""An answer in time: stages that are expected to take longer than is left are left out."""

from __future__ import annotations

from dataclasses import replace

from stepladder.contracts import Policy
from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.bases import base_of
from stepladder.policies.candidates import best_answer, untried
from stepladder.policies.options import number
from stepladder.types import Call, Decision, Fail, Stop, View


class LatencySLOPolicy:
    """Plays ``base`` on the stages whose expected seconds fit into what is left of ``slo_s`` [s].

    What is left is ``slo_s`` less the seconds of all attempts so far; deciding counts as none. Where no stage fits, the
    best answer in hand is kept, and where there is none the quickest stage is called, late as it will be. A stage that
    says nothing of its time (0 s) fits. Expected seconds are means, so this bounds no single request's time: set
    the stages' timeouts for that.

    A base that can go on with none of the stages left to it fails, unless there is an answer in hand, which is then
    kept. A call is final where the base would make it final with and without the stages left out. Raises UsageError for
    options that it does not have or cannot take.
    """

    def __init__(self, *, base: Policy | None = None, slo_s: float | None = None, **unknown: object) -> None:
        refuse_unknown("policy 'latency-slo'", unknown, ("base", "slo_s"))
        if slo_s is None:
            raise UsageError("policy 'latency-slo' needs 'slo_s', the seconds that an answer may take")
        self.base = base_of("latency-slo", base)
        self.slo_s = number("latency-slo", "slo_s", slo_s)
        self.name = f"latency-slo({self.base.name})"

    def decide(self, view: View) -> Decision:
        """The next action."""
        open_, remaining = untried(view), self.slo_s - sum(attempt.seconds for attempt in view.attempts)
        late = {stage for stage in open_ if view.costs[stage].seconds > remaining}
        if not late:
            return self.base.decide(view)
        kept = best_answer(view)
        if len(late) < len(open_):
            decision = self._among(view, late)
            if kept is None or not isinstance(decision.action, Fail):
                return decision
        if kept is not None:
            return Decision(Stop(kept), reason=f"{kept.stage} is kept: {remaining:.2f} s are too few for a further one")
        return _quickest(view, open_, remaining)

    def _among(self, view: View, late: set[str]) -> Decision:
        """The base's decision without the stages that would be late."""
        decision = self.base.decide(replace(view, stages=tuple(stage for stage in view.stages if stage not in late)))
        told = f"{decision.reason}; {', '.join(stage for stage in view.stages if stage in late)} would be late"
        action = decision.action
        if isinstance(action, Call) and action.final:
            whole = self.base.decide(view).action
            action = replace(action, final=isinstance(whole, Call) and whole.final)
        return replace(decision, action=action, reason=told)


def _quickest(view: View, open_: tuple[str, ...], remaining: float) -> Decision:
    quickest = min(open_, key=lambda stage: view.costs[stage].seconds)
    told = f"{quickest} is the quickest, and no stage fits into {remaining:.2f} s"
    return Decision(Call(quickest, final=len(open_) == 1), values={quickest: view.value(quickest)}, reason=told)
