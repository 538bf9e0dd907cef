"""OpenAI's wire shapes: what is sent, how replies and stream chunks are read, and which fault an error means.

Nothing here does I/O. Written against the API as OpenAI, vLLM, SGLang, llama.cpp and Ollama speak it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import orjson

from stepladder.tokens import tokens_of
from stepladder.types import Attempt, Delta, Drafting, Fault, FaultKind, Request, Speculation, Usage, message_text

CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")
CONTEXT_PHRASES = re.compile(
    r"maximum context length|exceeds? .{0,30}context|context (length|size|window) .{0,30}exceed"
    r"|(prompt|input|request) .{0,40}(is )?too long|longer than the .{0,30}(context|model) length"
    r"|must have less than \d+ tokens|max_new_tokens.{0,10} must be <=",
    re.IGNORECASE,
)
"""How servers that give no code say that prompt and answer do not fit."""

STATUS_KINDS: Mapping[int, FaultKind] = {401: "auth", 403: "auth", 408: "timeout", 429: "rate_limit"}
MAX_MESSAGE_CHARS = 500


class WireError(Exception):
    """What came back is no answer; carries the fault that the attempt will show."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.message)


def protocol_error(message: str, status: int | None = None) -> WireError:
    """The server does not speak the protocol."""
    return WireError(Fault("protocol", message, status=status))


# ── out ──────────────────────────────────────────────────────────────────────


def path(request: Request) -> str:
    """The endpoint's path below the base URL."""
    return "/chat/completions" if request.endpoint == "chat" else "/completions"


def is_stream(request: Request) -> bool:
    """True where the caller asked for the answer in pieces."""
    return bool(request.params.get("stream"))


def wants_usage(request: Request) -> bool:
    """True where the caller asked for the extra chunk that carries the usage."""
    options = request.params.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


def body(request: Request, model: str, *, ask_usage: bool) -> bytes:
    """The request as JSON: the caller's parameters untouched, and our model. Raises WireError (bad_request)."""
    fields: dict[str, Any] = dict(request.params)
    if request.prompt is None:
        fields["messages"] = request.messages
    else:
        fields.setdefault("prompt", request.prompt)  # several prompts, or tokens, stand in the parameters as they came
    fields["model"] = model
    if ask_usage and is_stream(request):
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    try:
        return orjson.dumps(fields, default=_plain)
    except TypeError as error:
        raise WireError(Fault("bad_request", f"the request cannot be written as JSON: {error}")) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


# ── in ───────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Reply:
    """An answer as it builds up; ``attempt`` can be asked of it at any time.

    ``written`` holds what each streamed piece showed, of every choice: text, reasoning, a tool's arguments.

    Where several choices were asked for (``n``), llama.cpp counts the output tokens of each alone: a stream's counts
    are added up, and in a whole reply, which brings the first one's, the others are counted by their log probabilities
    or estimated. Other servers count all choices together.

    ``timings`` are what llama.cpp says of its work, as they came: ``draft_n`` tokens drafted and ``draft_n_accepted``,
    where there were any. ``drafter`` is who drafted them, as far as it is known.
    """

    stage: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    first_token_s: float | None = None
    raw: Mapping[str, Any] | None = None
    written: list[str] = field(default_factory=list)
    choices: set[int] = field(default_factory=set)
    counts_alone: list[int] = field(default_factory=list)
    timings: list[Mapping[str, Any]] = field(default_factory=list)
    drafter: str = ""

    def attempt(self, seconds: float, fault: Fault | None = None) -> Attempt:
        """What has come so far, as an attempt."""
        return Attempt(
            stage=self.stage,
            text="".join(self.texts),
            usage=self.usage,
            seconds=seconds,
            first_token_s=self.first_token_s,
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) or None,
            fault=fault,
            raw=self.raw,
            speculation=self._speculation(),
        )

    @property
    def latest_timings(self) -> list[Mapping[str, Any]]:
        """The newest of each choice."""
        return self.timings[-max(1, len(self.choices)) :]

    def _speculation(self) -> Speculation | None:
        """What the server told of its drafting; None for one that tells nothing and is not known to draft."""
        drafted = sum(_count(told.get("draft_n")) for told in self.latest_timings)
        if not drafted and not (self.drafter and self.timings):
            return None
        accepted = min(drafted, sum(_count(told.get("draft_n_accepted")) for told in self.latest_timings))
        pair = Drafting(self.drafter, self.stage, drafted, accepted)
        return Speculation(chain=(self.drafter, self.stage), pairs=(pair,))

    def read_whole(self, data: bytes) -> None:
        """Take an unstreamed reply. Raises WireError."""
        reply = _object(data)
        _refuse_error(reply)
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices:
            raise protocol_error("the server's reply has no choices")
        self.raw = reply
        self._read_usage(reply)
        if _counts_one_choice(reply):
            further = _further_tokens(choices, self.usage.output_tokens)
            self.usage = replace(self.usage, output_tokens=self.usage.output_tokens + further)
        choice = _choice_zero(choices)
        self._read_choice(choice, _logprobs(choice.get("logprobs")))

    def read_chunk(self, data: bytes, seconds: float, *, hides_usage: bool = False) -> Delta:
        """Take one chunk of a stream, which came ``seconds`` after the start. Raises WireError.

        ``hides_usage``: the caller did not ask for the usage, so the chunk passed on holds no empty place for it.
        """
        chunk = _object(data)
        _refuse_error(chunk)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise protocol_error("a chunk of the server's stream has no choices")
        plain = _plain_text(choices, chunk)
        if plain is not None:
            return self._read_plain(plain, choices[0], seconds, Delta(plain, chunk, data))
        self.choices.update([_index(choice) for choice in choices])
        if "usage" in chunk or "timings" in chunk:
            self._read_counts(chunk)
        self.written += [_words(choice) for choice in choices if _shows_something(choice)]
        if self.first_token_s is None and self.written:
            self.first_token_s = seconds
        choice = _choice_zero(choices)
        told = tuple(_logprobs(choice["logprobs"])) if choice.get("logprobs") else ()
        if hides_usage and "usage" in chunk and chunk["usage"] is None:
            bare = {key: value for key, value in chunk.items() if key != "usage"}
            return Delta(self._read_choice(choice, told), bare, logprobs=told)
        return Delta(self._read_choice(choice, told), chunk, data, told)

    def _read_plain(self, text: str, choice: Mapping[str, Any], seconds: float, delta: Delta) -> Delta:
        """What ``read_chunk`` comes to for a chunk of text alone, without a look at what it does not hold."""
        self.choices.add(0)
        if text:
            self.texts.append(text)
            self.written.append(text)
            if self.first_token_s is None:
                self.first_token_s = seconds
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return delta

    def _read_counts(self, chunk: Mapping[str, Any]) -> None:
        self._read_usage(chunk)
        if _counts_one_choice(chunk):
            self.counts_alone.append(self.usage.output_tokens)
            self.usage = replace(self.usage, output_tokens=sum(self.counts_alone[-max(1, len(self.choices)) :]))

    def _read_choice(self, choice: Mapping[str, Any], logprobs: Iterable[float]) -> str:
        text = _text(choice)
        if text:
            self.texts.append(text)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.logprobs.extend(logprobs)
        return text

    def _read_usage(self, reply: Mapping[str, Any]) -> None:
        usage, timings = reply.get("usage"), reply.get("timings")
        if isinstance(timings, Mapping):
            self.timings.append(timings)
        if not isinstance(usage, Mapping):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
        self.usage = Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


BETWEEN = b"\n\ndata: "
"""What stands between the data of two events of a stream."""


def together(deltas: list[Delta]) -> list[Delta]:
    """The same pieces, which came at once, with each run of plain text in one; all but the last know of the next."""
    found: list[Delta] = []
    run: list[Delta] = []
    for delta in deltas:
        if _is_plain(delta):
            run.append(delta)
            continue
        if run:
            found.append(_joined(run))
            run = []
        found.append(delta)
    if run:
        found.append(_joined(run))
    for delta in found[:-1]:
        delta.more = True  # nobody has seen it yet
    return found


def _is_plain(delta: Delta) -> bool:
    """True for text of the first choice, and nothing else, in bytes of one line that name one model."""
    raw, data = delta.raw, delta.data
    if raw is None or data is None or not delta.text or b"\n" in data or data.count(b'"model"') != 1:
        return False
    choices = raw["choices"]
    return _plain_text(choices, raw) is not None and choices[0].get("finish_reason") is None


def _joined(run: list[Delta]) -> Delta:
    if len(run) == 1:
        return run[0]
    text, data = "".join([each.text for each in run]), BETWEEN.join([each.data or b"" for each in run])
    return Delta(text, run[-1].raw, data, parts=tuple(run))


def is_usage_only(delta: Delta) -> bool:
    """True for the extra last chunk that ``stream_options.include_usage`` brings."""
    return delta.raw is not None and not delta.raw["choices"] and bool(delta.raw.get("usage"))


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise protocol_error(f"the server sent what is no JSON ({error}): {_shown(data)}") from error
    if not isinstance(value, dict):
        raise protocol_error(f"the server sent JSON that is no object: {_shown(data)}")
    return value


def _plain_text(choices: list[Any], chunk: Mapping[str, Any]) -> str | None:
    """The text of a chunk that holds one piece of the first choice and nothing else: nearly every chunk there is."""
    if len(choices) != 1 or "usage" in chunk or "timings" in chunk:
        return None
    choice = choices[0]
    if type(choice) is not dict or choice.get("index") != 0 or choice.get("logprobs") or "message" in choice:
        return None
    delta = choice.get("delta")
    text = delta.get("content") if type(delta) is dict and len(delta) == 1 else None
    return text if type(text) is str else None


def _choice_zero(choices: list[Any]) -> Mapping[str, Any]:
    for choice in choices:
        if isinstance(choice, dict) and _index(choice) == 0:
            return choice
    return {}


def _index(choice: Any) -> int:
    index = choice.get("index", 0) if isinstance(choice, dict) else 0
    return index if isinstance(index, int) else 0


def _counts_one_choice(reply: Mapping[str, Any]) -> bool:
    """True for llama.cpp's usage: it brings the timings of one choice, of as many tokens as the usage says."""
    usage, timings = reply.get("usage"), reply.get("timings")
    if not isinstance(usage, Mapping) or not isinstance(timings, Mapping):
        return False
    return usage.get("completion_tokens") == timings.get("predicted_n")


def _further_tokens(choices: list[Any], first_tokens: int) -> int:
    """Output tokens of all choices but the first; estimated at the first one's characters a token where not told."""
    first_chars = len(_text(_choice_zero(choices)))
    total = 0
    for choice in choices:
        if isinstance(choice, dict) and _index(choice) != 0:
            told, text = len(list(_logprobs(choice.get("logprobs")))), _text(choice)
            total += told or (ceil(len(text) * first_tokens / first_chars) if first_chars else tokens_of(text))
    return total


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a whole reply's choice, or of a chunk's."""
    inner = choice.get("message", choice.get("delta"))
    if isinstance(inner, dict) and type(inner.get("content")) is str:
        return str(inner["content"])
    found = message_text(inner) if isinstance(inner, Mapping) else choice.get("text")
    return found if isinstance(found, str) else ""


def _shows_something(choice: Any) -> bool:
    """True where a chunk's choice holds text, a tool call or the like: anything but the role that opens a stream."""
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return bool(delta.get("content")) or any(value for key, value in delta.items() if key != "role")
    return bool(choice.get("text"))


def _words(choice: Mapping[str, Any]) -> str:
    """All that a chunk's choice shows, in one string."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return str(choice.get("text") or "")
    if len(delta) == 1 and type(delta.get("content")) is str:  # nearly every chunk there is
        return str(delta["content"])
    return "".join(_strings([value for key, value in delta.items() if key != "role"]))


def _strings(value: Any) -> Iterator[str]:
    """What a model wrote among a delta's values; ids and types are the server's words."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("id", "type"):
                yield from _strings(item)


def _logprobs(logprobs: Any) -> Iterator[float]:
    """Chosen tokens' log probabilities in the chat shape (content[]) or the older one (token_logprobs[])."""
    if not isinstance(logprobs, dict):
        return
    content = logprobs.get("content")
    if isinstance(content, list):
        values = [item.get("logprob") for item in content if isinstance(item, dict)]
    else:
        values = logprobs.get("token_logprobs") or []
    yield from (float(value) for value in values if isinstance(value, int | float))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


# ── errors ───────────────────────────────────────────────────────────────────


def refusal(status: int, headers: Mapping[str, str], data: bytes) -> Fault:
    """The fault that an HTTP status other than 2xx means."""
    error = _error_of(data)
    told = _message(error) or _shown(data) or "no reason given"
    kind = _kind(status, error, told)
    return Fault(kind, f"HTTP {status}: {told}", status=status, retry_after=_told_to_wait(headers))


def _told_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, from the standard's header or from the finer one that OpenAI's clients read first."""
    finer = retry_after(headers.get("Retry-After-Ms"))
    return retry_after(headers.get("Retry-After")) if finer is None else finer / 1e3


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or an HTTP date; None where it holds neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now or datetime.now(UTC))
    return max(0.0, seconds) if seconds < float("inf") else None


def _seconds_until(date: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return float("inf")
    return (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds()


def _kind(status: int, error: Mapping[str, Any], told: str) -> FaultKind:
    if status in (400, 413, 422) and _is_context(error, told):
        return "context"
    if status in STATUS_KINDS:
        return STATUS_KINDS[status]
    if status >= 500:
        return "server"
    return "bad_request" if status >= 400 else "protocol"


def _is_context(error: Mapping[str, Any], told: str) -> bool:
    named = error.get("code") in CONTEXT_CODES or error.get("type") in CONTEXT_CODES
    return named or CONTEXT_PHRASES.search(told) is not None


def _refuse_error(reply: Mapping[str, Any]) -> None:
    """Raise WireError where a body or event that came with a good status holds an error all the same."""
    if not reply.get("error"):
        return
    error = reply["error"] if isinstance(reply["error"], dict) else {"message": str(reply["error"])}
    told, code = _message(error) or "no reason given", error.get("code")
    kind: FaultKind = "context" if _is_context(error, told) else "server"
    raise WireError(
        Fault(kind, f"the server reported an error: {told}", status=code if isinstance(code, int) else None)
    )


def error_event(data: bytes) -> WireError:
    """The fault that an event of type ``error`` means, whatever its data looks like."""
    error = _error_of(data)
    return WireError(Fault("server", f"the server reported an error: {_message(error) or _shown(data)}"))


def _error_of(data: bytes) -> Mapping[str, Any]:
    """The error object of a body in any of the shapes in use; empty where there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(value, dict):
        return {}
    error = value.get("error", value)
    return error if isinstance(error, dict) else {"message": error}


def _message(error: Mapping[str, Any]) -> str:
    message = error.get("message") or error.get("detail") or ""
    return _clipped(message if isinstance(message, str) else orjson.dumps(message, default=str).decode())


def _shown(data: bytes) -> str:
    return _clipped(data[: 4 * MAX_MESSAGE_CHARS].decode("utf-8", "replace").strip())


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
