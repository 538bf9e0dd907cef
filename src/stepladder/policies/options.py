"""Checks of policies' options; each raises UsageError with the key, the value and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from stepladder.errors import UsageError


def number(policy: str, key: str, value: Any, *, least: float = 0.0, most: float = inf) -> float:
    """The value as a float, where it is a finite number within these bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not (is_number and least <= value <= most):
        within = f"from {least:g} up" if most == inf else f"from {least:g} to {most:g}"
        raise UsageError(f"policy '{policy}': '{key}' should be a number {within}, not {value!r}")
    return float(value)


def numbers(policy: str, key: str, values: Any, *, least: float = 0.0, most: float = inf) -> tuple[float, ...]:
    """The values as floats, where all are finite numbers within these bounds."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UsageError(f"policy '{policy}': '{key}' should be a list of numbers, not {values!r}")
    return tuple(number(policy, key, value, least=least, most=most) for value in values)


def whole(policy: str, key: str, value: Any, *, least: int, most: int) -> int:
    """The value, where it is a whole number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        told = f"'{key}' should be a whole number from {least} to {most}, not {value!r}"
        raise UsageError(f"policy '{policy}': {told}")
    return value
