"""The paper's features of a prompt (§2.2.1), number for number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log2

from stepladder.features.conversation import conversation
from stepladder.types import Attempt, Features, Request

ENTROPY_WINDOW = 32
LENGTH_UNIT = 100


class PaperFeatures:
    """Two numbers: the entropy of the prompt's end, and its length.

    ``entropy`` is Shannon's, in bits, of the characters in ``prompt[-32:]``; the paper's comment says "last 32
    tokens", its code slices a string, and the code is what is kept here. ``length`` is ``len(prompt) / 100`` in
    characters, which the paper calls a ratio. The one-hot code of the stage is appended by the predictor, once for
    every stage. Where a conversation went before the question, what it tells stands beside the two
    (``conversation``), for predictors that were trained on conversations.
    """

    def features(self, request: Request, history: tuple[Attempt, ...] = ()) -> Features:
        """Features of the request's text; ``history`` is handed on as it is."""
        text = request.text
        return Features(_Values(request, text), text, history)


class _Values(Mapping[str, float]):
    """Worked out when somebody first looks, since most predictors read the text alone."""

    __slots__ = ("_found", "_request", "_text")

    def __init__(self, request: Request, text: str) -> None:
        self._found: Mapping[str, float] | None = None
        self._request = request
        self._text = text

    def _all(self) -> Mapping[str, float]:
        if self._found is None:
            self._found = _values(self._request, self._text)
        return self._found

    def __getitem__(self, name: str) -> float:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


def _values(request: Request, text: str) -> Mapping[str, float]:
    values = {"entropy": entropy(text[-ENTROPY_WINDOW:]), "length": len(text) / LENGTH_UNIT}
    return {**values, **conversation(request)} if len(request.messages) > 1 else values


def entropy(text: str) -> float:
    """Shannon entropy of the characters' frequencies, in bits; 0 for an empty text."""
    total = len(text)
    counts = [text.count(character) for character in dict.fromkeys(text)]  # for 32 characters quicker than a Counter
    if total == ENTROPY_WINDOW:
        return sum(map(_TERMS.__getitem__, counts))
    return sum(count / total * log2(total / count) for count in counts)


_TERMS = (0.0, *(count / ENTROPY_WINDOW * log2(ENTROPY_WINDOW / count) for count in range(1, ENTROPY_WINDOW + 1)))
"""What a character adds to a full window's entropy, by how often it is in it."""
