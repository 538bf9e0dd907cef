"""What Stepladder tells beside the answer: the ``stepladder`` block, the headers, the reply of /v1/route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from stepladder.traces.codec import encode_speculation
from stepladder.types import Answer, Attempt, Call, Cost, Estimates, Fail, Outcome, Step, Trace

Headers = tuple[tuple[bytes, bytes], ...]
_PRINTABLE = " !#$&'()*+,/:;<=>?@[]^`{|}"  # what a stage's name may hold beside letters, digits and _.-~


# ── the block ────────────────────────────────────────────────────────────────


def summary(answer: Answer) -> dict[str, Any]:
    """The ``stepladder`` block of a reply; with ``explain`` asked for, every step with all that it rested on."""
    trace, attempt = answer.trace, answer.attempt
    view = answer_step(trace).view
    block: dict[str, Any] = {
        "decision_id": trace.id,
        "stage": attempt.stage,
        "upstream_model": None if attempt.raw is None else attempt.raw.get("model"),
        "mode": trace.mode,
        "lambda": view.lam,
        "predicted_quality": view.estimates[attempt.stage].mean,
        "calibrated": view.estimates.calibrated,
        **bill(trace),
        "seconds": trace.seconds,
        "decide_ms": trace.decide_s * 1e3,
        "baseline": baseline(trace),
    }
    if trace.request.dials.explain:
        block["steps"] = [step_body(step) for step in trace.steps]
    return block


def bill(trace: Trace) -> dict[str, Any]:
    """What the request cost, and every attempt it cost that for: kept, dropped, failed or cut off."""
    return {"cost": trace.cost, "cost_unit": trace.cost_unit, "spent": [spent(each) for each in trace.attempts]}


def spent(attempt: Attempt) -> dict[str, Any]:
    """What one attempt took, and where its engine speculated, how that went.

    Drafted tokens stand here and not in OpenAI's ``usage.completion_tokens_details``: the accepted and rejected
    "prediction tokens" there are those of the caller's own ``prediction``, and rejected ones are billed as output.
    """
    found = attempt.speculation
    told = {} if found is None else {"speculation": encode_speculation(found)}
    return {
        "stage": attempt.stage,
        "prompt_tokens": attempt.usage.prompt_tokens,
        "output_tokens": attempt.usage.output_tokens,
        "cost": attempt.cost,
        "seconds": attempt.seconds,
        "fault": None if attempt.fault is None else attempt.fault.kind,
        **told,
    }


def baseline(trace: Trace) -> dict[str, Any]:
    """What the ladder's last stage alone was expected to cost, to set the real cost beside."""
    largest = trace.stages[-1]
    return {"stage": largest, "cost": trace.steps[0].view.costs[largest].resource}


def answer_step(trace: Trace) -> Step:
    """The step that called the stage whose answer was kept."""
    called = [step for step in trace.steps if step.attempt is not None]
    return called[trace.answer_index if trace.answer_index is not None else -1]


def step_body(step: Step) -> dict[str, Any]:
    """One turn of the loop: what was known, what was decided."""
    view, decision = step.view, step.decision
    return {
        **_action(step),
        "reason": decision.reason,
        "propensity": decision.propensity,
        "lambda": view.lam,
        "spent": view.spent,
        "calibrated": view.estimates.calibrated,
        "notes": dict(view.estimates.notes),
        "stages": [
            _candidate(name, name in view.stages, view.estimates, cost, decision.values)
            for name, cost in view.costs.items()
        ],
        "decide_us": step.decide_s * 1e6,
    }


def _action(step: Step) -> dict[str, Any]:
    action = step.decision.action
    if isinstance(action, Call):
        return {"action": "call", "stage": action.stage}
    if isinstance(action, Fail):
        return {"action": "fail", "stage": None}
    return {"action": "stop", "stage": action.attempt.stage}


def _candidate(
    name: str, allowed: bool, estimates: Estimates, cost: Cost, values: Mapping[str, float]
) -> dict[str, Any]:
    estimate = estimates.stages.get(name)
    return {
        "stage": name,
        "allowed": allowed,
        "quality": None if estimate is None else {"mean": estimate.mean, "sd": estimate.sd},
        "cost": cost_body(cost),
        "value": values.get(name),
    }


def cost_body(cost: Cost) -> dict[str, float]:
    """An expected cost, in its parts."""
    return {
        "resource": cost.resource,
        "latency": cost.latency,
        "congestion": cost.congestion,
        "total": cost.total,
        "seconds": cost.seconds,
    }


def route_body(trace: Trace) -> dict[str, Any]:
    """The reply of /v1/route: the first decision of a trace that went no further."""
    return {
        "object": "stepladder.decision",
        "decision_id": trace.id,
        "ladder": trace.ladder,
        "policy": trace.policy,
        "mode": trace.mode,
        "cost_unit": trace.cost_unit,
        "baseline": baseline(trace),
        **step_body(trace.steps[0]),
    }


def outcome_body(outcome: Outcome) -> dict[str, Any]:
    """One measured quality."""
    return {
        "score": outcome.score,
        "source": outcome.source,
        "stage": outcome.stage,
        "comment": outcome.comment,
    }


# ── the headers ──────────────────────────────────────────────────────────────


def answer_headers(answer: Answer) -> Headers:
    """All that is known once the answer is there."""
    trace = answer.trace
    paid = (
        (b"x-stepladder-cost", f"{answer.cost:.6g}".encode()),
        (b"x-stepladder-cost-unit", trace.cost_unit.encode()),
        (b"x-stepladder-seconds", f"{trace.seconds:.6f}".encode()),
    )
    return call_headers(trace.id, answer_step(trace), answer.stage) + paid


def call_headers(decision_id: str, step: Step, stage: str) -> Headers:
    """All that is known once a stage is called: what a stream can still say in its headers."""
    estimates = step.view.estimates
    known = (
        (b"x-stepladder-decision-id", _text(decision_id)),
        (b"x-stepladder-stage", _text(stage)),
        (b"x-stepladder-predicted-quality", f"{estimates[stage].mean:.4f}".encode()),
    )
    return known if estimates.calibrated else (*known, (b"x-stepladder-uncalibrated", b"true"))


def decision_headers(trace: Trace) -> Headers:
    """What a reply without an answer can point to."""
    return ((b"x-stepladder-decision-id", _text(trace.id)),)


def outcomes_body(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """All measured qualities of one decision."""
    return [outcome_body(outcome) for outcome in outcomes]


def _text(value: str) -> bytes:
    """A header's value: anything but printable ASCII is percent-encoded."""
    return quote(value, safe=_PRINTABLE).encode()
