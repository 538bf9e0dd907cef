"""Numbers that Prometheus reads: families of counters, gauges and histograms, and their text format (0.0.4).

Written here and not taken from ``prometheus_client``, because everything is counted on one event loop: its locks and
its look-up of labels by name took 2.1 µs for each count where this takes 0.12 (docs/how-to/operate.md), and about
twenty things are counted for a request. A family is not safe for several threads.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, Protocol

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge"]


class Family(Protocol):
    """What one name stands for: its lines, comments included."""

    name: str

    def lines(self) -> Iterator[str]: ...


class Values:
    """Counters or gauges of one name, one for each set of label values. A counter's name ends in ``_total``."""

    __slots__ = ("_of", "help", "kind", "labels", "name")

    def __init__(self, kind: Kind, name: str, told: str, labels: Sequence[str] = ()) -> None:
        self.kind, self.name, self.help, self.labels = kind, name, told, tuple(labels)
        self._of: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count ``amount`` more."""
        try:
            self._of[labels] += amount
        except KeyError:  # once for each set of labels
            self._of[labels] = 0.0 + amount

    def set(self, labels: Labels, value: float) -> None:
        """Say what the number is now."""
        self._of[labels] = value

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Say what all of them are now; those that are not named are gone."""
        self._of = dict(values)

    def get(self, labels: Labels = ()) -> float:
        """The number now, 0 where nothing was counted."""
        return self._of.get(labels, 0.0)

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, self.kind)
        for labels, value in self._of.items():
            yield f"{self.name}{_labelled(zip(self.labels, labels, strict=True))} {number(value)}"


class Histogram:
    """How a quantity is spread, for each set of label values: how many were up to each of ``bounds``, and their sum."""

    __slots__ = ("_of", "bounds", "help", "labels", "name")

    def __init__(self, name: str, told: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"{name}: bounds must rise, not {list(bounds)}")
        self.name, self.help, self.labels = name, told, tuple(labels)
        self.bounds = tuple(bounds)
        self._of: dict[Labels, _Spread] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count one value."""
        spread = self._of.get(labels)
        if spread is None:
            spread = self._of[labels] = _Spread(len(self.bounds) + 1)
        spread.counts[bisect_left(self.bounds, value)] += 1
        spread.sum += value

    def count(self, labels: Labels = ()) -> int:
        """How many values were counted."""
        spread = self._of.get(labels)
        return 0 if spread is None else sum(spread.counts)

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        tops = [*(number(bound) for bound in self.bounds), "+Inf"]
        for values, spread in self._of.items():
            labels = list(zip(self.labels, values, strict=True))
            below = list(accumulate(spread.counts))
            for top, count in zip(tops, below, strict=True):
                yield f"{self.name}_bucket{_labelled([*labels, ('le', top)])} {count}"
            yield f"{self.name}_sum{_labelled(labels)} {number(spread.sum)}"
            yield f"{self.name}_count{_labelled(labels)} {below[-1]}"


class _Spread:
    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0


def exposed(families: Iterable[Family]) -> bytes:
    """All families as one text; those that have nothing to tell yet are named all the same."""
    return ("\n".join(line for family in families for line in family.lines()) + "\n").encode()


def number(value: float) -> str:
    """A number as the format has it: whole ones without a point, the shortest that reads back as the same."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _head(name: str, told: str, kind: str) -> Iterator[str]:
    escaped = told.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {escaped}"
    yield f"# TYPE {name} {kind}"


def _labelled(pairs: Iterable[tuple[str, str]]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
