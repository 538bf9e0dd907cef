"""Whether drafting pays for a stage, found out on its own answers: a comparison of two rates, and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt

LOOKS = (16, 32, 64)
"""Answers on each side after which the two are compared; past the last, what is not shown is not believed."""

MOST_TURNS = 4 * LOOKS[-1]
"""Answers asked for, failed ones and empty ones included, after which the trial ends without a comparison."""

MARGIN = 0.05
"""By how much the time for a token must fall for drafting to stay on: less is not worth a second process."""

SURE = 2.5
"""Standard errors that the difference must be away from the margin. Each look is at z > 2.5 (one-sided 0.6 %), so that
three looks together take a drafter that is worth nothing for a good one in fewer than 2 % of trials (Bonferroni)."""


@dataclass(slots=True)
class Rate:
    """Seconds a token over answers, as the ratio of the sums, with its linearised variance.

    Answers, not tokens, are the sample, since the tokens of one answer are fast or slow together (Cochran, Sampling
    Techniques, §6.3: the ratio estimate and its variance).
    """

    count: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    _tt: float = 0.0
    _ts: float = 0.0
    _ss: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """One answer."""
        self.count += 1
        self.tokens += tokens
        self.seconds += seconds
        self._tt += tokens * tokens
        self._ts += tokens * seconds
        self._ss += seconds * seconds

    @property
    def mean(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens

    @property
    def relative_variance(self) -> float:
        """Variance of the mean's logarithm, by the delta method; infinite before the second answer."""
        if self.count < 2:
            return inf
        rate = self.mean
        left = max(0.0, self._ss - 2 * rate * self._ts + rate * rate * self._tt)
        return left * self.count / (self.count - 1) / self.seconds**2


class Trial:
    """Answers are written with and without drafting by turns until it is clear which is faster.

    ``verdict`` is None until then. No more than ``MOST_TURNS`` answers are asked for, half of them with drafting. At
    each look drafting is on where the logarithm of the ratio of the two times lies ``SURE`` standard errors below that
    of 1 − ``MARGIN``, off where it lies as far above, and at the last look off in any case. What is compared are
    different answers: the difference between their prompts is a part of the standard error.
    """

    def __init__(self) -> None:
        self.verdict: bool | None = None
        self.reason = ""
        self.plain, self.drafting = Rate(), Rate()
        self._given = self._looks = 0

    def turn(self) -> bool:
        """True where the next answer is to be written with drafting."""
        self._given += 1
        if self._given > MOST_TURNS and self.verdict is None:
            self.give_up(f"too few of {MOST_TURNS} answers could be compared")
        return self._given % 2 == 0 if self.verdict is None else self.verdict

    def observe(self, *, drafting: bool, tokens: int, seconds: float) -> None:
        """An answer: its tokens, and the seconds that writing them took, without the prompt's."""
        if self.verdict is not None or tokens < 1 or seconds <= 0:
            return
        (self.drafting if drafting else self.plain).add(tokens, seconds)
        if min(self.plain.count, self.drafting.count) >= LOOKS[self._looks]:
            self._looks += 1
            self._look(is_last=self._looks == len(LOOKS))

    def give_up(self, reason: str) -> None:
        """Without a comparison drafting stays off."""
        self.verdict, self.reason = False, reason

    def _look(self, *, is_last: bool) -> None:
        gain = log(self.drafting.mean / self.plain.mean) - log(1 - MARGIN)
        error = sqrt(self.drafting.relative_variance + self.plain.relative_variance)
        if abs(gain) > SURE * error or is_last:
            self.verdict = gain < -SURE * error
            self.reason = (
                f"{self.drafting.mean * 1e3:.3g} ms a token with drafting, {self.plain.mean * 1e3:.3g} ms without, "
                f"in {self.drafting.count} and {self.plain.count} answers"
            )
