"""What the ``torch`` engine makes of a request: tokens to be read, how to sample, when to stop."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepladder.decoding.laws import Sampling
from stepladder.engines.wire import WireError
from stepladder.errors import UsageError, nearest
from stepladder.types import Fault, Request, message_text

STOPS = 16
"""Stop strings at most; OpenAI takes four."""

TOP_LOGPROBS = 20

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "echo": (False,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "json_schema": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": ("",),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "top_n_sigma": (-1,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}
"""Parameters that change what is written and are not done here, with the values that change nothing."""

DONE = (
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
)
TELLING = frozenset(
    {
        "cache_prompt",
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "timings_per_token",
        "user",
    }
)
"""Parameters that change nothing of what is written."""


@dataclass(frozen=True, slots=True)
class Order:
    """One answer to write. ``most`` is None where only the context ends it; ``seed`` None where any will do.

    ``top_logprobs`` is None where no log probabilities are asked for, else how many alternatives of each token.
    """

    sampling: Sampling
    most: int | None
    stops: tuple[str, ...]
    seed: int | None
    top_logprobs: int | None
    streamed: bool


def read_order(request: Request) -> Order:
    """Read the parameters. Raises WireError (bad_request) that names the key, the value and what would be right."""
    params = request.params
    _refuse_others(params)
    try:
        sampling = Sampling(
            _number(params, "temperature", 1.0), _whole(params, "top_k", 0, least=-1), _number(params, "top_p", 1.0)
        )
    except UsageError as error:
        raise _refused(str(error)) from None
    return Order(
        sampling=sampling,
        most=_most(params),
        stops=_stops(params.get("stop")),
        seed=None if params.get("seed") is None else _whole(params, "seed", 0, least=None),
        top_logprobs=_top_logprobs(request),
        streamed=bool(params.get("stream")),
    )


def _refuse_others(params: Mapping[str, Any]) -> None:
    """Raise WireError for a parameter that is not done here: passed over, it would not be missed."""
    for key, value in params.items():
        if value is None or key in DONE or key in TELLING:
            continue
        if key not in NEUTRAL:
            known = nearest(key, DONE)
            raise _refused(f"{key}: the engine 'torch' does not know it ({value!r}): leave it out; {known}")
        if value not in NEUTRAL[key]:
            right = f"leave it out, or {NEUTRAL[key][0]!r}" if NEUTRAL[key] else "leave it out"
            raise _refused(f"{key}: the engine 'torch' cannot do {value!r}; {right}")


def plain_messages(request: Request) -> list[dict[str, str]]:
    """Roles and texts, for the chat template. Raises WireError for what is no text."""
    told: list[dict[str, str]] = []
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list):
            kinds = {str(part.get("type")) for part in content if isinstance(part, Mapping)} - {"text"}
            if kinds:
                raise _refused(f"messages: the engine 'torch' reads text, not {', '.join(sorted(kinds))}")
        text = message_text(message)
        if not _is_text(text):
            raise _refused(f"messages: {text!r} has half a surrogate pair in it; give whole characters")
        told.append({"role": str(message.get("role", "user")), "content": text})
    return told


def plain_prompt(prompt: str) -> str:
    """The raw prompt. Raises WireError for what is no text."""
    if not _is_text(prompt):
        raise _refused(f"prompt: {prompt!r} has half a surrogate pair in it; give whole characters")
    return prompt


def _most(params: Mapping[str, Any]) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        if params.get(key) is not None:
            return _whole(params, key, 1, least=1)
    return None


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and len(texts) <= STOPS and all(isinstance(t, str) and t for t in texts):
        return tuple(texts)
    raise _refused(f"stop: should be a string or up to {STOPS} of them, none empty, not {value!r}")


def _top_logprobs(request: Request) -> int | None:
    params = request.params
    asked = params.get("logprobs")
    if request.endpoint == "completion":
        return None if asked is None or asked is False else _whole(params, "logprobs", 0, least=0, most=TOP_LOGPROBS)
    if not asked and not params.get("top_logprobs"):
        return None
    return _whole(params, "top_logprobs", 0, least=0, most=TOP_LOGPROBS)


def _number(params: Mapping[str, Any], key: str, default: float) -> float:
    value = params.get(key)
    if value is None:
        return default
    if _is_number(value):
        return float(value)
    raise _refused(f"{key}: should be a number, not {value!r}")


def _whole(params: Mapping[str, Any], key: str, default: int, *, least: int | None, most: int | None = None) -> int:
    value = params.get(key)
    if value is None:
        return default
    if isinstance(value, bool) and key == "logprobs":
        value = int(value)
    within = _is_number(value) and (least is None or value >= least) and (most is None or value <= most)
    if within and value == int(value):
        return max(int(value), 0) if key == "top_k" else int(value)
    bounds = "" if least is None else f" from {least}" + ("" if most is None else f" to {most}")
    raise _refused(f"{key}: should be a whole number{bounds}, not {value!r}")


def _is_number(value: Any) -> bool:
    """True for numbers that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which no encoding of text has and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(message: str) -> WireError:
    return WireError(Fault("bad_request", message))
