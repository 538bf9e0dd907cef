"""What one answer shows of a drafter: some texts are easy to foresee, others are not, and which it is shows soon.

A pair's pooled acceptance is the mean over answers of all kinds. Where they differ, that mean is right for none of
them. So an answer's rate is taken for a draw from a law over a few rates, which is learned from the answers seen (a
mixture whose weights are fitted by incremental EM: R. M. Neal and G. E. Hinton, "A view of the EM algorithm that
justifies incremental, sparse, and other variants", 1998), and each of its verdicts tells which of them it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

from stepladder.decoding.acceptance import IDLE

RATES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.85, 0.9, 0.94, 0.97, 0.99)
"""The rates that an answer may have."""

PRIOR_ANSWERS = 2.0
"""Answers that the even law over rates counts for, which is all that is known at first."""

ANSWERS = 64.0
"""Answers after which an old one counts 1/e."""

VERDICTS = 96.0
"""Verdicts of an answer after which an old one counts 1/e: a text may turn."""

RESTED = 8
"""Tokens without a draft that are forgotten for at once, since each time is work."""

PULL = 16.0
"""Verdicts for which the forecast of a position counts as right, where it is compared with what was kept there."""

LEAST = 0.003
"""Weight below which a rate is left out of what an answer's drafts reach."""

LONGEST = 64
"""Positions that are looked at."""

_LOGS = tuple((log(rate), log(1.0 - rate)) for rate in RATES)


class Kinds:
    """The law of answers' rates for one drafter and target, and how far positions in a draft keep to it."""

    def __init__(self) -> None:
        self._counts = [0.0] * len(RATES)
        self._kept: list[float] = []
        self._told: list[float] = []

    @property
    def known(self) -> bool:
        """True where an answer was seen."""
        return sum(self._counts) > 0.0

    def shares(self) -> list[float]:
        """Shares of the answers seen that had each of ``RATES``; needs ``known``."""
        total = sum(self._counts)
        return [count / total for count in self._counts]

    def each(self, upto: int) -> list[list[float]]:
        """What drafts of answers of each of ``RATES`` reach."""
        return [self.reach([(rate, 1.0)], upto) for rate in RATES]

    def prior(self, without: Sequence[float]) -> list[float]:
        """What to expect of an answer of which nothing is known; ``without`` what itself has added."""
        even = PRIOR_ANSWERS / len(RATES)
        return [even + max(0.0, count - own) for count, own in zip(self._counts, without, strict=True)]

    def begin(self) -> None:
        """One answer more."""
        self._counts = [count * (1.0 - 1.0 / ANSWERS) for count in self._counts]

    def change(self, before: Sequence[float], after: Sequence[float]) -> None:
        """What is known of an answer has changed."""
        self._counts = [
            max(0.0, count - old + new) for count, old, new in zip(self._counts, before, after, strict=True)
        ]

    def judged(self, rates: Sequence[float], kept: int) -> None:
        """Drafts that were foreseen to be kept with these rates, each given that those before it were; so many were."""
        for place, rate in enumerate(rates):
            if place == len(self._told):
                self._told.append(0.0)
                self._kept.append(0.0)
            keep = 1.0 - 1.0 / (ANSWERS * PULL)
            self._told[place] = self._told[place] * keep + rate
            self._kept[place] = self._kept[place] * keep + (place < kept)

    def reach(self, law: Sequence[tuple[float, float]], upto: int) -> list[float]:
        """1, then the chances that more than 0, 1, … drafts are kept in a row, up to ``upto``.

        ``law``: rates that the answer may have, and their weights, in any unit.
        """
        found, kept = [1.0], 1.0
        for place, rate in enumerate(_conditional(law, min(upto, LONGEST))):
            kept *= min(1.0, self._skew(place) * rate)
            found.append(kept)
        return found

    def _skew(self, place: int) -> float:
        """Kept over foreseen at a position."""
        if place >= len(self._told):
            return 1.0
        return (self._kept[place] + PULL) / (self._told[place] + PULL)


class Own:
    """One answer's verdicts, by pair; made by ``Planner.own``, and told of each verification. Not thread-safe."""

    def __init__(self, kinds: Callable[[int, int], Kinds]) -> None:
        self._kinds = kinds
        self.is_new = True
        """No round of it was planned yet."""
        self._seen: dict[tuple[int, int], _Seen] = {}

    def observe(self, drafter: int, target: int, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens the first ``accepted`` were kept."""
        if drafted > 0:
            self._of(drafter, target).observe(min(drafted, LONGEST), min(max(accepted, 0), drafted))

    def reach(self, drafter: int, target: int, upto: int) -> list[float]:
        """A_0 … A_upto: the chance that a round of this answer writes more than k tokens."""
        return self._of(drafter, target).reach(upto)

    def hoped(self, drafter: int, target: int, gains: Sequence[float]) -> float:
        """Expected gain of trying a draft of one token: ``gains`` for each of ``RATES``, had where it is kept."""
        weights = self._of(drafter, target).weights()
        return sum(weight * rate * gain for weight, rate, gain in zip(weights, RATES, gains, strict=True))

    def idle(self, drafter: int, target: int) -> None:
        """A token was written without a draft: what was seen before says less of what comes."""
        self._of(drafter, target).rest()

    def _of(self, drafter: int, target: int) -> _Seen:
        seen = self._seen.get((drafter, target))
        if seen is None:
            seen = self._seen[drafter, target] = _Seen(self._kinds(drafter, target))
        return seen


class _Seen:
    """What an answer showed of one pair."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._logs = [0.0] * len(RATES)
        self._added = [0.0] * len(RATES)
        self._law: list[float] | None = None
        self._reach: list[float] = []
        self._rested = 0

    def observe(self, drafted: int, accepted: int) -> None:
        if not any(self._added):
            self._kinds.begin()
        judged = min(accepted + 1, drafted)
        self._kinds.judged(_conditional(self._short(), judged), accepted)
        self.fade(judged)
        lost = judged - accepted
        self._logs = [each + accepted * yes + lost * no for each, (yes, no) in zip(self._logs, _LOGS, strict=True)]
        self._kinds.change(self._added, self.weights())
        self._added = self.weights()

    def reach(self, upto: int) -> list[float]:
        if len(self._reach) != upto + 1:
            self._reach = self._kinds.reach(self._short(), upto)
        return self._reach

    def rest(self) -> None:
        self._rested += 1
        if self._rested == RESTED:
            self._rested = 0
            self.fade(IDLE * RESTED)

    def fade(self, verdicts: float) -> None:
        keep = (1.0 - 1.0 / VERDICTS) ** verdicts
        self._logs = [each * keep for each in self._logs]
        self._law, self._reach = None, []

    def _short(self) -> list[tuple[float, float]]:
        """The rates that the answer may well have, with their weights."""
        return [(rate, weight) for rate, weight in zip(RATES, self.weights(), strict=True) if weight > LEAST]

    def weights(self) -> list[float]:
        """The law of this answer's rate."""
        if self._law is None:
            most, prior = max(self._logs), self._kinds.prior(self._added)
            found = [weight * exp(each - most) for weight, each in zip(prior, self._logs, strict=True)]
            total = sum(found)
            self._law = [each / total for each in found]
        return self._law


def _conditional(law: Sequence[tuple[float, float]], upto: int) -> list[float]:
    """Expected acceptance at each position, given that all before it were kept."""
    rates, shares = [rate for rate, _ in law], [weight for _, weight in law]
    found, before = [], sum(shares)
    for _ in range(upto):
        shares = [share * rate for share, rate in zip(shares, rates, strict=True)]
        after = sum(shares)
        found.append(after / before)
        before = after
    return found
