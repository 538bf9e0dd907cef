"""What Stepladder tells beside the answer: the ``stepladder`` block, the headers, the reply of /v1/route."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from stepladder.traces.codec import encode_speculation
from stepladder.types import Action, Answer, Attempt, Call, Cost, Estimates, Fail, Outcome, Step, Trace, View

Headers = tuple[tuple[bytes, bytes], ...]
_PRINTABLE = " !#$&'()*+,/:;<=>?@[]^`{|}"  # what a stage's name may hold beside letters, digits and _.-~
_plain = re.compile(rf"[\w.~{re.escape(_PRINTABLE)}-]*", re.ASCII).fullmatch


class Account(NamedTuple):
    """What a trace adds up to (``Trace.attempts``, ``cost``, ``decide_s``), found once for all that tells of it."""

    attempts: Sequence[Attempt]
    cost: float
    decide_s: float


def account(trace: Trace) -> Account:
    """The sums of one trace."""
    steps = trace.steps
    attempts = [step.attempt for step in steps if step.attempt is not None]
    return Account(attempts, sum([each.cost for each in attempts]), sum([step.decide_s for step in steps]))


# ── the block ────────────────────────────────────────────────────────────────


def summary(answer: Answer, against: str | None = None) -> dict[str, Any]:
    """The ``stepladder`` block of a reply; with ``explain`` asked for, every step with all that it rested on.

    ``against`` is the stage that savings are told against, None for the ladder's last.
    """
    trace, attempt = answer.trace, answer.attempt
    step, sums = answer_step(trace), account(trace)
    view = step.view
    block: dict[str, Any] = {
        "decision_id": trace.id,
        "stage": attempt.stage,
        "upstream_model": None if attempt.raw is None else attempt.raw.get("model"),
        "mode": trace.mode,
        "lambda": view.lam,
        "predicted_quality": _mean(view.estimates, attempt.stage),
        "calibrated": view.estimates.calibrated,
        "value": _worth(trace, attempt.stage, view, sums),
        "cost": sums.cost,
        "cost_unit": trace.cost_unit,
        "usage": usage_by_stage(sums.attempts),
        "spent": [spent(each) for each in sums.attempts],
        "seconds": trace.seconds,
        "decide_ms": sums.decide_s * 1e3,
        "baseline": baseline(trace, against, sums),
    }
    if trace.first_token_s is not None:
        block["first_token_s"] = trace.first_token_s
    if trace.request.dials.explain:
        block["runner_up"] = runner_up(step)
        block["steps"] = [step_body(each) for each in trace.steps]
    return block


def worth(answer: Answer) -> dict[str, Any]:
    """V = λ·Q − C of the answer: as expected when its stage was called, and as it came out, both with all that was
    spent before.

    Realised is the estimate of quality after the answer was seen, and what was billed, with waiting at the price that
    was expected of it. A congestion price is no cost of this request's own: it steers, and is not realised.
    """
    trace = answer.trace
    return _worth(trace, answer.stage, answer_step(trace).view, account(trace))


def _worth(trace: Trace, stage: str, called: View, sums: Account) -> dict[str, Any]:
    last, cost = trace.steps[-1].view, called.costs[stage]
    second = cost.latency / cost.seconds if cost.seconds > 0 else 0.0
    waited = sum([each.seconds for each in sums.attempts])
    return {
        "expected": _value(called.lam, _mean(called.estimates, stage), called.spent + cost.total),
        "realised": _value(called.lam, _mean(last.estimates, stage), sums.cost + second * waited),
    }


def _value(lam: float, quality: float | None, cost: float) -> dict[str, float | None]:
    return {"quality": quality, "cost": cost, "value": None if quality is None else lam * quality - cost}


def _mean(estimates: Estimates, stage: str) -> float | None:
    """None where nothing could be estimated."""
    estimate = estimates.stages.get(stage)
    return None if estimate is None else estimate.mean


def bill(trace: Trace) -> dict[str, Any]:
    """What the request cost, by stage, and every attempt it cost that for: kept, dropped, failed or cut off."""
    sums = account(trace)
    return {
        "cost": sums.cost,
        "cost_unit": trace.cost_unit,
        "usage": usage_by_stage(sums.attempts),
        "spent": [spent(each) for each in sums.attempts],
    }


def usage_by_stage(attempts: Iterable[Attempt]) -> dict[str, dict[str, float]]:
    """What each stage that was called took: calls, faults among them, tokens, cost, seconds."""
    found: dict[str, dict[str, float]] = {}
    for each in attempts:
        usage, sums = each.usage, found.get(each.stage)
        if sums is None:
            found[each.stage] = {
                "calls": 1,
                "faults": int(each.fault is not None),
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "output_tokens": usage.output_tokens,
                "cost": each.cost,
                "seconds": each.seconds,
            }
            continue
        sums["calls"] += 1
        sums["faults"] += each.fault is not None
        sums["prompt_tokens"] += usage.prompt_tokens
        sums["cached_tokens"] += usage.cached_tokens
        sums["output_tokens"] += usage.output_tokens
        sums["cost"] += each.cost
        sums["seconds"] += each.seconds
    return found


def spent(attempt: Attempt) -> dict[str, Any]:
    """What one attempt took, and where its engine speculated, how that went.

    Drafted tokens stand here and not in OpenAI's ``usage.completion_tokens_details``: the accepted and rejected
    "prediction tokens" there are those of the caller's own ``prediction``, and rejected ones are billed as output.
    """
    usage = attempt.usage
    told: dict[str, Any] = {
        "stage": attempt.stage,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "cost": attempt.cost,
        "seconds": attempt.seconds,
        "fault": None if attempt.fault is None else attempt.fault.kind,
    }
    if attempt.speculation is not None:
        told["speculation"] = encode_speculation(attempt.speculation)
    if attempt.tries != 1:
        told["tries"] = attempt.tries
    return told


def baseline(trace: Trace, against: str | None = None, sums: Account | None = None) -> dict[str, Any]:
    """What one stage alone would have cost, and what was saved against it: below 0 where more was spent.

    ``against`` is that stage, None for the ladder's last. Where it answered, what it cost is known; else it is the cost
    that was expected before anything was called, and the saving an estimate. ``sums`` are the trace's, where known.
    """
    sums = sums or account(trace)
    expected = trace.steps[0].view.costs
    stage = against if against is not None and against in expected else trace.stages[-1]
    billed = [each.cost for each in sums.attempts if each.stage == stage and each.fault is None]
    cost = billed[-1] if billed else expected[stage].resource
    return {"stage": stage, "cost": cost, "saved": cost - sums.cost, "estimate": not billed}


def answer_step(trace: Trace) -> Step:
    """The step that called the stage whose answer was kept."""
    called = [step for step in trace.steps if step.attempt is not None]
    return called[trace.answer_index if trace.answer_index is not None else -1]


def runner_up(step: Step) -> dict[str, Any] | None:
    """The next best of what could have been done instead, by λ·Q − C of the next step alone; None without another.

    Other stages could have been called, and the best answer in hand kept. ``behind`` is how much more the chosen one
    was worth by this rule; below 0 where a policy that looks further ahead chose otherwise.
    """
    view = step.view
    options = _options(view)
    action = step.decision.action
    chosen = _named(action)
    if chosen not in options:
        return None
    own = options.pop(chosen)
    if not options:
        return None
    name, other = max(options.items(), key=lambda item: item[1].value)
    behind = own.value - other.value
    return {
        "action": name[0],
        "stage": name[1],
        "quality": other.quality,
        "cost": other.cost,
        "value": other.value,
        "behind": behind,
        "why": _why(view.lam, chosen, own, other, behind),
    }


class _Option(NamedTuple):
    """What could be done next: quality, marginal cost, λ·Q − C."""

    quality: float
    cost: float
    value: float


def _options(view: View) -> dict[tuple[str, str], _Option]:
    tried = {each.stage for each in view.attempts}
    known = view.estimates.stages
    calls = {
        ("call", name): _Option(known[name].mean, view.costs[name].total, view.value(name))
        for name in view.stages
        if name in known and name not in tried
    }
    kept = {
        ("stop", each.stage): _Option(known[each.stage].mean, 0.0, view.lam * known[each.stage].mean)
        for each in view.attempts
        if each.is_answer and each.stage in known
    }
    return {**kept, **calls}


def _named(action: Action) -> tuple[str, str] | None:
    if isinstance(action, Call):
        return "call", action.stage
    return None if isinstance(action, Fail) else ("stop", action.attempt.stage)


def _why(lam: float, chosen: tuple[str, str], own: _Option, other: _Option, behind: float) -> str:
    better, dearer = other.quality - own.quality, other.cost - own.cost
    sums = (
        f"against {chosen[1]}: quality {better:+.3f}, worth {lam * better:+.3g} at λ={lam:g}, for {dearer:+.3g} in cost"
    )
    if behind > 0:
        return f"{sums}: {behind:.3g} less"
    return f"{sums}: {-behind:.3g} more, but the policy looks at more than the next step"


def step_body(step: Step) -> dict[str, Any]:
    """One turn of the loop: what was known, what was decided."""
    view, decision = step.view, step.decision
    looked = {} if step.partial is None else {"held_back": _held(step.partial)}
    return {
        **_action(step),
        **looked,
        "reason": decision.reason,
        "propensity": decision.propensity,
        "lambda": view.lam,
        "spent": view.spent,
        "calibrated": view.estimates.calibrated,
        "notes": dict(view.estimates.notes),
        "runner_up": runner_up(step),
        "fallback": None if view.fallback is None else view.fallback.reason,
        "stages": [_candidate(name, view, cost, decision.values) for name, cost in view.costs.items()],
        "decide_us": step.decide_s * 1e6,
    }


def _held(partial: Attempt) -> dict[str, Any]:
    """The answer that this step looked at before it was whole."""
    return {"stage": partial.stage, "output_tokens": partial.usage.output_tokens, "seconds": partial.seconds}


def _action(step: Step) -> dict[str, Any]:
    kind, stage = _named(step.decision.action) or ("fail", None)
    return {"action": kind, "stage": stage}


def _candidate(name: str, view: View, cost: Cost, values: Mapping[str, float]) -> dict[str, Any]:
    estimate, absence = view.estimates.stages.get(name), view.absent.get(name)
    away = None if absence is None else {"reason": absence.kind, "retry_after": absence.retry_after}
    return {
        "stage": name,
        "allowed": name in view.stages,
        "absent": away,
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
        "switch": cost.switch,
        "total": cost.total,
        "seconds": cost.seconds,
    }


def route_body(trace: Trace, against: str | None = None) -> dict[str, Any]:
    """The reply of /v1/route: the first decision of a trace that went no further."""
    step = trace.steps[0]
    told = baseline(trace, against)
    action = step.decision.action
    if isinstance(action, Call):
        told["saved"] = told["cost"] - step.view.costs[action.stage].resource
    return {
        "object": "stepladder.decision",
        "decision_id": trace.id,
        "ladder": trace.ladder,
        "policy": trace.policy,
        "mode": trace.mode,
        "cost_unit": trace.cost_unit,
        "baseline": told,
        **step_body(step),
    }


def outcome_body(outcome: Outcome) -> dict[str, Any]:
    """One measured quality."""
    return {
        "score": outcome.score,
        "source": outcome.source,
        "stage": outcome.stage,
        "comment": outcome.comment,
        "key": outcome.key,
    }


# ── the headers ──────────────────────────────────────────────────────────────


def answer_headers(answer: Answer, against: str | None = None) -> Headers:
    """All that is known once the answer is there."""
    trace = answer.trace
    sums = account(trace)
    return (
        *call_headers(trace.id, answer_step(trace), answer.attempt.stage, sums.decide_s),
        (b"x-stepladder-saved", b"%.6g" % baseline(trace, against, sums)["saved"]),
        (b"x-stepladder-cost", b"%.6g" % sums.cost),
        (b"x-stepladder-cost-unit", trace.cost_unit.encode()),
        (b"x-stepladder-seconds", b"%.6f" % trace.seconds),
    )


def call_headers(decision_id: str, step: Step, stage: str, decide_s: float | None = None) -> Headers:
    """All that is known once a stage is called: what a stream can still say in its headers.

    The expected cost is what was spent before this call and what the call is expected to be billed.
    """
    view, estimates = step.view, step.view.estimates
    quality = _mean(estimates, stage)
    spent = step.decide_s if decide_s is None else decide_s
    known: Headers = (
        (b"x-stepladder-decision-id", _text(decision_id)),
        (b"x-stepladder-stage", _text(stage)),
        (b"x-stepladder-expected-cost", b"%.6g" % (view.spent + view.costs[stage].resource)),
        (b"x-stepladder-decide-ms", b"%.3f" % (spent * 1e3)),
    )
    if quality is not None:
        known += ((b"x-stepladder-predicted-quality", b"%.4f" % quality),)
    return known if estimates.calibrated else (*known, (b"x-stepladder-uncalibrated", b"true"))


def decision_headers(trace: Trace) -> Headers:
    """What a reply without an answer can point to."""
    return ((b"x-stepladder-decision-id", _text(trace.id)),)


def outcomes_body(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """All measured qualities of one decision."""
    return [outcome_body(outcome) for outcome in outcomes]


def _text(value: str) -> bytes:
    """A header's value: anything but printable ASCII is percent-encoded."""
    return (value if _plain(value) else quote(value, safe=_PRINTABLE)).encode()
