"""What rounds on a device should take and write, from the times of passes and from acceptance: each arm's bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepladder.decoding.rounds import Shape
from stepladder.decoding.times import StepTimes

Rates = Mapping[tuple[int, int], Sequence[float]]
"""(drafter, target) → conditional acceptance at each position of a draft; the last one holds for all beyond."""


def tokens_of(shape: Shape, chain: Sequence[int], rates: Rates) -> float:
    """Expected tokens that a round writes.

    A draft of n tokens writes 1 + S_1 + … + S_n, with survival S_k = α_1 … α_k (Leviathan et al. 2211.17192); a middle
    model's n is itself what comes of its rounds (``round_graph.pieces``).
    """
    if not shape.lengths:
        return 1.0
    upper = rates[chain[-2], chain[-1]]
    worth = [1.0]
    survival = 1.0
    for place in range(shape.most):
        survival *= _at(upper, place)
        worth.append(worth[-1] + survival)
    if not shape.pieces:
        return worth[shape.most]
    lower = rates[chain[0], chain[1]]
    counts = {0: 1.0}
    for each in shape.pieces:
        after: dict[int, float] = {}
        for count, chance in counts.items():
            reached = chance
            for kept in range(each + 1):
                on = _at(lower, kept) if kept < each else 0.0
                after[count + kept + 1] = after.get(count + kept + 1, 0.0) + reached * (1.0 - on)
                reached *= on
        counts = after
    return sum(chance * worth[count] for count, chance in counts.items())


def seconds_of_round(shape: Shape, chain: Sequence[int], times: StepTimes) -> float:
    """Seconds of a round's passes, and of nothing else."""
    return sum(many * (times.seconds(stage, width) or 0.0) for stage, width, many in shape.passes(chain))


def speed_of(chain: Sequence[int], lengths: Sequence[int], rates: Rates, times: StepTimes) -> float:
    """Speed beside plain decoding, passes alone."""
    shape = Shape(len(chain), tuple(lengths))
    plain = times.seconds(chain[-1], 1) or 0.0
    return plain * tokens_of(shape, chain, rates) / seconds_of_round(shape, chain, times)


def best_lengths(chain: Sequence[int], rates: Rates, times: StepTimes, longest: int) -> tuple[tuple[int, ...], float]:
    """The lengths that a chain should do best with, and its speed beside plain decoding."""
    tried: list[tuple[int, ...]]
    if len(chain) == 2:
        tried = [(length,) for length in range(1, longest + 1)]
    else:
        tried = [(each, most) for each in range(1, longest) for most in range(2, longest + 1)]
    speeds = {lengths: speed_of(chain, lengths, rates, times) for lengths in tried}
    best = max(speeds, key=speeds.__getitem__)
    return best, speeds[best]


def _at(rates: Sequence[float], place: int) -> float:
    return rates[min(place, len(rates) - 1)] if rates else 0.0
