"""Which predictor, and which λ: cross-validation by group on the training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from stepladder.contracts import Featurizer, Predictor
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Matrix
from stepladder.evaluate.reference import SEEN, Reference, reference_of, seen, to_metrics
from stepladder.evaluate.scores import estimate, means
from stepladder.predictors.artifact import Artifact
from stepladder.train.after import fit_gbdt_after
from stepladder.train.boost import fit_gbdt
from stepladder.train.fit import Grams, Row, fit_logistic, fit_matrix, fit_mlp
from stepladder.train.operating import Calibrated as Calibrated  # noqa: PLC0414 - also found under this module's name
from stepladder.train.operating import calibrate as calibrate  # noqa: PLC0414
from stepladder.train.rows import Numbers, fit_rows, folds, has_classes, sample

Kind = Literal["matrix", "mlp", "logistic", "gbdt"]
Fit = Callable[[Sequence[Row], Sequence[str], int], Artifact]
Make = Callable[[Artifact], Predictor]
"""An artifact's predictor, as serving makes it."""

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse penalties of the logistic predictor that are tried: the fewer the rows for a question's kind, the smaller."""

FOLDS = 5
COMPARED = 6000
"""Queries that cross-validation looks at, at the most: more would make `auto` slow and hardly change its choice."""

SCORES: Mapping[str, Callable[[Matrix, Matrix], float]] = {
    "logloss": metrics.log_loss,
    "brier": metrics.brier,
    "r2": metrics.r2,
    "auc": metrics.auc,
}


class Candidate(NamedTuple):
    """A way to fit one kind of predictor. ``whole`` is for all rows: it also fits what is not compared, the estimates
    after an answer."""

    name: str
    kind: Kind
    fit: Fit
    whole: Fit


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate on rows that it was not fitted to: its estimates (n, k) and its scores."""

    name: str
    estimates: Matrix
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Trained:
    """What ``train`` made: the artifact, and on what evidence.

    ``trials`` are of ``compared`` queries; the first is the mean of each stage, which no predictor should be below, and
    is no candidate. ``chosen`` is the name of the one that was fitted to all rows.
    """

    artifact: Artifact
    trials: tuple[Trial, ...]
    chosen: str
    compared: int
    calibrated: Calibrated


def candidates(data: Aligned, kind: Kind | Literal["auto"], *, classes: bool) -> list[Candidate]:
    """What is tried for rows like these. The matrix learns its classes where the table names enough (``classes``).

    ``auto`` tries the matrix only then: the rules' classes say little of other questions than the paper's.
    """
    classifier: Literal["rules", "learned"] = "learned" if classes else "rules"

    def matrix(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
        return fit_matrix(rows, stages, classifier=classifier, seed=seed)

    found = [Candidate(f"matrix, {classifier}", "matrix", matrix, matrix), Candidate("mlp", "mlp", fit_mlp, fit_mlp)]
    if kind not in ("matrix", "mlp"):
        grams = Grams(request.text for request in data.requests)
        found += [*_logistics(grams), _boosted(grams)]
    if kind == "auto":
        return [each for each in found if each.kind != "matrix" or classifier == "learned"]
    return [each for each in found if each.kind == kind]


def _logistics(grams: Grams) -> list[Candidate]:
    """One candidate for each penalty."""

    def fit_with(penalty: float) -> Fit:
        def fit(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
            return fit_logistic(rows, stages, seed, inverse_penalty=penalty, grams=grams)

        return fit

    ways = {penalty: fit_with(penalty) for penalty in PENALTIES}
    return [Candidate(f"logistic, C = {penalty:g}", "logistic", fit, fit) for penalty, fit in ways.items()]


def _boosted(grams: Grams) -> Candidate:
    def fit(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
        return fit_gbdt(rows, stages, seed, grams=grams)

    def whole(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
        return fit_gbdt_after(rows, stages, seed, grams=grams)

    return Candidate("gbdt", "gbdt", fit, whole)


def train(
    data: Aligned,
    kind: Kind | Literal["auto"],
    make: Make,
    featurizer: Featurizer,
    *,
    quality_loss: float = 0.01,
    seed: int = 0,
    tick: Callable[[str], None] = lambda told: None,
) -> Trained:
    """Choose among the candidates of a kind by the lowest log-loss out of fold, fit on all rows, and calibrate λ.

    Cross-validation looks at no more than COMPARED queries, of whole groups. The artifact remembers the groups and the
    means of its rows. ``tick`` is told what is being done. Raises UsageError for rows that cannot be fitted.
    """
    rng = np.random.default_rng(seed)
    some = sample(data, COMPARED, rng)
    fold_of = folds(some, FOLDS, rng)
    classes, trials = has_classes(some), []
    for candidate in candidates(some, kind, classes=classes):
        tick(f"{candidate.name}: {FOLDS} folds of {len(some)} queries")
        learn = _learner(candidate.fit, make, data.stages, seed)
        trials.append(_trial(candidate.name, some, out_of_fold(learn, some, fold_of, featurizer)))
    best = min(trials, key=lambda trial: trial.scores["logloss"])
    tick(f"{best.name}: all {len(data)} queries")
    fit = next(each.whole for each in candidates(data, kind, classes=classes) if each.name == best.name)
    artifact = fit(fit_rows(data), data.stages, seed)
    reference = reference_of(data)
    found = calibrate(best.estimates, some, reference, quality_loss)
    artifact = remember(artifact, data, reference, best, found)
    return Trained(artifact, (by_means(some, fold_of), *trials), best.name, len(some), found)


def _learner(fit: Fit, make: Make, stages: Sequence[str], seed: int) -> Callable[[Sequence[Row]], Predictor]:
    return lambda rows: make(fit(rows, stages, seed))


def out_of_fold(
    learn: Callable[[Sequence[Row]], Predictor], data: Aligned, fold_of: Numbers, featurizer: Featurizer
) -> Matrix:
    """Estimates (n, k) of every query by a predictor that learned from none of its group."""
    estimates = np.zeros_like(data.quality)
    for fold in range(int(fold_of.max()) + 1):
        held = fold_of == fold
        predictor = learn(fit_rows(data.take(~held)))
        estimates[held] = means(estimate(predictor, featurizer, data.take(held).requests), data.stages)
    return estimates


def by_means(data: Aligned, fold_of: Numbers) -> Trial:
    """The mean of each stage in the other folds."""
    estimates = np.zeros_like(data.quality)
    for fold in range(int(fold_of.max()) + 1):
        estimates[fold_of == fold] = data.quality[fold_of != fold].mean(axis=0)
    return _trial("stage means", data, estimates)


def _trial(name: str, data: Aligned, estimates: Matrix) -> Trial:
    return Trial(name, estimates, {figure: score(data.quality, estimates) for figure, score in SCORES.items()})


def remember(artifact: Artifact, data: Aligned, reference: Reference, trial: Trial, calibrated: Calibrated) -> Artifact:
    """The artifact with its λ, the hashes of its groups, the means of its rows, its scores and points out of fold."""
    figures = {f"{name}_out_of_fold": value for name, value in trial.scores.items() if np.isfinite(value)}
    return replace(
        artifact,
        arrays={**artifact.arrays, SEEN: seen(data)},
        lambda_=calibrated.lam,
        cost_unit=data.cost_unit,
        metrics={**artifact.metrics, **figures, **to_metrics(reference, data.stages), **calibrated.metrics},
    )
