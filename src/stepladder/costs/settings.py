"""Checks that the cost models share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from math import isfinite
from typing import Any

from stepladder.errors import ConfigError, Problem, UsageError
from stepladder.types import Stage


def price(value: Any, what: str) -> float:
    """A finite number from 0 up; raises UsageError that names ``what``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise UsageError(f"{what} should be a number from 0 up, not {value!r}")
    return float(value)


def stage_prices(stages: Sequence[Stage], key: str, model: str) -> dict[str, float]:
    """Stage name → ``Stage.key``; raises ConfigError that lists every stage without one."""
    found = {stage.name: getattr(stage, key) for stage in stages}
    problems = [
        Problem(f"stages.{name}.{key}", f"missing; the cost model '{model}' needs it for every stage")
        for name, value in found.items()
        if value is None
    ]
    if problems:
        raise ConfigError(f"costs.{model}", problems)
    return {name: price(value, f"stages.{name}.{key}") for name, value in found.items()}


def settings_version(**settings: Any) -> str:
    """Twelve hex digits of everything that the costs depend on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
