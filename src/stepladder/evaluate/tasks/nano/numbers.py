"""Families "arithmetic", "expressions" and "units". Longer sums are answered with their steps, the result last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import NamedTuple

from stepladder.evaluate.tasks import Level

from .draft import Draft
from .wording import phrase

_NAMES = "Ann Bob Carl Dora Emma Finn Grace Hugo Ida Jack Kate Leo Mia Nick Olga Paul Rosa Sam Tina Vera Will Zoe"
_ITEMS = "apples books pens cards coins eggs nuts stamps shells stones keys cups balls toys plums pears beans nails"
NAMES = tuple(_NAMES.split())
ITEMS = tuple(_ITEMS.split())
# A worked answer must stay short: one digit is one token.
_LONGEST_ANSWER = 44
_STORY_KIND = {"+": "story_gain", "-": "story_lose", "*": "story_times", "/": "story_share"}


class Step(NamedTuple):
    """One operation on the running result: `op` is one of + - * /, `n` its right operand."""

    op: str
    n: int


def arithmetic(rng: Random, level: Level) -> Draft:
    """Worded sums: one step (simple), two (medium), three or four (complex)."""
    if level == "simple":
        return _one_step(rng)
    start, steps = _chain(rng, level)
    group = f"arithmetic:{start}" + "".join(f"{step.op}{step.n}" for step in steps)
    render = partial(_story, {"name": rng.choice(NAMES), "item": rng.choice(ITEMS)}, start, steps)
    return Draft(render, _worked(start, steps), "numeric", group)


def _one_step(rng: Random) -> Draft:
    op = rng.choice("+-")
    a, b = rng.randint(1, 40), rng.randint(1, 40)
    if op == "-" and b > a:
        a, b = b, a
    answer = str(a + b if op == "+" else a - b)
    group = f"arithmetic:{a}{op}{b}"
    if rng.random() < 0.5:
        render = partial(_story, {"name": rng.choice(NAMES), "item": rng.choice(ITEMS)}, a, (Step(op, b),))
        return Draft(render, answer, "numeric", group)
    slots = {"a": str(a), "b": str(b)}
    return Draft(partial(_sum, "plus" if op == "+" else "minus", slots), answer, "numeric", group)


def _sum(kind: str, slots: dict[str, str], rng: Random, heldout: bool) -> str:
    return phrase(rng, kind, heldout, slots)


def _story(slots: dict[str, str], start: int, steps: Sequence[Step], rng: Random, heldout: bool) -> str:
    parts = [phrase(rng, "story_start", heldout, {**slots, "n": str(start)})]
    parts += [phrase(rng, _STORY_KIND[step.op], heldout, {**slots, "n": str(step.n)}) for step in steps]
    return " ".join([*parts, phrase(rng, "story_ask", heldout, slots)])


def _chain(rng: Random, level: Level) -> tuple[int, tuple[Step, ...]]:
    """A start and steps whose results stay whole, positive and, worked out, short enough."""
    while True:
        count = 2 if level == "medium" else rng.choice((3, 3, 4))
        start = rng.randint(2, 60 if level == "medium" else 250)
        steps: list[Step] = []
        value = start
        for _ in range(count):
            step = _step(rng, value, level)
            value = apply(value, step)
            steps.append(step)
        if len(_worked(start, steps)) <= _LONGEST_ANSWER:
            return start, tuple(steps)


def _step(rng: Random, value: int, level: Level) -> Step:
    most = 60 if level == "medium" else 300
    op = rng.choice("++--**/" if level == "complex" else "++--*")
    if op == "/":
        divisors = [n for n in range(2, 10) if value % n == 0 and value > n]
        return Step("/", rng.choice(divisors)) if divisors else Step("+", rng.randint(2, most))
    if op == "*":
        top = 5 if level == "medium" else 9
        return Step("*", rng.randint(2, top)) if value * top < 1000 else Step("-", rng.randint(2, value - 1))
    if op == "-" and value > 3:
        return Step("-", rng.randint(2, min(value - 1, most)))
    return Step("+", rng.randint(2, most))


def apply(value: int, step: Step) -> int:
    """The result of one step; division must leave no rest."""
    results = {"+": value + step.n, "-": value - step.n, "*": value * step.n, "/": value // step.n}
    return results[step.op]


def _worked(start: int, steps: Sequence[Step]) -> str:
    lines: list[str] = []
    value = start
    for step in steps:
        result = apply(value, step)
        lines.append(f"{value}{step.op}{step.n}={result}")
        value = result
    return "; ".join(lines)


def expressions(rng: Random, level: Level) -> Draft:
    """Expressions: one sum (simple), three operands (medium), four or five with brackets (complex)."""
    if level == "simple":
        a, b = rng.randint(1, 60), rng.randint(1, 60)
        op = rng.choice("+-")
        text = f"{max(a, b)}{op}{min(a, b)}" if op == "-" else f"{a}{op}{b}"
        answer = str(abs(a - b) if op == "-" else a + b)
        return Draft(partial(_expression, text), answer, "numeric", f"expressions:{text}")
    text, answer = _tree(rng, level)
    return Draft(partial(_expression, text), answer, "numeric", f"expressions:{text}")


def _expression(text: str, rng: Random, heldout: bool) -> str:
    if rng.random() < 0.5:
        for op in "+-*":
            text = text.replace(op, f" {op} ")
    return phrase(rng, "evaluate", heldout, {"e": text})


class Node(NamedTuple):
    """A sub-expression: its text, its value, how tightly its top operator binds, and the steps that work it out."""

    text: str
    value: int
    binding: int
    steps: tuple[str, ...]


_BINDING = {"+": 1, "-": 1, "*": 2}
_LEAF_BINDING = 3


def _tree(rng: Random, level: Level) -> tuple[str, str]:
    """An expression and its worked answer, all values between 0 and 999."""
    while True:
        count = 3 if level == "medium" else rng.choice((4, 4, 5))
        node = _node(rng, count, 20 if level == "medium" else 60)
        answer = "; ".join(node.steps)
        results = [int(step.split("=")[1]) for step in node.steps]
        if min(results) >= 0 and max(results) <= 999 and len(answer) <= _LONGEST_ANSWER:
            return node.text, answer


def _node(rng: Random, leaves: int, most: int) -> Node:
    if leaves == 1:
        value = rng.randint(1, most)
        return Node(str(value), value, _LEAF_BINDING, ())
    cut = rng.randint(1, leaves - 1)
    return _joined(_node(rng, cut, most), rng.choice("++--**"), _node(rng, leaves - cut, most))


def _joined(left: Node, op: str, right: Node) -> Node:
    binding = _BINDING[op]
    # The right operand of a minus needs brackets around a sum, too; doing so for every operator keeps one plain rule.
    left_text = f"({left.text})" if left.binding < binding else left.text
    right_text = f"({right.text})" if right.binding <= binding else right.text
    values = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    line = f"{left.value}{op}{right.value}={values[op]}"
    return Node(f"{left_text}{op}{right_text}", values[op], binding, (*left.steps, *right.steps, line))


class Unit(NamedTuple):
    """1 `big` = `factor` `small`."""

    big: str
    small: str
    factor: int


_TENS = (
    Unit("metres", "centimetres", 100),
    Unit("km", "metres", 1000),
    Unit("kg", "grams", 1000),
    Unit("litres", "ml", 1000),
    Unit("cm", "mm", 10),
    Unit("grams", "mg", 1000),
    Unit("euros", "cents", 100),
    Unit("tonnes", "kg", 1000),
)
_OTHERS = (
    Unit("hours", "minutes", 60),
    Unit("minutes", "seconds", 60),
    Unit("days", "hours", 24),
    Unit("weeks", "days", 7),
    Unit("feet", "inches", 12),
    Unit("yards", "feet", 3),
    Unit("years", "months", 12),
    Unit("dozens", "pieces", 12),
)


def units(rng: Random, level: Level) -> Draft:
    """Conversions by powers of ten (simple), by others or into fractions (medium), in several steps (complex)."""
    if level == "simple":
        unit, n = rng.choice(_TENS), rng.randint(2, 200)
        return _conversion(str(n), unit.big, unit.small, str(n * unit.factor))
    if level == "medium" and rng.random() < 0.6:
        unit, n = rng.choice(_OTHERS), rng.randint(2, 90)
        return _conversion(str(n), unit.big, unit.small, str(n * unit.factor))
    if level == "medium":
        unit, n = rng.choice(_TENS), rng.randint(11, 990)
        return _conversion(str(n * unit.factor // 10), unit.small, unit.big, f"{n / 10:g}")
    return rng.choice((_clock, _lengths, _celsius, _distance))(rng)


def _conversion(n: str, frm: str, to: str, answer: str) -> Draft:
    slots = {"n": n, "frm": frm, "to": to}
    return Draft(partial(_sum, "convert", slots), answer, "numeric", f"units:{n} {frm}>{to}")


def _clock(rng: Random) -> Draft:
    hours, minutes = rng.randint(1, 12), rng.randint(1, 59)
    total = hours * 60 + minutes
    answer = f"{hours}*60={hours * 60}; {hours * 60}+{minutes}={total}; {total}*60={total * 60}"
    return _conversion(f"{hours} hours and {minutes}", "minutes", "seconds", answer)


def _lengths(rng: Random) -> Draft:
    feet, inches, more = rng.randint(2, 40), rng.randint(1, 11), rng.randint(12, 99)
    total = feet * 12 + inches
    answer = f"{feet}*12={feet * 12}; {feet * 12}+{inches}={total}; {total}+{more}={total + more}"
    return _conversion(f"{feet} feet {inches} inches plus {more}", "inches", "inches", answer)


def _celsius(rng: Random) -> Draft:
    degrees = 5 * rng.randint(1, 80)
    ninefold = degrees * 9
    answer = f"{degrees}*9={ninefold}; {ninefold}/5={ninefold // 5}; {ninefold // 5}+32={ninefold // 5 + 32}"
    return _conversion(str(degrees), "degrees Celsius", "Fahrenheit", answer)


def _distance(rng: Random) -> Draft:
    speed, hours, part = 12 * rng.randint(1, 12), rng.randint(2, 9), rng.choice((2, 3, 4, 6))
    whole, rest = speed * hours, speed // part
    answer = f"{speed}*{hours}={whole}; {speed}/{part}={rest}; {whole}+{rest}={whole + rest}"
    slots = {"v": str(speed), "hours": str(hours), "minutes": str(60 // part)}
    return Draft(partial(_sum, "distance", slots), answer, "numeric", f"units:{speed}x{hours}:{60 // part}")
