"""What a stage's calls take, learned from calls: seconds = a + b·(prompt tokens) + c·(output tokens)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from stepladder.errors import UsageError
from stepladder.files import replace_file
from stepladder.tokens import CHARS_PER_TOKEN
from stepladder.types import Call, Trace

SCHEMA = 1
ROUNDS = 30
"""Rounds of reweighting: the first half Huber's weights, the second half Tukey's, which drop far outliers."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage: seconds for a call, for a prompt token and for an output token, and its mean request."""

    call_s: float
    prompt_s: float
    output_s: float
    prompt_tokens: float
    output_tokens: float
    chars_per_token: float = CHARS_PER_TOKEN
    rows: int = 0

    def seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """Expected wall-clock seconds of one call."""
        return self.call_s + self.prompt_s * prompt_tokens + self.output_s * output_tokens

    @property
    def mean_seconds(self) -> float:
        """Seconds of the stage's mean request."""
        return self.seconds(self.prompt_tokens, self.output_tokens)


class TimingRow(NamedTuple):
    """One answered call; ``chars`` is the length of its prompt in characters, 0 where unknown."""

    stage: str
    prompt_tokens: int
    output_tokens: int
    seconds: float
    chars: int = 0


def timing_rows(traces: Iterable[Trace]) -> Iterator[TimingRow]:
    """The answered calls of traces that tell of a stage alone: those that began from a draft are left out."""
    for trace in traces:
        chars = trace.request.chars
        for step in trace.steps:
            attempt, action = step.attempt, step.decision.action
            if attempt is None or not attempt.is_answer or (isinstance(action, Call) and action.draft is not None):
                continue
            usage = attempt.usage
            yield TimingRow(attempt.stage, usage.prompt_tokens, usage.output_tokens, attempt.seconds, chars)


# ── fitting ──────────────────────────────────────────────────────────────────


def fit_measured(rows: Iterable[tuple[Any, ...]]) -> dict[str, StageTiming]:
    """Stage name → timing, by least squares with coefficients from 0 up, reweighted so that outliers count little.

    ``rows`` are ``TimingRow`` or tuples (stage, prompt tokens, output tokens, seconds). Calls that waited for a
    neighbour are the outliers meant. Where the rows cannot tell two coefficients apart (all prompts of one length,
    say), the one that explains less is 0. Raises UsageError without rows, or where seconds are negative or not finite.
    """
    by_stage: dict[str, list[TimingRow]] = {}
    for row in (TimingRow(*values) for values in rows):
        if not isfinite(row.seconds) or row.seconds < 0:
            raise UsageError(f"a call of '{row.stage}' cannot have taken {row.seconds} seconds")
        by_stage.setdefault(row.stage, []).append(row)
    if not by_stage:
        raise UsageError("no answered calls to learn the stages' times from")
    return {stage: _fit_stage(found) for stage, found in by_stage.items()}


def _fit_stage(rows: Sequence[TimingRow]) -> StageTiming:
    points = [(1.0, float(row.prompt_tokens), float(row.output_tokens)) for row in rows]
    seconds = [row.seconds for row in rows]
    known = [row for row in rows if row.chars and row.prompt_tokens]
    prompt_tokens = sum(row.prompt_tokens for row in known)
    return StageTiming(
        *_robust(points, seconds),
        prompt_tokens=fmean(row.prompt_tokens for row in rows),
        output_tokens=fmean(row.output_tokens for row in rows),
        chars_per_token=sum(row.chars for row in known) / prompt_tokens if prompt_tokens else CHARS_PER_TOKEN,
        rows=len(rows),
    )


def _robust(points: Sequence[Triple], seconds: Sequence[float]) -> Triple:
    weights = [1.0] * len(points)
    fitted = (0.0, 0.0, 0.0)
    for turn in range(ROUNDS):
        fitted = _nonnegative(points, seconds, weights)
        misses = [abs(y - _dot(fitted, x)) for x, y in zip(points, seconds, strict=True)]
        scale = 1.4826 * median(misses)
        if scale <= 1e-12:
            break
        weights = [_weight(miss / scale, is_late=turn >= ROUNDS // 2) for miss in misses]
    return fitted


def _weight(miss: float, *, is_late: bool) -> float:
    if is_late:
        return (1 - (miss / 4.685) ** 2) ** 2 if miss < 4.685 else 0.0
    return 1.0 if miss <= 1.345 else 1.345 / miss


def _nonnegative(points: Sequence[Triple], seconds: Sequence[float], weights: Sequence[float]) -> Triple:
    """Weighted least squares with all coefficients from 0 up: the best of the 7 choices of columns that stays there."""
    scales = [max(column) or 1.0 for column in zip(*points, strict=True)]
    gram = [[0.0] * 3 for _ in range(3)]
    moments = [0.0] * 3
    for point, second, weight in zip(points, seconds, weights, strict=True):
        scaled = [value / scale for value, scale in zip(point, scales, strict=True)]
        for i in range(3):
            moments[i] += weight * scaled[i] * second
            for j in range(3):
                gram[i][j] += weight * scaled[i] * scaled[j]
    best, least = (0.0, 0.0, 0.0), 0.0
    for columns in _subsets():
        found = _solve([[gram[i][j] for j in columns] for i in columns], [moments[i] for i in columns])
        if found is None or min(found) < 0:
            continue
        loss = -sum(value * moments[i] for value, i in zip(found, columns, strict=True))
        if loss < least:
            full = dict(zip(columns, found, strict=True))
            best, least = (full.get(0, 0.0), full.get(1, 0.0), full.get(2, 0.0)), loss
    return best[0] / scales[0], best[1] / scales[1], best[2] / scales[2]


def _subsets() -> Iterator[tuple[int, ...]]:
    for size in (1, 2, 3):
        yield from combinations(range(3), size)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gauss-Jordan with pivoting; None where the columns cannot be told apart."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    limit = 1e-10 * max(abs(value) for row in matrix for value in row)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) <= limit:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        head = rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / head[column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], head, strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]


def _dot(left: Triple, right: Triple) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


# ── keeping ──────────────────────────────────────────────────────────────────


def save_timings(timings: Mapping[str, StageTiming], path: str | Path) -> None:
    """Write timings as JSON, in one step; raises UsageError where the file cannot be written."""
    found = {"schema": SCHEMA, "stages": {name: asdict(timing) for name, timing in timings.items()}}
    try:
        replace_file(path, json.dumps(found, indent=2).encode() + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error}") from error


def load_timings(path: str | Path) -> dict[str, StageTiming]:
    """Read timings that ``save_timings`` wrote; raises UsageError that says what is wrong with the file."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: measured costs cannot be read: {error}") from error
    return timings_from(found, str(path))


def timings_from(found: Any, source: str) -> dict[str, StageTiming]:
    """Timings from the JSON value of a file, or from settings of the same shape; raises UsageError."""
    if not isinstance(found, Mapping) or not isinstance(found.get("stages"), Mapping):
        raise UsageError(f"{source}: measured costs should have 'stages', one entry for each stage")
    if found.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"{source}: measured costs of schema {found['schema']!r}; this Stepladder reads {SCHEMA}")
    return {str(name): _timing(entry, f"{source}: stages.{name}") for name, entry in found["stages"].items()}


def _timing(entry: Any, where: str) -> StageTiming:
    if isinstance(entry, StageTiming):
        return entry
    fields = StageTiming.__dataclass_fields__
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where} should be a table of numbers: {', '.join(fields)}")
    for name in (*list(fields)[:5], *entry):
        value = entry.get(name)
        if name not in fields or isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{where}.{name} should be a number; an entry has {', '.join(fields)}")
        if not isfinite(value) or value < 0 or (name == "chars_per_token" and value == 0):
            raise UsageError(f"{where}.{name} should be a finite number from 0 up, not {value}")
    return StageTiming(**entry)
