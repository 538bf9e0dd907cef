"""How long a stage's next call will take, learned from the calls it answered."""

from __future__ import annotations

from statistics import median

from stepladder.types import Attempt, EngineCost, Stage

MEMORY = 0.97
"""Weight that an observation keeps with each new one: about the last thirty count."""

NEEDED = 3
"""Answers before a forecast is given."""

REACH = 4.0
"""An outlier counts as no more than this many times the present level, and no less than that fraction of it."""

AGILITY = 0.2
"""How far the level follows one observation: with REACH, a server ten times slower is believed after about five."""

PULL = 0.3
"""How strongly the prior shape holds where the calls seen so far say nothing about one of the three parts."""

SHAPE = (5.0, 0.05, 1.0)
"""Prior: a call's fixed part costs as much as five output tokens, a prompt token a twentieth of one."""


class SpeedEstimate:
    """seconds = fixed + a · prompt tokens + b · output tokens, each part never below zero.

    A decayed least-squares fit of relative errors (a moving average of its normal equations), held towards ``SHAPE``
    scaled by the present level. Cost per observation and per forecast is constant. Times include the server's
    queueing, since that is what the next call will meet too; prompt tokens found in its cache are not counted.
    """

    def __init__(self) -> None:
        self._first: list[tuple[tuple[float, float, float], float]] = []
        self._count = 0
        self._level = 0.0
        self._squares = [[0.0] * 3 for _ in range(3)]
        self._target = [0.0] * 3

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt; faulty ones and those without token counts say nothing."""
        usage = attempt.usage
        if not attempt.is_answer or not usage.output_tokens or attempt.seconds <= 0:
            return
        parts = _parts(max(0, usage.prompt_tokens - usage.cached_tokens), usage.output_tokens)
        size = sum(parts)
        parts = (parts[0] / size, parts[1] / size, parts[2] / size)
        rate = attempt.seconds / size
        self._count += 1
        if self._count > NEEDED:
            self._learn(parts, rate)
            return
        self._first.append((parts, rate))
        if self._count == NEEDED:
            self._level = median(rate for _, rate in self._first)
            for first in self._first:
                self._learn(*first)

    def seconds(self, prompt_tokens: int, output_tokens: int) -> float | None:
        """Expected seconds of a call, None before ``NEEDED`` answers were seen."""
        if self._count < NEEDED:
            return None
        parts = _parts(prompt_tokens, output_tokens)
        return sum(part * max(0.0, rate) for part, rate in zip(parts, self._solve(), strict=True))

    def _learn(self, parts: tuple[float, float, float], rate: float) -> None:
        rate = min(max(rate, self._level / REACH), self._level * REACH)
        self._level += AGILITY * (rate - self._level)
        for i, part in enumerate(parts):
            self._target[i] = MEMORY * self._target[i] + part * rate
            for j, other in enumerate(parts):
                self._squares[i][j] = MEMORY * self._squares[i][j] + part * other

    def _solve(self) -> tuple[float, float, float]:
        """Cramer's rule on three unknowns; the ridge keeps the determinant above zero."""
        (a, b, c), (_, d, e), (_, _, f) = self._squares
        a, d, f = a + PULL, d + PULL, f + PULL
        x, y, z = (target + PULL * self._level for target in self._target)
        minors = (d * f - e * e, c * e - b * f, b * e - c * d)
        determinant = a * minors[0] + b * minors[1] + c * minors[2]
        return (
            (x * minors[0] + y * minors[1] + z * minors[2]) / determinant,
            (x * minors[1] + y * (a * f - c * c) + z * (b * c - a * e)) / determinant,
            (x * minors[2] + y * (b * c - a * e) + z * (a * d - b * b)) / determinant,
        )


class Forecasts:
    """One estimate per stage."""

    def __init__(self) -> None:
        self._speeds: dict[str, SpeedEstimate] = {}

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt of its stage."""
        self._speeds.setdefault(attempt.stage, SpeedEstimate()).observe(attempt)

    def cost(self, stage: Stage, prompt_tokens: int, output_tokens: int) -> EngineCost | None:
        """The forecast for a call, where the stage has answered often enough."""
        speed = self._speeds.get(stage.name)
        seconds = speed.seconds(prompt_tokens, output_tokens) if speed else None
        return None if seconds is None else EngineCost(seconds, seconds * stage.gpus)


def _parts(prompt_tokens: int, output_tokens: int) -> tuple[float, float, float]:
    """A call's three parts in output tokens under the prior shape."""
    return SHAPE[0], SHAPE[1] * prompt_tokens, SHAPE[2] * output_tokens
