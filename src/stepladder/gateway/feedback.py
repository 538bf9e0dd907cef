"""POST /v1/feedback: what somebody made of an answer, kept for good before it is answered with 200."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stepladder.contracts import TraceStore
from stepladder.errors import RequestError, TraceError, nearest
from stepladder.gateway.faults import BAD_REQUEST, error_body
from stepladder.gateway.replies import Reply, json_reply
from stepladder.types import Outcome, Receipt

log = logging.getLogger("stepladder.gateway")

VERDICTS: Mapping[str, float] = MappingProxyType(
    {"good": 1.0, "up": 1.0, "correct": 1.0, "bad": 0.0, "down": 0.0, "wrong": 0.0}
)
LIMITS: Mapping[str, int] = MappingProxyType(
    {"decision_id": 200, "source": 100, "key": 200, "stage": 200, "comment": 10_000}
)
"""Characters that each text may have: feedback is kept when its trace is long gone."""

KEYS = ("decision_id", "score", "verdict", "source", "stage", "key", "comment")
USER = "user"

WAIT_S = 10.0
"""How long a caller waits for the disk before it is told to come again."""

_RETRY = ((b"retry-after", b"1"),)


def read_feedback(body: Mapping[str, Any]) -> Outcome:
    """The outcome in a body; raises RequestError that names the key, the value and what would be right."""
    for name in body:
        if name not in KEYS:
            raise RequestError(f"feedback has no key '{name}'; {nearest(name, KEYS)}", param=name)
    decision = _text(body, "decision_id")
    if decision is None:
        raise RequestError("decision_id is missing: the decision that the feedback is on", param="decision_id")
    return Outcome(
        decision_id=decision,
        score=_score(body),
        source=_text(body, "source") or USER,
        stage=_text(body, "stage"),
        comment=_text(body, "comment"),
        key=_text(body, "key"),
    )


async def keep(store: TraceStore, outcome: Outcome, wait_s: float = WAIT_S) -> Reply:
    """The reply once the outcome is kept: 409 where another one stands under its key, 503 where it cannot be kept."""
    try:
        receipt = await asyncio.wait_for(asyncio.wrap_future(store.report(outcome)), wait_s)
    except TimeoutError:
        return _come_again(f"the trace store did not write within {wait_s:g} s; try again")
    except TraceError as error:
        return _come_again(str(error))
    if receipt.change == "conflict":
        told = f"'{outcome.source}' has told something else of '{outcome.decision_id}' under the key '{outcome.key}'"
        body = error_body(f"{told}; use another key, or none to replace", BAD_REQUEST, "key", "feedback_conflict")
        return json_reply(body, status=409)
    return json_reply(_kept(outcome, receipt))


def _kept(outcome: Outcome, receipt: Receipt) -> dict[str, Any]:
    return {
        "object": "stepladder.feedback",
        "decision_id": outcome.decision_id,
        "score": outcome.score,
        "source": outcome.source,
        "stage": outcome.stage,
        "key": outcome.key,
        "change": receipt.change,
        "trace": "found" if receipt.found else "unknown",
    }


def _come_again(told: str) -> Reply:
    log.error("feedback was not kept: %s", told)
    return json_reply(error_body(told, "server_error", code="trace_error"), _RETRY, 503)


def _score(body: Mapping[str, Any]) -> float:
    score, verdict = body.get("score"), body.get("verdict")
    if (score is None) == (verdict is None):
        raise RequestError("give either score, a number from 0 to 1, or verdict, 'good' or 'bad'", param="score")
    if verdict is not None:
        if not isinstance(verdict, str) or verdict not in VERDICTS:
            told = f"verdict {_shown(verdict)} is none; valid: {', '.join(VERDICTS)}"
            raise RequestError(told, param="verdict")
        return VERDICTS[verdict]
    if isinstance(score, bool) or not isinstance(score, int | float) or not (math.isfinite(score) and 0 <= score <= 1):
        raise RequestError(f"score {_shown(score)} is no number from 0 to 1", param="score")
    return float(score)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} {_shown(value)} must be a string that says something", param=name)
    if len(value) > LIMITS[name]:
        raise RequestError(f"{name} has {len(value)} characters; it may have {LIMITS[name]}", param=name)
    return value


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:59] + "…"
