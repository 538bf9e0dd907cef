"""Chance for decoding, from a seed."""

from __future__ import annotations

import random

import torch

from stepladder.decoding.laws import Law, Point
from stepladder.errors import EngineError


class SeededOracle:
    """Draws from Python's Mersenne twister: the same seed and the same questions give the same answers.

    Whoever judges a draft must not draw from the stream that the draft was drawn from: the two would agree by chance
    that they share, and the law would be another. A text as the seed can name whose stream it is.
    """

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - sampling of text, no secret

    def number(self) -> float:
        """The next number of the stream, even over [0, 1)."""
        return self._random.random()

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        return self.number() < probability

    def draw(self, law: Law) -> int:
        """A token by inversion of the cumulative weights in float64; never one of weight 0.

        Raises EngineError for a law that is none, as a model's that gave no numbers.
        """
        if isinstance(law, Point):
            return law.token
        cumulative = law.weights.to("cpu", torch.float64).numpy().cumsum()
        mass = float(cumulative[-1])
        if not 0 < mass < float("inf"):
            raise EngineError(f"a token was to be drawn from a law of mass {mass}: the model gave no numbers")
        aim = self.number() * mass
        place = int(cumulative.searchsorted(aim, side="right"))
        if place < len(cumulative):
            return place
        return int(law.weights.nonzero()[-1])  # the product was rounded up to the whole mass
