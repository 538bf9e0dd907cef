"""Trace ⇄ plain JSON values, schema 1; 2 where hashes or marks stand in the place of texts (``privacy.py``).

The number rises where an older reader would take a new record for something it is not. What came later and older
readers pass over (a lot, a speculation, a first token's time) stands under a key of its own and may be missing. So do
fields that came later to what is read by its fields' names (dials, costs): they are left out where they say nothing.

A view's attempts and the attempts that actions name are those of the earlier steps, so they are written once, as the
step that made them, and pointed to by number. What a trace does not hold: the raw wire reply (only what it meant).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from stepladder.errors import TraceError
from stepladder.types import (
    EMPTY,
    Absence,
    Action,
    Attempt,
    Call,
    Cost,
    Decision,
    Dials,
    Drafting,
    Estimate,
    Estimates,
    Fail,
    Fallback,
    Fault,
    Request,
    Speculation,
    Step,
    Stop,
    Trace,
    Usage,
    Versions,
    View,
)

SCHEMA = 1
PRIVATE_SCHEMA = 2
PARTIAL = "partial"
"""Where an action points to the answer that its own step looked at before it was whole."""


def encode(trace: Trace) -> dict[str, Any]:
    """The trace as JSON values. ``decode(encode(trace)) == trace`` but for floats that JSON cannot hold."""
    attempts = trace.attempts
    told: dict[str, Any] = {
        "schema": SCHEMA if trace.private is None else PRIVATE_SCHEMA,
        "id": trace.id,
        "created_at": trace.created_at,
        "request": _encode_request(trace.request),
        "ladder": trace.ladder,
        "stages": list(trace.stages),
        "policy": trace.policy,
        "mode": trace.mode,
        "cost_unit": trace.cost_unit,
        "versions": _encode_versions(trace.versions),
        "steps": [_encode_step(step, attempts) for step in trace.steps],
        "answer_index": trace.answer_index,
        "fault": None if trace.fault is None else _encode_fault(trace.fault),
        "seconds": trace.seconds,
    }
    if trace.first_token_s is not None:
        told["first_token_s"] = trace.first_token_s
    if trace.private is not None:
        told["private"] = trace.private
    return told


def decode(body: Mapping[str, Any]) -> Trace:
    """The trace behind JSON values; raises TraceError for another schema or a record with missing parts."""
    found = body.get("schema")
    if found not in (SCHEMA, PRIVATE_SCHEMA):
        raise TraceError(f"trace schema {found!r} is not known here; this version reads {SCHEMA} and {PRIVATE_SCHEMA}")
    try:
        return _decode(body)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TraceError(f"trace {body.get('id')!r} is damaged: {error!r}") from error


# ── writing ──────────────────────────────────────────────────────────────────
# Every field is named, and none looked up by its name: a trace is written for each request, and this is most of it.


def _encode_request(request: Request) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": request.id,
        "messages": [dict(message) for message in request.messages],
        "prompt": request.prompt,
        "params": dict(request.params),
        "dials": _encode_dials(request.dials),
        "needs": sorted(request.needs),
    }
    if request.caller is not None:
        told["caller"] = request.caller
    if request.only is not None:
        told["only"] = list(request.only)
    return told


def _encode_dials(dials: Dials) -> dict[str, Any]:
    told: dict[str, Any] = {
        "lam": dials.lam,
        "mode": dials.mode,
        "min_stage": dials.min_stage,
        "max_stage": dials.max_stage,
        "max_cost": dials.max_cost,
        "explain": dials.explain,
    }
    if dials.stream_mode is not None:
        told["stream_mode"] = dials.stream_mode
    if dials.hold_back is not None:
        told["hold_back"] = dials.hold_back
    if dials.report:
        told["report"] = dials.report
    if dials.session is not None:
        told["session"] = dials.session
    return told


def _encode_versions(versions: Versions) -> dict[str, Any]:
    return {
        "code": versions.code,
        "config": versions.config,
        "artifact": versions.artifact,
        "prices": versions.prices,
    }


def _encode_cost(cost: Cost) -> dict[str, float]:
    told = {
        "resource": cost.resource,
        "seconds": cost.seconds,
        "latency": cost.latency,
        "congestion": cost.congestion,
    }
    if cost.switch:
        told["switch"] = cost.switch
    return told


def _encode_step(step: Step, attempts: Sequence[Attempt]) -> dict[str, Any]:
    view, decision, partial = step.view, step.decision, step.partial
    estimates = view.estimates
    told: dict[str, Any] = {
        "stages": list(view.stages),
        "lam": view.lam,
        "estimates": {name: [e.mean, e.sd, e.told] for name, e in estimates.stages.items()},
        "calibrated": estimates.calibrated,
        "notes": dict(estimates.notes),
        "costs": {name: _encode_cost(cost) for name, cost in view.costs.items()},
        "spent": view.spent,
        "coin": view.coin,
        "lot": view.lot,
        "attempts_seen": len(view.attempts) - (partial is not None),
        "action": _encode_action(decision.action, attempts, partial),
        "propensity": decision.propensity,
        "values": dict(decision.values),
        "reason": decision.reason,
        "decide_s": step.decide_s,
        "attempt": None if step.attempt is None else _encode_attempt(step.attempt),
    }
    if partial is not None:
        told["partial"] = _encode_attempt(partial)
    if view.absent:
        told["absent"] = {name: _encode_absence(each) for name, each in view.absent.items()}
    if view.fallback is not None:
        told["fallback"] = {"stage": view.fallback.stage, "reason": view.fallback.reason}
    return told


def _encode_absence(absence: Absence) -> dict[str, Any]:
    return {"kind": absence.kind, "message": absence.message, "retry_after": absence.retry_after}


def _encode_action(action: Action, attempts: Sequence[Attempt], partial: Attempt | None) -> dict[str, Any]:
    if isinstance(action, Call):
        draft = action.draft
        pointer = None if draft is None else _index(draft, attempts, partial)
        return {"call": action.stage, "final": action.final, "draft": pointer}
    if isinstance(action, Stop):
        return {"stop": _index(action.attempt, attempts, partial)}
    return {"fail": _encode_fault(action.fault)}


def _index(attempt: Attempt, attempts: Sequence[Attempt], partial: Attempt | None) -> int | str:
    if attempt is partial:
        return PARTIAL
    for position, candidate in enumerate(attempts):
        if candidate is attempt:
            return position
    return list(attempts).index(attempt)


def _encode_attempt(attempt: Attempt) -> dict[str, Any]:
    usage = attempt.usage
    told: dict[str, Any] = {
        "stage": attempt.stage,
        "text": attempt.text,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "output_tokens": usage.output_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "seconds": attempt.seconds,
        "first_token_s": attempt.first_token_s,
        "finish_reason": attempt.finish_reason,
        "logprobs": None if attempt.logprobs is None else list(attempt.logprobs),
        "cost": attempt.cost,
        "fault": None if attempt.fault is None else _encode_fault(attempt.fault),
    }
    if attempt.speculation is not None:
        told["speculation"] = encode_speculation(attempt.speculation)
    if attempt.tries != 1:
        told["tries"] = attempt.tries
    return told


def _encode_fault(fault: Fault) -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "message": fault.message,
        "status": fault.status,
        "retry_after": fault.retry_after,
    }


def _encode_drafting(pair: Drafting) -> dict[str, Any]:
    return {
        "drafter": pair.drafter,
        "target": pair.target,
        "drafted": pair.drafted,
        "accepted": pair.accepted,
    }


def encode_speculation(found: Speculation) -> dict[str, Any]:
    """How an attempt's tokens came to be, as JSON values; the same wherever it is told."""
    return {
        "chain": list(found.chain),
        "pairs": [_encode_drafting(pair) for pair in found.pairs],
        "passes": dict(found.passes),
        "climbed": found.climbed,
        "kept": found.kept,
        "saved_s": found.saved_s,
        "moved": found.moved,
    }


# ── reading ──────────────────────────────────────────────────────────────────


def _decode(body: Mapping[str, Any]) -> Trace:
    raw_steps = body["steps"]
    attempts = tuple(_decode_attempt(raw["attempt"]) for raw in raw_steps if raw["attempt"] is not None)
    made = count()
    numbers = [None if raw["attempt"] is None else next(made) for raw in raw_steps]
    return Trace(
        id=body["id"],
        created_at=body["created_at"],
        request=_decode_request(body["request"]),
        ladder=body["ladder"],
        stages=tuple(body["stages"]),
        policy=body["policy"],
        mode=body["mode"],
        cost_unit=body["cost_unit"],
        versions=Versions(**body["versions"]),
        steps=tuple(_decode_step(raw, attempts, number) for raw, number in zip(raw_steps, numbers, strict=True)),
        answer_index=body["answer_index"],
        fault=_decode_fault(body["fault"]),
        seconds=body["seconds"],
        first_token_s=body.get("first_token_s"),
        private=body.get("private"),
    )


def _decode_request(raw: Mapping[str, Any]) -> Request:
    return Request(
        id=raw["id"],
        messages=tuple(raw["messages"]),
        prompt=raw["prompt"],
        params=raw["params"] or EMPTY,
        dials=Dials(**raw["dials"]),
        needs=frozenset(raw["needs"]),
        caller=raw.get("caller"),
        only=None if raw.get("only") is None else tuple(raw["only"]),
    )


def _decode_step(raw: Mapping[str, Any], attempts: Sequence[Attempt], number: int | None) -> Step:
    partial = None if raw.get("partial") is None else _decode_attempt(raw["partial"])
    seen = tuple(attempts[: raw["attempts_seen"]])
    view = View(
        stages=tuple(raw["stages"]),
        lam=raw["lam"],
        estimates=Estimates(
            {name: Estimate(*numbers) for name, numbers in raw["estimates"].items()}, raw["calibrated"], raw["notes"]
        ),
        costs={name: Cost(**cost) for name, cost in raw["costs"].items()},
        attempts=seen if partial is None else (*seen, partial),
        spent=raw["spent"],
        coin=raw["coin"],
        lot=raw.get("lot", 0.0),  # traces of before there were lots
        absent={name: Absence(**each) for name, each in raw.get("absent", EMPTY).items()},
        fallback=None if raw.get("fallback") is None else Fallback(**raw["fallback"]),
    )
    action = _decode_action(raw["action"], attempts, partial)
    decision = Decision(action, raw["propensity"], raw["values"], raw["reason"])
    return Step(view, decision, raw["decide_s"], None if number is None else attempts[number], partial)


def _decode_action(raw: Mapping[str, Any], attempts: Sequence[Attempt], partial: Attempt | None) -> Action:
    if "call" in raw:
        return Call(
            raw["call"], raw["final"], None if raw["draft"] is None else _pointed(raw["draft"], attempts, partial)
        )
    if "stop" in raw:
        return Stop(_pointed(raw["stop"], attempts, partial))
    return Fail(Fault(**raw["fail"]))


def _pointed(pointer: int | str, attempts: Sequence[Attempt], partial: Attempt | None) -> Attempt:
    if pointer != PARTIAL:
        return attempts[int(pointer)]
    if partial is None:
        raise ValueError("an action names a partial answer that its step does not hold")
    return partial


def _decode_attempt(raw: Mapping[str, Any]) -> Attempt:
    return Attempt(
        stage=raw["stage"],
        text=raw["text"],
        usage=Usage(**raw["usage"]),
        seconds=raw["seconds"],
        first_token_s=raw["first_token_s"],
        finish_reason=raw["finish_reason"],
        logprobs=None if raw["logprobs"] is None else tuple(raw["logprobs"]),
        cost=raw["cost"],
        fault=_decode_fault(raw["fault"]),
        speculation=_decode_speculation(raw.get("speculation")),  # traces of before it was told have none
        tries=raw.get("tries", 1),
    )


def _decode_speculation(raw: Mapping[str, Any] | None) -> Speculation | None:
    if raw is None:
        return None
    return Speculation(
        chain=tuple(raw["chain"]),
        pairs=tuple(Drafting(**pair) for pair in raw["pairs"]),
        passes=raw["passes"],
        climbed=raw["climbed"],
        kept=raw["kept"],
        saved_s=raw["saved_s"],
        moved=raw["moved"],
    )


def _decode_fault(raw: Mapping[str, Any] | None) -> Fault | None:
    return None if raw is None else Fault(**raw)
