"""Family "logic": comparisons, who-is-taller chains and boolean expressions."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random
from typing import NamedTuple

from stepladder.evaluate.tasks import Level

from .draft import Draft
from .numbers import NAMES
from .wording import phrase

_COMPARISONS = (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("stronger", "weaker"))


def logic(rng: Random, level: Level) -> Draft:
    """Two numbers or two people (simple), three or four people or short expressions (medium), more (complex)."""
    if level == "simple":
        return rng.choice((_greater, _greater, _even, partial(_chain, 2, 2)))(rng)
    if level == "medium":
        return rng.choice((partial(_chain, 3, 4), partial(_boolean, 2, 3, 0.25)))(rng)
    return rng.choice((partial(_chain, 5, 7), partial(_boolean, 4, 6, 0.3)))(rng)


def _render(kind: str, slots: dict[str, str], rng: Random, heldout: bool) -> str:
    return phrase(rng, kind, heldout, slots)


def _draft(kind: str, slots: dict[str, str], answer: str) -> Draft:
    return Draft(partial(_render, kind, slots), answer, "exact", ":".join(["logic", kind, *slots.values()]))


def _greater(rng: Random) -> Draft:
    a, b = rng.sample(range(1, 100), 2)
    return _draft("greater", {"a": str(a), "b": str(b)}, "yes" if a > b else "no")


def _even(rng: Random) -> Draft:
    a = rng.randint(1, 999)
    return _draft("even", {"a": str(a)}, "yes" if a % 2 == 0 else "no")


def _chain(fewest: int, most: int, rng: Random) -> Draft:
    """People in an order, told pair by pair, in mixed order and from both sides; asked for one place."""
    people = rng.sample(NAMES, rng.randint(fewest, most))
    more, less = rng.choice(_COMPARISONS)
    told = [_told(rng, high, low, more, less) for high, low in pairwise(people)]
    rng.shuffle(told)
    ask, answer = rng.choice(_asks(people, more, less))
    return _draft("chain", {"facts": " ".join(told), "ask": ask}, answer)


def _told(rng: Random, high: str, low: str, more: str, less: str) -> str:
    return f"{high} is {more} than {low}." if rng.random() < 0.6 else f"{low} is {less} than {high}."


def _asks(people: list[str], more: str, less: str) -> list[tuple[str, str]]:
    if len(people) == 2:
        return [(more, people[0]), (less, people[1])]
    ends = [(f"the {_most(more)}", people[0]), (f"the {_most(less)}", people[-1])]
    return ends if len(people) < 5 else [*ends, (f"the second {_most(more)}", people[1])]


def _most(comparative: str) -> str:
    return comparative.removesuffix("r") + "st"


class Truth(NamedTuple):
    """A boolean expression: text, value, and whether it must be bracketed inside another one."""

    text: str
    value: bool
    compound: bool


def _boolean(fewest: int, most: int, negated: float, rng: Random) -> Draft:
    truth = _truth(rng, rng.randint(fewest, most), negated)
    return _draft("boolean", {"e": truth.text}, "true" if truth.value else "false")


def _truth(rng: Random, leaves: int, negated: float) -> Truth:
    if leaves == 1:
        value = rng.random() < 0.5
        node = Truth("true" if value else "false", value, False)
    else:
        cut, op = rng.randint(1, leaves - 1), rng.choice(("and", "or"))
        left, right = _truth(rng, cut, negated), _truth(rng, leaves - cut, negated)
        value = (left.value and right.value) if op == "and" else (left.value or right.value)
        node = Truth(f"{_bracketed(left)} {op} {_bracketed(right)}", value, True)
    return Truth(f"not {_bracketed(node)}", not node.value, True) if rng.random() < negated else node


def _bracketed(truth: Truth) -> str:
    return f"({truth.text})" if truth.compound else truth.text
