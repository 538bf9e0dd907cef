"""A baseline: always the same stage (the paper's "13B Only" … "70B Only", §3.4)."""

from __future__ import annotations

from stepladder.errors import refuse_unknown
from stepladder.policies.candidates import answers, fail_with, give_up, last_fault, not_allowed
from stepladder.types import Call, Decision, Stop, View


class SinglePolicy:
    """Calls ``stage``, or the dearest allowed stage where none is named; fails where that fails.

    There is no second try: a baseline that fell back to another stage would hide its faults. Raises UsageError for
    options that it does not have.
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
        if fault is not None:
            return fail_with(fault)
        return self._call(view)

    def _call(self, view: View) -> Decision:
        if not view.stages:
            return give_up(view) if self.stage is None else not_allowed(self.stage, view)
        stage = view.stages[-1] if self.stage is None else self.stage
        if stage not in view.stages:
            return not_allowed(stage, view)
        told = "the dearest allowed stage, always" if self.stage is None else f"{stage}, always"
        return Decision(Call(stage, final=True), values={stage: view.value(stage)}, reason=told)
