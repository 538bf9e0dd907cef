"""``GET /openapi.json``: every route, what it takes and what it answers, as an OpenAPI 3.1 document.

Written by hand and kept true by tests that hold the routes, the keys of our block and real replies against it. Bodies
of OpenAI's are described as far as they are read here; whatever else they hold goes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from stepladder.gateway.feedback import LIMITS, VERDICTS
from stepladder.gateway.wire import MAX_SESSION_CHARS, STREAM_MODES, Names
from stepladder.held import MAX_HOLD_BACK
from stepladder.types import CostUnit, FaultKind
from stepladder.version import __version__

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_AMOUNT: Schema = {"type": "number", "minimum": 0}
_WORDS: Schema = {"type": "string", "pattern": r"\S"}
"""Text that says something."""
_EVENTS: Schema = {"description": "chunks in OpenAI's shape, one an event; the last event is `[DONE]`, or an error"}
"""Of no type: some readers hold it against the whole text, others against each event."""

_ERRORS: Mapping[str, str] = {
    "400": "the request is wrong, or no allowed stage can take it; `error.param` names the field",
    "401": "no key, or none that is good here",
    "403": "the key does not allow this",
    "404": "no such model, decision or address",
    "405": "another method is meant",
    "409": "other feedback stands under this key",
    "413": "the body is too large",
    "415": "the body is no plain JSON by its headers",
    "422": "the stage's server could not make sense of the request",
    "429": "a limit is reached: the key's, the stages' places, or their servers'",
    "431": "the headers are too large",
    "500": "something went wrong here; the log says what",
    "502": "a stage's server failed",
    "503": "nobody can answer now, or this process ends",
    "504": "a stage's server did not answer in time",
}
_ALWAYS = ("400", "401", "405", "431", "500", "503")
_POSTED = (*_ALWAYS, "403", "404", "413", "415", "429")
_ANSWERED = (*_POSTED, "422", "502", "504")


def document(names: Names) -> Schema:
    """The document of a gateway with these names."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stepladder", "version": __version__, "description": _ABOUT},
        "paths": _paths(names),
        "components": {
            "schemas": {**_requests(names), **_replies()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


_ABOUT = (
    "OpenAI's API over a ladder of models: each request is answered by the stage that is worth its price. Fields that "
    "are not listed go through untouched, both ways."
)


# ── the routes ───────────────────────────────────────────────────────────────


def _paths(names: Names) -> Schema:
    dials = [_header(name, schema) for name, schema in block(names)["properties"].items()]
    model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    decision = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
    return {
        "/v1/chat/completions": {
            "post": _asking("chat", "Answer a conversation", "ChatRequest", "ChatCompletion", dials)
        },
        "/v1/completions": {
            "post": _asking("completion", "Go on with a text", "CompletionRequest", "Completion", dials)
        },
        "/v1/route": {
            "post": _operation(
                "route",
                "Decide without calling a model",
                _json("Decision"),
                _POSTED,
                body={"oneOf": [_ref("ChatRequest"), _ref("CompletionRequest")]},
                parameters=dials,
            )
        },
        "/v1/models": {"get": _operation("models", "The models that may be named", _json("Models"), _ALWAYS)},
        "/v1/models/{model}": {
            "get": _operation("model", "One of them", _json("Model"), (*_ALWAYS, "403", "404"), parameters=[model])
        },
        "/v1/feedback": {
            "post": _operation(
                "feedback",
                "Tell how good an answer was",
                _json("Kept"),
                (*_POSTED, "409"),
                body=_ref("Feedback"),
            )
        },
        "/v1/decisions": {
            "get": _operation(
                "decisions",
                "Export traces, one a line",
                {"application/x-ndjson": {"schema": _TEXT}},
                (*_ALWAYS, "403"),
                parameters=_query(),
            )
        },
        "/v1/decisions/{id}": {
            "get": _operation(
                "decision", "The trace of a decision", _json("Trace"), (*_ALWAYS, "403", "404"), parameters=[decision]
            )
        },
        "/health": {"get": _free("health", "This process lives", _json("Health"))},
        "/ready": {"get": _ready()},
        "/metrics": {"get": _operation("metrics", "For Prometheus", {"text/plain": {"schema": _TEXT}}, _ALWAYS)},
        "/openapi.json": {
            "get": _free("openapi", "This document", {"application/json": {"schema": {"type": "object"}}})
        },
    }


def _asking(name: str, summary: str, asked: str, answer: str, dials: list[Schema]) -> Schema:
    content = {**_json(answer), "text/event-stream": {"schema": _EVENTS}}
    return _operation(name, summary, content, _ANSWERED, body=_ref(asked), parameters=dials)


def _operation(
    name: str,
    summary: str,
    content: Schema,
    errors: tuple[str, ...],
    *,
    body: Schema | None = None,
    parameters: list[Schema] | None = None,
) -> Schema:
    made: Schema = {"operationId": name, "summary": summary}
    if parameters:
        made["parameters"] = parameters
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    failed = {status: {"description": _ERRORS[status], "content": _json("Error")} for status in sorted(errors)}
    return {**made, "responses": {"200": {"description": summary, "content": content}, **failed}}


def _free(name: str, summary: str, content: Schema) -> Schema:
    """A route that needs no key."""
    return {**_operation(name, summary, content, ("405", "431", "500", "503")), "security": [{}]}


def _ready() -> Schema:
    made = _free("ready", "A request can be taken now", _json("Ready"))
    either = {"application/json": {"schema": {"oneOf": [_ref("Ready"), _ref("Error")]}}}
    made["responses"]["503"] = {"description": "none can be taken now", "content": either}
    return made


def _header(name: str, schema: Schema) -> Schema:
    told = "true or false" if schema.get("type") == "boolean" else ""
    header = f"x-stepladder-{name.replace('_', '-')}"
    return {"name": header, "in": "header", "required": False, "schema": schema, "description": told}


def _query() -> list[Schema]:
    time = {"type": "string", "description": "seconds since the epoch, or an ISO 8601 date"}
    schemas = {
        "since": time,
        "until": time,
        "limit": {"type": "integer", "minimum": 1},
        "stage": _TEXT,
        "cursor": _TEXT,
    }
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()]


# ── what is asked ────────────────────────────────────────────────────────────


def block(names: Names) -> Schema:
    """Our own object in a body; the same keys are taken as headers ``x-stepladder-…``, and the body wins."""
    stage = {"type": "string", "enum": list(names.stages)}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "lambda": {**_AMOUNT, "description": "cost units that one unit of quality is worth"},
            "mode": {"type": "string", "enum": list(names.modes)},
            "min_stage": stage,
            "max_stage": stage,
            "max_cost": {"type": "number", "exclusiveMinimum": 0},
            "explain": _FLAG,
            "stream_mode": {"type": "string", "enum": list(STREAM_MODES)},
            "hold_back": {"type": "integer", "minimum": 1, "maximum": MAX_HOLD_BACK},
            "report": _FLAG,
            "session": {"type": "string", "minLength": 1, "maxLength": MAX_SESSION_CHARS},
        },
    }


def _or_null(schema: Schema) -> Schema:
    """The same object where each of its fields may be null, which is as if it were not there. Headers cannot be."""
    either = {name: {"oneOf": [inner, {"type": "null"}]} for name, inner in schema["properties"].items()}
    return {**schema, "properties": either}


def _requests(names: Names) -> Schema:
    shared = {
        "model": {"type": ["string", "null"], "description": f"`{names.model}`, a preset of it, or a stage"},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        "stepladder": {"oneOf": [_ref("Dials"), {"type": "null"}]},
    }
    tokens: Schema = {"type": "array", "items": _COUNT, "minItems": 1}
    prompts = {"type": "array", "minItems": 1, "items": {"oneOf": [_TEXT, tokens]}}
    return {
        "Dials": _or_null(block(names)),
        "ChatRequest": _object(
            {"messages": {"type": "array", "minItems": 1, "items": _ref("Message")}, **shared}, required=("messages",)
        ),
        "CompletionRequest": _object({"prompt": {"anyOf": [_TEXT, tokens, prompts]}, **shared}, required=("prompt",)),
        "Message": _object(
            {
                "role": {"type": "string", "minLength": 1},
                "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
            },
            required=("role",),
        ),
        "Feedback": {
            "type": "object",
            "additionalProperties": False,
            "required": ["decision_id"],
            "properties": {
                "decision_id": {**_WORDS, "maxLength": LIMITS["decision_id"]},
                "score": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                "verdict": {"enum": [*VERDICTS, None]},
                **{
                    name: {**_WORDS, "type": ["string", "null"], "maxLength": LIMITS[name]}
                    for name in ("source", "stage", "key", "comment")
                },
            },
        },
    }


# ── what is answered ─────────────────────────────────────────────────────────


def _replies() -> Schema:
    return {**_openais(), **_accounts(), **_states()}


def _openais() -> Schema:
    """Replies in OpenAI's shapes."""
    usage = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
    choices = {"type": "array", "items": {"type": "object"}}
    answer = {"id": _TEXT, "model": _TEXT, "choices": choices, "usage": usage, "stepladder": _ref("Account")}
    error = {
        "message": _TEXT,
        "type": _TEXT,
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }
    model = {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}
    return {
        "ChatCompletion": _object(answer, required=tuple(answer)),
        "Completion": _object(answer, required=tuple(answer)),
        "Model": _object(model, required=tuple(model)),
        "Models": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
            required=("object", "data"),
        ),
        "Error": _object(
            {"error": _object(error, required=tuple(error)), "stepladder": _ref("Bill")}, required=("error",)
        ),
    }


def _accounts() -> Schema:
    """What a request took, and what it rested on."""
    sums = {"calls": _COUNT, "faults": _COUNT, "cost": _AMOUNT, "seconds": _AMOUNT}
    tokens = {"prompt_tokens": _COUNT, "cached_tokens": _COUNT, "output_tokens": _COUNT}
    spent = {
        "stage": _TEXT,
        **tokens,
        "cost": _AMOUNT,
        "seconds": _AMOUNT,
        "fault": {"enum": [None, *get_args(FaultKind)]},
    }
    bill = {
        "decision_id": _TEXT,
        "cost": _AMOUNT,
        "cost_unit": {"enum": list(get_args(CostUnit))},
        "usage": {"type": "object", "additionalProperties": _object({**sums, **tokens}, required=(*sums, *tokens))},
        "spent": {"type": "array", "items": _object(spent, required=tuple(spent))},
    }
    worth = _object({"quality": {"type": ["number", "null"]}, "cost": _NUMBER, "value": {"type": ["number", "null"]}})
    baseline = {"stage": _TEXT, "cost": _AMOUNT, "saved": _NUMBER, "estimate": _FLAG}
    account = {
        "stage": _TEXT,
        "upstream_model": {"type": ["string", "null"]},
        "mode": _TEXT,
        "lambda": _AMOUNT,
        "predicted_quality": {"type": ["number", "null"]},
        "calibrated": _FLAG,
        "value": _object({"expected": worth, "realised": worth}, required=("expected", "realised")),
        "seconds": _AMOUNT,
        "decide_ms": _AMOUNT,
        "baseline": _object(baseline, required=tuple(baseline)),
    }
    decision = {
        "object": {"const": "stepladder.decision"},
        "decision_id": _TEXT,
        "action": {"enum": ["call", "fail", "stop"]},
        "stage": {"type": ["string", "null"]},
        "reason": _TEXT,
        "propensity": _NUMBER,
        "lambda": _AMOUNT,
        "stages": {"type": "array", "items": {"type": "object"}},
    }
    trace = {
        "object": {"const": "stepladder.trace"},
        "id": _TEXT,
        "steps": {"type": "array"},
        "outcomes": {"type": "array"},
    }
    return {
        "Bill": _object(bill, required=tuple(bill)),
        "Account": _object({**bill, **account}, required=(*bill, *account)),
        "Decision": _object(decision, required=tuple(decision)),
        "Trace": _object(trace, required=tuple(trace)),
    }


def _states() -> Schema:
    kept = {"object": {"const": "stepladder.feedback"}, "decision_id": _TEXT, "score": _AMOUNT, "source": _TEXT}
    return {
        "Kept": _object(kept, required=tuple(kept)),
        "Health": _object({"status": {"const": "ok"}, "ladder": _TEXT, "stages": {"type": "array", "items": _TEXT}}),
        "Ready": _object(
            {"status": _TEXT, "stages": {"type": "array", "items": {"type": "object"}}}, required=("status",)
        ),
    }


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    made: Schema = {"type": "object", "properties": properties}
    return {**made, "required": list(required)} if required else made


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}
