"""Errors and faults → OpenAI's error shape and HTTP's statuses."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stepladder.errors import AccessError, AnswerError, EngineError, RequestError, TraceError, UsageError
from stepladder.gateway.replies import Reply, json_reply
from stepladder.gateway.report import Headers, bill, decision_headers
from stepladder.types import Fault, FaultKind

log = logging.getLogger("stepladder.gateway")

BAD_REQUEST = "invalid_request_error"

_STATUS_OF_CODE: Mapping[str, int] = MappingProxyType(
    {
        "model_not_found": 404,
        "decision_not_found": 404,
        "request_too_large": 413,
        "unsupported_media_type": 415,
    }
)
_STATUS_OF_FAULT: Mapping[FaultKind, int] = MappingProxyType(
    {
        "timeout": 504,
        "connect": 502,
        "rate_limit": 429,
        "bad_request": 400,
        "context": 400,
        "auth": 502,
        "server": 502,
        "protocol": 502,
        "crash": 503,
        "cancelled": 503,
        "unavailable": 503,
    }
)
_TYPE_AND_CODE: Mapping[FaultKind, tuple[str, str | None]] = MappingProxyType(
    {
        "rate_limit": ("rate_limit_error", "rate_limit_exceeded"),
        "bad_request": (BAD_REQUEST, None),
        "context": (BAD_REQUEST, "context_length_exceeded"),
    }
)
_KEPT_STATUS = frozenset({400, 413, 415, 422, 503, 504})  # an upstream's own status that tells more than our table


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_reply(error: Exception) -> Reply:
    """The reply to an error; one that nobody raises on purpose is logged and told without its insides."""
    match error:
        case RequestError():
            status = _STATUS_OF_CODE.get(error.code or "", 400)
            return json_reply(error_body(str(error), BAD_REQUEST, error.param, error.code), status=status)
        case AccessError():
            headers = (*error.headers, *_seconds_header(error.retry_after))
            return json_reply(error_body(str(error), error.kind, code=error.code), headers, error.status)
        case UsageError():
            return json_reply(error_body(str(error), BAD_REQUEST), status=400)
        case AnswerError():
            headers = decision_headers(error.trace) + _seconds_header(error.fault.retry_after)
            return json_reply(answer_error_body(error), headers, fault_status(error.fault))
        case EngineError():
            log.error("engine error: %s", error)
            return json_reply(error_body(str(error), "server_error", code="engine_error"), status=503)
        case TraceError():
            log.error("trace store: %s", error)
            return json_reply(error_body(str(error), "server_error", code="trace_error"), status=503)
    log.error("unexpected error while answering", exc_info=error)
    return json_reply(error_body("something went wrong here; the log says what", "server_error"), status=500)


def answer_error_body(error: AnswerError) -> dict[str, Any]:
    """Why no stage answered, with the stage that had the last word, and what was spent all the same."""
    attempts, told = error.trace.attempts, error.fault.message
    stage = f"stage '{attempts[-1].stage}'" if attempts else ""
    where = f"{stage}: " if stage not in told else ""
    kind, code = _TYPE_AND_CODE.get(error.fault.kind, ("upstream_error", f"upstream_{error.fault.kind}"))
    block = {"decision_id": error.trace.id, **bill(error.trace)}
    return {**error_body(f"{where}{told}", kind, code=code), "stepladder": block}


def fault_status(fault: Fault) -> int:
    """The HTTP status that tells a client what kind of fault it was."""
    usual = _STATUS_OF_FAULT[fault.kind]
    same_class = fault.status is not None and fault.status // 100 == usual // 100
    return fault.status if same_class and fault.status in _KEPT_STATUS and fault.kind != "context" else usual


def _seconds_header(seconds: float | None) -> Headers:
    if seconds is None or not math.isfinite(seconds):
        return ()
    return ((b"retry-after", str(max(0, math.ceil(seconds))).encode()),)
