"""When to stop drafting. Every rule here is a stopping time: no token that was drawn is ever dropped.

A draft may end before a token is drawn, by anything that is known then, or after one, which is then kept. Drawing a
token, looking at it and dropping it would leave the target's law (research: Leviathan et al. 2211.17192 assume that the
draft is read as it was drawn). ``before`` and ``after`` are the only two places where a rule is asked, and neither can
take a token back.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol

from stepladder.decoding.acceptance import Chances


class Stopping(Protocol):
    """Asked by the loop that drafts; ``drafted`` is the number of tokens of this draft that stand."""

    def before(self, drafted: int, confidence: float) -> bool:
        """True: do not draw the next token. ``confidence``: the greatest probability of the law it would come from."""
        ...

    def after(self, drafted: int, confidence: float) -> bool:
        """True: stop here, the token just drawn is kept. ``confidence``: that of the law it came from."""
        ...


class Never:
    """Never draws a token: a draft of length 0."""

    def before(self, drafted: int, confidence: float) -> bool:
        return True

    def after(self, drafted: int, confidence: float) -> bool:
        return True


class Fixed:
    """Draws ``length`` tokens, whatever they are."""

    def __init__(self, length: int) -> None:
        self.length = length

    def before(self, drafted: int, confidence: float) -> bool:
        return drafted >= self.length

    def after(self, drafted: int, confidence: float) -> bool:
        return drafted >= self.length


class Marginal:
    """Drafts on where that is worth the time that it takes.

    With λ tokens per second, the best rate known, a further token is worth drafting iff
    S_{k+1} > λ · (t_draft + T_v(k+2) − T_v(k+1)): W. Dinkelbach, "On nonlinear fractional programming", Management
    Science 13 (1967), applied to tokens over time; SpecDec++ (2405.19715) derives a threshold on survival too, with a
    constant in the place of the price. Verification often grows in steps, and a step may be too dear for one token
    and cheap for four. So the rule looks ahead: go on iff for some m the next m tokens together are worth their time,
    those after the next being kept with the pair's pooled chance.

    The time is weighed when it is still to be spent. When ``before`` is asked, the drafter's pass behind ``confidence``
    was already made: drawing costs only the wider verification. ``after`` weighs the drafter's next pass as well, with
    the chance that a token after one of this confidence is kept.

    ``widening[k]``: seconds that verifying k+1 drafted tokens takes more than k; its length is the longest draft.
    ``draft``: seconds of a drafting pass. ``rate``: λ in tokens per second, of the stage that verifies this draft.
    The chances were learned from the greatest probability of each token's law, and that is what both are told.

    One instance serves one draft after another, not drafts that interleave. A draft begins where ``before`` is asked
    with 0 drafted tokens or ``after`` with 1.
    """

    def __init__(self, chances: Chances, *, widening: Sequence[float], draft: float, rate: float) -> None:
        self._chances = chances
        self._longest = len(widening)
        self._draw = thresholds(widening, draft, rate, chances.pooled, paid=True)
        self._pass = thresholds(widening, draft, rate, chances.pooled, paid=False)
        self._survival = 1.0
        self._asked: tuple[int, float] = (-1, 0.0)

    def fresh(self) -> Marginal:
        """The same rule for another draft."""
        other = copy(self)
        other._survival, other._asked = 1.0, (-1, 0.0)
        return other

    def before(self, drafted: int, confidence: float) -> bool:
        if drafted == 0:
            self._survival = 1.0
        if drafted >= self._longest:
            return True
        self._asked = (drafted, confidence)
        return self._survival * self._chances.of(confidence) <= self._draw[drafted]

    def after(self, drafted: int, confidence: float) -> bool:
        """Goes by the confidence that ``before`` was told of this token; by its own where ``before`` was not asked."""
        if drafted == 1:
            self._survival = 1.0
        if self._asked[0] == drafted - 1:
            confidence = self._asked[1]
        self._asked = (-1, 0.0)
        self._survival *= self._chances.of(confidence)
        if drafted >= self._longest:
            return True
        return self._survival * self._chances.after(confidence) <= self._pass[drafted]


def thresholds(widening: Sequence[float], draft: float, rate: float, chance: float, *, paid: bool) -> list[float]:
    """Least survival of the next token, after k drafted ones, that makes going on worth its time; k from 0.

    min over m of λ · (time of m tokens) / (1 + chance + … + chance^{m−1}). ``paid``: the drafter's pass for the first
    of them was made already.
    """
    found: list[float] = []
    for k in range(len(widening)):
        spent, worth, power, least = -draft if paid else 0.0, 0.0, 1.0, float("inf")
        for extra in widening[k:]:
            spent += draft + extra
            worth += power
            power *= chance
            least = min(least, rate * spent / worth)
        found.append(least)
    return found
