"""Reads one stage's engine options, and says everything that is wrong with them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepladder.errors import ConfigError, Problem, nearest
from stepladder.types import Stage


class Options:
    """The options of one stage. Each reader notes what it finds wrong; ``done`` raises ConfigError with all of it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._options = stage.options
        self._known: list[str] = []
        self.problems: list[Problem] = []

    def wrong(self, key: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(key, message))

    def seconds(self, key: str, default: float) -> float:
        """A positive, finite number of seconds."""
        value = self._get(key, default)
        if _is_number(value) and 0 < value < math.inf:
            return float(value)
        self.wrong(key, f"must be a positive number of seconds, not {value!r}")
        return default

    def whole(self, key: str, default: int, *, least: int = 1, most: int | None = None) -> int:
        """A whole number from ``least`` up to ``most``."""
        value = self._get(key, default)
        if _is_number(value) and int(value) == value and least <= value <= (most or value):
            return int(value)
        self.wrong(key, f"must be a whole number from {least}{f' to {most}' if most else ''}, not {value!r}")
        return default

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if isinstance(value, bool):
            return value
        self.wrong(key, f"must be true or false, not {value!r}")
        return default

    def text(self, key: str) -> str | None:
        """A string that is not empty, or None where it is not given."""
        value = self._get(key, None)
        if value is None or (isinstance(value, str) and value):
            return value
        self.wrong(key, f"must be a string that is not empty, not {value!r}")
        return None

    def texts(self, key: str) -> Mapping[str, str]:
        """A table of strings, empty where it is not given."""
        value = self._get(key, {})
        if isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair):
            return dict(value)
        self.wrong(key, "must be a table of strings")
        return {}

    def allow(self, key: str) -> None:
        """Know an option that is read elsewhere."""
        self._known.append(key)

    def done(self) -> None:
        """Raise ConfigError if anything was wrong, options that no reader asked for included."""
        for key in self._options:
            if key not in self._known:
                cure = nearest(key, self._known) if self._known else "it takes none"
                self.wrong(key, f"the engine '{self._stage.engine}' has no such option; {cure}")
        if self.problems:
            raise ConfigError(f"stage '{self._stage.name}'", self.problems)

    def _get(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._options.get(key, default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
