"""Counts of what was drafted and kept, and who wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class Observer:
    """Told of every verification, and how far deferral moved the law of each token. Does nothing itself."""

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Sequence[float]) -> None:
        """Of ``asked`` drafts a drafter offered one for each confidence, and the target kept the first ``accepted``.

        Where a drafter chose to stop, no more was asked for; n-grams that run out and drafts that end the answer fall
        short of it.
        """

    def moved(self, target: int, distance: float) -> None:
        """A target that defers emitted a token whose law was this total variation from its own."""


@dataclass(slots=True)
class Tally(Observer):
    """Sums for one answer: drafted and accepted tokens by (drafter, target), and total variations at the top."""

    counts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    distances: dict[int, list[float]] = field(default_factory=dict)

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Sequence[float]) -> None:
        """Count one verification."""
        sums = self.counts.setdefault((drafter, target), [0, 0])
        sums[0] += len(confidences)
        sums[1] += accepted

    def moved(self, target: int, distance: float) -> None:
        """Note one total variation."""
        sums = self.distances.setdefault(target, [0.0, 0.0])
        sums[0] += distance
        sums[1] += 1

    def mean_moved(self, target: int) -> float | None:
        """Mean TV(π, p) over the tokens that the target emitted; None where it emitted none under deferral."""
        total, count = self.distances.get(target, (0.0, 0.0))
        return total / count if count else None
