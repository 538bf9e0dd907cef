"""From a kind of question and its slots to the text of a prompt: template, opening words, case, punctuation."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from .phrases import PHRASINGS

# Small edits of the shown phrasings. Without them small models lean on exact wordings and do not understand others.
_DROPPABLE = frozenset(("the", "a", "of", "me", "is", "this", "these", "it", "please", "do", "then", "now", "in"))
_SWAPS: dict[str, tuple[str, ...]] = {
    "give": ("name", "tell", "show", "find", "state", "write", "say", "get"),
    "name": ("give", "say", "tell me", "state", "find"),
    "find": ("give", "get", "tell me", "look for", "name"),
    "tell": ("give", "show", "say", "explain to"),
    "write": ("give", "say", "print", "show"),
    "what": ("which", "so what", "and what"),
    "which": ("what", "so which", "and which"),
    "how": ("and how", "so how"),
    "word": ("term", "expression", "noun or verb"),
    "means": ("stands for", "is defined as", "has the sense", "describes"),
    "definition": ("meaning", "sense", "explanation"),
    "meaning": ("definition", "sense", "explanation"),
    "list": ("row", "series", "sequence"),
    "then": ("after that", "next", "later", "now"),
    "number": ("amount", "count", "figure"),
    "these": ("the", "those", "the following"),
    "this": ("the", "that", "the following"),
    "gets": ("takes", "is given", "collects", "adds"),
    "buys": ("gets", "purchases", "adds", "orders"),
    "sells": ("loses", "gives away", "trades away"),
    "has": ("holds", "keeps", "owns", "got"),
    "who": ("who of them", "which person", "so who"),
    "calculate": ("compute", "work out", "solve"),
}
_FILLERS = ("please", "exactly", "now", "just", "for me", "here", "really", "quickly", "can you say", "again", "so")
_EDITED_SHARE = 0.5
_OPENERS = ("Question: ", "Hi! ", "Hello. ", "Quick question: ", "Please answer: ", "Hey, ", "Tell me: ")
_CLOSERS = (" Thanks!", " Thank you.", " Please.")


def normal_form(template: str) -> str:
    """A phrasing without case, punctuation and spacing, for comparing phrasings."""
    return " ".join(re.findall(r"\{\w+\}|\w+", template.lower()))


@cache
def heldout_forms(kind: str) -> frozenset[str]:
    """Normal forms of the phrasings of `kind` that training must not show."""
    return frozenset(normal_form(template) for template in PHRASINGS[kind].heldout)


def edited(rng: Random, template: str) -> str:
    """One small edit of a phrasing: a word left out, swapped or put in. Slots are never touched."""
    words = template.split(" ")
    at = rng.randrange(len(words))
    plain = words[at].lower().strip("?.:,")
    roll = rng.random()
    if roll < 0.35:
        # Beside a slot a filler could pass for a part of what is asked about, such as one more word of a list.
        if "{" not in words[at] and "{" not in words[at - 1]:
            words.insert(at, rng.choice(_FILLERS))
    elif plain in _SWAPS and roll < 0.8:
        words[at] = rng.choice(_SWAPS[plain])
    elif plain in _DROPPABLE:
        del words[at]
    return " ".join(words)


def shown_template(rng: Random, kind: str) -> str:
    """A phrasing for training: a shown one, half the time edited up to three times, never a held-out one."""
    template = rng.choice(PHRASINGS[kind].shown)
    if rng.random() < _EDITED_SHARE:
        for _ in range(rng.randint(1, 3)):
            changed = edited(rng, template)
            template = template if normal_form(changed) in heldout_forms(kind) else changed
    return template


def template_for(rng: Random, kind: str, heldout: bool) -> str:
    """Draw one phrasing of `kind`."""
    return rng.choice(PHRASINGS[kind].heldout) if heldout else shown_template(rng, kind)


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
