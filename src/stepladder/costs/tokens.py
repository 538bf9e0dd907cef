"""How many tokens a request is expected to take, before anything has been counted."""

from __future__ import annotations

from math import ceil

from stepladder.contracts import Forecast
from stepladder.tokens import CHARS_PER_TOKEN
from stepladder.types import Attempt, Request, Stage

TYPICAL_OUTPUT = 256
"""Output tokens expected of an answer where nothing was learned and the caller set no limit below it."""


def expected_tokens(
    request: Request, typical_output: float = TYPICAL_OUTPUT, chars_per_token: float = CHARS_PER_TOKEN
) -> tuple[int, int]:
    """(prompt tokens, output tokens): characters by a fixed rate, and the typical answer cut at the caller's limit."""
    prompt = ceil(request.chars / chars_per_token)
    limit = output_limit(request)
    output = ceil(typical_output)
    return prompt, output if limit is None else min(limit, output)


def output_limit(request: Request) -> int | None:
    """The caller's limit on output tokens, the newer of OpenAI's two names first; None where none is set."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = request.params.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def expected_seconds(forecast: Forecast, stage: Stage, tokens: tuple[int, int], draft: Attempt | None = None) -> float:
    """The engine's own forecast in seconds, for a call with this draft; 0 where it has nothing to go by yet."""
    found = forecast(stage, *tokens, draft)
    return 0.0 if found is None else found.seconds


def is_work(attempt: Attempt) -> bool:
    """True where there is something to bill: an answer, or a failure that wrote a part of one."""
    return attempt.is_answer or attempt.usage.output_tokens > 0 or bool(attempt.text)


def read_and_written(attempt: Attempt) -> tuple[int, int]:
    """(tokens read, tokens written): of a lower answer read as a draft, all were read, and those kept not written."""
    usage, found = attempt.usage, attempt.speculation
    if found is None:
        return usage.prompt_tokens, usage.output_tokens
    return usage.prompt_tokens + found.climbed, max(0, usage.output_tokens - found.kept)
