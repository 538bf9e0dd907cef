"""From tokens to what a caller reads: text, stop strings, log probabilities, OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from stepladder.decoding.chain import Emitted
from stepladder.types import Endpoint


class Pieces(Protocol):
    """Turns tokens into text, a few at a time (``tokenizer.Detokenizer``)."""

    def push(self, ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's log probability under the model at temperature 1, and those of the likeliest, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Transcript:
    """What an answer says so far. ``text`` leaves out the stop string that ended it; ``tokens`` counts all written.

    ``take`` is given what each round wrote and tells whether a stop string came up: what stands behind it in the same
    round is dropped, as if it had not been drafted.
    """

    pieces: Pieces
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)
    stopped: bool = False
    _shown: int = 0

    def take(self, wrote: Sequence[Emitted]) -> bool:
        """Read the tokens up to a stop; True where one came up."""
        for each in wrote:
            self.tokens.append(each.token)
            if self.top_logprobs is not None and each.logits is not None:
                self.scores.append(_score(each.token, each.logits, self.top_logprobs))
            if each.token in self.ends:
                break
            if self._stops_with(self.pieces.push([each.token])):
                self.stopped = True
                break
        return self.stopped

    def finish(self) -> None:
        """What was held back for want of its last bytes is text after all."""
        if not self.stopped:
            self.stopped = self._stops_with(self.pieces.finish())

    def fresh(self, *, all_of_it: bool) -> str:
        """The text that may be shown and was not yet: without what may turn out to begin a stop string."""
        end = len(self.text) if all_of_it else len(self.text) - self._doubtful()
        piece, self._shown = self.text[self._shown : end], max(self._shown, end)
        return piece

    def _stops_with(self, piece: str) -> bool:
        if not piece:
            return False
        before = len(self.text)
        self.text += piece
        places = [(self.text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self.stops]
        found = [place for place, _ in places if place >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _doubtful(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        if self.stopped:
            return 0
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def _score(token: int, logits: torch.Tensor, top: int) -> Scored:
    logprobs = torch.log_softmax(logits.double(), -1)
    if not top:
        return Scored(token, min(0.0, float(logprobs[token])))
    values, ids = logprobs.topk(min(top, len(logprobs)))
    told = tuple(zip(ids.tolist(), (min(0.0, value) for value in values.tolist()), strict=True))
    return Scored(token, min(0.0, float(logprobs[token])), told)


def wire_logprobs(scores: Sequence[Scored], spell: Callable[[int], str], endpoint: Endpoint) -> dict[str, Any]:
    """OpenAI's ``logprobs`` object of a choice."""
    if endpoint == "chat":
        return {"content": [_chat_score(score, spell) for score in scores]}
    tops = [{spell(token): value for token, value in score.top} for score in scores]
    return {
        "tokens": [spell(score.token) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": _offsets([spell(score.token) for score in scores]),
    }


def _chat_score(score: Scored, spell: Callable[[int], str]) -> dict[str, Any]:
    def shape(token: int, logprob: float) -> dict[str, Any]:
        text = spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {**shape(score.token, score.logprob), "top_logprobs": [shape(*each) for each in score.top]}


def _offsets(texts: Sequence[str]) -> list[int]:
    offsets, place = [], 0
    for text in texts:
        offsets.append(place)
        place += len(text)
    return offsets


def whole_body(
    endpoint: Endpoint, head: Mapping[str, Any], text: str, finish: str, logprobs: Mapping[str, Any]
) -> dict[str, Any]:
    """OpenAI's body for an answer that tells log probabilities; ``head`` has id, time and model."""
    words: dict[str, Any] = {"text": text}
    if endpoint == "chat":
        words = {"message": {"role": "assistant", "content": text}}
    return {
        **head,
        "object": "chat.completion" if endpoint == "chat" else "text_completion",
        "choices": [{"index": 0, **words, "logprobs": logprobs, "finish_reason": finish}],
    }


def chunk_body(
    endpoint: Endpoint, head: Mapping[str, Any], text: str, logprobs: Mapping[str, Any], *, first: bool
) -> dict[str, Any]:
    """OpenAI's stream chunk for a piece of such an answer; ``head`` has what is the same in all of them."""
    words: dict[str, Any] = {"text": text}
    if endpoint == "chat":
        words = {"delta": {**({"role": "assistant"} if first else {}), "content": text}}
    return {
        **head,
        "object": "chat.completion.chunk" if endpoint == "chat" else "text_completion",
        "choices": [{"index": 0, **words, "logprobs": logprobs, "finish_reason": None}],
    }
