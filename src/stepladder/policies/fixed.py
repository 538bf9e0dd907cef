"""A baseline: always one stage and then another (the paper's "Fixed 13B→34B" and "Fixed 13B→70B", §3.4)."""

from __future__ import annotations

from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.candidates import fail_with, last_fault, not_allowed
from stepladder.types import Call, Decision, Stop, View


class FixedPolicy:
    """Calls ``first``, then ``then`` whatever the first one said, and keeps the later answer; both are billed.

    Its mean cost is therefore the sum of the two. The paper's fixed rows (costs 1.36 and 1.60) lie below that sum and
    so were made otherwise: ``random-split`` is the reading that gives the second of them. A fault of either stage is
    the request's fault, since a baseline must not hide it; the first answer is not handed over as a draft.

    Raises UsageError where both names are the same, and for options that it does not have.
    """

    name = "fixed"

    def __init__(self, *, first: str | None = None, then: str | None = None, **unknown: object) -> None:
        refuse_unknown("policy 'fixed'", unknown, ("first", "then"))
        if first is None or then is None or first == then:
            raise UsageError("policy 'fixed' needs two different stages, 'first' and 'then'")
        self.order = (first, then)

    def decide(self, view: View) -> Decision:
        """The next action."""
        fault, made = last_fault(view), len(view.attempts)
        if fault is not None:
            return fail_with(fault)
        if made >= len(self.order):
            return Decision(Stop(view.attempts[-1]), reason=f"{self.order[-1]} answered last")
        stage, is_last = self.order[made], made + 1 == len(self.order)
        missing = [name for name in self.order[made:] if name not in view.stages]
        if missing:
            return not_allowed(missing[0], view)
        told = f"{' then '.join(self.order)}, always: now {stage}"
        return Decision(Call(stage, final=is_last), values={stage: view.value(stage)}, reason=told)
