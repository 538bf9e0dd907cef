"""What a stage's estimate is corrected by once stages have answered: one row for every stage, seen from that stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stepladder.predictors import history
from stepladder.predictors.history import PAIRED, UNKNOWN, Signals

Matrix = NDArray[np.float64]

SEEN_FROM = (
    *("own logit", "mean logit", "best other logit", "answered logit", "agree", "differ", "others agree"),
    *("tokens below", "tokens", "answers below", "answers above", "all parsed", "stage", "answers"),
)
"""Columns of one stage besides its own signals. Logits are those before any answer; ``agree`` and ``differ`` count the
answers that say the same as the stage's own and another thing; ``others agree`` is the share of the pairs of the other
answers that are the same."""


class Correction:
    """Rows (k, columns): the logits of all stages, the columns of ``history``, then those seen from each stage.

    A ladder's answers mean the same from every stage: whether it is right turns on how long its own answer is and who
    agrees with it, whichever stage it is. So all stages share one fit, which learns from k times as many rows.
    """

    def __init__(self, stages: int, signals: Sequence[str]) -> None:
        self._stages, self.signals = stages, tuple(signals)
        self._own = [name for name in signals if name != PAIRED]
        place = {name: number for number, name in enumerate(history.names(stages, signals))}
        self._mine = np.array([[place[f"{name} {j}"] for name in self._own] for j in range(stages)], dtype=np.intp)
        self.columns = stages + len(place) + len(self._own) + len(SEEN_FROM)

    def rows(self, logits: Sequence[float], answered: Mapping[int, Signals]) -> Matrix:
        """(k, columns) for answers with these signals, by the numbers of their stages; there is at least one."""
        told = np.array(history.numbers(answered, self._stages, self.signals))
        common = np.concatenate([logits, told])
        seen = [self._seen(j, logits, answered) for j in range(self._stages)]
        return np.hstack([np.tile(common, (self._stages, 1)), told[self._mine], seen])

    def _seen(self, stage: int, logits: Sequence[float], answered: Mapping[int, Signals]) -> tuple[float, ...]:
        others = [number for number in answered if number != stage]
        tokens = {number: told.tokens for number, told in answered.items()}
        agree = differ = 0
        if stage in answered:
            mine = answered[stage].final
            agree = sum(bool(mine) and answered[number].final == mine for number in others)
            differ = len(others) - agree
        return (
            logits[stage],
            sum(logits) / len(logits),
            max((logits[number] for number in range(len(logits)) if number != stage), default=logits[stage]),
            sum(logits[number] for number in answered) / len(answered),
            float(agree),
            float(differ),
            _alike([answered[number].final for number in others]),
            _mean([tokens[number] for number in answered if number < stage]),
            _mean(list(tokens.values())),
            float(sum(number < stage for number in answered)),
            float(sum(number > stage for number in answered)),
            min(told.parsed for told in answered.values()),
            float(stage),
            float(len(answered)),
        )


def _alike(finals: Sequence[str]) -> float:
    """Share of the pairs that are the same, UNKNOWN where there is no pair. Nothing is like nothing."""
    pairs = [(one, other) for number, one in enumerate(finals) for other in finals[number + 1 :]]
    return sum(bool(one) and one == other for one, other in pairs) / len(pairs) if pairs else UNKNOWN


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else UNKNOWN
