"""The whole judgement of a predictor on measured outcomes: estimates, policies, baselines, as one JSON value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.compare import After, Bench, Family, Played
from stepladder.evaluate.metrics import Matrix, Vector, lambda_grid
from stepladder.evaluate.reference import Reference
from stepladder.evaluate.scores import means, predictor_report
from stepladder.policies.greedy import GreedyPolicy
from stepladder.types import Estimates

SCHEMA = 1
OURS = ("greedy", "cascade")
"""Families that are the predictor's own; all others are there to compare with."""


def report(
    data: Aligned,
    estimates: Sequence[Estimates],
    reference: Reference,
    *,
    after: After | None = None,
    lam: float | None = None,
    seed: int = 0,
    times: int = 1000,
) -> dict[str, Any]:
    """Everything that ``evaluate`` says about estimates (one for each query of ``data``), as JSON values.

    ``after`` gives the estimates after answers; where it says anything else than ``estimates`` does, a cascade is
    played as well, and ``predictor`` has ``after``: stage i's quality estimated once the stages 0 to i answered.
    ``reference`` are the means of training rows, from which expected costs and the grid of λ follow; ``lam`` is a
    calibrated operating point to be played as well. ``seed`` feeds the bootstrap (``times`` resamples), the calibration
    floor and the policies' coin. Figures that have no value are null.
    """
    bench = Bench(data, expected_costs(data, reference.cost, reference.output_tokens), seed)
    grid = lambda_grid(reference.quality, _grid_costs(data, reference))
    climbed = None if after is None else _climbed(bench, estimates, after)
    families, fixed, notes = _play(bench, estimates, reference, grid, lam)
    if climbed is None or after is None:
        notes.insert(0, "no estimates after an answer: 'after' is left out of 'predictor', 'cascade' of the policies")
    else:
        families.append(_cascade(bench, estimates, after, climbed, compare.sweep(grid, lam)))
        notes += _told(data)
    ours = [each for each in families if each.name in OURS]
    others = [each for each in families if each.name not in OURS]
    judged = {"before": means(estimates, data.stages)} | ({} if climbed is None else {"after": climbed.own})
    found: dict[str, Any] = clean(
        {
            "schema": SCHEMA,
            **_facts(data, reference),
            "lambda_grid": grid.tolist(),
            "lambda_calibrated": lam,
            "predictor": {
                when: predictor_report(data.quality, estimated, data.stages, _chance(seed), classes=_classes(data))
                for when, estimated in judged.items()
            },
            "policies": _entries(data, [each for family in ours for each in family.played], seed, times),
            "baselines": _entries(data, [*fixed, *(each for family in others for each in family.played)], seed, times),
            "summary": {
                family.name: compare.summarise(data, family, grid, _chance(seed), times=times)
                for family in [*ours, *others, *_by_name(fixed)]
            },
            "notes": notes,
        }
    )
    return found


def clean(value: Any) -> Any:
    """The value with numbers that JSON does not know as null, and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return value


def _facts(data: Aligned, reference: Reference) -> dict[str, Any]:
    datasets = Counter(data.datasets)
    return {
        "n": len(data),
        "dropped": data.dropped,
        "repeated": data.repeated,
        "stages": list(data.stages),
        "cost_unit": data.cost_unit,
        "datasets": {
            name: {"queries": count, "seen_in_training": name in reference.datasets}
            for name, count in sorted(datasets.items())
        },
    }


def _play(
    bench: Bench, estimates: Sequence[Estimates], reference: Reference, grid: Vector, lam: float | None
) -> tuple[list[Family], list[Played], list[str]]:
    """Families along λ, baselines without one, and what there is to say."""
    lambdas = compare.sweep(grid, lam)
    predicted = means(estimates, bench.data.stages)
    greedy = compare.curve(bench, "greedy", GreedyPolicy(), estimates, lambdas)
    families = [Family("greedy", greedy, predicted[:, -1] - predicted[:, 0])]
    notes = []
    by_class = compare.class_estimates(bench, reference.by_class)
    if by_class is None:
        notes.append("no class router: the classes of these queries, or their qualities in training, are not known")
    else:
        classes = means(by_class, bench.data.stages)
        played = compare.curve(bench, "class-router", GreedyPolicy(), by_class, lambdas)
        families.append(Family("class-router", played, classes[:, -1] - classes[:, 0]))
    gain = bench.data.quality[:, -1] - bench.data.quality[:, 0]
    families.append(Family("oracle", compare.oracle(bench, grid.tolist()), gain))
    alone = [*compare.singles(bench, estimates), *compare.pipelines(bench, estimates)]
    return families, [*alone, *compare.random_mixes(bench), *compare.zero_router(bench)], notes


class _Climbed(NamedTuple):
    """Estimates on the way up: ``own`` (n, k) of stage i once the stages 0 to i answered, ``first`` (n, k) of all
    stages once the first did."""

    own: Matrix
    first: Matrix


def _climbed(bench: Bench, estimates: Sequence[Estimates], after: After) -> _Climbed | None:
    """None where answers never move an estimate."""
    stages, way = bench.data.stages, []
    for number, recorded in enumerate(bench.attempts):
        way.append([after(number, recorded[: i + 1]) for i in range(len(stages))])
    if all(found == before for line, before in zip(way, estimates, strict=True) for found in line):
        return None
    own = np.array([[found[stage].mean for stage, found in zip(stages, line, strict=True)] for line in way])
    return _Climbed(own, means([line[0] for line in way], stages))


def _cascade(
    bench: Bench, estimates: Sequence[Estimates], after: After, climbed: _Climbed, lambdas: Sequence[float]
) -> Family:
    """The greedy rule asked again after every answer; ranked by what is to be gained once the first stage answered."""
    played = compare.curve(bench, "cascade", GreedyPolicy(cascade=True), estimates, lambdas, after=after)
    return Family("cascade", played, climbed.first[:, -1] - climbed.first[:, 0])


def _told(data: Aligned) -> list[str]:
    """What there is to say of the answers that were read."""
    if all(row.confidence is None for line in data.rows for row in line):
        return []
    told = "estimates after an answer read the table's log probabilities; a server tells them only where it is asked to"
    return [told]


def _by_name(played: Sequence[Played]) -> list[Family]:
    """Baselines without λ as families; all mixes of one kind are one."""
    found: dict[str, list[Played]] = {}
    for each in played:
        found.setdefault(each.name, []).append(each)
    return [Family(name, points) for name, points in found.items()]


def _entries(data: Aligned, played: Sequence[Played], seed: int, times: int) -> list[dict[str, Any]]:
    ranges = compare.intervals(data, played, _chance(seed), times=times)
    return [
        {
            "name": each.name,
            "lambda": None if each.lam == compare.ORACLE_LAMBDA else each.lam,
            "quality": float(each.quality.mean()),
            "quality_ci": quality,
            "cost": float(each.cost.mean()),
            "cost_ci": cost,
            "shares": dict(zip(data.stages, each.shares.tolist(), strict=True)),
        }
        for each, (quality, cost) in zip(played, ranges, strict=True)
    ]


def _chance(seed: int) -> np.random.Generator:
    """The same each time, so that all intervals rest on the same resamples."""
    return np.random.default_rng(seed)


def _classes(data: Aligned) -> Any:
    known = [level for level in data.levels if level is not None]
    return np.array(known) if known and len(known) == len(data) else None


def _grid_costs(data: Aligned, reference: Reference) -> Vector:
    """Mean costs in training; where requests have a fixed price here, that."""
    return reference.cost if data.pricing is None else data.cost.mean(axis=0)
