"""How often a target keeps what a drafter proposes: per position, and by the drafter's confidence."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

from stepladder.decoding.times import rising

NGRAM = -1
"""The key of the n-gram drafter; stages are counted from 0."""

MEMORY = 600.0
"""Verdicts on drafted tokens after which an old one counts 1/e."""

PRIOR = 0.5
"""Prior mean of the conditional acceptance of any pair …"""

PRIOR_WEIGHT = 2.0
"""… and the number of verdicts it counts for: Beta(1, 1), every rate equally likely."""

PULL = 16.0
"""Verdicts that the pair's pooled rate counts for at each position."""

BIN_PULL = 6.0
"""Verdicts that the pooled rate counts for in each bin of confidence."""

BIN_MEMORY = 4.0
"""Bins of confidence remember this many times longer: a rule that stops early hardly ever looks into the low ones."""

RECENT = 16
SURPRISE = 9.0
"""Where the last ``RECENT`` verdicts are less likely under the rate than under their own by this much (in logarithms),
the text has changed, and what was learned before them is dropped. Easy and hard tokens come in clusters, so the
measure is divided by how much more the windows of ``RECENT`` verdicts scatter than independent ones would."""

SCATTER_PULL = 1.0 / 24.0
MOST_SCATTER = 12.0
"""A window moves the scatter by this much, and counts for no more than this."""

EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 0.98, 0.99, 0.997)
"""Inner edges of the bins of confidence; finer where drafters are sure, which is where most tokens lie."""

IDLE = 0.25
"""Verdicts that a token counts as which was written without the pair: what is not in use is forgotten more slowly."""

OFFER_SHARE = 4.0
"""Verdicts that one draft asked for counts as where offers are forgotten."""

LONGEST = 64
"""Positions beyond this one share the pooled rate."""


@dataclass(frozen=True, slots=True)
class Chances:
    """Acceptance given the drafter's confidence, as a table that a stopping rule can look up in the hot loop.

    ``this[b]``: probability that a token is kept whose law had a confidence in bin b, given that those before it are;
    ``following[b]``: that the token after it is kept too, given that this one was. Both never fall in b.
    ``pooled``: the pair's rate whatever the confidence.
    """

    this: tuple[float, ...]
    following: tuple[float, ...]
    pooled: float = PRIOR

    def of(self, confidence: float) -> float:
        """Chance that a token drawn with this confidence is kept."""
        return self.this[bisect_right(EDGES, confidence)]

    def after(self, confidence: float) -> float:
        """Chance that the token after one of this confidence is kept, its own confidence not known yet."""
        return self.following[bisect_right(EDGES, confidence)]


class Acceptance:
    """Conditional acceptance of every (drafter, target) pair, decayed so that it follows the text.

    α_j, the chance that the j-th drafted token is kept given that those before it were, is
    (kept_j + ``PULL`` · pooled) / (judged_j + ``PULL``), where pooled = (kept + 1) / (judged + 2) over all positions
    under the uniform prior. Positions never seen thus have the pooled rate. Survival S_k = α_1 … α_k needs no
    independence between positions, only that each α_j is conditional.

    A pair forgets by its own verdicts; one that is not in use forgets by ``age``. A sudden change is noticed by the
    last ``RECENT`` verdicts.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        self._memory = memory
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self.changes = 0
        """Sudden changes that were noticed so far, in any pair."""

    def observe(
        self,
        drafter: int,
        target: int,
        drafted: int,
        accepted: int,
        confidences: Sequence[float] = (),
        *,
        asked: int | None = None,
    ) -> None:
        """Learn from one verification: of ``drafted`` tokens the first ``accepted`` were kept.

        ``confidences``: the greatest probability of each law that a drafted token was drawn from, in order; may be
        missing. ``asked``: how many the target asked for, where a drafter may offer fewer (n-gram: ``drafted`` 0 is
        "no match"). Any pair may be told, whether or not it was the chain's: whoever knows what a drafter would have
        proposed for tokens that are now decided can tell it here, at no forward pass.
        """
        pair = self._pairs.setdefault((drafter, target), _Pair(self._memory))
        self.changes += pair.observe(drafted, min(max(accepted, 0), drafted), confidences, asked)

    def age(self, tokens: float) -> None:
        """Let ``tokens`` tokens pass: pairs with no verdict since the last call forget, by ``IDLE`` of that."""
        for pair in self._pairs.values():
            pair.age(tokens)

    def rate(self, drafter: int, target: int) -> float:
        """Pooled conditional acceptance in (0, 1); ``PRIOR`` for a pair that was never seen."""
        pair = self._pairs.get((drafter, target))
        return PRIOR if pair is None else pair.rate()

    def rates(self, drafter: int, target: int, upto: int) -> list[float]:
        """α_1 … α_upto."""
        pair = self._pairs.get((drafter, target))
        return [PRIOR] * upto if pair is None else pair.rates(upto)

    def survival(self, drafter: int, target: int, upto: int) -> list[float]:
        """S_1 … S_upto."""
        return products(self.rates(drafter, target, upto))

    def offers(self, drafter: int, target: int, upto: int) -> list[float]:
        """O_1 … O_upto: the chance that a draft has at least k tokens where at least k were asked for."""
        pair = self._pairs.get((drafter, target))
        return [1.0] * upto if pair is None else pair.offers(upto)

    def weight(self, drafter: int, target: int) -> float:
        """Verdicts that the rate rests on, after forgetting: 0 is unknown, which is not the same as bad."""
        pair = self._pairs.get((drafter, target))
        return 0.0 if pair is None else pair.weight()

    def tried(self, drafter: int, target: int) -> float:
        """Drafts asked for, after forgetting: an n-gram drafter may be well known to find nothing."""
        pair = self._pairs.get((drafter, target))
        return 0.0 if pair is None else pair.tried()

    def idle(self, drafter: int, target: int) -> float:
        """Tokens written since the pair's last verdict; 0 for one that was never seen."""
        pair = self._pairs.get((drafter, target))
        return 0.0 if pair is None else pair.idle

    def spread(self, drafter: int, target: int) -> float:
        """Standard deviation of the pooled rate under its Beta posterior."""
        rate, weight = self.rate(drafter, target), self.weight(drafter, target)
        return sqrt(rate * (1.0 - rate) / (weight + PRIOR_WEIGHT + 1.0))

    def chances(self, drafter: int, target: int) -> Chances:
        """The table by confidence; the pooled rate in every bin for a pair that was never seen."""
        pair = self._pairs.get((drafter, target))
        if pair is None:
            flat = (PRIOR,) * (len(EDGES) + 1)
            return Chances(flat, flat)
        return pair.chances()


class _Pair:
    """Decayed counts of one pair. Forgetting is put off until a count is read or written."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._judged: list[float] = []
        self._kept: list[float] = []
        self._asked: list[float] = []
        self._offered: list[float] = []
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._this = _Bins(memory * BIN_MEMORY)
        self._following = _Bins(memory * BIN_MEMORY)
        self._since = 0
        self._scatter = 1.0
        self._fresh = False
        self._due = 0.0
        self.idle = 0.0

    def age(self, tokens: float) -> None:
        if self._fresh:
            self._fresh = False
        else:
            self.idle += tokens
            self._due += IDLE * tokens

    def observe(self, drafted: int, accepted: int, confidences: Sequence[float], asked: int | None) -> bool:
        """True where the verdicts show a sudden change."""
        self._fresh = True
        self.idle = 0.0
        self._offer(drafted, drafted if asked is None else max(asked, drafted))
        judged = min(accepted + 1, drafted)
        if not judged:
            return False
        self._due += judged
        self._settle()
        for position in range(min(judged, LONGEST)):
            _add(self._judged, position, 1.0)
            _add(self._kept, position, float(position < accepted))
        self._learn_confidence(confidences[:judged], accepted)
        return self._notice(judged, accepted)

    def _offer(self, drafted: int, asked: int) -> None:
        """Offers are counted, and forgotten, per draft asked for."""
        keep = 1.0 - OFFER_SHARE / self._memory
        for counts in (self._asked, self._offered):
            counts[:] = [count * keep for count in counts]
        for position in range(min(asked, LONGEST)):
            _add(self._asked, position, 1.0)
            _add(self._offered, position, float(position < drafted))

    def _learn_confidence(self, confidences: Sequence[float], accepted: int) -> None:
        for position, confidence in enumerate(confidences):
            place = bisect_right(EDGES, confidence)
            self._this.observe(place, position < accepted)
            if position and position <= accepted:
                self._following.observe(bisect_right(EDGES, confidences[position - 1]), position < accepted)

    def _notice(self, judged: int, accepted: int) -> bool:
        """Drop what came before the last verdicts where these could hardly come of it."""
        self._recent.extend(position < accepted for position in range(judged))
        total = sum(self._judged)
        before = total - len(self._recent)
        if len(self._recent) < RECENT or before < RECENT:
            return False
        hits = sum(self._recent)
        rate = (max(0.0, sum(self._kept) - hits) + 1.0) / (before + 2.0)
        changed = RECENT * divergence(hits / RECENT, rate) > SURPRISE * max(1.0, self._scatter)
        if changed:
            self._restart(hits / RECENT, RECENT / total)
        self._since += judged
        if self._since >= RECENT:
            self._since = 0
            scatter = (hits - RECENT * rate) ** 2 / (RECENT * rate * (1.0 - rate))
            self._scatter += SCATTER_PULL * (min(scatter, MOST_SCATTER) - self._scatter)
        return changed

    def _restart(self, rate: float, share: float) -> None:
        """Keep as much weight as the last verdicts have, at their rate; positions are told apart anew."""
        self._judged = [count * share for count in self._judged]
        self._kept = [count * rate for count in self._judged]
        for bins in (self._this, self._following):
            bins.fade(share)

    def _settle(self) -> None:
        if self._due:
            keep = (1.0 - 1.0 / self._memory) ** self._due
            self._due = 0.0
            self._judged = [count * keep for count in self._judged]
            self._kept = [count * keep for count in self._kept]

    def weight(self) -> float:
        self._settle()
        return sum(self._judged)

    def tried(self) -> float:
        return self._asked[0] if self._asked else 0.0

    def rate(self) -> float:
        self._settle()
        return (sum(self._kept) + PRIOR * PRIOR_WEIGHT) / (sum(self._judged) + PRIOR_WEIGHT)

    def rates(self, upto: int) -> list[float]:
        pooled = self.rate()
        seen = [(kept + PULL * pooled) / (judged + PULL) for kept, judged in zip(self._kept, self._judged, strict=True)]
        return seen[:upto] + [pooled] * (upto - len(seen))

    def offers(self, upto: int) -> list[float]:
        """Positions beyond those asked for are offered as often as the last that was."""
        seen = [offered / asked for offered, asked in zip(self._offered, self._asked, strict=True) if asked > 0.0]
        rest = seen[-1] if seen else 1.0
        return (seen + [rest] * (upto - len(seen)))[:upto]

    def chances(self) -> Chances:
        pooled = self.rate()
        this = self._this.table(pooled)
        return Chances(this, self._following.table(pooled), pooled)


class _Bins:
    """Decayed verdicts by bin of confidence."""

    def __init__(self, memory: float) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._judged = [0.0] * (len(EDGES) + 1)
        self._kept = [0.0] * (len(EDGES) + 1)

    def observe(self, place: int, kept: bool) -> None:
        """A bin forgets by its own verdicts only, else the bins that a rule avoids would be forgotten."""
        self._judged[place] = self._judged[place] * self._keep + 1.0
        self._kept[place] = self._kept[place] * self._keep + kept

    def fade(self, share: float) -> None:
        self._judged = [count * share for count in self._judged]
        self._kept = [count * share for count in self._kept]

    def table(self, pooled: float) -> tuple[float, ...]:
        weights = [judged + BIN_PULL for judged in self._judged]
        rates = [(kept + BIN_PULL * pooled) / weight for kept, weight in zip(self._kept, weights, strict=True)]
        return tuple(rising(rates, weights))


def products(rates: Sequence[float]) -> list[float]:
    """Running products: survival from conditional rates."""
    found, product = [], 1.0
    for rate in rates:
        product *= rate
        found.append(product)
    return found


def divergence(seen: float, rate: float) -> float:
    """Kullback–Leibler divergence of a coin of ``seen`` from one of ``rate`` (strictly between 0 and 1), in nats."""
    kept = seen * log(seen / rate) if seen > 0.0 else 0.0
    lost = (1.0 - seen) * log((1.0 - seen) / (1.0 - rate)) if seen < 1.0 else 0.0
    return kept + lost


def _add(counts: list[float], position: int, amount: float) -> None:
    if position == len(counts):
        counts.append(amount)
    else:
        counts[position] += amount
