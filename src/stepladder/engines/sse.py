"""Server-sent events, from bytes that arrive in any pieces."""

from __future__ import annotations

from typing import NamedTuple

MAX_EVENT_BYTES = 16 * 2**20
"""No honest chunk of an answer comes near this; without a bound one endless line would fill the memory."""


class Event(NamedTuple):
    """One event: its type (empty where none was named) and its data, lines joined by a newline."""

    type: str
    data: bytes


class SSEParser:
    """Feed it bytes as they come; it gives back the events that are whole.

    Lines may end in LF, CRLF or CR, also across pieces. It works on bytes, so a character split between two pieces
    needs no care. Raises ValueError for an event above ``MAX_EVENT_BYTES``.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skip_lf = False
        self._first = True
        self._type = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        if not piece:
            return []
        if self._is_between and piece.endswith(b"\n\n") and b"\r" not in piece:
            if piece.startswith(b"data: ") and piece.find(b"\n") == len(piece) - 2:
                return [Event("", piece[6:-2])]
            parts = piece[:-2].split(b"\n\n")
            if all(part.startswith(b"data: ") and b"\n" not in part for part in parts):
                return [
                    Event("", part[6:]) for part in parts
                ]  # whole events of one line each: as all servers send them
        if self._skip_lf and piece.startswith(b"\n"):
            piece = piece[1:]
        self._skip_lf = False
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b"" if not lines or lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        if lines and not self._rest:
            self._skip_lf = lines[-1].endswith(b"\r")
        events = [event for line in lines if (event := self._line(line.rstrip(b"\r\n"))) is not None]
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    @property
    def _is_between(self) -> bool:
        """True where the last event is over and nothing of the next has come."""
        return not (self._first or self._skip_lf or self._rest or self._data or self._type)

    def finish(self) -> list[Event]:
        """What the stream's end completes: the standard drops an event without its blank line, servers send them."""
        events = [self._line(self._rest), self._line(b"")]
        self._rest = b""
        return [event for event in events if event is not None]

    def _line(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._type, b"\n".join(self._data)) if self._data else None
        self._type, self._data, self._size = "", [], 0
        return event
