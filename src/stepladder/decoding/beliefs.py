"""What is believed of stages and pairs, and the ground that plans are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf, sqrt

from stepladder.decoding.acceptance import NGRAM, Acceptance
from stepladder.decoding.kinds import Kinds
from stepladder.decoding.pace import Host
from stepladder.decoding.planning import Ground, Law
from stepladder.decoding.times import StepTimes
from stepladder.errors import ConfigError, Problem

NEEDED = 6.0
"""Verdicts on each pair of a chain before the chain may run outside of trials; where nothing is found, …"""

ASKED = 6.0
"""… drafts that were asked for."""

REVISIT = 400
REVIVED = 0.8
"""A pair without a verdict for so many tokens may have changed: it is hoped to have this rate, whatever it had."""

UNTIMED = 0.1
"""Share of the answering stage's time that a stage of unknown size and time is hoped to take."""

FEW = 8
"""Tokens up to which what a stage has not read is not counted as reading: every round leaves it some."""

CHUNK = 512
"""Tokens of a prompt that are read in one pass, unless told otherwise."""


class Beliefs:
    """Times of passes, acceptance by regime, and time beside passes, for ``stages`` stages, 0 the cheapest.

    ``sizes``: what a pass of each costs relative to the others, used for a stage only until it was timed. Raises
    ConfigError for sizes that are none. ``longest``: longest draft. ``chunk``: tokens of a prompt in one pass.
    """

    def __init__(self, stages: int, sizes: Sequence[float], times: StepTimes, *, longest: int, chunk: int) -> None:
        self.times = times
        self.acceptance = {True: Acceptance(), False: Acceptance()}
        self.host = Host()
        self._kinds: dict[tuple[bool, int, int], Kinds] = {}
        self.longest = longest
        self._chunk = chunk
        self._sizes = _checked_sizes(sizes, stages)

    def kinds(self, greedy: bool, drafter: int, target: int) -> Kinds:
        """How answers differ for a pair; made where nothing is known yet."""
        return self._kinds.setdefault((greedy, drafter, target), Kinds())

    def ground(self, top: int, greedy: bool, batch: int, hope: float = 0.0) -> Ground:
        """What is believed now; with ``hope``, that many standard deviations better. No steps before the top's."""
        acceptance = self.acceptance[greedy]
        laws = {
            (drafter, target): _law(acceptance, drafter, target, self.longest, hope)
            for target in range(top + 1)
            for drafter in range(NGRAM, target)
        }
        steps = self.steps(top, batch, UNTIMED if hope > 0.0 else 1.0)
        return Ground(steps, laws, self.host.overhead(), self.longest, self.host.beside())

    def steps(self, top: int, batch: int, untimed: float = 1.0) -> dict[int, list[float]]:
        """Seconds of passes of 1 … longest + 2 tokens of every stage up to the top.

        Stages that were never timed are priced by size, or at the share ``untimed`` of the top where sizes are unknown.
        """
        widths = range(1, self.longest + 3)
        found: dict[int, list[float]] = {}
        if self.times.seconds(top, 1, batch) is None:
            return found
        for stage in range(top, -1, -1):
            timed = self.times.seconds(stage, 1, batch) is not None
            asked, share = (stage, 1.0) if timed else (top, self._share(stage, top, untimed))
            found[stage] = [0.0, *(share * (self.times.seconds(asked, w, batch) or 0.0) for w in widths)]
        return found

    def knows(self, chain: Sequence[int], greedy: bool, batch: int) -> bool:
        """True where every stage of a chain was timed and every pair of it judged often enough."""
        acceptance = self.acceptance[greedy]
        timed = all(stage == NGRAM or self.times.seconds(stage, 1, batch) is not None for stage in chain)
        return timed and all(
            acceptance.weight(*pair) >= NEEDED or acceptance.tried(*pair) >= ASKED for pair in pairwise(chain)
        )

    def reading(self, stage: int, tokens: int, batch: int = 1) -> float:
        """Seconds to read so many tokens in chunks; nothing for a stage that was never timed."""
        whole, rest = divmod(max(0, tokens), self._chunk)
        seconds = whole * (self.times.seconds(stage, self._chunk, batch) or 0.0) if whole else 0.0
        return seconds + (self.times.seconds(stage, rest, batch) or 0.0 if rest else 0.0)

    def beyond(self, stage: int, tokens: int, drafted: int, batch: int) -> float:
        """Seconds that a stage's first pass takes more where it reads ``tokens`` before the ``drafted`` ones."""
        usual = self.times.seconds(stage, drafted + 1, batch) or 0.0
        return max(0.0, self.reading(stage, tokens + drafted, batch) - usual)

    def catching_up(self, drafters: Iterable[int], top: int, batch: int, unread: Mapping[int, int] | None) -> float:
        """Seconds in which drafters read what they have not; as the top would, by sizes, where they were not timed."""
        if not unread:
            return 0.0
        return sum(
            self.reading(stage, unread[stage], batch)
            or self._share(stage, top, 1.0) * self.reading(top, unread[stage], batch)
            for stage in drafters
            if unread.get(stage, 0) > FEW
        )

    def _share(self, stage: int, top: int, unknown: float) -> float:
        """What a pass of a stage is held to cost of one of the top's."""
        return self._sizes[stage] / self._sizes[top] if self._sizes else unknown


def _law(acceptance: Acceptance, drafter: int, target: int, longest: int, hope: float) -> Law:
    more = hope * acceptance.spread(drafter, target)
    if hope > 0.0 and acceptance.idle(drafter, target) > REVISIT:
        more = max(more, REVIVED - acceptance.rate(drafter, target))
    rates = [min(1.0, max(0.0, rate + more)) for rate in acceptance.rates(drafter, target, longest)]
    offers = acceptance.offers(drafter, target, longest)
    if drafter != NGRAM and min(offers) >= 1.0:
        return Law(rates)
    if hope:
        slack = hope / (2.0 * sqrt(acceptance.tried(drafter, target) + 1.0))
        offers = [min(1.0, max(0.0, offer + slack)) for offer in offers]
    return Law(rates, offers)


def _checked_sizes(sizes: Sequence[float], stages: int) -> tuple[float, ...]:
    if sizes and (len(sizes) != stages or not all(0.0 < size < inf for size in sizes)):
        wrong = f"should be one positive number for each of the {stages} stages, not {list(sizes)}"
        raise ConfigError("speculation", [Problem("sizes", wrong)])
    return tuple(sizes)
