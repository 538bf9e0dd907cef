"""Which chain to run and how long its drafts should be: expected seconds per token from step times and acceptance.

Two levels: a verifier that asks for γ drafts takes τ = (γ·t + T(γ+1)) / N(γ) seconds per token with
N(γ) = 1 + S_1 + … + S_γ (Leviathan et al. 2211.17192, with survival per position instead of one α). In a chain each
level's τ is the price of a draft for the level above it, and the lengths can be chosen from the bottom up, because τ
rises with the price of drafts (HSD 2510.19705; Polybasic 2510.26527).

That rule takes levels to write a stream of tokens. They do not: a middle level writes the exact count it was asked for,
in rounds of its own, and its last rounds are short. ``_emission`` counts that: the expected seconds until exactly R
tokens stand, by recursion over what a round may write. Counted too: a stage whose drafts were all kept must read one
token more in its next pass, since its target wrote one behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stepladder.decoding.acceptance import NGRAM, products

LONGEST = 16
"""Longest draft that a plan may ask for, unless told otherwise."""

SWEEPS = 2
"""Times that the best chain's lengths are looked over again, one by one, after they were chosen from the bottom up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain to run: ``chain`` names the bottom drafter first (``NGRAM`` or a stage), the answering stage last.

    ``lengths[i]`` is the draft length asked of ``chain[i]``; there is one less than there are links, none for plain
    decoding. ``seconds_per_token`` is the forecast. ``paces[i]``: forecast seconds per token that ``chain[i]`` writes,
    whose last entry is ``seconds_per_token``; empty for a forced plan without a forecast. ``probe``: run to learn.
    ``cap``: longest draft to ask of the bottom drafter where it runs under the stopping rule that the planner made for
    this plan; 0 where that is ``lengths[0]`` too. ``own``: the length and the forecast are those of one answer.
    """

    chain: tuple[int, ...]
    lengths: tuple[int, ...] = ()
    seconds_per_token: float = float("inf")
    paces: tuple[float, ...] = ()
    probe: bool = False
    cap: int = 0
    own: bool = False

    @property
    def asks(self) -> tuple[int, ...]:
        """The lengths to ask for where the bottom drafter runs under the planner's stopping rule."""
        return (self.cap, *self.lengths[1:]) if self.cap else self.lengths

    @property
    def top(self) -> int:
        """The answering stage."""
        return self.chain[-1]

    @property
    def plain(self) -> bool:
        """True where nothing is drafted."""
        return len(self.chain) == 1


@dataclass(frozen=True, slots=True)
class Law:
    """What is believed of a pair: ``rates[k]`` = α_{k+1}, conditional acceptance at each position of a draft;
    ``offers[k]`` = the chance that a draft that may have k+1 tokens has them: n-grams often find none, and a draft
    that ends the answer is short (empty: always).
    """

    rates: Sequence[float]
    offers: Sequence[float] = ()

    def reach(self) -> list[float]:
        """A_0 … A_n: the chance that a round writes more than k tokens: offered and kept up to k, A_0 = 1."""
        survival = products(self.rates)
        if self.offers:
            survival = [kept * offered for kept, offered in zip(survival, self.offers, strict=False)]
        return [1.0, *survival]


@dataclass(frozen=True, slots=True)
class Ground:
    """All that a plan is computed from.

    ``steps[stage][w]``: seconds of a pass of w tokens, w up to ``longest`` + 2 (index 0 is not used); stages without a
    row are not planned with. ``laws[drafter, target]``; pairs without one are not planned with. ``overhead``: seconds
    beside each pass (host time between passes); ``beside``: seconds more for each round of a verifier, plain decoding's
    too.
    """

    steps: Mapping[int, Sequence[float]]
    laws: Mapping[tuple[int, int], Law]
    overhead: float = 0.0
    longest: int = LONGEST
    beside: float = 0.0
    reaches: dict[tuple[int, int], list[float]] = field(default_factory=dict, compare=False)

    def reach(self, pair: tuple[int, int]) -> list[float]:
        """The pair's ``Law.reach``, computed once."""
        found = self.reaches.get(pair)
        if found is None:
            found = self.reaches[pair] = self.laws[pair].reach()
        return found


@dataclass(frozen=True, slots=True)
class _Level:
    """The lower end of a chain: ``takes[r]`` = expected seconds until it wrote exactly r tokens; ``late`` = seconds
    more where it must read one token more first."""

    chain: tuple[int, ...]
    lengths: tuple[int, ...]
    paces: tuple[float, ...]
    takes: Sequence[float]
    late: float


def best_plan(top: int, ground: Ground, below: Sequence[int] = ()) -> Plan:
    """The quickest plan that ends in stage ``top``; plain where no chain is forecast to be quicker.

    ``below`` are the drafters allowed, ``NGRAM`` among them where it is. Raises KeyError for a ``top`` that the ground
    has no times of.
    """
    best = min(all_plans(top, ground, below), key=lambda plan: plan.seconds_per_token)
    return refined(best, ground) if len(best.chain) > 2 else best


def all_plans(top: int, ground: Ground, below: Sequence[int] = ()) -> list[Plan]:
    """Plain first, then every chain of drafters out of ``below``, each with the lengths chosen from the bottom up."""
    plans = [plain_plan(top, ground)]
    drafters = [stage for stage in sorted(below) if stage == NGRAM or (stage in ground.steps and stage < top)]
    levels = [level for level in _levels(drafters, ground) if (level.chain[-1], top) in ground.laws]
    return plans + [_topped(level, top, ground) for level in levels]


def plain_plan(top: int, ground: Ground) -> Plan:
    """One token a pass."""
    seconds = ground.steps[top][1] + ground.overhead + ground.beside
    return Plan((top,), (), seconds, (seconds,))


def priced(chain: Sequence[int], lengths: Sequence[int], ground: Ground) -> Plan:
    """The forecast for a chain with given lengths. Raises KeyError for stages or pairs that are not in the ground."""
    if len(chain) == 1:
        return plain_plan(chain[0], ground)
    level = _bottom(chain[0], ground)
    for stage, length in zip(chain[1:-1], lengths[:-1], strict=True):
        level = _raised(level, stage, length, ground)
    return _finished(level, chain[-1], lengths[-1], ground)


def fitted(chain: Sequence[int], ground: Ground) -> Plan:
    """The best lengths for a given chain. Raises KeyError as ``priced`` does."""
    if len(chain) == 1:
        return plain_plan(chain[0], ground)
    level = _bottom(chain[0], ground)
    for stage in chain[1:-1]:
        level = _raised(level, stage, _best_length(level, stage, ground), ground)
    return refined(_topped(level, chain[-1], ground), ground)


def for_reach(drafter: int, top: int, ground: Ground, reach: Sequence[float], factor: float = 1.0) -> Plan:
    """The best plan of a drafter and a top where drafts are kept as ``reach`` says, plain decoding included.

    ``factor``: what rounds with drafts take over what they are forecast to.
    """
    ground = replace(ground, reaches={(drafter, top): list(reach)})
    costs, plan, wrote = _rounds(_bottom(drafter, ground), top, ground), plain_plan(top, ground), 1.0
    for length in range(1, min(ground.longest, len(reach) - 1) + 1):
        wrote += reach[length]
        pace = factor * costs[length] / wrote
        if pace < plan.seconds_per_token:
            plan = Plan((drafter, top), (length,), pace, (ground.steps[drafter][1] + ground.overhead, pace), own=True)
    return plan


def refined(plan: Plan, ground: Ground) -> Plan:
    """Lengths chosen from the bottom up take each level for a stream; move each by one or two while that gains."""
    for _ in range(SWEEPS if len(plan.lengths) > 1 else 0):
        before = plan
        for place in range(len(plan.lengths) - 1):
            plan = _moved(plan, place, ground)
        if plan is before:
            break
    return plan


def _moved(plan: Plan, place: int, ground: Ground) -> Plan:
    """The plan with one length moved, and the top's length fitted to it, where that is quicker."""
    best = plan
    for step in (-2, -1, 1, 2):
        length = plan.lengths[place] + step
        if 1 <= length <= ground.longest:
            lengths = (*plan.lengths[:place], length, *plan.lengths[place + 1 :])
            level = _bottom(plan.chain[0], ground)
            for stage, each in zip(plan.chain[1:-1], lengths[:-1], strict=True):
                level = _raised(level, stage, each, ground)
            tried = _topped(level, plan.top, ground)
            if tried.seconds_per_token < best.seconds_per_token:
                best = tried
    return best


def _levels(drafters: Sequence[int], ground: Ground) -> Iterator[_Level]:
    """Every chain of the drafters, each built on the chain without its last link."""
    found: list[_Level] = []
    for stage in drafters:
        grown = [
            _raised(level, stage, _best_length(level, stage, ground), ground)
            for level in found
            if (level.chain[-1], stage) in ground.laws
        ]
        found += [_bottom(stage, ground), *grown]
    return iter(found)


def _bottom(stage: int, ground: Ground) -> _Level:
    """A drafter that writes a token a pass; n-grams write for nothing."""
    if stage == NGRAM:
        return _Level((NGRAM,), (), (0.0,), [0.0] * (ground.longest + 1), 0.0)
    steps = ground.steps[stage]
    pace = steps[1] + ground.overhead
    return _Level((stage,), (), (pace,), [pace * count for count in range(ground.longest + 1)], steps[2] - steps[1])


def _rounds(level: _Level, stage: int, ground: Ground) -> list[float]:
    """C(g): expected seconds of a round of ``stage`` that asks ``level`` for g tokens, g from 0."""
    steps, law = ground.steps[stage], ground.laws[level.chain[-1], stage]
    reach, takes, late = ground.reach((level.chain[-1], stage)), level.takes, level.late
    if not law.offers:
        fixed = ground.overhead + ground.beside
        return [fixed + takes[g] + steps[g + 1] + late * reach[g] for g in range(ground.longest + 1)]
    costs = [steps[1] + ground.overhead + ground.beside]
    for g in range(1, ground.longest + 1):
        more = takes[g] - takes[g - 1] + steps[g + 1] - steps[g]
        costs.append(costs[-1] + law.offers[g - 1] * more)
    return [cost + late * reach[g] for g, cost in enumerate(costs)]


def _best_length(level: _Level, stage: int, ground: Ground) -> int:
    costs, reach = _rounds(level, stage, ground), ground.reach((level.chain[-1], stage))
    wrote, best, length = 1.0, float("inf"), 1
    for g in range(1, ground.longest + 1):
        wrote += reach[g]
        if costs[g] < best * wrote:
            best, length = costs[g] / wrote, g
    return length


def _topped(level: _Level, top: int, ground: Ground) -> Plan:
    return _finished(level, top, _best_length(level, top, ground), ground)


def _finished(level: _Level, top: int, length: int, ground: Ground) -> Plan:
    reach = ground.reach((level.chain[-1], top))
    pace = _rounds(level, top, ground)[length] / sum(reach[: length + 1])
    return Plan((*level.chain, top), (*level.lengths, length), pace, (*level.paces, pace))


def _raised(level: _Level, stage: int, length: int, ground: Ground) -> _Level:
    """The level with a verifier on top that asks it for ``length`` tokens."""
    costs, reach = _rounds(level, stage, ground), ground.reach((level.chain[-1], stage))
    pace = costs[length] / sum(reach[: length + 1])
    steps = ground.steps[stage]
    late = steps[length + 2] - steps[length + 1]
    takes = _emission(costs, reach, length, ground.longest)
    return _Level((*level.chain, stage), (*level.lengths, length), (*level.paces, pace), takes, late)


def _emission(costs: Sequence[float], reach: Sequence[float], length: int, longest: int) -> list[float]:
    """E(R) = C(g) + Σ_n P(n) E(R−n) with g = min(length, R−1): seconds until exactly R tokens stand.

    A round writes n = 1 … g+1 tokens with P(n) = A_{n−1} − A_n, and g+1 with P = A_g.
    """
    takes = [0.0]
    shares = [reach[n] - reach[n + 1] for n in range(length)]
    for count in range(1, longest + 1):
        asked = min(length, count - 1)
        spent = costs[asked]
        for n in range(asked):
            spent += shares[n] * takes[count - 1 - n]
        takes.append(spent + reach[asked] * takes[count - 1 - asked])
    return takes


def corrected(plan: Plan, factor: float) -> Plan:
    """The plan with its forecast scaled by what was measured against it."""
    return replace(
        plan,
        seconds_per_token=plan.seconds_per_token * factor,
        paces=tuple(pace * factor for pace in plan.paces),
    )
