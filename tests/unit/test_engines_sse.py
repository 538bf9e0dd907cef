from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines import sse
from stepladder.engines.sse import Event, SSEParser

STREAM = (
    b": a comment\r\n"
    b'data: {"text": "f\xc3\xbcr \xf0\x9f\xaa\x9c"}\r\n\r\n'
    b"data:no space\n\n"
    b"event: error\ndata: one\ndata:  two\nid: 7\nretry: 5\n\n"
    b"data\n\n"
    b"\n\n"
    b"data: after a lone CR\r\r"
    b"data: [DONE]"
)
EVENTS = [
    Event("", '{"text": "für 🪜"}'.encode()),
    Event("", b"no space"),
    Event("error", b"one\n two"),
    Event("", b""),
    Event("", b"after a lone CR"),
    Event("", b"[DONE]"),
]


def parse(pieces: list[bytes]) -> list[Event]:
    parser = SSEParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert parse([STREAM[a:b] for a, b in pairwise(places)]) == EVENTS


def test_byte_by_byte() -> None:
    assert parse([bytes([byte]) for byte in STREAM]) == EVENTS


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    assert parse(pieces) == parse([b"".join(pieces)])


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse([b"\xef\xbb", b"\xbfdata: x\n\n"]) == [Event("", b"x")]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = SSEParser()
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        parser.feed(b"y" * 20)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        SSEParser().feed(b"data: xxxxxxxx\n" * 20)
