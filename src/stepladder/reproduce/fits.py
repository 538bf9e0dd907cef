"""The predictors of the experiment, fitted to training rows: the paper's network and the best that ``train`` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stepladder.contracts import Featurizer
from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Matrix
from stepladder.evaluate.reference import reference_of
from stepladder.evaluate.scores import estimate
from stepladder.predictors.artifact import Artifact
from stepladder.reproduce.arms import Reading, Router, priced
from stepladder.train import choose
from stepladder.train.choose import Make, Trained
from stepladder.types import EMPTY, Estimates

PAPERS, OURS, BY_CLASS, BY_FAMILY = "adaptive:paper-mlp", "adaptive:ours", "class-router", "family-router"

Features = Callable[[str], Featurizer]
"""A featurizer by the name that an artifact gives."""


@dataclass(frozen=True, eq=False)
class Makers:
    """How serving would make the parts of an artifact; handed in, since parts are chosen by name elsewhere."""

    predictor: Make
    features: Features


COMPARED = 6000
"""Queries that λ rests on: more than a choice among predictors needs."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A predictor of the experiment, and on which evidence λ is calibrated: ``held`` out of fold (m, k) on ``some``."""

    name: str
    kind: Literal["auto", "gbdt", "mlp"]
    trained: Trained
    some: Aligned
    held: Matrix

    @property
    def artifact(self) -> Artifact:
        """What was fitted to all training rows; its λ is for the costs of the table."""
        return self.trained.artifact


def fit(
    name: str,
    kind: Literal["auto", "gbdt", "mlp"],
    data: Aligned,
    makers: Makers,
    *,
    quality_loss: float,
    seed: int,
    tick: Callable[[str], None],
) -> Fitted:
    """``train.choose.train`` with what it judged by out of fold. Raises UsageError for rows that cannot be fitted."""
    trained = choose.train(
        data,
        kind,
        makers.predictor,
        makers.features("paper"),
        quality_loss=quality_loss,
        compared=COMPARED,
        seed=seed,
        tick=lambda told: tick(f"{name}: {told}"),
    )
    held = next(trial.estimates for trial in trained.trials if trial.name == trained.chosen)
    return Fitted(name, kind, trained, trained.some, held)


def refit(fitted: Fitted, rows: Aligned, seed: int) -> Artifact:
    """The same kind of predictor with the same settings, fitted to other qualities of the same prompts."""
    return fitted.trained.way.fit(rows, seed)


def operating_point(fitted: Fitted, train: Aligned, reading: Reading, quality_loss: float) -> choose.Calibrated:
    """λ for the costs of a reading, from estimates out of fold."""
    reference = reference_of(priced(train, reading))
    return choose.calibrate(fitted.held, priced(fitted.some, reading), reference, quality_loss)


Cells = Sequence[str]
"""The kind of each query, as a look-up knows it."""


def classes_of(data: Aligned) -> Cells | None:
    """Each query's class of complexity; None where some have none."""
    return None if None in data.levels else [str(level) for level in data.levels]


def families_of(data: Aligned) -> Cells | None:
    """Each query's family and class; None where some have none."""
    pairs = [(line[0].family, line[0].level) for line in data.rows]
    return None if any(None in pair for pair in pairs) else [f"{family}/{level}" for family, level in pairs]


def look_up(
    name: str, judged: Aligned, train: Aligned, reading: Reading, quality_loss: float
) -> tuple[Router, choose.Calibrated] | None:
    """A router that knows each query's cell and the cell's mean qualities in training; None where some are not known.

    Its few means rest on many rows each, so λ is calibrated on the rows that they are of.
    """
    here, there = (LOOK_UPS[name](data) for data in (judged, train))
    if here is None or there is None:
        return None
    of = np.array(there)
    means_of = {str(cell): train.quality[of == cell].mean(axis=0) for cell in np.unique(of)}
    found = compare.looked_up(here, means_of, judged.stages)
    if found is None:
        return None
    data = priced(train, reading)
    point = choose.calibrate(np.array([means_of[cell] for cell in there]), data, reference_of(data), quality_loss)
    return Router(name, found, point.lam), point


LOOK_UPS: Mapping[str, Callable[[Aligned], Cells | None]] = {BY_CLASS: classes_of, BY_FAMILY: families_of}


def routers(
    judged: Aligned,
    train: Aligned,
    reading: Reading,
    fits: Mapping[str, tuple[Fitted, list[Estimates]]],
    *,
    quality_loss: float,
    decide_s: Mapping[str, float] = EMPTY,
) -> tuple[list[Router], dict[str, dict[str, Any]], list[str]]:
    """Look-ups (where cells are known), the paper's predictor, ours; each one's operating point; and notes.

    ``decide_s`` is what a decision of a predictor takes, seconds.
    """
    found, points, notes = [], {}, []
    for name in LOOK_UPS:
        made = look_up(name, judged, train, reading, quality_loss)
        if made is None:
            notes.append(f"no {name}: some queries' {MISSING[name]} is not known, or no training row has it")
        else:
            found.append(made[0])
            points[name] = _point(made[1])
    for name, (fitted, estimates) in fits.items():
        point = operating_point(fitted, train, reading, quality_loss)
        found.append(Router(name, estimates, point.lam, decide_s.get(name, 0.0)))
        points[name] = _point(point)
    return found, points, notes


MISSING = {BY_CLASS: "class", BY_FAMILY: "family"}


def _point(point: choose.Calibrated) -> dict[str, Any]:
    return {"lambda": point.lam, "quality_in_training": point.quality, "cost_in_training": point.cost}


def predict(fitted: Fitted, makers: Makers, data: Aligned) -> list[Estimates]:
    """What it says of these queries before any answer."""
    return estimates_of(fitted.artifact, makers, data)


def estimates_of(artifact: Artifact, makers: Makers, data: Aligned) -> list[Estimates]:
    """What an artifact's predictor says of these queries."""
    return estimate(makers.predictor(artifact), makers.features(artifact.features), data.requests)
