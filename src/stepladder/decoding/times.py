"""How long a forward pass of a stage takes, learned from the passes that were made."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Upper ends of the groups of widths; narrow passes, which plans turn on, stand alone or in pairs."""

WINDOW = 31
"""Passes of a bucket that count. Their middle half is averaged: spikes never move it, a lasting change does after 8."""

SLOPE = 0.1
"""Before a second width was seen: every further token costs this share of the pass that was seen. Dear for a GPU, so
that wide passes are tried step by step and not believed to be free."""

NARROWEST = 0.5
"""A curve says nothing of widths below this share of the narrowest that was seen: a prompt of 500 tokens tells nothing
of one token."""


class StepTimes:
    """T(stage, width, batch) in seconds: middle means per bucket of widths, linear between, never falling in the width.

    ``width`` counts the tokens fed per row, ``batch`` the rows of the pass. A batch that was not seen borrows the curve
    of the nearest one at the width of equal tokens in all (width · batch), since that is what matrix products see.
    Times are taken as they come: the length of the context is no variable, so they follow it as fast as the window.

    Cost: some microseconds an observation; a curve is drawn anew only when it is asked for after one.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, int], dict[int, _Bucket]] = {}
        self._curves: dict[tuple[int, int], _Curve] = {}

    def observe(self, stage: int, width: int, batch: int, seconds: float) -> None:
        """Learn from a pass; one without tokens or without a positive, finite time says nothing."""
        if width < 1 or batch < 1 or not 0.0 < seconds < float("inf"):
            return
        key = (stage, batch)
        buckets = self._buckets.setdefault(key, {})
        place = bisect_left(BUCKETS, width)
        bucket = buckets.get(place)
        if bucket is None:
            bucket = buckets[place] = _Bucket()
        bucket.observe(width, seconds)
        self._curves.pop(key, None)

    def seconds(self, stage: int, width: int, batch: int = 1) -> float | None:
        """Expected seconds of a pass, None where nothing that was seen tells."""
        own = self._curve(stage, batch)
        if own is not None and own.first <= width <= own.last:
            return own.at(width)
        other = self._nearest(stage, batch)
        if other is None:
            return None if own is None else own.beyond(width)
        return _borrowed(own, self._curves_of(stage, other), width, batch / other)

    def known(self, stage: int, width: int, batch: int = 1) -> bool:
        """True where a pass of this width (its bucket) and batch was seen."""
        return bisect_left(BUCKETS, width) in self._buckets.get((stage, batch), {})

    def _nearest(self, stage: int, batch: int) -> int | None:
        """The other batch nearest by ratio, the smaller of two equally near."""
        others = [seen for at, seen in self._buckets if at == stage and seen != batch]
        return min(others, key=lambda seen: (max(seen / batch, batch / seen), seen), default=None)

    def _curve(self, stage: int, batch: int) -> _Curve | None:
        return self._curves_of(stage, batch) if (stage, batch) in self._buckets else None

    def _curves_of(self, stage: int, batch: int) -> _Curve:
        key = (stage, batch)
        curve = self._curves.get(key)
        if curve is None:
            curve = self._curves[key] = _Curve([self._buckets[key][place] for place in sorted(self._buckets[key])])
        return curve


class _Bucket:
    """The last passes of about one width: their mean width, the mean of the middle half of their times."""

    __slots__ = ("_order", "_recent", "_width")

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque()
        self._order: list[float] = []
        self._width = 0

    def observe(self, width: int, seconds: float) -> None:
        if len(self._recent) == WINDOW:
            gone, old = self._recent.popleft()
            self._width -= gone
            del self._order[bisect_left(self._order, old)]
        self._recent.append((width, seconds))
        self._width += width
        insort(self._order, seconds)

    @property
    def width(self) -> float:
        return self._width / len(self._recent)

    @property
    def seconds(self) -> float:
        """Of two or three passes the lower middle one: the first may warm things up."""
        return middle(self._order)

    @property
    def count(self) -> int:
        return len(self._recent)


def middle(ordered: Sequence[float]) -> float:
    """Mean of the middle half of rising numbers, one at least; of two or three the lower middle one."""
    count = len(ordered)
    if count < 4:
        return ordered[(count - 1) // 2]
    half = ordered[count // 4 : count - count // 4]
    return sum(half) / len(half)


class _Curve:
    """Seconds over widths at one batch: points, linear between them."""

    __slots__ = ("_seconds", "_widths", "first", "last")

    def __init__(self, buckets: Sequence[_Bucket]) -> None:
        self._widths = [bucket.width for bucket in buckets]
        self._seconds = rising([bucket.seconds for bucket in buckets], [bucket.count for bucket in buckets])
        self.first, self.last = self._widths[0], self._widths[-1]

    def at(self, width: float) -> float:
        """Seconds at a width between the first and the last seen."""
        place = bisect_left(self._widths, width)
        if self._widths[place] == width:
            return self._seconds[place]
        low, high = self._widths[place - 1], self._widths[place]
        share = (width - low) / (high - low)
        return self._seconds[place - 1] + share * (self._seconds[place] - self._seconds[place - 1])

    def beyond(self, width: float) -> float | None:
        """Seconds at any width: on along the last slope above, level below; None far below."""
        if width <= self.last:
            if width >= self.first:
                return self.at(width)
            return self._seconds[0] if width >= NARROWEST * self.first else None
        return self._seconds[-1] + self._slope() * (width - self.last)

    def _slope(self) -> float:
        if len(self._widths) == 1:
            return SLOPE * self._seconds[0] / self.last
        (low, high), (before, after) = self._widths[-2:], self._seconds[-2:]
        return (after - before) / (high - low)


def _borrowed(own: _Curve | None, other: _Curve, width: int, scale: float) -> float | None:
    """Another batch's curve at equal tokens in all, brought to meet the own curve at its nearer end."""
    shape = other.beyond(max(width * scale, min(other.first, 1.0)))
    if own is None or shape is None:
        return shape if own is None else own.beyond(width)
    end = own.first if width < own.first else own.last
    base = other.beyond(max(end * scale, min(other.first, 1.0)))
    if base is None:
        return own.beyond(width)
    level = own.at(end)
    return min(level, level * shape / base) if width < end else max(level, level * shape / base)


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The never falling sequence nearest to ``values`` by weighted squares (pool adjacent violators).

    Source: M. Ayer et al., "An empirical distribution function for sampling with incomplete information", Annals of
    Mathematical Statistics 26 (1955).
    """
    if all(low <= high for low, high in pairwise(values)):
        return list(values)
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        level, mass, size = value, float(weight), 1
        while blocks and blocks[-1][0] > level:
            before, heavy, many = blocks.pop()
            level = (before * heavy + level * mass) / (heavy + mass)
            mass, size = mass + heavy, size + many
        blocks.append((level, mass, size))
    return [level for level, _, size in blocks for _ in range(size)]
