"""The log of a served gateway: one line for each request, one for each warning and error. No prompt, no answer, no key.

``stepladder serve`` sets it up; the library itself configures no logging. A request's line does not go through
``logging``, and nobody waits for a disk or a terminal: a thread of its own spells out and writes many lines at once,
from a few values that a request leaves behind. That costs half of what a handler of ``logging`` does
(docs/how-to/operate.md), and a reader that stops reading (a full pipe) stops that thread alone: then lines are dropped
and counted. A process that is killed loses the lines of the last ``PAUSE_S``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import orjson

from stepladder.gateway.metrics import Metrics
from stepladder.gateway.report import account
from stepladder.gateway.watch import CURRENT, Visit
from stepladder.types import Trace

Format = Literal["json", "text", "off"]
Level = Literal["debug", "info", "warning", "error"]
Fields = dict[str, Any]
Line = bytes | Fields
"""A line as it is written, or what it is to tell."""

PAUSE_S = 0.05
"""How long lines gather before they are written together."""

MAX_LINES = 10_000
MAX_TEXT = 16_384
"""Characters of a message or stack trace; what is longer is cut."""

CLOSE_S = 2.0
"""How long the end waits for a reader that does not read."""

_HEAD = frozenset({"time", "level", "event", "exception"})
"""What a line of text tells without its name."""

QUIET = frozenset({"health", "ready", "metrics"})
"""Routes that machines ask every few seconds: their lines are for `debug`, and where they say no, for `info`."""

_LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Log:
    """Writes lines to a file descriptor. Use as a context manager, or ``open`` and ``close`` it.

    While it is open it takes what the process logs, from ``level`` up for Stepladder's own parts and from `warning` up
    for others', in place of the handlers that were there.
    """

    def __init__(
        self, form: Format, level: Level, *, fd: int = 2, clock: Callable[[], float] = time.time, most: int = MAX_LINES
    ) -> None:
        self.dropped = 0
        self._form = form
        self._level = _LEVELS[level]
        self._fd = fd
        self._clock = clock
        self._most = most
        self._render = json_line if form == "json" else text_line
        self._lines: deque[Line] = deque()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._handler = _Handler(self)
        self._before: tuple[list[logging.Handler], int, int] | None = None
        self._writer = threading.Thread(target=self._write_forever, name="stepladder-log", daemon=True)

    def open(self) -> None:
        """Take over the process's logging, and start to write."""
        root, own = logging.getLogger(), logging.getLogger("stepladder")
        self._before = list(root.handlers), root.level, own.level
        for handler in self._before[0]:
            root.removeHandler(handler)
        root.addHandler(logging.NullHandler() if self._form == "off" else self._handler)
        root.setLevel(max(self._level, logging.WARNING))
        own.setLevel(self._level)
        self._writer.start()

    def close(self) -> None:
        """Write what is left, and give the process's logging back."""
        self._closing.set()
        self._woken.set()
        self._writer.join(CLOSE_S)
        if self._before is not None:
            root = logging.getLogger()
            for handler in list(root.handlers):
                root.removeHandler(handler)
            handlers, root.level, logging.getLogger("stepladder").level = self._before
            for handler in handlers:
                root.addHandler(handler)
            self._before = None

    def __enter__(self) -> Log:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, visit: Visit) -> None:
        """The line of one request (``watch.Watch``). A 5xx and a request cut off are errors: every level shows them."""
        failed = visit.status >= 500 or visit.ending == "cut_off"
        well, ill = ("debug", "info") if visit.route in QUIET else ("info", "error")
        level = ill if failed else well
        if self._form != "off" and _LEVELS[level] >= self._level:
            fields = {"time": self._clock(), "level": level, "event": "request"}
            self._hand_over(_add_request(fields, visit))

    def event(self, event: str, **fields: Any) -> None:
        """A line about the gateway itself."""
        if self._form != "off" and self._level <= logging.INFO:
            self.put({"time": self._clock(), "level": "info", "event": event, **fields})

    def put(self, fields: Fields) -> None:
        """Hand over one line. Never waits; where too many wait already the line is dropped and counted."""
        self._hand_over(self._render(fields))

    def _hand_over(self, line: Line) -> None:
        if len(self._lines) >= self._most:
            self.dropped += 1
            return
        self._lines.append(line)
        if not self._woken.is_set():
            self._woken.set()

    def refresh(self, metrics: Metrics) -> None:
        """Bring the metrics up to date (``Metrics.refreshers``)."""
        metrics.log_dropped.set((), self.dropped)

    # ── the thread that writes ───────────────────────────────────────────────

    def _write_forever(self) -> None:
        while True:
            self._woken.wait()
            self._woken.clear()
            self._closing.wait(PAUSE_S)
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not _written(self._fd, b"".join(map(self._spelled, lines))):
                self.dropped += len(lines)
            if self._closing.is_set() and not self._lines:
                return

    def _spelled(self, line: Line) -> bytes:
        if isinstance(line, bytes):
            return line
        try:
            return self._render(line)
        except Exception:  # noqa: BLE001 - a name that is no text, say: the thread goes on for the others
            self.dropped += 1
            return b""


def _add_request(fields: Fields, visit: Visit) -> Fields:
    """What a request's line tells, plain values alone; what is not known is left out."""
    fields["request"] = visit.number
    fields["route"] = visit.route
    fields["status"] = visit.status
    fields["ending"] = visit.ending
    fields["seconds"] = visit.seconds
    fields["bytes_in"] = visit.bytes_in
    fields["bytes_out"] = visit.bytes_out
    if visit.caller is not None:
        fields["caller"] = visit.caller
    if visit.trace is not None:
        _add_trace(fields, visit.trace)
    return fields


def _add_trace(fields: Fields, trace: Trace) -> None:
    request, (attempts, cost, decide_s) = trace.request, account(trace)
    fields["decision_id"] = trace.id
    fields["mode"] = trace.mode
    fields["stream"] = bool(request.params.get("stream"))
    fields["attempts"] = len(attempts)
    fields["cost"] = cost
    fields["cost_unit"] = trace.cost_unit
    fields["decide_ms"] = decide_s * 1e3
    if attempts:
        fields["stage"] = attempts[-1 if trace.answer_index is None else trace.answer_index].stage
        failed = [f"{each.stage}:{each.fault.kind}" for each in attempts if each.fault is not None]
        if failed:  # also where another stage then answered
            fields["faults"] = ",".join(failed)
    if request.caller is not None:
        fields["caller"] = request.caller
    if trace.fault is not None:
        fields["fault"] = trace.fault.kind
    if trace.first_token_s is not None:
        fields["first_token_s"] = trace.first_token_s


class _Handler(logging.Handler):
    """What others log, as a line; within a request it names that request, so that the two lines can be joined."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.put(_record_fields(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not fail what it tells of
            self.handleError(record)


def _record_fields(record: logging.LogRecord) -> Fields:
    fields: Fields = {
        "time": record.created,
        "level": record.levelname.lower(),
        "event": "log",
        "logger": record.name,
        "message": record.getMessage()[:MAX_TEXT],
    }
    visit = CURRENT.get()
    if visit is not None:
        fields["request"] = visit.number
        if visit.trace is not None:
            fields["decision_id"] = visit.trace.id
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = "".join(traceback.format_exception(record.exc_info[1]))[-MAX_TEXT:]
    return fields


def json_line(fields: Fields) -> bytes:
    """One JSON object on one line; the time is UTC."""
    fields["time"] = _utc(fields["time"])
    return orjson.dumps(fields, default=str, option=orjson.OPT_APPEND_NEWLINE)


def text_line(fields: Fields) -> bytes:
    """The same for people: time, level, event, then ``key=value``; line breaks within a value are escaped."""
    words = [_utc(fields["time"]), fields["level"], fields["event"]]
    words += [f"{key}={_word(value)}" for key, value in fields.items() if key not in _HEAD]
    text = " ".join(words) + "\n"
    if "exception" in fields:
        text += "".join(f"    {line}\n" for line in fields["exception"].splitlines())
    return text.encode("utf-8", "replace")


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text.isprintable() and " " not in text and '"' not in text and "=" not in text and text
    return text if plain else orjson.dumps(text, default=str).decode()


def _utc(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    """The same for every line of one second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _written(fd: int, data: bytes) -> bool:
    """Write all of it; False where nobody reads any more (a closed pipe, a full disk)."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return False
    return True
