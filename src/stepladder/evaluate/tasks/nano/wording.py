"""From a kind of question and its slots to the text of a prompt: template, opening words, case, punctuation."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from .phrases import PHRASINGS

# Words that may be missing from a phrasing without changing what it asks. Leaving one out now and then in training
# keeps the small models from leaning on one exact wording.
_DROPPABLE = frozenset({"the", "a", "of", "me", "is", "this", "these", "it", "please", "do", "then", "now"})
_OPENERS = ("Question: ", "Hi! ", "Hello. ", "Quick question: ", "Please answer: ", "Hey, ", "Tell me: ")
_CLOSERS = (" Thanks!", " Thank you.", " Please.")
_DROP_SHARE = 0.15


def normal_form(template: str) -> str:
    """A phrasing without case, punctuation and spacing, for comparing phrasings."""
    return " ".join(re.findall(r"\{\w+\}|\w+", template.lower()))


@cache
def clipped(kind: str) -> tuple[str, ...]:
    """Shown phrasings of `kind` with one droppable word left out, none of them equal to a held-out phrasing."""
    forbidden = {normal_form(template) for template in PHRASINGS[kind].heldout}
    variants: list[str] = []
    for template in PHRASINGS[kind].shown:
        words = template.split(" ")
        for index, word in enumerate(words):
            shorter = " ".join(words[:index] + words[index + 1 :])
            if word.lower() in _DROPPABLE and normal_form(shorter) not in forbidden:
                variants.append(shorter)
    return tuple(variants)


def template_for(rng: Random, kind: str, heldout: bool) -> str:
    """Draw one phrasing of `kind`."""
    if heldout:
        return rng.choice(PHRASINGS[kind].heldout)
    if rng.random() < _DROP_SHARE and clipped(kind):
        return rng.choice(clipped(kind))
    return rng.choice(PHRASINGS[kind].shown)


def phrase(rng: Random, kind: str, heldout: bool, slots: dict[str, str]) -> str:
    """One sentence of `kind` with its slots filled."""
    return template_for(rng, kind, heldout).format_map(slots)


def dress(rng: Random, text: str) -> str:
    """Vary how people type: a greeting or thanks now and then, lower case, a missing full stop, two question marks."""
    text = text[0].upper() + text[1:]
    roll = rng.random()
    if roll < 0.12:
        text = text.lower()
    elif roll < 0.24:
        text = text.rstrip("?.!: ")
    elif roll < 0.27 and text.endswith("?"):
        text += "?"
    if rng.random() < 0.18:
        text = rng.choice(_OPENERS) + text
    # After a bare list the thanks would read like one more item of it.
    if text[-1] in "?.!" and rng.random() < 0.08:
        text += rng.choice(_CLOSERS)
    return text
