"""What rounds really took and wrote, beside what was foreseen of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log2, sqrt

from stepladder.decoding.times import WINDOW, middle

SPIKE = 3.0
"""Multiple of what is usual for a chain's round, with these passes, beyond which it is the machine's doing."""

SPEED_MEMORY = 600.0
"""Rounds over which measured time is compared to the forecast."""

GUARD_MEMORY = 40.0
GUARD_ROUNDS = 10
GUARD_DEVIATIONS = 2.0
"""The chain that runs is dropped where its mean loss against plain decoding lies this many standard errors above 0."""

LATEST = 8
"""Rounds that "the latest" are, where a chain begins to lose."""

ROUNDS_MEMORY = 200.0
ROUNDS_PULL = 4.0
"""Rounds of a chain that its tokens and times are taken from, and those that the forecast without them counts for."""

ANSWERS = 128
"""Whole answers of a chain whose rounds are remembered."""

CURVE = 64
"""Tokens up to which the rounds of an answer are counted one by one; beyond, a round writes what it does on average."""


@dataclass(slots=True)
class Speed:
    """Measured seconds of a chain's rounds beside the forecast for the tokens that they wrote, both forgotten."""

    measured: float = 0.0
    foreseen: float = 0.0
    rounds: float = 0.0

    def observe(self, seconds: float, foreseen: float) -> None:
        keep = 1.0 - 1.0 / SPEED_MEMORY
        self.measured = self.measured * keep + seconds
        self.foreseen = self.foreseen * keep + foreseen
        self.rounds = self.rounds * keep + 1.0

    def factor(self, weight: float) -> float:
        """Measured over foreseen, held towards 1 by so many rounds."""
        if not self.rounds or self.foreseen <= 0.0:
            return 1.0
        pull = weight * self.foreseen / self.rounds
        return (self.measured + pull) / (self.foreseen + pull)


class Guard:
    """Loss of the running chain against plain decoding, round by round: mean and deviation, forgotten."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._sum = 0.0
        self._squares = 0.0
        self._latest = 0.0
        self._rounds = 0

    def observe(self, seconds: float, tokens: int, pace: float) -> None:
        """``pace``: plain decoding's seconds per token. Rounds out of all proportion are cut to size."""
        loss = min(seconds / pace - tokens, 4.0)
        keep = 1.0 - 1.0 / GUARD_MEMORY
        self._weight = self._weight * keep + 1.0
        self._sum = self._sum * keep + loss
        self._squares = self._squares * keep + loss * loss
        self._rounds += 1
        self._latest += (loss - self._latest) / LATEST

    def losing(self) -> bool:
        """True where the latest rounds lost: time to look, if no reason to act yet."""
        return self._latest > 0.0

    def alarmed(self) -> bool:
        if self._rounds < GUARD_ROUNDS:
            return False
        mean = self._sum / self._weight
        spread = max(0.0, self._squares / self._weight - mean * mean)
        return mean > GUARD_DEVIATIONS * sqrt(spread / self._weight)


class Host:
    """What rounds took beyond their passes: beside each pass in plain decoding, in proportion for each chain.

    By the middle half of the last rounds, as passes are timed: what is done once (kernels are loaded, a graph is
    captured, a drafter reads what it missed) may take as long as twenty rounds, and a trial has six.
    """

    def __init__(self) -> None:
        self._beside: deque[float] = deque(maxlen=WINDOW)
        self._further: deque[float] = deque(maxlen=WINDOW)
        self._chains: dict[tuple[int, ...], deque[float]] = {}

    def rounded(self, chain: tuple[int, ...], seconds: float, passes: float, count: float, share: float = 1.0) -> None:
        """A round took ``seconds``, ``passes`` of them in ``count`` passes, each divided by the rows that shared it.

        ``share``: one over the rows that shared the round.
        """
        if not count:
            return
        if len(chain) == 1:
            self._beside.append((seconds - passes) / count)
            return
        if count > share:
            self._further.append((seconds - passes - self._plain() * share) / (count - share))
        if (explained := self._explained(chain, passes, count, share)) > 0.0:
            self._chains.setdefault(chain, deque(maxlen=WINDOW)).append(seconds / explained)

    def usual(self, chain: tuple[int, ...], passes: float, count: float, share: float = 1.0) -> float:
        """Seconds that a chain's round with such passes usually takes; endless before any was seen."""
        if not (self._chains.get(chain) if len(chain) > 1 else self._beside):
            return inf
        return self._explained(chain, passes, count, share) * self.factor(chain)

    def _explained(self, chain: tuple[int, ...], passes: float, count: float, share: float) -> float:
        if len(chain) == 1:
            return passes + self._plain() * count
        return passes + self.overhead() * count + self.beside() * share

    def _plain(self) -> float:
        """Seconds beside a round of plain decoding."""
        return max(0.0, middle(sorted(self._beside))) if self._beside else 0.0

    def overhead(self) -> float:
        """Seconds beside each pass: what rounds of more passes take more, all of plain decoding's where none were seen.

        At most plain decoding's own: what chains take beyond that is theirs (``factor``).
        """
        plain = self._plain()
        return min(plain, max(0.0, middle(sorted(self._further)))) if self._further else plain

    def beside(self) -> float:
        """Seconds beside each round, whatever its passes."""
        return self._plain() - self.overhead()

    def factor(self, chain: tuple[int, ...]) -> float:
        """Time of a chain's rounds over what their passes explain; 1 for one that never ran."""
        found = self._chains.get(chain)
        return middle(sorted(found)) if found else 1.0


class Rounds:
    """How many tokens a chain's rounds write, and how long they take: what an answer of a given length is made of.

    A round that an answer ended in might have written more. So the chance that a round goes on behind its k-th token
    is taken from those rounds alone that could have, as lifetimes are that were not watched to their end (E. L. Kaplan
    and P. Meier, "Nonparametric estimation from incomplete observations", JASA 53, 1958). Forgotten by rounds.
    """

    def __init__(self) -> None:
        self._able: list[float] = []
        self._stopped: list[float] = []
        self._seconds = 0.0
        self._count = 0.0
        self._answers: deque[tuple[int, int]] = deque(maxlen=ANSWERS)
        self._known: tuple[tuple[float, ...], Answers] | None = None

    def observe(self, tokens: int, seconds: float, *, ended: bool) -> None:
        """A round wrote ``tokens`` ≥ 1; where the answer ``ended`` with it, it was not free to go on."""
        keep = 1.0 - 1.0 / ROUNDS_MEMORY
        for counts in (self._able, self._stopped):
            counts[:] = [count * keep for count in counts] + [0.0] * (tokens - len(counts))
        for place in range(tokens - ended):
            self._able[place] += 1.0
        if not ended:
            self._stopped[tokens - 1] += 1.0
        self._seconds = self._seconds * keep + seconds
        self._count = self._count * keep + 1.0
        self._known = None

    def answered(self, tokens: int, rounds: int) -> None:
        """A whole answer took so many rounds, all of this chain."""
        self._answers.append((tokens, rounds))

    def of_answer(self, tokens: float, foreseen: Sequence[float]) -> float:
        """Expected rounds of an answer (``Answers``); ``foreseen`` as in ``reach``.

        Short answers and long ones are answers to other questions, and drafts are not kept alike in them. So the count
        is corrected by what answers of about the same length took: those within an octave, the nearer the more.
        """
        if self._known is None or self._known[0] != tuple(foreseen):
            self._known = (tuple(foreseen), Answers(self.reach(foreseen)))
        answers, place = self._known[1], log2(max(tokens, 1.0))
        took = told = ROUNDS_PULL
        for size, rounds in self._answers:
            near = 1.0 - abs(log2(size) - place)
            if near > 0.0:
                took += near * rounds
                told += near * answers.rounds(size)
        return answers.rounds(tokens) * took / told

    def reach(self, foreseen: Sequence[float]) -> list[float]:
        """A_0 … A_n: the chance that a round writes more than k tokens, held towards the one foreseen."""
        found = [1.0]
        for place in range(max(len(foreseen), len(self._able))):
            before = foreseen[place] if place < len(foreseen) else 0.0
            after = foreseen[place + 1] if place + 1 < len(foreseen) else 0.0
            able, stopped = (counts[place] if place < len(counts) else 0.0 for counts in (self._able, self._stopped))
            hazard = 1.0 - after / before if before > 0.0 else 1.0
            found.append(found[-1] * (1.0 - (stopped + ROUNDS_PULL * hazard) / (able + ROUNDS_PULL)))
        return found

    def seconds(self, foreseen: float) -> float:
        """Mean seconds of a round, without reading, held towards those foreseen."""
        return (self._seconds + ROUNDS_PULL * foreseen) / (self._count + ROUNDS_PULL)


class Answers:
    """Expected rounds until an answer of so many tokens is whole, its last round cut where the answer ends.

    N(R) = 1 + Σ_{n<R} P(n)·N(R − n), P(n) = A_{n−1} − A_n from ``reach``; N(0) = 0. Between whole numbers of tokens,
    and beyond ``CURVE``, it is linear; a draft that holds the end is kept or not like any other, and no token is drawn
    behind the end, so that n = R and all n beyond it are one case.
    """

    def __init__(self, reach: Sequence[float]) -> None:
        shares = [low - high for low, high in zip(reach, [*reach[1:], 0.0], strict=True)]
        self._mean = sum(reach)
        self._counts = [0.0]
        for left in range(1, CURVE + 1):
            further = sum(share * self._counts[left - n] for n, share in enumerate(shares[: left - 1], start=1))
            self._counts.append(1.0 + further)

    def rounds(self, tokens: float) -> float:
        """N(tokens)."""
        whole = min(int(tokens), CURVE)
        if whole == CURVE:
            return self._counts[CURVE] + (tokens - CURVE) / self._mean
        return self._counts[whole] + (tokens - whole) * (self._counts[whole + 1] - self._counts[whole])
