"""A baseline: a stage drawn by the view's coin; also the way to gather traces whose propensities are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any

from stepladder.errors import UsageError, refuse_unknown
from stepladder.policies.candidates import answers, give_up, last_fault, untried
from stepladder.types import Call, Decision, Fail, Fault, Stop, View, absence_fault

OPTIONS = ("stages", "weights", "target_cost", "costs")


class RandomSplitPolicy:
    """Calls one of ``stages`` with probability in proportion to its weight, and keeps its answer.

    Where that fails, it draws once more among those of them that it has not called, until one answers: it is also put
    before real requests. Each step's propensity is that of its own draw.

    Give ``weights`` (one for each stage, not negative), or ``target_cost`` with the ``costs`` of the stages, from
    which the weights follow (``split_for_cost``); with neither, all are equally likely. Where only some of the stages
    are allowed the draw is among those. The decision's propensity is the probability that the draw really had.

    Raises UsageError for settings that give no distribution, and for options that it does not have.
    """

    name = "random-split"

    def __init__(
        self,
        *,
        stages: Sequence[str] = (),
        weights: Sequence[float] | None = None,
        target_cost: float | None = None,
        costs: Sequence[float] | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown("policy 'random-split'", unknown, OPTIONS)
        if isinstance(stages, str) or not stages or len(set(stages)) != len(stages):
            raise UsageError("policy 'random-split' needs 'stages', each named once")
        self.weights = dict(zip(stages, _weights(stages, weights, target_cost, costs), strict=True))

    def decide(self, view: View) -> Decision:
        """The next action."""
        answered = answers(view)
        if answered:
            return Decision(Stop(answered[-1]), reason=f"{answered[-1].stage} answered")
        return self._draw(view)

    def _draw(self, view: View) -> Decision:
        left = untried(view)
        weights = {stage: weight for stage, weight in self.weights.items() if weight > 0 and stage in left}
        if not weights and last_fault(view) is not None:
            return give_up(view)
        if not weights and (away := {name: view.absent[name] for name in self.weights if name in view.absent}):
            return Decision(Fail(absence_fault(away)), reason="none of its stages can take a call now")
        if not weights:
            message = f"none of the stages {', '.join(self.weights)} may take this request"
            return Decision(Fail(Fault("bad_request", message)), reason="none of its stages is allowed")
        stage = draw(weights, view.coin)
        chance = weights[stage] / sum(weights.values())
        values = {name: view.value(name) for name in weights}
        return Decision(Call(stage, final=True), chance, values, f"{stage}, drawn with probability {chance:.3g}")


def draw(weights: Mapping[str, float], coin: float) -> str:
    """The name that a coin in [0, 1) falls on, where each name takes a share in proportion to its weight (> 0)."""
    place = coin * sum(weights.values())
    for name, weight in weights.items():
        if place < weight:
            return name
        place -= weight
    return next(reversed(list(weights)))


def split_for_cost(costs: Sequence[float], target: float) -> tuple[float, ...]:
    """Probabilities of the stages under which the mean cost is ``target``: a mix of the two costs around it.

    For the paper's "Fixed 13B→70B" at cost 1.60 (§4.2, costs 1.0 and 1.8) that is (0.25, 0.75). Its "Fixed 13B→34B" at
    1.36 cannot be had from costs 1.0 and 1.3. Raises UsageError for a target outside the costs.
    """
    if not costs or not all(_is_number(number) for number in (*costs, target)):
        raise UsageError("a split needs costs and a target that are finite numbers")
    if not min(costs) <= target <= max(costs):
        told = ", ".join(f"{float(cost):g}" for cost in costs)
        raise UsageError(
            f"no split of stages that cost {told} has the mean cost {float(target):g}: it lies outside them"
        )
    low = max(cost for cost in costs if cost <= target)
    high = min(cost for cost in costs if cost >= target)
    weights: list[float] = [0] * len(costs)  # whole numbers, so that fractions stay exact
    share = 1 if high == low else (high - target) / (high - low)
    weights[costs.index(low)] += share
    weights[costs.index(high)] += 1 - share
    return tuple(weights)


def _weights(
    stages: Sequence[str], weights: Sequence[float] | None, target: float | None, costs: Sequence[float] | None
) -> Sequence[float]:
    if weights is not None and target is not None:
        raise UsageError("policy 'random-split' takes 'weights' or 'target_cost', not both")
    if target is not None:
        return split_for_cost(_as_many(costs, stages, "costs"), target)
    chosen = [1.0] * len(stages) if weights is None else _as_many(weights, stages, "weights")
    if not all(_is_number(weight) and weight >= 0 for weight in chosen) or sum(chosen) <= 0:
        raise UsageError("policy 'random-split': 'weights' should be numbers from 0 up, not all 0")
    return chosen


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


def _as_many(numbers: Any, stages: Sequence[str], what: str) -> Sequence[float]:
    if not isinstance(numbers, Sequence) or len(numbers) != len(stages):
        raise UsageError(f"policy 'random-split' needs '{what}', one number for each of {', '.join(stages)}")
    return numbers
