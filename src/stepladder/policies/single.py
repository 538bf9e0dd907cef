"""A baseline: always the same stage (the paper's "13B Only" … "70B Only", §3.4)."""

from __future__ import annotations

from stepladder.errors import refuse_unknown
from stepladder.policies.candidates import answers, fail_with, give_up, last_fault, not_allowed, untried
from stepladder.types import Call, Decision, Stop, View


class SinglePolicy:
    """Calls ``stage`` and fails where that fails: a baseline that fell back to another stage would hide its faults.

    Where none is named it is bound to none: it calls the dearest allowed stage, and where that fails the next dearest.
    Raises UsageError for options that it does not have.
    """

    name = "single"

    def __init__(self, *, stage: str | None = None, **unknown: object) -> None:
        refuse_unknown("policy 'single'", unknown, ("stage",))
        self.stage = stage

    def decide(self, view: View) -> Decision:
        """The next action."""
        answered, fault = answers(view), last_fault(view)
        if answered:
            return Decision(Stop(answered[-1]), reason=f"{answered[-1].stage} answered")
        if self.stage is None:
            left = untried(view)
            return _call(view, left[-1], "the dearest stage that is left") if left else give_up(view)
        if fault is not None:
            return fail_with(fault)
        if self.stage not in view.stages:
            return not_allowed(self.stage, view)
        return _call(view, self.stage, f"{self.stage}, always")


def _call(view: View, stage: str, told: str) -> Decision:
    return Decision(Call(stage, final=True), values={stage: view.value(stage)}, reason=told)
