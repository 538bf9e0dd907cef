"""Router events → server-sent events in OpenAI's chunk shape.

Of a final call every chunk is passed on as it comes. In a cascade nothing is sent before the policy stops; then the
kept answer goes out whole, as chunks. The status is not settled before there is something to send, so a fault before
the first byte is an ordinary error; after it, a fault is an error event, and the stream ends without ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from stepladder.errors import AnswerError
from stepladder.gateway.faults import answer_error_body, error_body, error_reply
from stepladder.gateway.report import summary
from stepladder.gateway.wire import completion_id, dumps, upstream_body, usage_body
from stepladder.types import Answer, Call, Decided, Delta, Endpoint, Request, RouterEvent, Step

DONE = b"data: [DONE]\n\n"


# ── before the first byte ────────────────────────────────────────────────────


@dataclass(slots=True)
class Opening:
    """What had to be known before the status could be sent: who was called, and what came first."""

    decision_id: str
    step: Step
    stage: str
    deltas: list[Delta] = field(default_factory=list)
    answer: Answer | None = None


async def opened(events: AsyncGenerator[RouterEvent, None]) -> Opening:
    """Wait for the first thing worth sending. Raises what the router raises.

    Chunks that only announce a role are held back, so that a stage that fails right after them can still be replaced.
    """
    opening: Opening | None = None
    async for event in events:
        if isinstance(event, Decided):
            action = event.step.decision.action
            if isinstance(action, Call):
                opening = Opening(event.trace_id, event.step, action.stage)
        elif opening is not None and isinstance(event, Delta):
            opening.deltas.append(event)
            if not is_preamble(event):
                return opening
        elif opening is not None and isinstance(event, Answer):
            opening.answer = event
            return opening
    raise AssertionError("the router ends with an Answer or raises")


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


# ── the frames ───────────────────────────────────────────────────────────────


async def frames(
    opening: Opening, events: AsyncGenerator[RouterEvent, None], writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    """Everything from the first frame to ``[DONE]``, or to the error event that stands in its place."""
    try:
        async with aclosing(_rest(opening, events, writer)) as rest:
            async for frame in rest:
                yield frame
    except AnswerError as error:
        yield sse(answer_error_body(error))
    except Exception as error:  # noqa: BLE001 - the status is sent: only an event can still tell the client
        yield b"data: " + error_reply(error).body + b"\n\n"


async def _rest(
    opening: Opening, events: AsyncGenerator[RouterEvent, None], writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    if opening.answer is not None:
        for frame in writer.whole(opening.answer):
            yield frame
        return
    for delta in opening.deltas:
        for frame in writer.relay(delta):
            yield frame
    async for event in events:
        if isinstance(event, Decided) and isinstance(event.step.decision.action, Call):
            yield sse(error_body(f"stage '{opening.stage}' broke off after its answer had begun", "upstream_error"))
            return
        for frame in writer.frames(event):
            yield frame


class ChunkWriter:
    """Writes one answer's chunks, and remembers what later ones must agree with: id, time, what was said already."""

    __slots__ = ("_created", "_ended", "_endpoint", "_id", "_raw", "_spoke", "_stage", "_usage_sent", "_wants_usage")

    def __init__(self, request: Request, opening: Opening, created: int) -> None:
        self._endpoint: Endpoint = request.endpoint
        self._stage = opening.stage if opening.answer is None else opening.answer.stage
        self._id = completion_id(request.endpoint, opening.decision_id)
        self._created = created
        self._wants_usage = bool((request.params.get("stream_options") or {}).get("include_usage"))
        self._spoke = self._ended = self._raw = self._usage_sent = False

    def frames(self, event: RouterEvent) -> Iterator[bytes]:
        """The frames that an event of the router leads to."""
        if isinstance(event, Delta):
            return self.relay(event)
        return self.end(event) if isinstance(event, Answer) else iter(())

    def relay(self, delta: Delta) -> Iterator[bytes]:
        """The frame for one piece of an answer, none for a usage chunk that nobody asked for."""
        if delta.raw is None:
            yield self._said(delta.text)
            return
        raw = delta.raw
        choices = raw.get("choices")
        self._adopt(raw)
        if choices:
            self._ended = self._ended or any(choice.get("finish_reason") for choice in choices)
        elif raw.get("usage"):
            if not self._wants_usage:
                return
            self._usage_sent = True
        yield sse({**raw, "model": self._stage})

    def whole(self, answer: Answer) -> Iterator[bytes]:
        """A finished answer as chunks."""
        body = upstream_body(answer.attempt)
        if body is None:
            yield self._said(answer.text)
        else:
            self._adopt(body)
            for choice in body["choices"]:
                yield self._chunk([self._opened_choice(choice)])
                yield self._chunk([self._closed_choice(choice.get("index", 0), choice.get("finish_reason") or "stop")])
            self._ended = True
        yield from self.end(answer)

    def end(self, answer: Answer) -> Iterator[bytes]:
        """What follows the last word: the finish, the usage and the explanation where they are due, and [DONE]."""
        attempt = answer.attempt
        finish = attempt.finish_reason or (None if self._raw else "stop")
        if finish is not None and not self._ended:
            yield self._chunk([self._closed_choice(0, finish)])
        if self._wants_usage and not self._usage_sent:
            usage = (attempt.raw or {}).get("usage") or usage_body(attempt.usage)
            yield self._chunk([], usage=usage)
        if answer.trace.request.dials.explain:
            yield self._chunk([], stepladder=summary(answer))
        yield DONE

    def _said(self, text: str) -> bytes:
        if self._endpoint == "completion":
            return self._chunk([{"index": 0, "text": text, "logprobs": None, "finish_reason": None}])
        role = {} if self._spoke else {"role": "assistant"}
        self._spoke = True
        words = {**role, "content": text}
        return self._chunk([{"index": 0, "delta": words, "logprobs": None, "finish_reason": None}])

    def _opened_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """A finished choice as its first chunk: a chat's message becomes the delta."""
        opened = {**choice, "finish_reason": None}
        if self._endpoint == "chat":
            opened["delta"] = _as_delta(opened.pop("message", None) or {})
        return opened

    def _closed_choice(self, index: int, reason: str) -> dict[str, Any]:
        words: dict[str, Any] = {"delta": {}} if self._endpoint == "chat" else {"text": ""}
        return {"index": index, **words, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._endpoint == "chat" else "text_completion"
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._stage}
        return sse({**head, "choices": choices, **more})

    def _adopt(self, raw: Mapping[str, Any]) -> None:
        """The first upstream id and time hold for the chunks that are written here."""
        if not self._raw:
            self._raw = True
            self._id = raw.get("id") or self._id
            self._created = raw.get("created") or self._created


def _as_delta(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    return {**message, "tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]}


def sse(value: Any) -> bytes:
    """One server-sent event."""
    try:
        return b"data: " + orjson.dumps(value) + b"\n\n"
    except TypeError:  # read-only mappings inside: rare, so not looked for beforehand
        return b"data: " + dumps(value) + b"\n\n"
