"""Which drafted tokens a stage keeps, so that what comes out follows the stage's own law.

Every rule takes the stage's laws, those that the drafts were drawn from, and the drafts. The draft x_{i+1} was drawn
from ``drafted[i]`` and is judged by ``own[i]``, both given the tokens before it. ``own`` may hold one law more, of the
token behind the last draft: the bonus token is drawn from it where every draft is kept.

The drafts' laws have to be *the ones that the drafts were really drawn from*, given nothing but the tokens before: then
the rules are exact whatever drafted, a lossy stage included. A draft that somebody has read before deciding to have it
verified has no such law any more; it enters as ``Point``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stepladder.decoding.laws import Law, Oracle, excess


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many drafts are kept, and the token behind them; None where all are kept and no bonus was to be drawn."""

    accepted: int
    token: int | None


class Rule(Protocol):
    """A verification rule."""

    def __call__(
        self, own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle
    ) -> Verdict: ...


def rejection(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Token by token: keep x with probability min(1, p(x)/q(x)); replace the first refused one by the residual's.

    With laws that are points this is greedy matching; with drafts that are points it is sample-match: x is kept with
    the probability that the stage would have drawn it.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318, algorithm 2.
    """
    for place, (p, q, token) in enumerate(zip(own, drafted, tokens, strict=False)):
        if not oracle.accept(_at_most_one(p.prob(token), q.prob(token))):
            return Verdict(place, _replacement(p, q, 1.0, oracle))
    return Verdict(len(tokens), _bonus(own, len(tokens), oracle))


def block(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """The block as a whole: keeps at least as many drafts in expectation as ``rejection``, at the same law.

    Though how many are kept depends on drafts further on, a block that goes on behind its i-th token goes on by the
    stage's own law: so it may stand in the middle of a chain like the other rule (enumerated in the tests).
    Source: Sun et al., Block Verification Accelerates Speculative Decoding, arXiv 2403.10444, algorithm 2.
    """
    weights = _path_weights(own, drafted, tokens)
    for place in range(len(tokens), 0, -1):
        if oracle.accept(_keep(own, drafted, place, weights[place])):
            break
    else:
        place = 0
    if place == len(tokens):
        return Verdict(place, _bonus(own, place, oracle))
    return Verdict(place, _replacement(own[place], drafted[place], weights[place], oracle))


RULES: dict[str, Rule] = {"rejection": rejection, "block": block}


def _path_weights(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int]) -> list[float]:
    """p_i = min(p_{i−1} · P(x_i)/Q(x_i), 1), from p_0 = 1."""
    weights = [1.0]
    for p, q, token in zip(own, drafted, tokens, strict=False):
        weights.append(_at_most_one(weights[-1] * p.prob(token), q.prob(token)))
    return weights


def _keep(own: Sequence[Law], drafted: Sequence[Law], place: int, weight: float) -> float:
    """Probability that the first ``place`` drafts are kept, where none longer was."""
    if place == len(drafted) or weight == 0:
        return weight
    left = excess(own[place], drafted[place], weight).mass
    whole = left + 1 - weight
    return min(1.0, left / whole) if whole > 0 else 1.0


def _at_most_one(p: float, q: float) -> float:
    return 1.0 if p >= q else p / q


def _replacement(p: Law, q: Law, scale: float, oracle: Oracle) -> int:
    left = excess(p, q, scale)
    return oracle.draw(left if left.mass > 0 else p)  # no mass: equal laws, told apart by rounding alone


def _bonus(own: Sequence[Law], place: int, oracle: Oracle) -> int | None:
    return oracle.draw(own[place]) if place < len(own) else None
