"""Do the stages of a ladder mean the same by a token? Only then can one verify what another drafted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stepladder.decoding.tokenizer import Tokenizer
from stepladder.errors import ConfigError, Problem


class Voice(NamedTuple):
    """A stage's tokenizer and the width of its logits, which may be padded beyond it."""

    stage: str
    tokenizer: Tokenizer
    width: int


def common(voices: Sequence[Voice], source: str = "decoding") -> int:
    """The size that all stages' logits are cut to: the least width, and at least every tokenizer's size.

    Tokenizers are the same where every id that both have is spelt alike; one may have more ids behind the other's.
    Models of one family pad their logits to different widths (Qwen2.5: 151,936 and 152,064); beyond the tokenizer the
    padding stands for nothing.

    Raises ConfigError (``source`` stands before each problem) naming two stages, the first id that differs and both
    spellings; and where a model gives no logits for some of the tokens.
    """
    first = voices[0]
    problems = [problem for voice in voices[1:] if (problem := _difference(first, voice))]
    largest = max(voices, key=lambda voice: voice.tokenizer.size)
    problems += [_short(voice, largest) for voice in voices if voice.width < largest.tokenizer.size]
    if problems:
        raise ConfigError(source, problems)
    return min(voice.width for voice in voices)


def _difference(one: Voice, other: Voice) -> Problem | None:
    """What keeps two stages apart, if anything."""
    if one.tokenizer.vocabulary() == other.tokenizer.vocabulary():
        return None
    spelt, spelt_there = _spellings(one.tokenizer), _spellings(other.tokenizer)
    shared = min(one.tokenizer.size, other.tokenizer.size)
    for token in range(shared):
        if spelt.get(token) != spelt_there.get(token):
            return Problem(
                f"stages.{other.stage}",
                f"its tokenizer is not that of stage '{one.stage}': token {token} is {_shown(spelt_there.get(token))} "
                f"here and {_shown(spelt.get(token))} there; speculation needs one tokenizer on all its stages",
            )
    return None


def _short(voice: Voice, largest: Voice) -> Problem:
    owner = "its tokenizer" if voice.stage == largest.stage else f"the tokenizer of stage '{largest.stage}'"
    return Problem(
        f"stages.{voice.stage}",
        f"its model gives logits for {voice.width} tokens, and {owner} has {largest.tokenizer.size}",
    )


def _spellings(tokenizer: Tokenizer) -> dict[int, str]:
    return {token: text for text, token in tokenizer.vocabulary().items()}


def _shown(text: str | None) -> str:
    return "nothing" if text is None else repr(text)
