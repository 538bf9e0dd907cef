"""Recorded answers → the beginnings that a reader of streams would meet, for the estimates of ``prefix`` heads.

How long a beginning is must not depend on how long the answer is going to be: among answers that still run after so
many tokens, training then has the shares that serving meets. So lengths are drawn for all alike, and of an answer that
had ended by then nothing is learned here: whoever waited that long holds a whole answer. A few are kept with their end
untold, since a stream may be looked at between its last token and its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.predictors import history
from stepladder.predictors.history import FEWEST_CHARS, MOST_CHARS, Signals, cut_to, own_tokens, unended
from stepladder.tokens import CHARS_PER_TOKEN
from stepladder.types import Attempt

SIGNALS = (
    *history.SIGNALS,
    *("min_logprob", "tail_logprob", "repeats", "same_as_prompt", "code", "letter", "equations", "wrong", "used"),
    *history.OF_BEGINNINGS,
)
"""What ``gbdt`` reads of beginnings."""

LONG = 90
"""Percentile of the lengths of a table's answers up to which they are cut."""

SHORTEST = 4
"""Tokens of the answers at that percentile, at the least: shorter ones are there before anybody could decide."""

UNTOLD_ENDS = 0.3
"""Share kept of the draws that meet an answer which had ended."""

AGAIN = 3
"""Beginnings that are drawn of each query and set of stages; those that meet answers which had ended are dropped."""

HIGHEST = 0.75
"""Share of the sets of which the highest stage is the one that has not ended, as in a climb; else any of them."""


class Cutter(NamedTuple):
    """How answers of a table are cut: ``chars`` (k,) of every stage's mean token, and the ``longest`` beginning."""

    chars: tuple[float, ...]
    longest: int

    def beginnings(
        self,
        told: Sequence[Mapping[int, Attempt]],
        queries: NDArray[np.intp],
        sets: Sequence[Sequence[int]],
        rng: np.random.Generator,
    ) -> Iterator[tuple[int, dict[int, Attempt]]]:
        """Numbers of queries and answers of these sets of stages, one of them cut off."""
        for _ in range(AGAIN):
            for number, stages in zip(queries.tolist(), sets, strict=True):
                found = self.draw(told[number], stages, rng)
                if found is not None:
                    yield number, found

    def draw(
        self, answers: Mapping[int, Attempt], stages: Sequence[int], rng: np.random.Generator
    ) -> dict[int, Attempt] | None:
        """The answers of these stages, one of them cut off; None where that one had ended, or nobody told of it."""
        asked = [stage for stage in stages if stage in answers]
        chance, place, share, kept = rng.random(4).tolist()
        if not asked:
            return None
        stage = asked[-1] if chance < HIGHEST else asked[int(place * len(asked))]
        tokens = int(self.longest**share + 0.5)
        whole = answers[stage]
        if not _can_be_cut(whole):
            return None
        if own_tokens(whole) > tokens:
            part = cut_to(whole, tokens, self.chars[stage])
        elif kept < UNTOLD_ENDS:
            part = unended(whole)
        else:
            return None
        return {**{each: answers[each] for each in asked}, stage: part}


def cutter_of(lines: Iterable[Mapping[int, Attempt]], stages: int, fewest: int) -> Cutter | None:
    """How to cut these queries' answers, each line by stage.

    None where fewer than ``fewest`` answers, or less than half of those whose tokens were counted, have a text, or
    where nearly all are shorter than SHORTEST.
    """
    chars, tokens = np.zeros(stages), np.zeros(stages)
    lengths, known = [], 0
    for line in lines:
        for stage, answer in line.items():
            count = own_tokens(answer)
            known += count > 0
            if _can_be_cut(answer):
                chars[stage] += len(answer.text)
                tokens[stage] += count
                lengths.append(count)
    longest = int(np.percentile(lengths, LONG)) if len(lengths) >= max(fewest, known / 2) else 0
    if longest < SHORTEST:
        return None
    mean = np.where(tokens > 0, chars / np.maximum(tokens, 1), CHARS_PER_TOKEN)
    return Cutter(tuple(np.clip(mean, FEWEST_CHARS, MOST_CHARS).round(3).tolist()), longest)


def _can_be_cut(answer: Attempt) -> bool:
    """True of an answer whose text is there: a final answer alone (``pred``) has fewer characters than tokens."""
    return len(answer.text) >= FEWEST_CHARS * own_tokens(answer) > 0


def read(
    found: Mapping[int, Attempt], signals: Sequence[str], prompt: str | None, *, hidden: bool
) -> dict[int, Signals]:
    """What the answers say, with log probabilities or, ``hidden``, without."""
    told = {stage: history.read(answer, signals, prompt=prompt) for stage, answer in found.items()}
    return untold(told) if hidden else told


def untold(found: Mapping[int, Signals]) -> dict[int, Signals]:
    """The same answers from servers that tell no log probabilities."""
    return {stage: history.without_logprobs(each) for stage, each in found.items()}
