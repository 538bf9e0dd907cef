"""What every policy asks of a view: which stages are left, which answers there are, and how to give up."""

from __future__ import annotations

from dataclasses import replace

from stepladder.types import Attempt, Call, Decision, Fail, Fault, View, absence_fault, draft_below


def answers(view: View) -> tuple[Attempt, ...]:
    """Attempts that succeeded, in the order they were made."""
    return tuple(attempt for attempt in view.attempts if attempt.fault is None)


def last_fault(view: View) -> Fault | None:
    """The fault of the newest attempt that failed; None where none did."""
    return next((attempt.fault for attempt in reversed(view.attempts) if attempt.fault is not None), None)


def untried(view: View) -> tuple[str, ...]:
    """Allowed stages that no attempt was made at, cheapest first.

    None are left after a ``bad_request``: what one server calls a mistake of the caller's the next would too, and a
    caller must not be able to call a whole ladder with one wrong parameter.
    """
    if not view.attempts:
        return view.stages
    if any(attempt.fault is not None and attempt.fault.kind == "bad_request" for attempt in view.attempts):
        return ()
    tried = {attempt.stage for attempt in view.attempts}
    return tuple(stage for stage in view.stages if stage not in tried)


def best_answer(view: View) -> Attempt | None:
    """The answer whose stage has the highest current posterior mean, the earliest of equals; None without answers."""
    return max(answers(view), key=lambda attempt: view.estimates[attempt.stage].mean, default=None)


def draft_for(view: View, stage: str) -> Attempt | None:
    """The best answer of a lower stage: the one above may read it in one pass instead of starting anew.

    An answer in hand serves as one whether its stage could still be paid or not, so the order is that of all prices.
    """
    return draft_below(stage, tuple(view.costs), view.attempts, view.estimates)


def climb(view: View, stage: str) -> Call:
    """A call by a policy that looks again after every answer, with the best lower answer as its draft.

    It is final only where nothing is in hand and nothing else could be called: only then is it certain to be kept.
    """
    return Call(stage, final=not answers(view) and len(untried(view)) == 1, draft=draft_for(view, stage))


def give_up(view: View) -> Decision:
    """Fail with the last fault, or say that no stage was allowed; with when to come again, where that may help."""
    fault = last_fault(view)
    if fault is None and view.absent:
        fault = absence_fault(view.absent)
    if fault is None:
        return Decision(Fail(Fault("bad_request", "no stage is allowed to take this request")), reason="no stage left")
    return Decision(Fail(_come_again(fault, view)), reason=f"no stage left after a fault: {fault.kind}")


def _come_again(fault: Fault, view: View) -> Fault:
    """The fault with the soonest time that any stage named; one of the caller's making stays however long one waits."""
    if fault.kind in ("bad_request", "context"):
        return fault
    told = [attempt.fault.retry_after for attempt in view.attempts if attempt.fault is not None]
    told += [absence.retry_after for absence in view.absent.values()]
    return replace(fault, retry_after=min((seconds for seconds in told if seconds is not None), default=None))


def fail_with(fault: Fault) -> Decision:
    """Fail with this fault: what a baseline does, since it must not hide that its stage failed."""
    return Decision(Fail(fault), reason=f"its stage failed: {fault.kind}")


def not_allowed(stage: str, view: View) -> Decision:
    """Fail because a stage that the policy is bound to may not take this request, or cannot now."""
    if stage in view.absent:
        return Decision(Fail(absence_fault({stage: view.absent[stage]})), reason=f"{stage} cannot take a call now")
    allowed = ", ".join(view.stages) or "none"
    message = f"stage '{stage}' may not take this request; allowed: {allowed}"
    return Decision(Fail(Fault("bad_request", message)), reason=f"{stage} is not allowed")
