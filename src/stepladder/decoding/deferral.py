"""Token-level deferral: a drafted token that is good enough is kept, though the stage would rather write another.

Speculative cascades (Narasimhan et al., arXiv 2405.19261): a rule makes a law π of the stage's law p and the drafter's
q, and the drafts are verified against π instead of p. What comes out follows π exactly; how far π is from p is measured
and told. Off unless asked for: without it a chain is lossless.

Rules look at the models' laws at temperature 1 (appendix C.1 there); what is drawn from keeps its temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from stepladder.decoding.laws import Dense, Law, Point, peak, total_variation
from stepladder.errors import UsageError

RuleName = Literal["chow", "diff", "opt", "token"]
RULE_NAMES: Final = get_args(RuleName)


@dataclass(frozen=True, slots=True)
class Deferral:
    """A rule and its slack ``a`` ≥ 0: how much of the token's likelihood may be given up. 0 asks for the best.

    Under V = λ·Q − C, with quality and cost of an answer spread evenly over its tokens, a stage is worth asking for a
    token iff λ·(max p − max q) > C·TV(p, q): a draft is refused with probability TV, and then the stage has to write.
    That is rule ``opt`` with a = C/λ, where C is what an answer of the stage costs (``slack``).

    chow: keep q where max q ≥ 1 − a. diff: where max q ≥ max p − a. opt: where max q ≥ max p − a·TV(p, q). token: a
    drafted token v is kept where p(v) ≥ (1 − a)·max p, and the rest of q's mass goes to p.
    Raises UsageError for an unknown rule or a slack below 0.
    """

    rule: RuleName = "opt"
    slack: float = 0.1

    def __post_init__(self) -> None:
        if self.rule not in RULE_NAMES:
            raise UsageError(f"deferral: no rule '{self.rule}'; valid: {', '.join(RULE_NAMES)}")
        if not self.slack >= 0:
            raise UsageError(f"deferral: the slack should be a number from 0 up, not {self.slack!r}")

    def law(self, p: Law, q: Law, plain_p: Law, plain_q: Law) -> Law:
        """π for one position: ``p`` and ``q`` are what is sampled from, the plain ones what the models hold likely."""
        if self.rule == "token":
            return self._token(p, q, plain_p)
        return q if self._keeps(plain_p, plain_q) else p

    def _keeps(self, p: Law, q: Law) -> bool:
        if self.rule == "chow":
            return peak(q) >= 1 - self.slack
        allowed = self.slack * (total_variation(p, q) if self.rule == "opt" else 1.0)
        return peak(q) >= peak(p) - allowed

    def _token(self, p: Law, q: Law, plain_p: Law) -> Law:
        least = (1 - self.slack) * peak(plain_p)
        if isinstance(q, Point):
            return q if plain_p.prob(q.token) >= least else p
        good = _weights(plain_p, q) >= least
        kept = torch.where(good, q.weights, torch.zeros_like(q.weights))
        rest = float(q.weights.sum() - kept.sum())
        if isinstance(p, Point):
            kept[p.token] += rest
            return Dense(kept)
        return Dense(kept + p.weights * rest)


def slack(cost: float, lam: float) -> float:
    """a = C/λ: what an answer costs, in the unit of λ, over λ. Raises UsageError where λ is not above 0."""
    if not lam > 0:
        raise UsageError(f"deferral: under λ = {lam:g} quality is worth nothing; give a slack or a λ above 0")
    return cost / lam


def _weights(law: Law, like: Dense) -> torch.Tensor:
    if isinstance(law, Dense):
        return law.weights
    weights = torch.zeros_like(like.weights)
    weights[law.token] = law.mass
    return weights
