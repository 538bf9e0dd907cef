"""OpenAI's JSON ⇄ ``Request`` and ``Answer``. Shapes only: what a request should cost is decided elsewhere.

Every field of a body that is not read here stays in ``Request.params`` as it came, so that nothing is lost on the way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

import orjson

from stepladder.errors import RequestError, nearest
from stepladder.gateway.report import summary
from stepladder.held import MAX_HOLD_BACK
from stepladder.types import EMPTY, Answer, Attempt, Capability, Dials, Endpoint, Request, StreamMode, Usage

BLOCK = "stepladder"
HEADER_PREFIX = b"x-stepladder-"
UNTURNED = Dials()
"""The dials of a caller who asks for nothing of his own."""

STREAM_MODES: tuple[str, ...] = get_args(StreamMode)
MAX_SESSION_CHARS = 256
"""A conversation's name is kept as long as the conversation is remembered."""

MAX_DEPTH = 100
"""Levels of nesting that a body may have. Deeper ones can be read but not written again, upstream or as a trace."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a request may use: the model under which the policy decides, the stages, the modes.

    ``presets`` are dials by name, keyed as in the body's block: ``MODEL/NAME`` as the model turns them so.
    """

    model: str
    stages: tuple[str, ...]
    modes: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: EMPTY)

    @property
    def virtual(self) -> tuple[str, ...]:
        """The models under which the policy decides: as the ladder is set, and turned by each preset."""
        return (self.model, *(f"{self.model}/{name}" for name in self.presets))

    @property
    def models(self) -> tuple[str, ...]:
        """Everything that ``model`` may be."""
        return (*self.virtual, *self.stages)


# ── body → Request ───────────────────────────────────────────────────────────


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises RequestError for anything else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {_kind(value)}", code="invalid_json")
    opened = body.count(b"[") + body.count(b"{")  # no body is deeper than this, and most are small enough to skip
    if opened > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise RequestError(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    """True for lists and objects within each other in more than ``limit`` levels; goes level by level."""
    level = [value]
    for _ in range(limit):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def read_request(
    body: Mapping[str, Any],
    names: Names,
    headers: Iterable[tuple[bytes, bytes]] = (),
    endpoint: Endpoint | None = None,
    *,
    caller: str | None = None,
    only: tuple[str, ...] | None = None,
) -> Request:
    """The request in a body; without an endpoint, the shape follows from whether there are ``messages``.

    ``caller`` and ``only`` are what somebody found out of who asks (``types.Request``). Raises RequestError that names
    the field at fault.
    """
    chat = "messages" in body if endpoint is None else endpoint == "chat"
    question = "messages" if chat else "prompt"
    params = {key: value for key, value in body.items() if key not in (question, "model", BLOCK)}
    messages = _messages(body.get(question)) if chat else ()
    prompt = None if chat else _prompt(body.get(question))
    if prompt is not None and is_several(body["prompt"]):
        params["prompt"] = body["prompt"]
    _check_stream(params)
    stage, preset = read_model(body.get("model"), names)
    return Request(
        id=f"req-{os.urandom(16).hex()}",
        messages=messages,
        prompt=prompt,
        params=params,
        dials=read_dials(body.get(BLOCK), headers, stage, names.modes, preset, stages=names.stages),
        needs=needs(params, messages),
        caller=caller,
        only=only,
    )


def read_model(model: Any, names: Names) -> tuple[str | None, Mapping[str, Any]]:
    """The stage that ``model`` names, None where the policy is to decide; and how a preset that it names turns it."""
    if model is None or model == names.model:
        return None, EMPTY
    if not isinstance(model, str):
        raise RequestError(f"model must be a string, not {_kind(model)}", param="model")
    if model in names.stages:
        return model, EMPTY
    preset = names.presets.get(model.removeprefix(f"{names.model}/"))
    if preset is None or not model.startswith(f"{names.model}/"):
        message = f"the model '{model}' does not exist; {nearest(model, names.models)}"
        raise RequestError(message, param="model", code="model_not_found")
    return None, preset


def needs(params: Mapping[str, Any], messages: tuple[Mapping[str, Any], ...] = ()) -> frozenset[Capability]:
    """What a stage must be able to do to take this request."""
    found: set[Capability] = set()
    if params.get("stream"):
        found.add("stream")
    if params.get("tools") or params.get("functions"):
        found.add("tools")
    if _wants_logprobs(params):
        found.add("logprobs")
    if _wants_json(params.get("response_format")):
        found.add("json")
    for message in messages:
        if _has_image(message.get("content")):
            found.add("images")
    if "prompt" in params and not messages:
        found.add("prompts")
    return frozenset(found)


def _wants_logprobs(params: Mapping[str, Any]) -> bool:
    """A flag in chats, a number in completions, where 0 still asks for the chosen tokens' own."""
    asked = params.get("logprobs")
    return not (asked is None or asked is False) or bool(params.get("top_logprobs"))


def _wants_json(response_format: Any) -> bool:
    return isinstance(response_format, Mapping) and response_format.get("type") in ("json_object", "json_schema")


def _has_image(content: Any) -> bool:
    return isinstance(content, list) and any(part.get("type") == "image_url" for part in content)


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise RequestError(f"messages must be a list of messages, not {_kind(value)}", param="messages")
    if not value:
        raise RequestError("messages is empty: at least one message is needed", param="messages")
    for index, message in enumerate(value):
        _check_message(index, message)
    return tuple(value)


def _check_message(index: int, message: Any) -> None:
    if not isinstance(message, dict):
        raise _wrong(index, "", f"must be an object, not {_kind(message)}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise _wrong(index, ".role", f"must be a string such as 'user', not {_kind(role)}")
    if not _is_content(content):
        raise _wrong(index, ".content", "must be a string, a list of parts or null")
    if role == "user" and _is_empty(content):  # other roles may say nothing: calls of tools, and what tools return
        raise _wrong(index, ".content", "is empty: a user's message must say something")


def _wrong(index: int, field: str, why: str) -> RequestError:
    place = f"messages[{index}]{field}"
    return RequestError(f"{place} {why}", param=place)


def _is_content(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content)
    return content is None or isinstance(content, str)


def _is_empty(content: Any) -> bool:
    """True for no text at all; a part of another type than text (an image, a file) says something."""
    if isinstance(content, list):
        return all(part.get("type", "text") == "text" and not _has_words(part.get("text")) for part in content)
    return not _has_words(content)


def _has_words(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _prompt(value: Any) -> str:
    """The text of a prompt in any of OpenAI's shapes: a string, several, tokens, several lists of tokens.

    Several are joined by newlines. Tokens cannot be read here: their numbers stand for them, which are about as long as
    the text would be. What is sent on is not this but the prompt as it came (``is_several``).
    """
    each = value if isinstance(value, list) and not _are_tokens(value) else [value]
    texts = [_prompt_text(one) for one in each]
    if None in texts:
        told = "a string, a list of strings, a list of tokens or a list of such lists"
        raise RequestError(f"prompt must be {told}, not {_kind(value)}", param="prompt")
    text = "\n".join(filter(None, texts))
    if not text.strip():
        raise RequestError("prompt is empty", param="prompt")
    return text


def is_several(prompt: Any) -> bool:
    """True for a prompt that is more than one string: other prompts in one call, or tokens."""
    return isinstance(prompt, list) and not (len(prompt) == 1 and isinstance(prompt[0], str))


def _prompt_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return " ".join(map(str, value)) if _are_tokens(value) else None


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def _check_stream(params: Mapping[str, Any]) -> None:
    stream, options = params.get("stream"), params.get("stream_options")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError(f"stream must be true or false, not {_kind(stream)}", param="stream")
    if options is not None and not isinstance(options, dict):
        raise RequestError(f"stream_options must be an object, not {_kind(options)}", param="stream_options")


# ── the stepladder block and its headers ─────────────────────────────────────


def read_dials(
    block: Any,
    headers: Iterable[tuple[bytes, bytes]] = (),
    stage: str | None = None,
    modes: tuple[str, ...] = (),
    preset: Mapping[str, Any] = EMPTY,
    *,
    stages: tuple[str, ...] = (),
) -> Dials:
    """Dials from the body's block, headers and a preset named as the model; the first of these wins, key by key.

    A stage named as the model wins over all: a block that contradicts it is refused, headers (often set once for all
    requests) give way. Headers that name none of ``stages`` are refused also where they give way, or nobody would
    notice before a request that they are meant for.
    """
    asked = _from_block(block)
    if stage is not None:
        _check_pin(stage, asked)
    told = _from_headers(headers)
    if stage is None and not (asked or told or preset):
        return UNTURNED
    _check_told(told, {"mode": modes, "min_stage": stages, "max_stage": stages})
    values = {**preset, **told, **asked}
    if stage is not None:
        values.update(mode="fixed", min_stage=stage, max_stage=stage)
    mode = values.get("mode")
    if mode is not None and mode not in modes:
        raise RequestError(f"there is no mode '{mode}'; {nearest(mode, modes)}", param="stepladder.mode")
    return Dials(**{_FIELDS.get(key, key): value for key, value in values.items()})


def _from_block(block: Any) -> dict[str, Any]:
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise RequestError(f"stepladder must be an object, not {_kind(block)}", param=BLOCK)
    for key in block:
        if key not in _DIALS:
            raise RequestError(f"stepladder has no key '{key}'; {nearest(key, tuple(_DIALS))}", param=f"{BLOCK}.{key}")
    return {key: _DIALS[key](f"{BLOCK}.{key}", value) for key, value in block.items() if value is not None}


def _from_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in headers:
        if name.startswith(HEADER_PREFIX):
            key, dial = _from_header(name.decode("latin-1"), value.decode("latin-1").strip())
            found[key] = dial
    return found


def _from_header(name: str, text: str) -> tuple[str, Any]:
    key = name.removeprefix(HEADER_PREFIX.decode()).replace("-", "_")
    if key not in _DIALS:
        raise RequestError(f"there is no header '{name}'; {nearest(name, tuple(map(_header, _DIALS)))}", param=name)
    return key, _DIALS[key](name, _TEXT.get(key, _as_text)(text))


def _check_told(told: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    for key, names in known.items():
        if key in told and told[key] not in names:
            what = key.rpartition("_")[2]
            message = f"{_header(key)}: there is no {what} '{told[key]}'; {nearest(told[key], names)}"
            raise RequestError(message, param=_header(key))


def _header(key: str) -> str:
    return HEADER_PREFIX.decode() + key.replace("_", "-")


def _check_pin(stage: str, asked: Mapping[str, Any]) -> None:
    for key, only in (("mode", "fixed"), ("min_stage", stage), ("max_stage", stage)):
        if asked.get(key, only) != only:
            message = f"model '{stage}' names one stage, which {key} '{asked[key]}' contradicts; leave one of them out"
            raise RequestError(message, param=f"{BLOCK}.{key}")


def _price(place: str, value: Any) -> float:
    number = _number(place, value)
    if number < 0:
        raise RequestError(f"{place} must be 0 or more, not {number:g}", param=place)
    return number


def _budget(place: str, value: Any) -> float:
    number = _number(place, value)
    if number <= 0:
        raise RequestError(f"{place} must be more than 0, not {number:g}", param=place)
    return number


def _tokens(place: str, value: Any) -> int:
    number = _number(place, value)
    if not (number.is_integer() and 1 <= number <= MAX_HOLD_BACK):
        raise RequestError(f"{place} must be a whole number from 1 to {MAX_HOLD_BACK}, not {number:g}", param=place)
    return int(number)


def _stream_mode(place: str, value: Any) -> str:
    mode = _word(place, value)
    if mode not in STREAM_MODES:
        raise RequestError(f"there is no stream mode '{mode}'; {nearest(mode, STREAM_MODES)}", param=place)
    return mode


def _session(place: str, value: Any) -> str:
    name = _word(place, value)
    if not 1 <= len(name) <= MAX_SESSION_CHARS:
        told = f"{place} must be 1 to {MAX_SESSION_CHARS} characters long, not {len(name)}"
        raise RequestError(told, param=place)
    return name


def _number(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{place} must be a number, not {_kind(value)}", param=place)
    if not math.isfinite(value):
        raise RequestError(f"{place} must be a finite number", param=place)
    return float(value)


def _word(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{place} must be a string, not {_kind(value)}", param=place)
    return value


def _flag(place: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{place} must be true or false, not {_kind(value)}", param=place)
    return value


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _as_flag(text: str) -> Any:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)


def _as_text(text: str) -> Any:
    return text


_DIALS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "lambda": _price,
        "mode": _word,
        "min_stage": _word,
        "max_stage": _word,
        "max_cost": _budget,
        "explain": _flag,
        "stream_mode": _stream_mode,
        "hold_back": _tokens,
        "report": _flag,
        "session": _session,
    }
)
_TEXT: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {"lambda": _as_number, "max_cost": _as_number, "explain": _as_flag, "hold_back": _as_number, "report": _as_flag}
)
_FIELDS: Mapping[str, str] = MappingProxyType({"lambda": "lam"})


# ── Answer → body ────────────────────────────────────────────────────────────


def answer_body(answer: Answer, baseline: str | None = None) -> dict[str, Any]:
    """OpenAI's body for an answer: the upstream's own where it sent one, with ``model`` the stage that wrote it.

    ``baseline`` is the stage that savings are told against; None for the ladder's last.
    """
    attempt, request = answer.attempt, answer.trace.request
    body = upstream_body(attempt) or built_body(attempt, request.endpoint, int(answer.trace.created_at))
    body["model"] = attempt.stage
    if not isinstance(body.get("id"), str):
        body["id"] = completion_id(request.endpoint, answer.trace.id)
    if not isinstance(body.get("usage"), Mapping):
        body["usage"] = usage_body(attempt.usage)
    body[BLOCK] = summary(answer, baseline)
    return body


def upstream_body(attempt: Attempt) -> dict[str, Any] | None:
    """A copy of the upstream's reply, None where there is none in OpenAI's shape."""
    raw = attempt.raw
    return dict(raw) if raw is not None and isinstance(raw.get("choices"), list) else None


def built_body(attempt: Attempt, endpoint: Endpoint, created: int) -> dict[str, Any]:
    """A body for an attempt whose engine speaks no OpenAI; ``id`` comes first but is filled in by the caller."""
    words: Mapping[str, Any] = {"text": attempt.text}
    if endpoint == "chat":
        words = {"message": {"role": "assistant", "content": attempt.text}}
    choice = {"index": 0, **words, "logprobs": None, "finish_reason": attempt.finish_reason or "stop"}
    kind = "chat.completion" if endpoint == "chat" else "text_completion"
    return {"id": None, "object": kind, "created": created, "model": attempt.stage, "choices": [choice]}


def completion_id(endpoint: Endpoint, decision_id: str) -> str:
    """The id of a body that the upstream gave none."""
    prefix = "chatcmpl" if endpoint == "chat" else "cmpl"
    return f"{prefix}-{decision_id.removeprefix('dec-')}"


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
    if usage.cached_tokens:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return body


def models_body(names: Names, owners: Mapping[str, str] = EMPTY, created: int = 0) -> dict[str, Any]:
    """OpenAI's list of models: those that let the policy decide, then every stage, cheapest first."""
    models = [
        {"id": name, "object": "model", "created": created, "owned_by": owners.get(name, "stepladder")}
        for name in names.models
    ]
    return {"object": "list", "data": models}


def dumps(value: Any) -> bytes:
    """JSON bytes; read-only mappings count as objects."""
    return orjson.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _kind(value: Any) -> str:
    """What JSON calls a value, for sentences."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)
