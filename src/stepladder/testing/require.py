"""One way to say that a check failed; unlike ``assert`` it also holds under ``python -O``."""

from __future__ import annotations


def require(holds: bool, sentence: str) -> None:
    """Raise AssertionError with this sentence where something does not hold."""
    if not holds:
        raise AssertionError(sentence)
