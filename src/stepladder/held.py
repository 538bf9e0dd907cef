"""Answers on their way that may yet be dropped: what has come of them, and what of that was shown to the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stepladder.tokens import usage_of
from stepladder.types import Attempt, Delta, Fault, Request

HOLD_BACK = 32
"""Tokens that are waited for unless the caller says how many."""

MAX_HOLD_BACK = 4096
"""Tokens that may be held back at the most: an answer of that many is worth waiting for as a whole."""


class Held:
    """The pieces of one answer, kept until it is known whether it will be.

    Once ``limit`` tokens are here it is time to ask whether the rest is worth waiting for (None: never before the end).
    ``is_open`` says that its pieces are shown to the caller as they come. Tokens are counted by their log probabilities
    where these are told, else by pieces, since most servers send a token in each. ``timer`` gives seconds.
    """

    def __init__(
        self, request: Request, stage: str, limit: int | None, timer: Callable[[], float], *, is_open: bool = False
    ) -> None:
        self.deltas: list[Delta] = []
        self.is_open = is_open
        self.stage = stage
        self._request, self._limit, self._timer = request, limit, timer
        self._began = timer()
        self._first_s: float | None = None
        self._pieces = 0
        self._logprobs: list[float] = []

    def take(self, delta: Delta) -> None:
        """Keep the next piece."""
        self.deltas.append(delta)
        if not is_preamble(delta):
            self._pieces += 1
            self._logprobs += delta.logprobs
            if self._first_s is None:
                self._first_s = self._timer() - self._began

    @property
    def tokens(self) -> int:
        """How many are here, as far as it is told."""
        return max(self._pieces, len(self._logprobs))

    @property
    def is_due(self) -> bool:
        """True where enough is here to be looked at and nothing is shown yet."""
        return not self.is_open and self._limit is not None and self.tokens >= self._limit

    def wait(self) -> None:
        """Look no more before the end."""
        self._limit = None

    def partial(self) -> Attempt:
        """The answer as far as it has come: no fault, and no finish reason either."""
        text = "".join(delta.text for delta in self.deltas)
        usage = usage_of(self._request, text, self.tokens)
        seconds = self._timer() - self._began
        return Attempt(self.stage, text, usage, seconds, self._first_s, logprobs=tuple(self._logprobs) or None)

    def dropped(self, partial: Attempt) -> Attempt:
        """What stays of it where it is not kept: a call that was cancelled, and is billed for what it had written."""
        told = f"dropped after its first {self.tokens} tokens: the policy went on without it"
        return replace(partial, fault=Fault("cancelled", told), seconds=self._timer() - self._began)


def is_preamble(delta: Delta) -> bool:
    """True for a chunk that says nothing yet: no text, no tool call, no end."""
    if delta.text:
        return False
    choices = delta.raw.get("choices") if delta.raw is not None else None
    return all(map(_is_silent, choices)) if isinstance(choices, list) else True


def _is_silent(choice: Mapping[str, Any]) -> bool:
    words = choice.get("delta") or {}
    said = choice.get("text") or any(value for key, value in words.items() if key != "role")
    return not said and choice.get("finish_reason") is None
