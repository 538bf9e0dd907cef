"""How much a caller may ask for: a token bucket for a rate, a purse for a budget. Time is an argument throughout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf

SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
SHORT = {"sec": "second", "min": "minute", "s": "second", "h": "hour", "d": "day"}
RATE_PERIODS = tuple(SECONDS)
BUDGET_PERIODS = ("hour", "day", "month", "total")

_QUOTA = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([a-z]+)\s*")


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount for each period, as in ``100/day``."""

    amount: float
    period: str

    def __str__(self) -> str:
        return f"{self.amount:.15g}/{self.period}"


def read_quota(text: str, periods: tuple[str, ...]) -> Quota:
    """``"60/min"`` → Quota. Raises ValueError that says what would be right."""
    found = _QUOTA.fullmatch(text)
    period = SHORT.get(found[2], found[2]) if found else ""
    if not found or period not in periods or not 0 < float(found[1]) < inf:
        raise ValueError(f"'{text}' should be a number above 0 and a period ({', '.join(periods)}), such as 100/day")
    return Quota(float(found[1]), period)


class TokenBucket:
    """Lets through at most ``amount`` at once and ``amount`` for each period after that; times in seconds.

    In any stretch of t seconds no more than amount + amount · t / period are let through.
    """

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self.size = max(1.0, quota.amount)  # below one a period, a single request must still come through some time
        self.per_s = quota.amount / SECONDS[quota.period]
        self._level = self.size
        self._at = now

    def take(self, now: float) -> float:
        """0 where there was a token, which is then taken; else the seconds until there will be one."""
        level = self._refill(now)
        if level >= 1.0:
            self._level = level - 1.0
            return 0.0
        return (1.0 - level) / self.per_s

    @property
    def left(self) -> int:
        """Whole tokens that there were after the last ``take``."""
        return int(self._level)

    @property
    def full_in(self) -> float:
        """Seconds from the last ``take`` until the bucket is full again."""
        return (self.size - self._level) / self.per_s

    def _refill(self, now: float) -> float:
        if now > self._at:  # a clock that steps back fills nothing
            self._level = min(self.size, self._level + (now - self._at) * self.per_s)
            self._at = now
        return self._level


class Purse:
    """A budget in a ladder's cost unit for each calendar period, in UTC; times in seconds since the epoch.

    A request reserves what it is expected to cost before it begins and settles what it was billed after. ``reserve``
    never lets spent + reserved pass the budget, so what is spent passes it by no more than the requests then under way
    were billed above what they had reserved. What is reserved outlives the turn of a period: it is spent in the one in
    which it is billed.
    """

    def __init__(self, quota: Quota, *, spent: float = 0.0, since: float = -inf) -> None:
        self.quota = quota
        self.spent = spent
        self.reserved = 0.0
        self.since = since
        """When the period began that ``spent`` belongs to."""
        self._ends = period_of(quota.period, since)[1] if since > -inf else -inf
        self._open = 0

    def room(self, now: float) -> float:
        """What can still be reserved; below 0 where more was billed than expected."""
        self._turn(now)
        return self.quota.amount - self.spent - self.reserved

    def reserve(self, amount: float, now: float) -> bool:
        """Set ``amount`` aside; False, and nothing set aside, where there is no room for it."""
        if amount > self.room(now):
            return False
        self.reserved += amount
        self._open += 1
        return True

    def settle(self, reserved: float, cost: float, now: float) -> None:
        """Give back what one request had reserved and spend what it was billed."""
        self._turn(now)
        self._open -= 1
        self.reserved = self.reserved - reserved if self._open else 0.0  # no rounding is carried on
        self.spent += cost

    def change(self, quota: Quota) -> None:
        """Another budget from now on. What was spent counts on where the period is the same one."""
        if quota.period != self.quota.period:
            self.since = self._ends = -inf
        self.quota = quota

    def resets_in(self, now: float) -> float | None:
        """Seconds until the next period, None where there is none."""
        self._turn(now)
        return None if self._ends == inf else self._ends - now

    def _turn(self, now: float) -> None:
        if now >= self._ends:  # only forward: a clock that steps back must not open a new purse
            self.since, self._ends = period_of(self.quota.period, now)
            self.spent = 0.0


def period_of(period: str, now: float) -> tuple[float, float]:
    """When the calendar period of ``now`` began and when it ends, in UTC; ``total`` has neither begin nor end."""
    if period == "total":
        return 0.0, inf
    moment = datetime.fromtimestamp(now, UTC)
    begin = moment.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return begin.timestamp(), (begin + timedelta(hours=1)).timestamp()
    begin = begin.replace(hour=0)
    if period == "day":
        return begin.timestamp(), (begin + timedelta(days=1)).timestamp()
    begin = begin.replace(day=1)
    return begin.timestamp(), (begin + timedelta(days=32)).replace(day=1).timestamp()
