"""The predictors of the experiment, fitted to training rows: the paper's network and the best that ``train`` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stepladder.contracts import Featurizer
from stepladder.errors import UsageError
from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.metrics import Matrix
from stepladder.evaluate.reference import reference_of
from stepladder.evaluate.scores import estimate, means
from stepladder.predictors.artifact import Artifact
from stepladder.reproduce.arms import Reading, Router, priced
from stepladder.train import choose
from stepladder.train.choose import Make, Trained
from stepladder.train.fit import Row
from stepladder.train.rows import has_classes, sample
from stepladder.types import Estimates

PAPERS, OURS, BY_CLASS = "adaptive:paper-mlp", "adaptive:ours", "class-router"

Features = Callable[[str], Featurizer]
"""A featurizer by the name that an artifact gives."""


@dataclass(frozen=True, eq=False)
class Makers:
    """How serving would make the parts of an artifact; handed in, since parts are chosen by name elsewhere."""

    predictor: Make
    features: Features


@dataclass(frozen=True, eq=False)
class Fitted:
    """A predictor of the experiment, and on which evidence λ is calibrated: ``held`` out of fold (m, k) on ``some``."""

    name: str
    kind: Literal["auto", "mlp"]
    trained: Trained
    some: Aligned
    held: Matrix

    @property
    def artifact(self) -> Artifact:
        """What was fitted to all training rows; its λ is for the costs of the table."""
        return self.trained.artifact


def fit(
    name: str,
    kind: Literal["auto", "mlp"],
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
        seed=seed,
        tick=lambda told: tick(f"{name}: {told}"),
    )
    some = sample(data, choose.COMPARED, np.random.default_rng(seed))
    held = next(trial.estimates for trial in trained.trials if trial.name == trained.chosen)
    if held.shape != some.quality.shape:
        raise UsageError(f"'{name}' was compared on {len(held)} queries, not on the {len(some)} that were drawn")
    return Fitted(name, kind, trained, some, held)


def refit(fitted: Fitted, train: Aligned, rows: Sequence[Row], seed: int) -> Artifact:
    """The same kind of predictor with the same settings, fitted to other rows of the same prompts."""
    ways = choose.candidates(train, fitted.kind, classes=has_classes(fitted.some))
    way = next(each.fit for each in ways if each.name == fitted.trained.chosen)
    return way(rows, train.stages, seed)


def operating_point(fitted: Fitted, train: Aligned, reading: Reading, quality_loss: float) -> choose.Calibrated:
    """λ for the costs of a reading, from estimates out of fold."""
    reference = reference_of(priced(train, reading))
    return choose.calibrate(fitted.held, priced(fitted.some, reading), reference, quality_loss)


def class_point(train: Aligned, reading: Reading, quality_loss: float) -> choose.Calibrated | None:
    """λ of the class router; None where not all training rows have a class.

    Its few means rest on many rows each, so they are calibrated on the rows that they are of.
    """
    data = priced(train, reading)
    reference = reference_of(data)
    found = compare.class_estimates(Bench(data, data.cost), reference.by_class)
    return None if found is None else choose.calibrate(means(found, data.stages), data, reference, quality_loss)


def routers(
    judged: Aligned,
    train: Aligned,
    reading: Reading,
    fits: Mapping[str, tuple[Fitted, list[Estimates]]],
    quality_loss: float,
) -> tuple[list[Router], dict[str, dict[str, Any]], list[str]]:
    """Class router (where classes are known), the paper's predictor, ours; each one's operating point; and notes."""
    found, points, notes = [], {}, []
    by_class = compare.class_estimates(Bench(judged, judged.cost), reference_of(train).by_class)
    point = class_point(train, reading, quality_loss)
    if by_class is None or point is None:
        notes.append("no class router: some judged queries are of a class that no training row has")
    else:
        found.append(Router(BY_CLASS, by_class, point.lam))
        points[BY_CLASS] = _point(point)
    for name, (fitted, estimates) in fits.items():
        point = operating_point(fitted, train, reading, quality_loss)
        found.append(Router(name, estimates, point.lam))
        points[name] = _point(point)
    return found, points, notes


def _point(point: choose.Calibrated) -> dict[str, Any]:
    return {"lambda": point.lam, "quality_in_training": point.quality, "cost_in_training": point.cost}


def predict(fitted: Fitted, makers: Makers, data: Aligned) -> list[Estimates]:
    """What it says of these queries before any answer."""
    return estimates_of(fitted.artifact, makers, data)


def estimates_of(artifact: Artifact, makers: Makers, data: Aligned) -> list[Estimates]:
    """What an artifact's predictor says of these queries."""
    return estimate(makers.predictor(artifact), makers.features(artifact.features), data.requests)
