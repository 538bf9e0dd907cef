"""What an artifact remembers of the rows that it was trained on, so that judging it needs no training table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.evaluate.aligned import Aligned, Hashes, TokenPrices
from stepladder.evaluate.metrics import Vector
from stepladder.types import EMPTY, CostUnit

SEEN = "seen_groups"
"""The artifact's array of sorted 8-byte hashes: the groups and the prompts of its training rows."""

_QUALITY, _COST, _OUTPUT = "train.quality", "train.cost", "train.output_tokens"
_DATASET, _CLASS = "train.queries", "train.class_quality"


@dataclass(frozen=True, eq=False)
class Reference:
    """Means over the training rows, one number for each stage (k,).

    ``by_class`` maps a class of complexity to its mean qualities, ``datasets`` a dataset to its number of queries.
    """

    quality: Vector
    cost: Vector
    output_tokens: Vector | None = None
    by_class: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: EMPTY)
    datasets: Mapping[str, int] = field(default_factory=lambda: EMPTY)


def reference_of(data: Aligned) -> Reference:
    """The means of these rows."""
    levels = np.array([level or "" for level in data.levels])
    output = data.mean_output_tokens()
    return Reference(
        data.quality.mean(axis=0),
        data.cost.mean(axis=0),
        None if output is None else np.array(output),
        {str(level): tuple(data.quality[levels == level].mean(axis=0)) for level in np.unique(levels) if level},
        Counter(data.datasets),
    )


def to_metrics(reference: Reference, stages: Sequence[str]) -> dict[str, float]:
    """As flat names and numbers, as an artifact's ``metrics`` hold them."""
    found = _named(_QUALITY, stages, reference.quality) | _named(_COST, stages, reference.cost)
    if reference.output_tokens is not None:
        found |= _named(_OUTPUT, stages, reference.output_tokens)
    for level, qualities in reference.by_class.items():
        found |= _named(f"{_CLASS}:{level}", stages, qualities)
    return found | {f"{_DATASET}:{name}": float(count) for name, count in reference.datasets.items()}


def from_metrics(metrics: Mapping[str, float], stages: Sequence[str]) -> Reference | None:
    """What ``to_metrics`` wrote; None where the artifact remembers nothing."""
    quality, cost = _vector(metrics, _QUALITY, stages), _vector(metrics, _COST, stages)
    if quality is None or cost is None:
        return None
    levels = {key.split(":")[1] for key in metrics if key.startswith(f"{_CLASS}:")}
    classes = {level: _vector(metrics, f"{_CLASS}:{level}", stages) for level in sorted(levels)}
    datasets = {
        key.removeprefix(f"{_DATASET}:"): int(count) for key, count in metrics.items() if key.startswith(f"{_DATASET}:")
    }
    return Reference(
        quality,
        cost,
        _vector(metrics, _OUTPUT, stages),
        {level: tuple(found.tolist()) for level, found in classes.items() if found is not None},
        datasets,
    )


def suited(reference: Reference, unit: CostUnit, data: Aligned) -> tuple[Reference, list[str]]:
    """The reference with costs in the unit of ``data``, and a note for each mean that had to be taken from ``data``.

    ``unit`` is the one that the reference's costs are in.
    """
    notes = []
    if data.pricing is None and unit != data.cost_unit:
        reference = replace(reference, cost=data.cost.mean(axis=0))
        notes.append(
            f"trained with costs in {unit}: expected costs are the means of the judged rows, in {data.cost_unit}"
        )
    output = data.mean_output_tokens() if isinstance(data.pricing, TokenPrices) else None
    if output is not None and reference.output_tokens is None:
        reference = replace(reference, output_tokens=np.array(output))
        notes.append("training knew no token counts: the answers' expected length is the mean of the judged rows")
    return reference, notes


def seen(data: Aligned) -> Hashes:
    """The array to keep under ``SEEN``."""
    return np.unique(data.hashes)


def overlap(data: Aligned, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """(n,) True for queries whose group or prompt the artifact was trained on."""
    known = arrays.get(SEEN)
    if known is None:
        return np.zeros(len(data), dtype=np.bool_)
    return np.asarray(np.isin(data.hashes, known).any(axis=1), dtype=np.bool_)


def _named(prefix: str, stages: Sequence[str], values: Any) -> dict[str, float]:
    return {f"{prefix}:{stage}": float(value) for stage, value in zip(stages, values, strict=True)}


def _vector(metrics: Mapping[str, float], prefix: str, stages: Sequence[str]) -> Vector | None:
    found = [metrics.get(f"{prefix}:{stage}") for stage in stages]
    return None if any(value is None for value in found) else np.array(found, dtype=np.float64)
