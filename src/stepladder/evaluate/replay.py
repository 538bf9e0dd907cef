"""Ask a policy again what it was asked before, without a model: a trace holds every view that it saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stepladder.contracts import Policy
from stepladder.router import next_decision
from stepladder.types import Action, Decision, Fail, Trace


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision, then and now."""

    trace_id: str
    step: int
    then: Decision
    now: Decision

    @property
    def is_same(self) -> bool:
        """True where the action, its propensity and the candidates' values came out equal."""
        return _key(self.then) == _key(self.now)


def replay(trace: Trace, policy: Policy) -> Iterator[Replayed]:
    """Every recorded view put to the policy again, through the same rule that the live loop uses."""
    last: Action | None = None
    for number, step in enumerate(trace.steps):
        yield Replayed(trace.id, number, step.decision, next_decision(policy, step.view, last, step=number))
        last = step.decision.action


def differences(traces: Iterable[Trace], policy: Policy) -> tuple[Replayed, ...]:
    """The decisions that the policy would now take otherwise; private traces are replayed like others (``missing``)."""
    return tuple(pair for trace in traces for pair in replay(trace, policy) if not pair.is_same)


def missing(trace: Trace) -> str | None:
    """What a private trace no longer holds, as a sentence; None for one that holds everything.

    What a policy was shown is numbers, so ``replay`` works on it all the same. What reads texts cannot be asked again.
    """
    if trace.private is None:
        return None
    put = "hashes" if trace.private == "hash" else "marks"
    return (
        f"trace {trace.id} is private ([traces] prompts = '{trace.private}'): {put} stand in the place of its prompt, "
        "answers and errors, so that features, predictors and graders cannot be asked of it again"
    )


def _key(decision: Decision) -> tuple[object, float, dict[str, float]]:
    action = decision.action
    ending = action.fault.kind if isinstance(action, Fail) else action  # how a fault is worded is no decision
    return ending, decision.propensity, dict(decision.values)
