"""Laws that tokens are drawn from: made of logits, compared, and subtracted from one another.

A law is a measure over the vocabulary; its mass is 1 where it was made of logits, and less where it is what one law
leaves over another. ``Point`` is the law of a token that is certain: an argmax, or a token that somebody else wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from stepladder.errors import UsageError

COLD = 1e-6
"""Temperature from which on downwards logits are shifted before they are divided by it."""


@dataclass(frozen=True, slots=True)
class Point:
    """All mass on one token."""

    token: int
    mass: float = 1.0

    def prob(self, token: int) -> float:
        """Mass on a token."""
        return self.mass if token == self.token else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A weight of each token, shape (vocabulary,), none below zero."""

    weights: Tensor

    @property
    def mass(self) -> float:
        """Sum of all weights."""
        return float(self.weights.sum())

    def prob(self, token: int) -> float:
        """Mass on a token."""
        return float(self.weights[token])


Law = Point | Dense


class Oracle(Protocol):
    """All chance that decoding takes, so that a test can put every outcome in its place."""

    def accept(self, probability: float) -> bool:
        """True with this probability, which lies in [0, 1]."""
        ...

    def draw(self, law: Law) -> int:
        """A token with the law's weights; its mass is above zero and need not be 1."""
        ...


def excess(law: Law, other: Law, scale: float = 1.0) -> Law:
    """(scale · law − other)⁺: with scale 1 and after normalising, the residual of rejection sampling.

    Source: Leviathan et al., arXiv 2211.17192, §2.3; with a scale, Sun et al., arXiv 2403.10444, algorithm 2.
    """
    if isinstance(law, Point):
        return Point(law.token, max(0.0, scale * law.mass - other.prob(law.token)))
    weights = law.weights if scale == 1.0 else law.weights * scale
    if isinstance(other, Dense):
        return Dense((weights - other.weights).clamp_min_(0))
    left = weights.clone()
    left[other.token] = max(0.0, float(left[other.token]) - other.mass)
    return Dense(left)


def total_variation(law: Law, other: Law) -> float:
    """TV distance of two laws of mass 1."""
    return excess(law, other).mass


def peak(law: Law) -> float:
    """The greatest weight."""
    return law.mass if isinstance(law, Point) else float(law.weights.max())


@dataclass(frozen=True, slots=True)
class Sampling:
    """How logits become a law: temperature, then top-k, then top-p, in the order of Hugging Face's warpers.

    ``temperature`` 0 is greedy: the argmax, the lowest token id of equals. ``top_k`` 0 and ``top_p`` 1 cut nothing.
    Raises UsageError for values outside their range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature: should be a number from 0 up, not {self.temperature!r}")
        if self.top_k < 0:
            raise UsageError(f"top_k: should be a whole number from 0 up (0 cuts nothing), not {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p: should be above 0 and at most 1, not {self.top_p!r}")

    @property
    def greedy(self) -> bool:
        """True where nothing is left to chance."""
        return self.temperature == 0

    @property
    def kind(self) -> Literal["greedy", "whole", "cut"]:
        """What it takes to make a law: an argmax, the temperature alone, or cuts by top-k and top-p."""
        if self.greedy:
            return "greedy"
        return "whole" if self.top_k == 0 and self.top_p == 1 else "cut"

    @property
    def plain(self) -> bool:
        """True where the laws are what the model itself holds likely."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1

    def laws(self, logits: Tensor) -> list[Law]:
        """The law after each row of ``logits``, shape (rows, vocabulary)."""
        if self.greedy:
            return [Point(token) for token in logits.argmax(-1).tolist()]
        scaled = logits if self.temperature == 1 else self._scaled(logits)
        if 0 < self.top_k < scaled.shape[-1]:
            lowest = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < lowest, float("-inf"))
        weights = torch.softmax(scaled, -1)
        if self.top_p < 1:
            weights = _nucleus(weights, self.top_p)
        return [Dense(row) for row in weights.unbind(0)]

    def _scaled(self, logits: Tensor) -> Tensor:
        """Logits over the temperature; the greatest at 0 where the quotients might be too large for a float."""
        if self.temperature > COLD:
            return logits / self.temperature
        return (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, torch.finfo(logits.dtype).tiny)


def plain_laws(logits: Tensor) -> list[Law]:
    """The laws at temperature 1 and without cuts: what the model itself holds likely, whatever is sampled from."""
    return [Dense(row) for row in torch.softmax(logits, -1).unbind(0)]


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The smallest sets of likeliest tokens that hold at least ``top_p`` of the mass, made whole again."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    cut = torch.zeros_like(weights).scatter_(-1, order, kept)
    return cut / cut.sum(-1, keepdim=True)
