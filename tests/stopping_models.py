"""Ladders whose answers' signals follow a known law, and what a policy is worth on them: computed, not simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from hypothesis import strategies as st

from stepladder.contracts import Policy
from stepladder.policies.laws import law_of
from stepladder.testing import make_attempt, make_view
from stepladder.types import Call, Cost, Estimate, Estimates, Stop, View

Signals = tuple[int, ...]
"""The signal of each stage."""


@dataclass(frozen=True, slots=True)
class Model:
    """What may happen to one request: ``values[i][signal]`` is the posterior mean of stage i after its own answer.

    ``chance`` is that of all signals together; None where they are independent and equally likely.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    chance: dict[Signals, float] | None = None

    def given(self, seen: dict[int, int]) -> dict[Signals, float]:
        """The chance of all signals once some were seen; sums to 1."""
        assert self.chance is not None
        fits = {all_: p for all_, p in self.chance.items() if all(all_[i] == s for i, s in seen.items())}
        total = sum(fits.values())
        return {all_: p / total for all_, p in fits.items()}

    def signals(self, stage: int, seen: dict[int, int]) -> Iterator[tuple[int, float]]:
        """What this stage's answer may say next, and how likely that is."""
        if self.chance is None:
            many = len(self.values[stage])
            yield from ((signal, 1.0 / many) for signal in range(many))
            return
        likely = self.given(seen)
        for signal in range(len(self.values[stage])):
            chance = sum(p for all_, p in likely.items() if all_[stage] == signal)
            if chance > 0:
                yield signal, chance

    def estimates(self, seen: dict[int, int]) -> Estimates:
        """What a perfect predictor says: known where a stage answered, else the moments of what its answer will say."""
        return Estimates({name: self._estimate(number, seen) for number, name in enumerate(self.names)})

    def _estimate(self, stage: int, seen: dict[int, int]) -> Estimate:
        if stage in seen:
            return Estimate(self.values[stage][seen[stage]])
        likely = list(self.signals(stage, seen))
        mean = sum(p * self.values[stage][s] for s, p in likely)
        told = sqrt(sum(p * (self.values[stage][s] - mean) ** 2 for s, p in likely))
        return Estimate(mean, told, told)


def independent(view: View, levels: int) -> Model:
    """The model that the policies themselves go by: independent signals, laws from mean and told."""
    return Model(view.stages, tuple(law_of(view.estimates[name], levels) for name in view.stages))


@dataclass(frozen=True, slots=True)
class Played:
    """Expected λ·Q − ΣC, expected quality, and how likely each stage is to be called."""

    worth: float
    quality: float
    calls: dict[str, float]


def play(policy: Policy, model: Model, view: View, *, told: bool = True) -> Played:
    """The policy on every course that the model allows, each weighed by its chance.

    With ``told`` the estimates move as the model says; the view's own estimates are those of stages not yet called
    otherwise, which is the same where signals are independent, and spares their rounding.
    """
    calls = dict.fromkeys(model.names, 0.0)
    quality = worth = 0.0
    stack: list[tuple[View, dict[int, int], float]] = [(view, {}, 1.0)]
    while stack:
        here, seen, chance = stack.pop()
        action = policy.decide(here).action
        if isinstance(action, Stop):
            kept = here.estimates[action.attempt.stage].mean
            quality, worth = quality + chance * kept, worth + chance * view.lam * kept
            continue
        assert isinstance(action, Call)
        stage = model.names.index(action.stage)
        assert stage not in seen
        calls[action.stage] += chance
        worth -= chance * view.costs[action.stage].total
        for signal, likely in model.signals(stage, seen):
            now = {**seen, stage: signal}
            known = model.estimates(now) if told else _own(here, action.stage, model.values[stage][signal])
            attempts = (*here.attempts, make_attempt(action.stage))
            stack.append((replace(here, attempts=attempts, estimates=known), now, chance * likely))
    return Played(worth, quality, calls)


def _own(view: View, stage: str, mean: float) -> Estimates:
    return Estimates({**view.estimates.stages, stage: Estimate(mean)})


# ── strategies ───────────────────────────────────────────────────────────────

SHARES = st.integers(0, 64).map(lambda n: n / 64)
PRICES = st.integers(0, 192).map(lambda n: n / 64)
LAMBDAS = st.integers(0, 160).map(lambda n: n / 8)


@st.composite
def telling_views(draw: st.DrawFn, least: int = 2, most: int = 4, *, tells: bool = True) -> View:
    """Views before any answer, on ladders whose answers will tell something, or nothing."""
    names = tuple(f"s{i}" for i in range(draw(st.integers(least, most))))
    quality = {name: _telling(draw(SHARES), draw(SHARES) if tells else 0.0) for name in names}
    costs = sorted(draw(st.lists(PRICES, min_size=len(names), max_size=len(names))))
    return make_view(quality, costs, lam=draw(LAMBDAS))


def _telling(mean: float, share: float) -> Estimate:
    told = share * sqrt(mean * (1.0 - mean))
    return Estimate(mean, told, told)


def with_cost(view: View, stage: str, cost: float) -> View:
    """The view with one stage at another price."""
    return replace(view, costs={**view.costs, stage: Cost(cost)})


def scaled(view: View, by: float) -> View:
    """The view with λ and all costs in another unit."""
    costs = {stage: Cost(cost.resource * by) for stage, cost in view.costs.items()}
    return replace(view, lam=view.lam * by, costs=costs)


def with_costs(view: View, costs: Sequence[float]) -> View:
    """The view at other prices."""
    return replace(view, costs={stage: Cost(cost) for stage, cost in zip(view.stages, costs, strict=True)})
