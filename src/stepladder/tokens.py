"""How many tokens a text is taken for where nobody has counted them: one rule for forecasts and for bills."""

from __future__ import annotations

from math import ceil

from stepladder.types import Request, Usage

CHARS_PER_TOKEN = 4.0
"""The usual rule of thumb for English text; measured costs bring their own."""

LARGE_PIECE = 8
"""Characters of a mean piece beyond which it holds more than a token."""


def usage_of(request: Request, text: str, pieces: int) -> Usage:
    """An estimate of the usage of ``text`` that came in ``pieces`` and was cut off; no usage where nothing came.

    Output: most servers send a token in each piece, so the pieces are the count; where the mean piece is too long for
    a token (a server that sends whole sentences), a token for every four characters. Prompt: a token for every four
    characters; nothing is known of caches, so none is cached.
    """
    if not text and not pieces:
        return Usage()
    output = pieces if len(text) <= LARGE_PIECE * pieces else tokens_of(text)
    return Usage(ceil(request.chars / CHARS_PER_TOKEN), output)


def tokens_of(text: str) -> int:
    """Tokens of a text by its characters."""
    return ceil(len(text) / CHARS_PER_TOKEN)
