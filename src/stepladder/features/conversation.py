"""What went before the question: how long the conversation is, and whether its last answer was taken amiss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import log1p

from stepladder.types import EMPTY, Request, message_text

NAMES = ("earlier turns", "earlier length", "corrected", "refused")
"""Users' messages before the last one; log(1 + characters of all messages before it, instructions aside); whether the
question opens by correcting the answer before it, and whether that answer reads like a refusal (0 or 1)."""

OPENING = 120
LATEST = 40
"""Messages that are looked at, from the end: conversations of any length cost about the same."""

_ASIDE = frozenset({"system", "developer"})
_CORRECTION = re.compile(
    r"\s*(?:no\b|nope\b|wrong\b|incorrect\b|not (?:quite|right|correct|what)\b"
    r"|that(?:'s| is| was) (?:not|wrong|incorrect)|you(?:'re| are) (?:wrong|mistaken)|you (?:forgot|missed)"
    r"|(?:please )?try again|are you sure|i (?:said|meant|asked)\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|won't)|as an ai\b|unable to (?:answer|help|assist))",
    re.IGNORECASE,
)


def conversation(request: Request) -> Mapping[str, float]:
    """NAMES of the LATEST messages; empty where the request is one question and nothing before it."""
    said = [message for message in request.messages[-LATEST:] if message.get("role") not in _ASIDE]
    if len(said) < 2:
        return EMPTY
    last = max((n for n, message in enumerate(said) if message.get("role") == "user"), default=len(said) - 1)
    before = [(message.get("role"), message_text(message)) for message in said[:last]]
    answers = [text for role, text in before if role == "assistant"]
    corrected = bool(answers) and _CORRECTION.match(message_text(said[last])[:OPENING]) is not None
    refused = bool(answers) and _REFUSAL.search(answers[-1][:OPENING]) is not None
    return {
        "earlier turns": float(sum(role == "user" for role, _ in before)),
        "earlier length": log1p(sum(len(text) for _, text in before)),
        "corrected": float(corrected),
        "refused": float(refused),
    }
