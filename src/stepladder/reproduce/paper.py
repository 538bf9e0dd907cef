"""What the paper states (tables 4.1 to 4.4), and the arithmetic that marks which of it cannot be so.

Every contradiction is computed from the paper's own numbers; a finding that the arithmetic does not bear out is not
made. Costs are relative to 13B, latencies milliseconds, shares and qualities from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import NamedTuple

from stepladder.costs.fixed import VECTORS
from stepladder.errors import UsageError
from stepladder.policies.random_split import split_for_cost
from stepladder.predictors.complexity import PAPER_PROMPTS
from stepladder.predictors.matrix import PAPER_MATRIX

STAGES = ("13B", "34B", "70B")
COSTS = VECTORS["paper"]
LATENCY_MS = (640.0, 1050.0, 1900.0)
"""§3.2."""

LAMBDAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""§3.3."""

R2 = 0.489
"""§4.4, on 100,000 samples."""

COMPLEX_70B = 0.92
"""§2.1: the quality of 70B on complex prompts; the matrix of §2.2.3 has another."""

GREATEST_SAVING = 0.51
"""§5.1.1, "theoretical maximum efficiency"."""

MEDIUM_SHARES = (0.75, 0.25, 0.0)
"""Table 4.3, medium prompts."""

FIRST_70B = 20.0
"""Table 4.3: λ at which 70B is first used."""


class Shares(NamedTuple):
    """A line of table 4.1: shares of the stages, and the mean cost."""

    shares: tuple[float, float, float]
    cost: float


class Method(NamedTuple):
    """A line of table 4.2; ``better`` is what the adaptive method is said to gain on it in speed, cost and quality."""

    ms: float
    cost: float
    quality: float
    better: tuple[float, float, float] | None = None


TABLE_41: Mapping[float, Shares] = {
    0.5: Shares((1.0, 0.0, 0.0), 1.00),
    1.0: Shares((1.0, 0.0, 0.0), 1.00),
    2.0: Shares((1.0, 0.0, 0.0), 1.00),
    5.0: Shares((0.40, 0.60, 0.0), 1.30),
    10.0: Shares((0.30, 0.50, 0.20), 1.42),
    20.0: Shares((0.15, 0.45, 0.40), 1.65),
}

ADAPTIVE = "Adaptive"
TABLE_42: Mapping[str, Method] = {
    ADAPTIVE: Method(879, 1.30, 0.936),
    "13B Only": Method(660, 1.00, 0.718, (-0.33, -0.30, 0.30)),
    "34B Only": Method(1062, 1.30, 0.844, (0.17, 0.0, 0.11)),
    "70B Only": Method(1921, 1.80, 0.915, (0.54, 0.28, 0.02)),
    "Fixed 13B→34B": Method(998, 1.36, 0.832, (0.12, 0.04, 0.12)),
    "Fixed 13B→70B": Method(1462, 1.60, 0.895, (0.40, 0.19, 0.05)),
}

TABLE_43: Mapping[str, str] = {
    "simple": "100 % 13B",
    "medium": "75 % 13B, 25 % 34B",
    "complex": "70B from λ = 20 on",
}

CHOSEN_LAMBDA = 5.0
"""§3.4: the λ of table 4.2."""


# ── arithmetic on the paper's own matrix ─────────────────────────────────────


class Point(NamedTuple):
    """Means over prompts; ``shares`` by stage."""

    shares: tuple[float, ...]
    cost: float
    quality: float
    ms: float


def greedy(lam: float, costs: Sequence[float] = COSTS) -> Point:
    """The paper's rule (§2.2.2) on its matrix (§2.2.3) and its ten prompts; the cheaper of equals, as its code does."""
    chosen = [_best(PAPER_MATRIX[level], costs, lam) for _, level in PAPER_PROMPTS]
    return _point(chosen, costs)


def single(stage: int, costs: Sequence[float] = COSTS) -> Point:
    """One stage on all ten prompts."""
    return _point([stage] * len(PAPER_PROMPTS), costs)


def _best(qualities: Sequence[float], costs: Sequence[float], lam: float) -> int:
    values = [lam * quality - cost for quality, cost in zip(qualities, costs, strict=True)]
    return values.index(max(values))


def _point(chosen: Sequence[int], costs: Sequence[float]) -> Point:
    n = len(chosen)
    return Point(
        tuple(chosen.count(stage) / n for stage in range(len(STAGES))),
        sum(costs[stage] for stage in chosen) / n,
        sum(PAPER_MATRIX[level][stage] for (_, level), stage in zip(PAPER_PROMPTS, chosen, strict=True)) / n,
        sum(LATENCY_MS[stage] for stage in chosen) / n,
    )


def most_quality(shares: Sequence[float]) -> float:
    """The highest mean quality on the matrix with these shares of the stages, whichever prompt gets which.

    Shares must be whole numbers of the ten prompts; the classes' prompts are alike, so counts by class are tried.
    """
    counts = [round(share * len(PAPER_PROMPTS)) for share in shares]
    levels = [level for _, level in PAPER_PROMPTS]
    return max(_point(way, COSTS).quality for way in _assignments(counts, levels))


def _assignments(counts: Sequence[int], levels: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """All ways, up to the order within a class, to give the prompts these numbers of stages."""
    parts = [list(combinations_with_replacement(range(len(STAGES)), levels.count(level))) for level in PAPER_MATRIX]
    for simple, medium, hard in product(*parts):
        way = (*simple, *medium, *hard)
        if [way.count(stage) for stage in range(len(STAGES))] == list(counts):
            yield way


def split_share(costs: Sequence[float], stated: float) -> float | None:
    """The share of the dearer of two stages under which their mean cost is as stated; None where none gives it."""
    try:
        return split_for_cost(costs, stated)[1]
    except UsageError:
        return None


def pipeline_share(stage: int) -> float | None:
    """The dearer stage's share that the stated cost of "Fixed 13B→…" (table 4.2) implies under the paper's costs."""
    return split_share((COSTS[0], COSTS[stage]), TABLE_42[f"Fixed 13B→{STAGES[stage]}"].cost)


def most_on(stage: int, share: float) -> float:
    """The highest mean quality on the matrix where ``stage`` answers this share of the prompts and 13B all others."""
    found, left = single(0).quality, share * len(PAPER_PROMPTS)
    for gain in sorted(
        (PAPER_MATRIX[level][stage] - PAPER_MATRIX[level][0] for _, level in PAPER_PROMPTS), reverse=True
    ):
        found += gain * max(min(left, 1.0), 0.0) / len(PAPER_PROMPTS)
        left -= 1
    return found


def climbed(stage: int) -> Point:
    """ "Fixed 13B→…" (table 4.2) as a cascade of its stated cost: 13B always, then ``stage`` for a share of prompts.

    ``quality`` is the most that it can reach on the matrix; latencies are table 4.2's.
    """
    first, then = TABLE_42["13B Only"], TABLE_42[f"{STAGES[stage]} Only"]
    cost = TABLE_42[f"Fixed 13B→{STAGES[stage]}"].cost
    share = (cost - COSTS[0]) / COSTS[stage]
    shares = tuple(1 - share if i == 0 else share * (i == stage) for i in range(len(STAGES)))
    return Point(shares, cost, most_on(stage, share), first.ms + share * then.ms)


def followed(method: Method) -> tuple[float, float, float]:
    """What table 4.2's own numbers give where its last column says what the adaptive method gains on ``method``.

    Below zero where it loses, and then relative to ``method``, as the paper reckons: 879 ms against 660 is "+33 %
    slower".
    """
    ours = TABLE_42[ADAPTIVE]
    speed = 1 - ours.ms / method.ms
    cost = 1 - ours.cost / method.cost
    return speed, cost, ours.quality / method.quality - 1


# ── findings ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that cannot be so: the cells that say it ("table:line:column"), and the arithmetic in words."""

    cells: tuple[str, ...]
    told: str


def findings() -> tuple[Finding, ...]:
    """Every contradiction that the arithmetic bears out, in the order of their notes (numbered from 1)."""
    return tuple(found for check in CHECKS for found in check())


def marks() -> Mapping[str, tuple[int, ...]]:
    """Cell → the numbers of its notes."""
    found: dict[str, tuple[int, ...]] = {}
    for number, finding in enumerate(findings(), start=1):
        for cell in finding.cells:
            found[cell] = (*found.get(cell, ()), number)
    return found


def _more_than_the_best() -> Iterator[Finding]:
    stated, most = TABLE_42[ADAPTIVE].quality, sum(max(PAPER_MATRIX[level]) for _, level in PAPER_PROMPTS) / 10
    if stated > most:
        yield Finding(
            (f"4.2:{ADAPTIVE}:quality", "4.2:70B Only:better"),
            f"quality {stated} is above {most:.3f}, the most that any choice of stages reaches on the matrix of §2.2.3 "
            f"(70B is best in every class{_single_rows()}): so no “+2.3 %” over 70B either",
        )


def _single_rows() -> str:
    """Why the matrix speaks of table 4.2 at all."""
    pairs = [(single(i).quality, TABLE_42[f"{name} Only"].quality) for i, name in enumerate(STAGES)]
    exact = all(abs(given - stated) < 0.0005 for given, stated in pairs)
    return "; the table's rows of single stages follow from it to the last digit" if exact else ""


def _most_with_these_shares() -> Iterator[Finding]:
    line, stated = TABLE_41[CHOSEN_LAMBDA], TABLE_42[ADAPTIVE].quality
    most = most_quality(line.shares)
    if stated > most:
        yield Finding(
            (f"4.2:{ADAPTIVE}:quality", "4.1:5:shares"),
            f"with the shares of λ = 5 ({_percent(line.shares)}) the matrix allows a quality of {most:.3f} at most, "
            f"not {stated}",
        )


def _complex_quality() -> Iterator[Finding]:
    other = PAPER_MATRIX["complex"][2]
    if other != COMPLEX_70B:
        yield Finding(
            ("2.1:complex:70B",), f"70B reaches {COMPLEX_70B} on complex prompts in §2.1, {other:.2f} in the matrix"
        )


def _first_use_of_70b() -> Iterator[Finding]:
    first = next(lam for lam, line in TABLE_41.items() if line.shares[2] > 0)
    if first != FIRST_70B:
        yield Finding(
            ("4.1:10:shares", "4.3:complex"),
            f"70B is first used at λ = {first:g} in table 4.1, at λ = {FIRST_70B:g} in table 4.3",
        )


def _impossible_saving() -> Iterator[Finding]:
    most = 1 - min(COSTS) / max(COSTS)
    if most < GREATEST_SAVING:
        yield Finding(
            ("5.1.1:saving",),
            f"{GREATEST_SAVING:.0%} cannot be saved where costs run from {min(COSTS):.1f} to {max(COSTS):.1f}: "
            f"1 − {min(COSTS):.1f}/{max(COSTS):.1f} = {most:.0%} at most",
        )


def _shares_without_their_cost() -> Iterator[Finding]:
    for lam, line in TABLE_41.items():
        given = mean_cost(line.shares)
        if abs(given - line.cost) > 0.005:
            cells = (f"4.1:{lam:g}:cost", *((f"4.2:{ADAPTIVE}:cost",) if lam == CHOSEN_LAMBDA else ()))
            terms = " + ".join(f"{share:.2f}·{cost:.1f}" for share, cost in zip(line.shares, COSTS, strict=True))
            yield Finding(cells, f"at λ = {lam:g} the shares give {terms} = {given:.3f}, not {line.cost:.2f}")


def mean_cost(shares: Sequence[float]) -> float:
    """Σ share · cost, at the paper's costs."""
    return sum(share * cost for share, cost in zip(shares, COSTS, strict=True))


def _shares_of_the_rule() -> Iterator[Finding]:
    for lam, line in TABLE_41.items():
        ruled = greedy(lam)
        if any(abs(one - other) > 1e-9 for one, other in zip(ruled.shares, line.shares, strict=True)):
            yield Finding(
                (f"4.1:{lam:g}:shares",),
                f"at λ = {lam:g} the rule of §2.2.2 on the matrix gives {_percent(ruled.shares)}: cost "
                f"{ruled.cost:.2f}, quality {ruled.quality:.3f}, {ruled.ms:,.0f} ms by §3.2{_ties(lam)}",
            )


def _ties(lam: float) -> str:
    """Classes for which the rule finds two stages worth the same, and takes the cheaper."""
    told = ""
    for level, qualities in PAPER_MATRIX.items():
        values = [lam * quality - cost for quality, cost in zip(qualities, COSTS, strict=True)]
        best = [name for name, value in zip(STAGES, values, strict=True) if value > max(values) - 1e-9]
        if len(best) > 1:
            told += f" ({level} prompts are worth the same on {' and '.join(best)}: the first is taken)"
    return told


def _parts_of_a_prompt() -> Iterator[Finding]:
    n = len(PAPER_PROMPTS)
    for lam, line in TABLE_41.items():
        if any(abs(share * n - round(share * n)) > 1e-9 for share in line.shares):
            yield Finding(
                (f"4.1:{lam:g}:shares",),
                f"{_percent(line.shares)} of {n} prompts are {' / '.join(f'{share * n:g}' for share in line.shares)}",
            )


def _parts_of_the_medium() -> Iterator[Finding]:
    medium = sum(level == "medium" for _, level in PAPER_PROMPTS)
    runs = medium * len(LAMBDAS)
    if any(abs(share * runs - round(share * runs)) > 1e-9 for share in MEDIUM_SHARES):
        yield Finding(
            ("4.3:medium",),
            f"75 % of {medium} medium prompts are {0.75 * medium:g}, and of their {runs} runs {0.75 * runs:g}",
        )
    simple = sum(level == "simple" for _, level in PAPER_PROMPTS) / len(PAPER_PROMPTS)
    least = simple + MEDIUM_SHARES[0] * medium / len(PAPER_PROMPTS)
    stated = TABLE_41[CHOSEN_LAMBDA].shares[0]
    if least > stated:
        yield Finding(
            ("4.3:medium", "4.1:5:shares"),
            f"all simple and 75 % of the medium prompts are {least:.1%} of all on 13B, not the {stated:.0%} of λ = 5; "
            f"no other λ of table 4.1 has that share, nor have all six together ({_all_lambdas(simple, medium)})",
        )


def _all_lambdas(simple: float, medium: int) -> str:
    """13B's share over the six λ of table 4.1, and how much of it are complex prompts where it takes all."""
    whole = sum(line.shares[0] for line in TABLE_41.values()) / len(TABLE_41)
    hard = 1 - simple - medium / len(PAPER_PROMPTS)
    taken = hard * sum(line.shares[0] == 1 for line in TABLE_41.values()) / len(TABLE_41)
    return f"{whole:.1%}, of which {taken:.1%} complex ones"


def _not_a_mix() -> Iterator[Finding]:
    for stage in (1, 2):
        name = f"Fixed 13B→{STAGES[stage]}"
        line, low, high = TABLE_42[name], COSTS[0], COSTS[stage]
        share = pipeline_share(stage)
        if share is None:
            yield Finding(
                (f"4.2:{name}:cost",),
                f"{line.cost:.2f} is no mix of {low:.1f} and {high:.1f}, and both together cost {low + high:.1f}"
                f"{_as_cascade(line, stage)}",
            )
        else:
            yield from _what_a_split_gives(name, line, stage, share)


def _what_a_split_gives(name: str, line: Method, stage: int, share: float) -> Iterator[Finding]:
    weak, strong = TABLE_42["13B Only"], TABLE_42[f"{STAGES[stage]} Only"]
    ms = (1 - share) * weak.ms + share * strong.ms
    quality = (1 - share) * weak.quality + share * strong.quality
    if abs(ms - line.ms) > 1 or abs(quality - line.quality) > 0.0005:
        both = COSTS[0] + COSTS[stage]
        yield Finding(
            (f"4.2:{name}:ms", f"4.2:{name}:quality"),
            f"cost {line.cost:.2f} means {share:.0%} on {STAGES[stage]} (both together cost {both:.1f}); that share "
            f"takes {ms:,.0f} ms at quality {quality:.3f} (drawn by chance; {most_on(stage, share):.3f} if the hardest "
            f"went there), not {line.ms:,.0f} ms at {line.quality}{_as_cascade(line, stage)}",
        )


def _as_cascade(line: Method, stage: int) -> str:
    """The third way to read a pipeline's cost: the dearer stage is asked after 13B, of some prompts."""
    found = climbed(stage)
    return (
        f"; {STAGES[stage]} after 13B for {found.shares[stage]:.0%} costs {line.cost:.2f} too, but takes "
        f"{found.ms:,.0f} ms at {found.quality:.3f} at the most, not {line.ms:,.0f} ms at {line.quality}"
    )


def _latency_of_the_shares() -> Iterator[Finding]:
    shares, stated = TABLE_41[CHOSEN_LAMBDA].shares, TABLE_42[ADAPTIVE].ms
    alone = [TABLE_42[f"{stage} Only"].ms for stage in STAGES]
    given = sum(share * ms for share, ms in zip(shares, alone, strict=True))
    other = sum(share * ms for share, ms in zip(shares, LATENCY_MS, strict=True))
    if abs(given - stated) > 1 and abs(other - stated) > 1:
        yield Finding(
            (f"4.2:{ADAPTIVE}:ms",),
            f"the shares of λ = 5 and the single stages' latencies give {given:,.0f} ms, not {stated:,.0f} "
            f"({other:,.0f} by §3.2), unless latencies hang much on the prompt",
        )


def _improvements() -> Iterator[Finding]:
    for name, line in TABLE_42.items():
        if line.better is None:
            continue
        given = followed(line)
        wrong = [
            f"{what} {value:+.1%}, not {said:+.0%}"
            for what, value, said in zip(("speed", "cost", "quality"), given, line.better, strict=True)
            if abs(value - said) > 0.0051
        ]
        if wrong:
            yield Finding((f"4.2:{name}:better",), f"against {name} the table's own numbers give {'; '.join(wrong)}")


def _percent(shares: Sequence[float]) -> str:
    return " / ".join(f"{share:.0%}" for share in shares)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _more_than_the_best,
    _most_with_these_shares,
    _complex_quality,
    _first_use_of_70b,
    _impossible_saving,
    _shares_without_their_cost,
    _shares_of_the_rule,
    _parts_of_a_prompt,
    _parts_of_the_medium,
    _not_a_mix,
    _latency_of_the_shares,
    _improvements,
)
