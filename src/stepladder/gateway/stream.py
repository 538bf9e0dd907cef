"""Router events → server-sent events in OpenAI's chunk shape.

Of a final call every chunk is passed on as it comes, in the bytes that it came in wherever the model's name can be
exchanged in them. In a cascade nothing is sent before the policy stops; then the kept answer goes out whole, as chunks,
unless the request asked for another stream mode (``router.Router.stream``). The status is not settled before there is
something to send, so a fault before the first byte is an ordinary error; after it, a fault is an error event, and the
stream ends without ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from stepladder.errors import AnswerError
from stepladder.gateway.faults import answer_error_body, error_body, error_reply
from stepladder.gateway.replies import DONE
from stepladder.gateway.report import summary
from stepladder.gateway.wire import completion_id, dumps, upstream_body, usage_body
from stepladder.held import is_preamble
from stepladder.types import Answer, Attempt, Call, Decided, Delta, Endpoint, Request, RouterEvent, Step, Stop

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
    openings: dict[str, Opening] = {}
    opening: Opening | None = None
    async for event in events:
        if isinstance(event, Decided):
            opening = _turned(event, openings) or opening
        elif opening is not None and isinstance(event, Delta):
            opening.deltas.append(event)
            if not is_preamble(event):
                return opening
        elif opening is not None and isinstance(event, Answer):
            opening.answer = event
            return opening
    raise AssertionError("the router ends with an Answer or raises")


def _turned(event: Decided, openings: dict[str, Opening]) -> Opening | None:
    """The opening of the stage that the decision turns to: the one called, or the one whose answer is kept."""
    action = event.step.decision.action
    if isinstance(action, Call):
        openings[action.stage] = Opening(event.trace_id, event.step, action.stage)
        return openings[action.stage]
    return openings.get(action.attempt.stage) if isinstance(action, Stop) else None


# ── the frames ───────────────────────────────────────────────────────────────


async def frames(
    opening: Opening, events: AsyncGenerator[RouterEvent, None], writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    """Everything from the first frame to ``[DONE]``, or to the error event that stands in its place.

    Frames of pieces that came together go out together.
    """
    try:
        if opening.answer is not None:
            yield b"".join(writer.whole(opening.answer))
            return
        if first := writer.first(opening.deltas):
            yield first
        async for event in events:
            if isinstance(event, Delta):
                frame = writer.relay(event)
            elif isinstance(event, Decided) and not writer.follows(event):
                yield writer.taken() + sse(broken_off(opening.stage))
                return
            else:
                frame = b"".join(writer.end(event))
            if frame := writer.due(frame, event):
                yield frame
    except AnswerError as error:
        yield writer.taken() + sse(answer_error_body(error))
    except Exception as error:  # noqa: BLE001 - the status is sent: only an event can still tell the client
        yield writer.taken() + b"data: " + error_reply(error).body + b"\n\n"


def broken_off(stage: str) -> dict[str, Any]:
    """What is told where another stage was called though an answer had begun to leave."""
    return error_body(f"stage '{stage}' broke off after its answer had begun", "upstream_error")


class ChunkWriter:
    """Writes one answer's chunks, and remembers what later ones must agree with: id, time, what was said already.

    ``waiting`` are frames that will go out with the next. ``against`` is the stage that savings are told against.
    """

    def __init__(self, request: Request, opening: Opening, created: int, against: str | None = None) -> None:
        self.waiting = b""
        self._endpoint: Endpoint = request.endpoint
        self._decision_id = opening.decision_id
        self._created = created
        self._against = against
        self._tells = request.dials.explain or request.dials.report
        self._may_restart = request.dials.stream_mode == "restart"
        self._wants_usage = bool((request.params.get("stream_options") or {}).get("include_usage"))
        self._last: Attempt | None = None
        self._turn: Step | None = None
        self._begin(opening.stage if opening.answer is None else opening.answer.stage)

    def _begin(self, stage: str) -> None:
        """An answer begins."""
        self._stage = stage
        self._name = orjson.dumps(stage)
        self._id = completion_id(self._endpoint, self._decision_id)
        self._spoke = self._ended = self._raw = self._usage_sent = False

    def first(self, deltas: Sequence[Delta]) -> bytes:
        """The frames of the pieces that came before the status was sent, as far as they are due."""
        return b"".join([self.due(self.relay(delta), delta) for delta in deltas])

    def due(self, frame: bytes, event: RouterEvent) -> bytes:
        """What goes out now: the frame and those that waited, nothing where the next piece is here already."""
        if isinstance(event, Delta) and event.more:
            self.waiting += frame
            return b""
        return self.taken() + frame if self.waiting else frame

    def taken(self) -> bytes:
        """The frames that were waiting, which go out now."""
        waiting, self.waiting = self.waiting, b""
        return waiting

    def follows(self, event: Decided) -> bool:
        """Note where a decision turns to another answer than the one under way; False where it may not."""
        action = event.step.decision.action
        turns = isinstance(action, Stop) and self._may_restart and action.attempt != self._last
        if turns or isinstance(action, Call):
            self._turn = event.step
        return self._turn is None or self._may_restart

    def relay(self, delta: Delta) -> bytes:
        """The frame for one piece of an answer, nothing for a usage chunk that nobody asked for."""
        if delta.parts:
            return self._relay_all(delta)
        restart = b"" if self._turn is None else self._restart(self._turn)
        raw = delta.raw
        if raw is None:
            return restart + self._said(delta.text)
        choices = raw.get("choices")
        if not self._raw:
            self._adopt(raw)
        if choices:
            self._ended = self._ended or any(choice.get("finish_reason") for choice in choices)
        elif raw.get("usage"):
            if not self._wants_usage:
                return restart
            self._usage_sent = True
        same = None if delta.data is None else with_model(delta.data, raw.get("model"), self._name)
        return restart + (sse({**raw, "model": self._stage}) if same is None else b"data: " + same + b"\n\n")

    def _relay_all(self, delta: Delta) -> bytes:
        """The frames of several pieces at once, where the model's name stands in the same way in each."""
        first, last = delta.parts[0].raw, delta.raw
        if self._turn is None and delta.data is not None and first is not None and last is not None:
            same = with_model(delta.data, last.get("model"), self._name, len(delta.parts))
            if same is not None:
                if not self._raw:
                    self._adopt(first)
                return b"data: " + same + b"\n\n"
        return b"".join([self.relay(piece) for piece in delta.parts])

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
        yield from self._close(answer)

    def end(self, event: RouterEvent) -> Iterator[bytes]:
        """What follows the last word, once the answer is there; nothing for what comes before it."""
        if isinstance(event, Attempt):
            self._last = event
        elif isinstance(event, Answer):
            if self._turn is None:
                yield from self._close(event)
            else:  # it turned to an answer that came in one piece
                yield self._restart(self._turn)
                yield from self.whole(event)

    def _close(self, answer: Answer) -> Iterator[bytes]:
        """The finish, the usage and the account where they are due, and [DONE]."""
        attempt = answer.attempt
        finish = attempt.finish_reason or (None if self._raw else "stop")
        if finish is not None and not self._ended:
            yield self._chunk([self._closed_choice(0, finish)])
        if self._wants_usage and not self._usage_sent:
            usage = (attempt.raw or {}).get("usage") or usage_body(attempt.usage)
            yield self._chunk([], usage=usage)
        if self._tells:
            yield self._chunk([], stepladder=summary(answer, self._against))
        yield DONE

    def _restart(self, step: Step) -> bytes:
        """Tells the client to drop what it has: the next chunks are those of another answer."""
        self._turn, before, action = None, self._stage, step.decision.action
        if isinstance(action, Call):
            self._begin(action.stage)
        elif isinstance(action, Stop):
            self._begin(action.attempt.stage)
        told = {"dropped": before, "stage": self._stage, "reason": step.decision.reason}
        return self._chunk([], stepladder={"decision_id": self._decision_id, "restart": told})

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
        usage = {"usage": None} if self._wants_usage else {}  # as OpenAI has it on every chunk but the one that tells
        return sse({**head, "choices": choices, **usage, **more})

    def _adopt(self, raw: Mapping[str, Any]) -> None:
        """The first upstream id and time hold for the chunks that are written here."""
        if not self._raw:
            self._raw = True
            self._id = raw.get("id") or self._id
            self._created = raw.get("created") or self._created


def with_model(data: bytes, model: Any, name: bytes, chunks: int = 1) -> bytes | None:
    """The bytes of chunks whose top-level ``model`` is ``model``, with ``name`` (JSON) in its place.

    None where the bytes do not show beyond doubt which those are. A key is spelled as it is unless letters of it stand
    by their numbers, and those of *model* all begin with 006; within a text its quotes are escaped. So every chunk's
    own key is among the places where it is spelled, and where there are as many as chunks, those are they.
    """
    at = data.find(b'"model"')
    if at < 0 or not isinstance(model, str) or data.count(b'"model"') != chunks or b"\\u006" in data:
        return None
    begin = data.find(b'"', at + 7)
    end = begin + 1 + len(old := model.encode())
    if data[at + 7 : begin].strip() != b":" or data[begin + 1 : end + 1] != old + b'"':
        return None
    if chunks == 1:
        return None if b"\n" in data or b"\r" in data else data[:begin] + name + data[end + 1 :]
    spelled = data[at : end + 1]
    if data.count(spelled) != chunks or data.count(b"\n") != 2 * (chunks - 1) or b"\r" in data:
        return None
    return data.replace(spelled, data[at:begin] + name)


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
