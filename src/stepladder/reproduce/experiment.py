"""The whole experiment on outcomes and fitted predictors, as one JSON value: the tables 4.1 to 4.4 on a real ladder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench, Played
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.prompts import Prompt
from stepladder.evaluate.reference import SEEN, overlap, seen
from stepladder.evaluate.report import clean
from stepladder.predictors.complexity import rules
from stepladder.reproduce import arms, fits, paper, predicted
from stepladder.reproduce.arms import Arms, Reading
from stepladder.reproduce.fits import Fitted, Makers
from stepladder.train.choose import FOLDS
from stepladder.train.stack import MOST
from stepladder.types import Estimates

SCHEMA = 1

TIMED = ("latency", "faster", "faster_ci", "latency_s", "decision_ms", "run")
"""Keys whose values were measured with a clock, or tell of this run; all else is the same in every run."""

DIGITS = 9
"""Of a number in the report."""

SPLIT_SHARE = 0.5
"""Of one's own prompts without splits: the share of groups, by hash, that is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of the experiment. ``quality_loss`` is the share of the largest stage's quality that may go."""

    quality_loss: float = 0.01
    resamples: int = 1000
    seed: int = 1


@dataclass(frozen=True, eq=False)
class Data:
    """Outcomes by split, all with a class; ``ten`` are the paper's prompts, whose qualities are not known (zeros)."""

    train: Aligned
    judged: Aligned
    ten: Aligned
    classes_by: str

    @property
    def classes(self) -> tuple[list[str], list[str]]:
        """Of the training queries and of the judged ones."""
        return [str(level) for level in self.train.levels], [str(level) for level in self.judged.levels]


def prepared(train: Aligned, judged: Aligned, ten: Aligned) -> Data:
    """The data with a class for every query: the tables' own, or where some have none, the rules' for all.

    Raises UsageError where a judged query's group or prompt was trained on.
    """
    refuse_overlap(train, judged)
    if all(level is not None for data in (train, judged) for level in data.levels):
        return Data(train, judged, ten, "table")
    return Data(_by_rules(train), _by_rules(judged), ten, "rules")


def refuse_overlap(train: Aligned, judged: Aligned) -> None:
    """Raise UsageError where a judged query's group or prompt was trained on."""
    known = overlap(judged, {SEEN: seen(train)})
    if known.any():
        first = judged.rows[int(np.flatnonzero(known)[0])][0]
        raise UsageError(
            f"{int(known.sum())} of {len(judged)} judged prompts share their group or their text with training "
            f"rows, first '{first.query_id}': take them out, or give them the split of their group"
        )


def refuse_few(train: Aligned) -> None:
    """Raise UsageError where there are fewer groups to train on than cross-validation has folds."""
    groups = len(np.unique(train.groups))
    if groups < FOLDS:
        raise UsageError(f"{groups} groups of prompts to train on are too few for {FOLDS} folds: give more prompts")


def asked(prompts: Sequence[Prompt]) -> Aligned:
    """Prompts before anybody answered them, for ``refuse_overlap``: one column, no quality, no cost."""
    rows = tuple(
        (
            OutcomeRow(
                query_id=each.query_id,
                model="",
                quality=0.0,
                prompt=each.text,
                messages=None if each.is_plain else each.messages,
                group_id=each.group_id,
                level=each.level,
            ),
        )
        for each in prompts
    )
    nothing = np.zeros((len(rows), 1))
    return Aligned(("",), rows, nothing, nothing, "relative")


def is_training(prompts: Sequence[Prompt]) -> list[bool]:
    """Which of one's own prompts are trained on: split "train" where splits are named, else half of the groups.

    Raises UsageError where that leaves nothing to train on, or nothing to judge on.
    """
    splits = {prompt.split for prompt in prompts} - {None}
    if splits:
        found = [prompt.split == "train" for prompt in prompts]
    else:
        found = [int(first) / 2**64 < SPLIT_SHARE for first in asked(prompts).hashes[:, 0]]
    if not any(found) or all(found):
        told = f"their splits are: {', '.join(sorted(str(name) for name in splits))}" if splits else "they are too few"
        where = "train on: name split 'train' for some" if not any(found) else "judge on: name another split for some"
        raise UsageError(f"the {len(prompts)} prompts leave nothing to {where}; {told}")
    return found


def _by_rules(data: Aligned) -> Aligned:
    lines = (tuple(replace(row, level=rules(row.request.text)) for row in line) for line in data.rows)
    return replace(data, rows=tuple(lines))


# ── the experiment ───────────────────────────────────────────────────────────


def fit_both(
    train: Aligned, makers: Makers, plan: Plan, tick: Callable[[str], None] = lambda told: None
) -> tuple[Fitted, Fitted]:
    """The paper's network and the best predictor that ``train`` finds, fitted to all training rows.

    Where there are more queries than a stack learns from, boosted trees, which learn from them all, are taken without a
    comparison: on nano's 33,334 their R² on judged prompts is .503, a stack's .493, and they take half the time.
    """
    ours = "gbdt" if len(train) > MOST else "auto"

    def fitted(name: str, kind: Any) -> Fitted:
        return fits.fit(name, kind, train, makers, quality_loss=plan.quality_loss, seed=plan.seed, tick=tick)

    return fitted(fits.PAPERS, "mlp"), fitted(fits.OURS, ours)


def experiment(
    data: Data,
    fitted: Sequence[Fitted],
    makers: Makers,
    plan: Plan,
    *,
    clock: Callable[[], float],
    tick: Callable[[str], None] = lambda told: None,
) -> dict[str, Any]:
    """Every figure of the report as JSON values; those that have no value are null.

    ``clock`` (seconds) times the decisions. The same outcomes and seeds give the same value but for ``TIMED``.
    """
    said: dict[str, tuple[Fitted, list[Estimates]]] = {}
    decision_ms = {}
    for each in fitted:
        began = clock()
        said[each.name] = (each, fits.predict(each, makers, data.judged))
        decision_ms[each.name] = 1000 * (clock() - began) / len(data.judged)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        **_facts(data, plan, fitted),
        "decision_ms": decision_ms,
        "paper": _papers(),
    }
    notes = _notes(data)
    found["readings"] = {}
    for reading in arms.readings(len(data.judged.stages)):
        tick(f"policies, costs {reading.told}")
        found["readings"][reading.name], more = _reading(
            data, said, reading, makers, plan=plan, decision_ms=decision_ms
        )
        notes += [note for note in more if note not in notes]
    tick("predictors, stand-in and ceiling")
    found["predictors"] = _predictors(data, said, makers, plan)
    cleaned: dict[str, Any] = rounded(clean(found | {"notes": notes}))
    return cleaned


def rounded(value: Any) -> Any:
    """The value with numbers of DIGITS digits: what stands behind them is the dust of reckoning."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(float(f"{value:.{DIGITS}g}"), 12) if isinstance(value, float) else value


def without_times(value: Any) -> Any:
    """The value without what a clock measured."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def _facts(data: Data, plan: Plan, fitted: Sequence[Fitted]) -> dict[str, Any]:
    return {
        "stages": list(data.judged.stages),
        "cost_unit": data.judged.cost_unit,
        "quality_loss": plan.quality_loss,
        "seed": plan.seed,
        "resamples": plan.resamples,
        "lambdas": list(paper.LAMBDAS),
        "classes_by": data.classes_by,
        "rows": {
            "train": len(data.train) * len(data.train.stages),
            "train_queries": len(data.train),
            "judged_queries": len(data.judged),
            "compared": fitted[-1].trained.compared,
            "train_left_out": data.train.dropped,
            "judged_left_out": data.judged.dropped,
            "ten": len(data.ten),
        },
        "classes": {
            name: dict(sorted(Counter(of).items())) for name, of in zip(("train", "judged"), data.classes, strict=True)
        },
        "quality": {name: _means(part, data.judged.stages) for name, part in _parts(data).items()},
    }


def _parts(data: Data) -> dict[str, Any]:
    found = {"train": data.train.quality, "judged": data.judged.quality}
    of = np.array(data.classes[1])
    return found | {f"judged:{level}": data.judged.quality[of == level] for level in np.unique(of)}


def _means(part: Any, stages: Sequence[str]) -> dict[str, float]:
    return dict(zip(stages, part.mean(axis=0).tolist(), strict=True))


def _notes(data: Data) -> list[str]:
    found = []
    if data.classes_by == "rules":
        found.append(
            "not all prompts have a level: the classes of all are those that the rules of predictors/complexity.py tell"
        )
    if len(data.judged.stages) != len(paper.STAGES):
        found.append(
            f"the paper's costs are for three stages and this ladder has {len(data.judged.stages)}: only measured "
            "costs are shown, and no random split that meets the paper's stated costs"
        )
    if data.judged.cost_unit != "relative":
        found.append(
            f"measured costs are in {data.judged.cost_unit}, the paper's λ are for costs near 1: under measured costs "
            "only the calibrated λ says much"
        )
    for what, dropped in (("training", data.train.dropped), ("judged", data.judged.dropped)):
        if dropped:
            found.append(f"{dropped} {what} prompts are left out: not all stages answered them")
    return found


def _papers() -> dict[str, Any]:
    """The paper's own arithmetic: its rule on its matrix, and the findings."""
    return {
        "matrix": {f"{lam:g}": paper.greedy(lam)._asdict() for lam in paper.LAMBDAS},
        "matrix_costs_finer": {
            f"{lam:g}": paper.greedy(lam, arms.FINER.vector or ())._asdict() for lam in paper.LAMBDAS
        },
        "findings": [{"cells": list(each.cells), "told": each.told} for each in paper.findings()],
    }


# ── one reading of cost ──────────────────────────────────────────────────────


def _reading(
    data: Data,
    said: Mapping[str, tuple[Fitted, list[Estimates]]],
    reading: Reading,
    makers: Makers,
    *,
    plan: Plan,
    decision_ms: Mapping[str, float],
) -> tuple[dict[str, Any], list[str]]:
    decide_s = {name: value / 1000 for name, value in decision_ms.items()}
    routers, points, notes = fits.routers(
        data.judged, data.train, reading, said, quality_loss=plan.quality_loss, decide_s=decide_s
    )
    played = arms.play_all(data.judged, data.train, reading, routers, quality_loss=plan.quality_loss, seed=plan.seed)
    entries = iter(arms.figures(played, np.random.default_rng(plan.seed), times=plan.resamples))
    notes += [
        f"{name} has no λ under the {reading.name} costs that keeps the loss within {plan.quality_loss:.1%} on "
        "training rows"
        for name, point in points.items()
        if point["lambda"] is None
    ]
    return {
        "told": reading.told,
        "cost_unit": played.bench.data.cost_unit,
        "stage_costs": _means(played.bench.data.cost, data.judged.stages),
        "expected_costs": _means(played.bench.expected, data.judged.stages),
        "operating_points": points,
        "wanted_quality": played.wanted,
        **_entries(played, entries, data.classes[1]),
        "missing": dict(played.missing),
        "ten": _ten(data, said, reading, played, makers),
    }, notes


def _entries(played: Arms, entries: Any, classes: Sequence[str]) -> dict[str, Any]:
    """The figures, sorted into the arms that they are of; taken in the order of ``Arms.played``."""
    stages = played.bench.data.stages

    def full(each: Played) -> dict[str, Any]:
        return {**next(entries), "by_class": arms.shares_by_class(each, classes, stages)}

    alone = [full(each) for each in played.alone]
    by_lambda = {name: [full(each) for each in line] for name, line in played.by_lambda.items()}
    calibrated = {name: full(each) for name, each in played.calibrated.items()}
    curves = {name: [_short(next(entries)) for _ in line] for name, line in played.curves.items()}
    mixes = [full(each) for each in played.mixes]
    oracle = full(played.oracle)
    best = [next(entries) for _ in played.oracle_curve]
    return {
        "alone": alone,
        "by_lambda": by_lambda,
        "calibrated": calibrated,
        "curves": curves,
        "mixes": mixes,
        "oracle": oracle,
        "oracle_curve": sorted((_short(each) for each in best), key=lambda each: (each["cost"], each["quality"])),
    }


SHORT = ("lambda", "quality", "cost", "shares", "latency")


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in SHORT}


def _ten(
    data: Data,
    said: Mapping[str, tuple[Fitted, list[Estimates]]],
    reading: Reading,
    played: Arms,
    makers: Makers,
) -> dict[str, Any]:
    """The paper's ten prompts on this ladder: shares, cost and seconds of each predictor at the paper's λ."""
    if not len(data.ten):
        return {}
    ten = arms.priced(data.ten, reading)
    bench = Bench(ten, np.tile(played.bench.expected.mean(axis=0), (len(ten), 1)), 0)
    found = {}
    for name, (fitted, _) in said.items():
        router = arms.Router(name, fits.predict(fitted, makers, ten), None)
        found[name] = [_chosen(each, ten) for each in arms.along(bench, router, paper.LAMBDAS)]
    return found


def _chosen(each: Played, ten: Aligned) -> dict[str, Any]:
    return {
        "lambda": each.lam,
        "shares": dict(zip(ten.stages, each.shares.tolist(), strict=True)),
        "cost": float(each.cost.mean()),
        "latency": {"mean": float(each.seconds.mean())},
        "stages": [ten.stages[int(line.argmax())] for line in each.chances],
    }


# ── table 4.4 ────────────────────────────────────────────────────────────────


def _predictors(
    data: Data, said: Mapping[str, tuple[Fitted, list[Estimates]]], makers: Makers, plan: Plan
) -> dict[str, Any]:
    trained, asked_of = data.classes

    def of_stand_in(fitted: Fitted) -> dict[str, Any] | None:
        def learn(rows: Aligned) -> list[Estimates]:
            return fits.estimates_of(fits.refit(fitted, rows, plan.seed), makers, data.judged)

        return predicted.stand_in_predicted(data.train, data.judged, asked_of, learn)

    found: dict[str, Any] = {
        name: {
            **predicted.of_estimates(estimates, data.judged, asked_of),
            "kind": fitted.artifact.kind,
            "chosen": fitted.trained.chosen,
            "version": fitted.artifact.version,
            "out_of_fold": {trial.name: dict(trial.scores) for trial in fitted.trained.trials},
        }
        for name, (fitted, estimates) in said.items()
    }
    return {
        "measured_quality": found,
        "stand_in": predicted.stand_in(data.judged, asked_of),
        "stand_in_predicted": {name: of_stand_in(fitted) for name, (fitted, _) in said.items()},
        "ceiling": predicted.ceiling(data.train, data.judged, (trained, asked_of)),
    }


def ten_aligned(rows: Sequence[OutcomeRow], stages: Sequence[str], like: Aligned) -> Aligned:
    """The ten prompts' rows as data: those that all stages answered, which may be none."""
    answered = Counter(row.query_id for row in rows)
    whole = [row for row in rows if answered[row.query_id] == len(stages)]
    return align(whole, stages) if whole else like.take(np.zeros(len(like), dtype=np.bool_))


def headline(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ours at its calibrated λ under measured costs; None where it has none."""
    line: dict[str, Any] | None = found["readings"]["measured"]["calibrated"].get(fits.OURS)
    return line
