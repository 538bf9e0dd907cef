"""Chunks go out in the bytes that they came in, but for the model's name: and only where that is certain."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.engines import wire
from stepladder.engines.sse import SSEParser
from stepladder.gateway.stream import ChunkWriter, Opening, with_model
from stepladder.types import Decision, Delta, Estimates, Fail, Fault, Request, Step, View

NAME = orjson.dumps('a "new" näme')
WORDS = (
    st.sampled_from(["model", '"model"', 'x"model', '"model":"m"', "\\u006d", "m", "\n", 'ende"', "{", "ü"]) | st.text()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
CHUNKS = st.dictionaries(WORDS, VALUES, max_size=4)


def dumped(chunk: dict[str, Any], how: int) -> bytes:
    """As servers write it: without spaces, with them, every letter beyond ASCII by its number, or on many lines."""
    ways = ({"separators": (",", ":")}, {}, {"ensure_ascii": False}, {"indent": 1})
    return json.dumps(chunk, **ways[how]).encode("utf-8", "surrogatepass")  # type: ignore[arg-type]


@given(CHUNKS, WORDS | st.integers() | st.none(), st.integers(0, 3), st.integers(0, 4))
def test_only_the_models_name_changes(rest: dict[str, Any], model: Any, how: int, place: int) -> None:
    items = list(rest.items())
    chunk = dict([*items[:place], ("model", model), *items[place:]])
    data = dumped(chunk, how)
    changed = with_model(data, chunk["model"], NAME)
    if changed is not None:
        assert orjson.loads(changed) == {**orjson.loads(data), "model": 'a "new" näme'}
        assert b"\n" not in changed


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"1","model":"up/m","choices":[]}',
        b'{"choices":[{"delta":{"content":"my \\"model\\" is"}}], "model" : "up/m"}',
        b'{"model":"up/m"}',
    ],
)
def test_what_servers_send_goes_the_short_way(data: bytes) -> None:
    assert with_model(data, "up/m", b'"s"') == data.replace(b'"up/m"', b'"s"')


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (b'{"model":"m","choices":[{"model":"m"}]}', "m"),
        (b'{"mod\\u0065l":"m","choices":[{"model":"m"}]}', "m"),
        (b'{"model":"m",\n"choices":[]}', "m"),
        (b'{"model":"\\u00fc"}', "\u00fc"),
        (b'{"model":null}', None),
        (b'{"choices":[]}', None),
    ],
)
def test_where_it_is_not_certain_the_chunk_is_written_anew(data: bytes, model: str | None) -> None:
    assert with_model(data, model, b'"s"') is None


def writer(**params: Any) -> ChunkWriter:
    view = View((), 1.0, Estimates({}), {})
    step = Step(view, Decision(Fail(Fault("server", ""))))
    return ChunkWriter(Request("r", params=params), Opening("dec-1", step, "small"), 0)


@given(CHUNKS, st.integers(0, 3))
def test_a_relayed_chunk_says_what_came_but_for_the_model(rest: dict[str, Any], how: int) -> None:
    chunk = {"model": "up", "choices": [{"index": 0, "delta": {"content": "x"}}], **rest, "usage": None}
    chunk["choices"] = [{"index": 0, "delta": {"content": "x"}}]
    data = dumped(chunk, how)
    chunk = orjson.loads(data)
    frames = SSEParser().feed(writer().relay(Delta("x", chunk, data)))
    assert [orjson.loads(frame.data) for frame in frames] == [{**chunk, "model": "small"}]


def test_an_empty_place_for_the_usage_is_shown_to_who_asked_for_it() -> None:
    data = b'{"choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}'
    shown = wire.Reply("s").read_chunk(data, 0.1)
    hidden = wire.Reply("s").read_chunk(data, 0.1, hides_usage=True)
    assert shown.raw is not None
    assert hidden.raw is not None
    assert "usage" in shown.raw
    assert "usage" not in hidden.raw
    assert hidden.data is None


def test_pieces_carry_their_log_probabilities() -> None:
    told = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1}]}
    chunk = {"choices": [{"index": 0, "delta": {"content": "ab"}, "logprobs": told}]}
    assert wire.Reply("s").read_chunk(orjson.dumps(chunk), 0.1).logprobs == (-0.5, -1.0)


@given(st.lists(st.tuples(WORDS, st.sampled_from([None, None, "stop"])), max_size=4), st.booleans())
def test_the_short_way_of_reading_comes_to_the_same(words: list[tuple[str, str | None]], chat: bool) -> None:
    short, long = wire.Reply("s"), wire.Reply("s")
    for number, (word, finish) in enumerate(words):
        said = {"delta": {"content": word}} if chat else {"text": word}
        chunk = {"model": "m", "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish}]}
        noisy = {**chunk, "timings": None}  # what the short way does not take
        one = short.read_chunk(orjson.dumps(chunk), float(number))
        other = long.read_chunk(orjson.dumps(noisy), float(number))
        assert (one.text, one.logprobs) == (other.text, other.logprobs)
    assert short == long
    assert short.attempt(9.0) == long.attempt(9.0)


PIECES = st.lists(
    st.tuples(
        WORDS,
        st.sampled_from([None, None, None, "stop"]),
        st.sampled_from([{}, {}, {"x": {"model": "up"}}, {"logprobs": None}]),
    ),
    max_size=6,
)


@given(PIECES, st.integers(0, 3), st.sampled_from(["up", "\u00fc", 'a"b']))
def test_pieces_that_came_at_once_go_out_as_they_would_one_by_one(
    words: list[tuple[str, str | None, dict[str, Any]]], how: int, model: str
) -> None:
    """Joined or not, the client reads the same events, and the reply is read into the same."""
    joined, alone = wire.Reply("s"), wire.Reply("s")
    sent = [
        dumped(
            {"model": model, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": end}], **more}, how
        )
        for word, end, more in words
    ]
    together = wire.together([joined.read_chunk(data, 0.1) for data in sent])
    one_by_one = [alone.read_chunk(data, 0.1) for data in sent]
    assert joined == alone
    assert [piece.text for delta in together for piece in delta.pieces] == [delta.text for delta in one_by_one]
    assert "".join(delta.text for delta in together) == "".join(delta.text for delta in one_by_one)
    assert [delta.more for delta in together] == [True] * (len(together) - 1) + [False] * bool(together)
    out, expected = writer(), writer()
    frames = out.first(together)
    assert SSEParser().feed(frames) == SSEParser().feed(b"".join([expected.relay(delta) for delta in one_by_one]))
    assert (out._id, out._created, out._ended) == (expected._id, expected._created, expected._ended)


def test_plain_pieces_are_joined() -> None:
    reply = wire.Reply("s")
    sent = [
        b'{"model":"up","choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":null}]}' % i for i in range(9)
    ]
    (delta,) = wire.together([reply.read_chunk(data, 0.1) for data in sent])
    assert (delta.text, len(delta.parts)) == ("012345678", 9)
    assert delta.data is not None
    assert with_model(delta.data, "up", b'"s"', 9) == delta.data.replace(b'"up"', b'"s"')
