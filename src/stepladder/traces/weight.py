"""How much memory a trace holds on to, and the same trace without what no store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from sys import getsizeof
from types import MappingProxyType
from typing import Any

from stepladder.types import Attempt, Call, Decision, Step, Stop, Trace

MAX_BYTES = 64 * 1024 * 1024
"""What the traces in memory may weigh together, unless a store is told otherwise."""

_ITEM = 64  # bytes: what any value takes at the least, with the place that points to it
_STAGE = 512  # bytes of estimates, costs and values that a step keeps for each stage
_SPECULATION = 512  # bytes of what an engine tells of its drafting, once and for each pair of stages
_HEAVY = frozenset({list, tuple, dict, MappingProxyType})
_TRACE = 2048  # bytes of a trace that says nothing


def weigh(trace: Trace, enough: int = MAX_BYTES) -> int:
    """Bytes of memory, roughly: what the client and the models wrote, and a flat sum for the rest.

    Stops counting once past ``enough``, so that a body of many small values does not keep the event loop.
    """
    total = _TRACE + sum(_STAGE * (1 + len(step.view.costs)) for step in trace.steps)
    total += _weigh_value([trace.request.messages, trace.request.prompt, trace.request.params], enough - total)
    for attempt in trace.attempts:
        fault = None if attempt.fault is None else attempt.fault.message
        total += _weigh_value([attempt.text, fault, attempt.logprobs, attempt.raw], enough - total)
        if attempt.speculation is not None:
            total += _SPECULATION * (1 + len(attempt.speculation.pairs))
    return total


def _weigh_value(value: list[Any], enough: int) -> int:
    total = 0
    left: list[Any] = [value]
    while left and total <= enough:
        item = left.pop()
        kind = type(item)
        inner = (*item, *item.values()) if kind is dict or kind is MappingProxyType else item
        total += _ITEM * len(inner)  # before a look at each: a list may be long enough by itself
        if total <= enough:
            for each in inner:
                kind = type(each)
                if kind is str:
                    total += getsizeof(each)
                elif kind in _HEAVY and each:
                    left.append(each)
    return total


def without_raw(trace: Trace) -> Trace:
    """The trace without the wire replies of its attempts, wherever it points to them; itself where it has none."""
    lean = {id(each): replace(each, raw=None) for each in trace.attempts if each.raw is not None}
    if not lean:
        return trace
    return replace(trace, steps=tuple(_lean_step(step, lean) for step in trace.steps))


def _lean_step(step: Step, lean: Mapping[int, Attempt]) -> Step:
    seen = tuple(lean.get(id(each), each) for each in step.view.attempts)
    attempt = None if step.attempt is None else lean.get(id(step.attempt), step.attempt)
    view = replace(step.view, attempts=seen)
    return replace(step, view=view, decision=_lean_decision(step.decision, lean), attempt=attempt)


def _lean_decision(decision: Decision, lean: Mapping[int, Attempt]) -> Decision:
    match decision.action:
        case Stop(attempt):
            return replace(decision, action=Stop(lean.get(id(attempt), attempt)))
        case Call(draft=Attempt() as draft) as call:
            return replace(decision, action=replace(call, draft=lean.get(id(draft), draft)))
    return decision
