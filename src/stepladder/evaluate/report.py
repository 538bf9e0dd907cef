"""The whole judgement of a predictor on measured outcomes: estimates, policies, baselines, as one JSON value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from stepladder.contracts import Policy
from stepladder.errors import MissingExtraError
from stepladder.evaluate import baselines, compare, operating, summaries
from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.clusters import Clusters, cluster_report
from stepladder.evaluate.compare import After, Bench, Family, Played
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.metrics import Labels, Matrix, Vector, hull, lambda_grid
from stepladder.evaluate.operating import Point
from stepladder.evaluate.reference import Reference
from stepladder.evaluate.scores import ceilings, means, predictor_report
from stepladder.evaluate.summaries import Judge
from stepladder.policies.greedy import GreedyPolicy
from stepladder.types import EMPTY, Estimates

SCHEMA = 1
ROUTES = ("single:", "random-mix", "zero-router", "prompt-length", "task-mean", "neighbours", "class-router")
"""Baselines that call one stage and need no outcome of the request; names that end in a colon go on."""

PIPELINES = ("fixed:",)
"""Those that call several."""

BEFORE = ("greedy",)
"""Policies that decide once, before any answer: they are compared with ROUTES, all others with PIPELINES too."""

THIN = 13
"""λ around the grid's for policies that look ahead: they take tens of times longer over a decision."""

POLICIES: Mapping[str, Policy] = {"greedy": GreedyPolicy(), "cascade": GreedyPolicy(cascade=True)}
HINDSIGHT = (
    "cost_save and perf_gain of a summary are at the best point of the curve in hindsight; those under 'operating' are "
    "at the λ that training rows chose"
)


class Beside(NamedTuple):
    """Another predictor's estimates of the same queries, and what gives those after answers."""

    estimates: Sequence[Estimates]
    after: After | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """What is judged: estimates (one for each query of ``data``), and what training rows say.

    ``after`` gives the estimates after answers. ``reference`` are the means of training rows, from which expected costs
    and the grid of λ follow; ``train`` are those rows themselves, for baselines that learn (None where they are not at
    hand). ``lam`` is a calibrated operating point to be played as well, ``points`` are the operating points of each
    policy (``operating.Point`` by policy and kind). ``profile`` is the predictor's, where it has any; ``fast`` is what
    its profile of that name says, judged beside it where it is given.
    """

    data: Aligned
    estimates: Sequence[Estimates]
    reference: Reference
    after: After | None = None
    train: Aligned | None = None
    lam: float | None = None
    points: Mapping[str, Mapping[str, Point]] = field(default_factory=lambda: EMPTY)
    seed: int = 0
    profile: str | None = None
    fast: Beside | None = None

    @cached_property
    def bench(self) -> Bench:
        """The rows made ready for replay."""
        reference = self.reference
        return Bench(self.data, expected_costs(self.data, reference.cost, reference.output_tokens), self.seed)

    @cached_property
    def grid(self) -> Vector:
        """Nine λ around every switch of the best single stage in training."""
        return lambda_grid(self.reference.quality, self.costs)

    @property
    def costs(self) -> Vector:
        """Mean costs of the stages in training; where requests have a price here, that of these rows."""
        return self.reference.cost if self.data.pricing is None else self.data.cost.mean(axis=0)

    def lambdas(self, policy: str, *, thin: bool = False) -> list[float]:
        """λ that a policy is played at: the grid's, further ones around it, and its operating points."""
        points = THIN if thin else compare.SWEEP
        own = (point.lam for point in self.points.get(policy, {}).values())
        return compare.sweep(self.grid, self.lam, *own, points=points)

    @property
    def chance(self) -> np.random.Generator:
        """The same each time, so that all intervals rest on the same resamples."""
        return np.random.default_rng(self.seed)


def report(subject: Subject, *, policies: Mapping[str, Policy] = POLICIES, times: int = 1000) -> dict[str, Any]:
    """Everything that ``evaluate`` says about a predictor, as JSON values; figures that have no value are null.

    ``policies`` are played along λ, under their names. Those that look at answers (all but BEFORE) are left out, with a
    note, where ``after`` never says anything else than the estimates do; where it does, ``predictor`` has ``after``:
    stage i's quality estimated once the stages 0 to i answered. ``times`` resamples make the intervals.
    """
    data, notes = subject.data, []
    climbed = None if subject.after is None else _climbed(subject.bench, subject.estimates, subject.after)
    if climbed is None:
        named = ", ".join(name for name in policies if name not in BEFORE)
        notes.append(
            "no estimates after an answer: 'after' is left out of 'predictor'"
            + (f", {named} of the policies" if named else "")
        )
    else:
        notes += _told(data, subject.estimates)
    ours = _ours(subject, climbed, policies)
    fixed, learned, space = _fixed(subject), *_learned(subject, notes)
    others = [*_known(subject, notes), *learned, *_omniscient(subject)]
    judge = Judge(data, subject.grid, subject.seed, times)
    summary = _summary(subject, judge, ours, [*others, *_by_name(fixed)])
    judged = {"before": means(subject.estimates, data.stages)} | ({} if climbed is None else {"after": climbed.own})
    found: dict[str, Any] = clean(
        {
            "schema": SCHEMA,
            **_facts(data, subject.reference),
            "lambda_grid": subject.grid.tolist(),
            "lambda_calibrated": subject.lam,
            "predictor": _predictor(subject, judged, subject.profile),
            **_beside(subject),
            "ceilings": ceilings(data),
            "clusters": _clusters(subject, judged, space, notes),
            "policies": _entries(subject, [each for family in ours for each in family.played], times),
            "baselines": _entries(subject, [*fixed, *(each for family in others for each in family.played)], times),
            "summary": summary,
            "operating": _chosen(subject, summary),
            "notes": [*notes, HINDSIGHT],
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


# ── the predictor ────────────────────────────────────────────────────────────


def _predictor(subject: Subject, judged: Mapping[str, Matrix], profile: str | None) -> dict[str, Any]:
    data = subject.data
    return ({} if profile is None else {"profile": profile}) | {
        when: predictor_report(data.quality, estimated, data.stages, subject.chance, classes=_classes(data))
        for when, estimated in judged.items()
    }


def _beside(subject: Subject) -> dict[str, Any]:
    """``predictor_fast``: the profile ``fast`` judged as the predictor is."""
    if subject.fast is None:
        return {}
    said, after = subject.fast
    climbed = None if after is None else _climbed(subject.bench, said, after)
    judged = {"before": means(said, subject.data.stages)} | ({} if climbed is None else {"after": climbed.own})
    return {"predictor_fast": _predictor(subject, judged, "fast")}


def _clusters(
    subject: Subject, judged: Mapping[str, Matrix], space: Likeness | None, notes: list[str]
) -> dict[str, Any] | None:
    """Fit of expected quality by cluster, before and after; None where there are no training prompts to draw them."""
    if space is None:
        return None
    labels = Clusters(space, subject.seed).labels(baselines.texts_of(subject.data))
    if not labels:
        notes.append("no clusters of prompts: there are too few training prompts to draw them")
        return None
    data = subject.data
    return {
        when: cluster_report(data.quality, estimated, data.stages, labels, subject.chance)
        for when, estimated in judged.items()
    }


def _classes(data: Aligned) -> Labels | None:
    known = [level for level in data.levels if level is not None]
    return np.array(known) if known and len(known) == len(data) else None


# ── policies ─────────────────────────────────────────────────────────────────


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


def _ours(subject: Subject, climbed: _Climbed | None, policies: Mapping[str, Policy]) -> list[Family]:
    """Each policy along its λ, ranked by the gain predicted before an answer, or once the first stage gave one."""
    found, predicted = [], means(subject.estimates, subject.data.stages)
    for name, policy in policies.items():
        looks = name not in BEFORE
        if looks and climbed is None:
            continue
        seen = climbed.first if looks and climbed is not None else predicted
        after = subject.after if looks else None
        lambdas = subject.lambdas(name, thin=name not in POLICIES)
        played = compare.curve(subject.bench, name, policy, subject.estimates, lambdas, after=after)
        found.append(Family(name, played, _gain(seen)))
    return found


def _told(data: Aligned, estimates: Sequence[Estimates]) -> list[str]:
    """What there is to say of the answers that were read."""
    found = []
    if all(each.told <= 0 for said in estimates for each in said.stages.values()):
        found.append("no estimate says how much an answer will tell: policies that look ahead decide as 'cascade' does")
    if any(row.confidence is not None for line in data.rows for row in line):
        told = "estimates after an answer read the table's log probabilities; servers tell them only where asked to"
        found.append(told)
    return found


# ── baselines ────────────────────────────────────────────────────────────────


def _fixed(subject: Subject) -> list[Played]:
    """Those that know nothing of a request."""
    bench, estimates = subject.bench, subject.estimates
    alone = [*compare.singles(bench, estimates), *compare.pipelines(bench, estimates)]
    return [*alone, *compare.random_mixes(bench), *compare.zero_router(bench)]


def _known(subject: Subject, notes: list[str]) -> list[Family]:
    """Those that know a request's length or class."""
    worthwhile = hull(subject.reference.quality, subject.costs)
    found = [baselines.prompt_length(subject.bench, worthwhile, subject.grid, subject.train)]
    by_class = compare.class_estimates(subject.bench, subject.reference.by_class)
    if by_class is None:
        notes.append("no class router: the classes of these queries, or their qualities in training, are not known")
        return found
    return [*found, _swept(subject, "class-router", by_class)]


def _learned(subject: Subject, notes: list[str]) -> tuple[list[Family], Likeness | None]:
    """Those that learn from training rows, and the space that these rows' prompts lie in."""
    train = subject.train
    if train is None:
        notes.append("no task means, no neighbours, no clusters: the table has no training rows to learn them from")
        return [], None
    found = [_swept(subject, "task-mean", baselines.task_estimates(subject.data, train))]
    try:
        space = Likeness(baselines.texts_of(train))
    except MissingExtraError as error:
        notes.append(f"no neighbours, no clusters: {error}")
        return found, None
    near = baselines.neighbour_estimates(subject.data, train, space)
    return [*found, _swept(subject, "neighbours", near)], space


def _omniscient(subject: Subject) -> list[Family]:
    """Those that know the outcome: nobody can be as good."""
    gain = _gain(subject.data.quality)
    oracle = Family("oracle", compare.oracle(subject.bench, subject.grid.tolist()), gain)
    return [baselines.perfect_verifier(subject.bench), oracle]


def _swept(subject: Subject, name: str, estimates: Sequence[Estimates]) -> Family:
    """The greedy rule on a baseline's estimates."""
    played = compare.curve(subject.bench, name, GreedyPolicy(), estimates, subject.lambdas(name))
    return Family(name, played, _gain(means(estimates, subject.data.stages)))


def _gain(qualities: Matrix) -> Vector:
    """Of the last stage over the first, (n,)."""
    found: Vector = qualities[:, -1] - qualities[:, 0]
    return found


def _by_name(played: Sequence[Played]) -> list[Family]:
    """Baselines without λ as families; all mixes of one kind are one."""
    found: dict[str, list[Played]] = {}
    for each in played:
        found.setdefault(each.name, []).append(each)
    return [Family(name, points) for name, points in found.items()]


# ── figures ──────────────────────────────────────────────────────────────────


def _summary(subject: Subject, judge: Judge, ours: Sequence[Family], others: Sequence[Family]) -> dict[str, Any]:
    alone = [each for family in others if family.name.startswith("single:") for each in family.played]
    found: dict[str, Any] = {}
    for family in [*ours, *others]:
        figures = compare.summarise(subject.data, family, subject.grid, subject.chance, times=judge.times)
        found[family.name] = {**figures, **summaries.worth(judge, family)}
    for family in ours:
        kinds = ROUTES if family.name in BEFORE else (*ROUTES, *PIPELINES)
        rivals = [each for each in others if each.name.startswith(kinds)]
        found[family.name] |= {
            "vs_best_baseline": summaries.versus(judge, family, rivals),
            "operating": summaries.at_points(judge, family, subject.points.get(family.name, {}), alone),
        }
    for family in [*ours, *others]:
        found[family.name]["deferral"] = summaries.deferral(judge, family)
    return found


def _chosen(subject: Subject, summary: Mapping[str, Any]) -> dict[str, Any]:
    """For each kind of operating point the policy that training rows chose, and what became of it here."""
    played = {name: points for name, points in subject.points.items() if name in summary}
    named = operating.chosen(played)
    return {kind: {"policy": name, **summary[name]["operating"][kind]} for kind, name in named.items()}


def _entries(subject: Subject, played: Sequence[Played], times: int) -> list[dict[str, Any]]:
    ranges = compare.intervals(subject.data, played, subject.chance, times=times)
    return [
        {
            "name": each.name,
            "lambda": None if each.lam == compare.ORACLE_LAMBDA else each.lam,
            "quality": float(each.quality.mean()),
            "quality_ci": quality,
            "cost": float(each.cost.mean()),
            "cost_ci": cost,
            "shares": dict(zip(subject.data.stages, each.shares.tolist(), strict=True)),
        }
        for each, (quality, cost) in zip(played, ranges, strict=True)
    ]
