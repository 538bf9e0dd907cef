"""How many tokens a broken-off answer took, where its server never came to say."""

from __future__ import annotations

from math import ceil

from stepladder.types import Request, Usage

CHARS_PER_TOKEN = 4.0
"""The usual rule of thumb for English text."""


def usage_of(request: Request, text: str, pieces: int) -> Usage:
    """An estimate of the usage of ``text`` that came in ``pieces`` and was cut off; no usage where nothing came.

    Output: servers send a token or more in a piece, so the pieces are the count, or a token for every four characters
    where that is more (a server that sends whole sentences). Prompt: a token for every four characters; nothing is
    known of caches, so none is cached.
    """
    if not text and not pieces:
        return Usage()
    return Usage(ceil(request.chars / CHARS_PER_TOKEN), max(pieces, tokens_of(text)))


def tokens_of(text: str) -> int:
    """Tokens of a text by its characters."""
    return ceil(len(text) / CHARS_PER_TOKEN)
