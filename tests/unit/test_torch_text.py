"""From tokens to text: stop strings, what may be shown, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from stepladder.decoding.chain import Emitted
from stepladder.decoding.laws import Point
from stepladder.engines.torch_text import Transcript, chunk_body, whole_body, wire_logprobs

ALPHABET = "abc"
END = 0


class Spelling:
    """One character a token; ``late`` keeps the last one back until the next comes."""

    def __init__(self, *, late: bool = False) -> None:
        self._late, self._kept = late, ""

    def push(self, ids: Sequence[int]) -> str:
        piece = self._kept + "".join(chr(token) for token in ids)
        self._kept = piece[-1:] if self._late else ""
        return piece[: len(piece) - len(self._kept)]

    def finish(self) -> str:
        piece, self._kept = self._kept, ""
        return piece


def emitted(text: str) -> list[Emitted]:
    return [Emitted(ord(letter), Point(ord(letter))) for letter in text]


texts = st.text(ALPHABET, max_size=14)
stop_strings = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


@given(texts, stop_strings, st.lists(st.integers(1, 5), min_size=14, max_size=14), st.booleans(), st.booleans())
def test_the_text_ends_before_the_first_stop_and_nothing_of_it_is_ever_shown(
    text: str, stops: list[str], blocks: list[int], late: bool, ends: bool
) -> None:
    transcript = Transcript(Spelling(late=late), tuple(stops), frozenset({END}))
    wrote = [*emitted(text), *([Emitted(END, Point(END))] if ends else [])]
    shown, at = "", 0
    for block in blocks:
        if at >= len(wrote) or transcript.stopped:
            break
        transcript.take(wrote[at : at + block])
        at += block
        shown += transcript.fresh(all_of_it=False)
        assert not any(stop in shown for stop in stops)
    transcript.finish()
    shown += transcript.fresh(all_of_it=True)
    ended = [text.find(stop) + len(stop) for stop in stops if stop in text]
    read = text[: min(ended)] if ended else text
    expected = read[: min(read.find(stop) for stop in stops if stop in read)] if ended else text
    assert transcript.stopped == bool(ended)
    assert shown == transcript.text == expected
    if ended:
        assert len(transcript.tokens) <= min(ended) + late
    else:
        assert transcript.tokens == [each.token for each in wrote]


def test_what_stands_behind_a_stop_or_an_end_in_a_block_is_not_counted() -> None:
    transcript = Transcript(Spelling(), ("b",), frozenset({END}))
    assert transcript.take(emitted("abcabc"))
    assert (transcript.text, len(transcript.tokens)) == ("a", 2)
    ended = Transcript(Spelling(), (), frozenset({END}))
    ended.take([*emitted("a"), Emitted(END, Point(END)), *emitted("bc")])
    assert (ended.text, ended.tokens) == ("a", [ord("a"), END])


def test_log_probabilities() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    law = torch.log_softmax(logits.double(), -1)
    transcript = Transcript(Spelling(), top_logprobs=2)
    transcript.take([Emitted(2, Point(2), logits)])
    (score,) = transcript.scores
    assert (score.token, score.logprob) == (2, law[2].item())
    assert score.top == ((1, law[1].item()), (2, law[2].item()))
    many = Transcript(Spelling(), top_logprobs=20)
    many.take([Emitted(0, Point(0), logits)])
    assert len(many.scores[0].top) == 4
    none = Transcript(Spelling(), top_logprobs=0)
    none.take([Emitted(0, Point(0), logits)])
    assert none.scores[0].top == ()
    silent = Transcript(Spelling())
    silent.take([Emitted(0, Point(0), logits)])
    assert silent.scores == []


def test_bodies() -> None:
    logits = torch.tensor([0.0, 2.0])
    transcript = Transcript(Spelling(), top_logprobs=1)
    transcript.take([Emitted(1, Point(1), logits), Emitted(0, Point(0), logits)])
    spell = {0: "é", 1: "xy"}.__getitem__
    chat = wire_logprobs(transcript.scores, spell, "chat")
    assert [each["token"] for each in chat["content"]] == ["xy", "é"]
    assert chat["content"][1]["bytes"] == [195, 169]
    assert chat["content"][1]["top_logprobs"][0]["token"] == "xy"
    raw = wire_logprobs(transcript.scores, spell, "completion")
    assert (raw["tokens"], raw["text_offset"]) == (["xy", "é"], [0, 2])
    assert [list(top) for top in raw["top_logprobs"]] == [["xy"], ["xy"]]
    head = {"id": "1", "created": 0, "model": "m"}
    whole = whole_body("chat", head, "t", "stop", chat)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "t"}
    assert whole_body("completion", head, "t", "stop", raw)["choices"][0]["text"] == "t"
    first, later = (chunk_body("chat", head, "t", chat, first=first) for first in (True, False))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "t"}
    assert later["choices"][0]["delta"] == {"content": "t"}
    assert chunk_body("completion", head, "t", raw, first=True)["object"] == "text_completion"
