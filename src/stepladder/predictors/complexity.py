"""How complex a question is: by rules, or by a small learned classifier. The paper's three classes (§2.1, §3.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import exp
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ArtifactError
from stepladder.predictors.artifact import array_of
from stepladder.predictors.grams import BUCKETS, DENSE, excerpt, hashed_grams

Complexity = Literal["simple", "medium", "complex"]
CLASSES: tuple[Complexity, ...] = get_args(Complexity)

PAPER_PROMPTS: tuple[tuple[str, Complexity], ...] = (
    ("What is 2+2?", "simple"),
    ("What color is the sky?", "simple"),
    ("What is the capital of France?", "simple"),
    ("How many days are in a week?", "simple"),
    ("Explain photosynthesis", "medium"),
    ("How does a car work?", "medium"),
    ("Why do the seasons change?", "medium"),
    ("Design distributed system", "complex"),
    ("Implement B+ tree", "complex"),
    ("Prove that there are infinitely many primes", "complex"),
)
"""The paper's mix of 4 simple, 3 medium and 3 complex prompts (§3.3).

The paper names six of its ten: the first two of each class. The other four (the capital of France, the days of a week,
the seasons, the primes) are ours, chosen in the same spirit.
"""


# ── by rules ─────────────────────────────────────────────────────────────────

_COMPLEX = re.compile(
    r"\b(?:design|implement|architect|prove|derive|optimi[sz]e|refactor|debug|develop|formali[sz]e|critique|synthesi[sz]e"
    r"|(?:write|build|create|code) (?:an?|the|some)? ?(?:\w+ ){0,3}"
    r"(?:program|function|class|script|app|application|system|essay|parser|compiler|server|algorithm|proof|plan))\b"
    r"|設計|実装|証明|導出|最適化"
)
_MEDIUM = re.compile(
    r"\b(?:explain|describe|why|compare|contrast|summari[sz]e|translate|outline|difference between"
    r"|how (?:do|does|did|can|could|should|would|to|is|are)|pros and cons|step by step)\b"
    r"|説明|なぜ|比較|要約|翻訳|仕組み|違い"
)
_STRUCTURE = re.compile(r"```|\bdef |\bclass |#include|\\frac|\\int|∑|∫|^[ \t]*(?:[-*]|\d+[.)]) ", re.MULTILINE)
_LONG_WORDS, _VERY_LONG_WORDS = 40, 150
_WIDE_CHARS, _VERY_WIDE_CHARS = 300, 1000


def rules(text: str) -> Complexity:
    """The class by key words, length and structure.

    A verb of making or proving, or code, formulas or a list, makes it complex; a verb of explaining makes it medium.
    Length lifts it: from 40 words (or 300 characters) to medium, from 150 words (or 1000 characters) to complex.
    Key words are English and Japanese; other languages are judged by length and structure alone.
    """
    read = excerpt(text).lower()
    level = 2 if _COMPLEX.search(read) or _STRUCTURE.search(read) else int(_MEDIUM.search(read) is not None)
    return CLASSES[max(level, _length_level(len(text), read))]


def _length_level(chars: int, read: str) -> int:
    words = read.count(" ") + 1
    if chars > _VERY_WIDE_CHARS or words > _VERY_LONG_WORDS:
        return 2
    return int(chars > _WIDE_CHARS or words > _LONG_WORDS)


# ── learned ──────────────────────────────────────────────────────────────────


class LearnedComplexity:
    """Softmax regression on hashed n-grams. ``weights`` is (BUCKETS + 2, 3), ``bias`` (3,), in the order of CLASSES."""

    def __init__(self, weights: NDArray[Any], bias: NDArray[Any]) -> None:
        if weights.shape != (BUCKETS + DENSE, len(CLASSES)) or bias.shape != (len(CLASSES),):
            raise ArtifactError(
                f"the complexity classifier should have weights {(BUCKETS + DENSE, len(CLASSES))} and bias "
                f"{(len(CLASSES),)}, not {weights.shape} and {bias.shape}"
            )
        self._weights = np.ascontiguousarray(weights, dtype=np.float32)
        self._bias: list[float] = bias.tolist()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> LearnedComplexity:
        """From an artifact's arrays ``complexity_weights`` and ``complexity_bias``; raises ArtifactError."""
        return cls(array_of(arrays, "complexity_weights", 2), array_of(arrays, "complexity_bias", 1))

    def proba(self, text: str) -> tuple[float, float, float]:
        """Probabilities of simple, medium and complex, which sum to 1."""
        rows, amounts = hashed_grams(text)
        raw = (amounts @ self._weights.take(rows, axis=0)).tolist()
        logits = [value + bias for value, bias in zip(raw, self._bias, strict=True)]
        top = max(logits)
        low, middle, high = (exp(value - top) for value in logits)
        total = low + middle + high
        return low / total, middle / total, high / total

    def classify(self, text: str) -> Complexity:
        """The likeliest class."""
        chances = self.proba(text)
        return CLASSES[chances.index(max(chances))]
