"""Family "dates": days before, after and between dates, and weekdays."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
from random import Random

from stepladder.evaluate.tasks import Level

from .draft import Draft
from .wording import phrase

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FIRST = date(2015, 1, 1)
_SPAN = 16 * 365


def dates(rng: Random, level: Level) -> Draft:
    """A few days within a month (simple), over month ends (medium), many days, differences and weekdays (complex)."""
    if level == "simple":
        return _within_month(rng)
    start = _FIRST + timedelta(days=rng.randrange(_SPAN))
    if level == "medium":
        return _moved(start, rng.randint(5, 40) * rng.choice((-1, 1)))
    roll = rng.random()
    if roll < 0.4:
        return _moved(start, rng.randint(41, 250) * rng.choice((-1, 1)))
    other = start + timedelta(days=rng.randint(20, 120))
    return _between(start, other) if roll < 0.7 else _weekday(start, other)


def spoken(day: date, year: bool = True) -> str:
    """A date in words, such as "5 March 2021"."""
    return f"{day.day} {MONTHS[day.month - 1]}" + (f" {day.year}" if year else "")


def _within_month(rng: Random) -> Draft:
    # 28 days: the question gives no year, so 29 February must not matter.
    month, low = rng.randrange(12), rng.randint(1, 27)
    high = min(28, low + rng.randint(1, 9))
    first, last = f"{low} {MONTHS[month]}", f"{high} {MONTHS[month]}"
    if rng.random() < 0.5:
        return _draft("date_after", {"date": first, "n": str(high - low)}, last)
    return _draft("date_before", {"date": last, "n": str(high - low)}, first)


def _moved(start: date, days: int) -> Draft:
    kind = "date_after" if days > 0 else "date_before"
    return _draft(kind, {"date": spoken(start), "n": str(abs(days))}, spoken(start + timedelta(days=days)))


def _between(start: date, other: date) -> Draft:
    slots = {"date": spoken(start), "other": spoken(other)}
    return _draft("days_between", slots, str((other - start).days))


def _weekday(start: date, other: date) -> Draft:
    slots = {"date": spoken(start), "other": spoken(other), "day": WEEKDAYS[start.weekday()]}
    return _draft("weekday", slots, WEEKDAYS[other.weekday()])


def _draft(kind: str, slots: dict[str, str], answer: str) -> Draft:
    return Draft(partial(_render, kind, slots), answer, "exact", ":".join(["dates", kind, *slots.values()]))


def _render(kind: str, slots: dict[str, str], rng: Random, heldout: bool) -> str:
    return phrase(rng, kind, heldout, slots)
