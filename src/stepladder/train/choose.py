"""Which predictor, and which λ: cross-validation by group on the training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from stepladder.contracts import Featurizer, Policy, Predictor
from stepladder.errors import UsageError
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.reference import SEEN, Reference, reference_of, seen, to_metrics
from stepladder.evaluate.scores import estimate, means
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.stack import FAST
from stepladder.train import plain
from stepladder.train.after import fit_gbdt_after
from stepladder.train.boost import fit_gbdt
from stepladder.train.fit import Grams, Row, fit_logistic, fit_matrix, fit_mlp
from stepladder.train.lesson import lesson_of, tasks_of
from stepladder.train.operating import Calibrated as Calibrated  # noqa: PLC0414 - also found under this module's name
from stepladder.train.operating import calibrate as calibrate  # noqa: PLC0414
from stepladder.train.operating import crossed_fit, points_along
from stepladder.train.reading import Read, fit_reading
from stepladder.train.rows import Numbers, drawn, fit_rows, folds, has_classes, sample
from stepladder.train.stack import MOST, Crossed, Stacked, fit_stack
from stepladder.types import EMPTY

Kind = Literal["gbdt", "knn", "logistic", "matrix", "mean", "mlp", "stack"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Fit = Callable[[Aligned, int], Artifact]
"""(rows, seed) → what was learned from them."""

Make = Callable[[Artifact], Predictor]
"""An artifact's predictor, as serving makes it."""

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse penalties of the logistic predictor that are tried: the fewer the rows for a question's kind, the smaller."""

PENALTIES_OF_AUTO = (0.1, 1.0)

FOLDS = 5
COMPARED = 3000
"""Queries that cross-validation looks at, at the most: more would make `auto` slow and hardly change its choice."""

REPLAYED = 2000
"""Queries on which policies that look at answers are played to choose their operating points, at the most."""

FAST_MOST = 8000
"""Queries that the profile ``fast`` of a stack learns from, at the most."""

STAGE_MEANS = "stage means"

SCORES: Mapping[str, Callable[[Matrix, Matrix], float]] = {
    "logloss": metrics.log_loss,
    "brier": metrics.brier,
    "r2": metrics.r2,
    "auc": metrics.auc,
}


class Once(NamedTuple):
    """What was fitted to all rows of ``data`` once, and tells of each as if it were new: no refits are needed."""

    data: Aligned
    read: Read
    stacked: Stacked | None = None


class Told(NamedTuple):
    """One candidate's part of ``Once``: estimates (n, k) of some of its rows, by what saw none of their group, and the
    artifact."""

    estimates: Callable[[Once, Numbers], Matrix]
    artifact: Callable[[Once], Artifact]


class Candidate(NamedTuple):
    """A way to fit one kind of predictor. ``whole`` is for all rows: it also fits what is not compared, such as the
    estimates after an answer. ``told`` is for those that are fitted once instead of once a fold."""

    name: str
    kind: Kind
    fit: Fit
    whole: Fit
    told: Told | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate on rows that it was not fitted to: its estimates (n, k) and its scores."""

    name: str
    estimates: Matrix
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Trained:
    """What ``train`` made: the artifact, and on what evidence.

    ``trials`` are of the queries ``some``; the first is the mean of each stage, which no predictor should be below.
    ``chosen`` is the name of the one that was fitted to all rows, by ``way``; ``notes`` say what was left out, and why.
    """

    artifact: Artifact
    trials: tuple[Trial, ...]
    chosen: str
    some: Aligned
    calibrated: Calibrated
    way: Candidate
    notes: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """How many queries the trials are of."""
        return len(self.some)


# ── the candidates ───────────────────────────────────────────────────────────


def candidates(data: Aligned, kind: Kind | Literal["auto"], *, classes: bool) -> list[Candidate]:
    """What is tried for rows like these, besides the stages' means. The matrix learns its classes where the table names
    enough (``classes``).

    ``auto`` tries the matrix only then: the rules' classes say little of other questions than the paper's. The paper's
    network it leaves out, which takes longest and was never the best of them (benchmarks/LOG.md).
    """
    makers: Mapping[Kind, Callable[[], list[Candidate]]] = {
        "mean": lambda: [_task_mean()] if tasks_of(data) is not None else [],
        "knn": lambda: [_knn()],
        "matrix": lambda: [_matrix("learned" if classes else "rules")],
        "mlp": lambda: [_by_rows("mlp", "mlp", fit_mlp)],
        "logistic": lambda: _logistics(_grams(data), PENALTIES),
        "gbdt": lambda: [_boosted(_grams(data))],
        "stack": lambda: [_stack()],
    }
    if kind != "auto":
        return makers[kind]()
    grams = _grams(data)
    tried = [*makers["mean"](), *makers["knn"](), *(makers["matrix"]() if classes else [])]
    return [*tried, *_logistics(grams, PENALTIES_OF_AUTO), _boosted(grams), *makers["stack"]()]


def _grams(data: Aligned) -> Grams:
    return Grams(request.text for request in data.requests)


def _by_rows(name: str, kind: Kind, fit: Callable[[Sequence[Row], Sequence[str], int], Artifact]) -> Candidate:
    def on(data: Aligned, seed: int) -> Artifact:
        return fit(fit_rows(data), data.stages, seed)

    return Candidate(name, kind, on, on)


def _matrix(classifier: Literal["rules", "learned"]) -> Candidate:
    def fit(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
        return fit_matrix(rows, stages, classifier=classifier, seed=seed)

    return _by_rows(f"matrix, {classifier}", "matrix", fit)


def _logistics(grams: Grams, penalties: Sequence[float]) -> list[Candidate]:
    """One candidate for each penalty."""

    def fit_with(penalty: float) -> Callable[[Sequence[Row], Sequence[str], int], Artifact]:
        def fit(rows: Sequence[Row], stages: Sequence[str], seed: int) -> Artifact:
            return fit_logistic(rows, stages, seed, inverse_penalty=penalty, grams=grams)

        return fit

    return [_by_rows(f"logistic, C = {penalty:g}", "logistic", fit_with(penalty)) for penalty in penalties]


def _boosted(grams: Grams) -> Candidate:
    def fit(data: Aligned, seed: int) -> Artifact:
        return fit_gbdt(fit_rows(data), data.stages, seed, grams=grams)

    def whole(data: Aligned, seed: int) -> Artifact:
        return fit_gbdt_after(fit_rows(data), data.stages, seed, grams=grams)

    return Candidate("gbdt", "gbdt", fit, whole)


def _stage_means() -> Candidate:
    return Candidate(STAGE_MEANS, "mean", plain.fit_mean, plain.fit_mean)


def _task_mean() -> Candidate:
    def estimates(once: Once, numbers: Numbers) -> Matrix:
        return plain.by_task(once.read, len(once.data.stages))[numbers]

    told = Told(estimates, lambda once: plain.task_mean(once.read, once.data))
    return Candidate("mean, by task", "mean", plain.fit_task_mean, plain.fit_task_mean, told)


def _knn() -> Candidate:
    def estimates(once: Once, numbers: Numbers) -> Matrix:
        return plain.by_neighbours(once.read, once.data)[numbers]

    told = Told(estimates, lambda once: plain.knn(once.read, once.data))
    return Candidate("knn", "knn", plain.fit_knn, plain.fit_knn, told)


def _stack() -> Candidate:
    def fit(data: Aligned, seed: int) -> Artifact:
        return fit_stack(data, seed).artifact(data.stages)

    def estimates(once: Once, numbers: Numbers) -> Matrix:
        assert once.stacked is not None  # noqa: S101 - a stack is compared only where one was fitted
        return np.array([once.stacked.crossed.means(place) for place in numbers.tolist()])

    def artifact(once: Once) -> Artifact:
        assert once.stacked is not None  # noqa: S101
        return once.stacked.artifact(once.data.stages)

    return Candidate("stack", "stack", fit, fit, Told(estimates, artifact))


def with_fast(artifact: Artifact, data: Aligned, seed: int) -> Artifact:
    """The stack with its second profile: a ``gbdt`` that learned from FAST_MOST of these queries at the most."""
    some = sample(data, FAST_MOST, np.random.default_rng(seed))
    fast = fit_gbdt_after(fit_rows(some), data.stages, seed)
    arrays = {f"{FAST}{name}": array for name, array in fast.arrays.items()}
    return replace(
        artifact,
        params={**artifact.params, "fast": dict(fast.params)},
        arrays={**artifact.arrays, **arrays},
        metrics={**artifact.metrics, **{f"{FAST}{name}": value for name, value in fast.metrics.items()}},
    )


# ── the choice ───────────────────────────────────────────────────────────────


def train(
    data: Aligned,
    kind: Kind | Literal["auto"],
    make: Make,
    featurizer: Featurizer,
    *,
    quality_loss: float = 0.01,
    policies: Mapping[str, Policy] = EMPTY,
    compared: int | None = None,
    seed: int = 0,
    tick: Callable[[str], None] = lambda told: None,
) -> Trained:
    """Choose among the candidates of a kind by the lowest log-loss out of fold, fit on all rows, and calibrate λ.

    All are compared on the same queries, ``compared`` (by default COMPARED) at the most, of whole groups. Most learn
    from the other folds of
    those; ``stack``, ``knn`` and the means by task are fitted once, to all rows (MOST at the most), and cross-fitted
    inside: where a table has more rows than are compared, they have learned from more. ``auto`` takes a mean, and not
    the best of the others, unless that one's log-loss is lower by more than a standard error of the paired difference.

    ``policies`` look at answers: where the estimates chosen do too, operating points are chosen for them as well, on
    REPLAYED queries at the most. The artifact remembers the groups and the means of its rows. ``tick`` is told what is
    being done. Raises UsageError for rows that cannot be fitted.
    """
    rng = np.random.default_rng(seed)
    pool = sample(data, MOST, rng)
    numbers = drawn(pool, compared or COMPARED, rng)
    some = pool.take(numbers)
    fold_of = folds(some, FOLDS, rng)
    ways = candidates(data, kind, classes=has_classes(some))
    once, notes = _fitted_once(pool, ways, kind, seed, tick)
    tried = [(_stage_means(), by_means(some, fold_of))]
    for way in ways:
        if way.told is None:
            tick(f"{way.name}: {FOLDS} folds of {len(some)} queries")
            estimates = out_of_fold(_learner(way.fit, make, seed), some, fold_of, featurizer)
            tried.append((way, _trial(way.name, some, estimates)))
        elif once is not None and (way.kind != "stack" or once.stacked is not None):
            tried.append((way, _trial(way.name, some, way.told.estimates(once, numbers))))
    way, best = _best(tried, kind, some)
    tick(f"{best.name}: all {len(data)} queries")
    reference = reference_of(data)
    if once is not None and way.told is not None:
        artifact = way.told.artifact(once)
        found = calibrate(way.told.estimates(once, np.arange(len(pool))), pool, reference, quality_loss)
    else:
        artifact = way.whole(data, seed)
        found = calibrate(best.estimates, some, reference, quality_loss)
    if way.kind == "stack" and once is not None and once.stacked is not None:
        tick(f"{best.name}: the profile fast, operating points of {', '.join(policies) or 'no policy'}")
        artifact = with_fast(artifact, data, seed)
        found = replace(
            found, metrics={**found.metrics, **_points(once.stacked.crossed, pool, reference, policies, rng)}
        )
    artifact = remember(artifact, data, reference, best, found)
    return Trained(artifact, tuple(trial for _, trial in tried), best.name, some, found, way, tuple(notes))


def _fitted_once(
    pool: Aligned, ways: Sequence[Candidate], kind: Kind | Literal["auto"], seed: int, tick: Callable[[str], None]
) -> tuple[Once | None, list[str]]:
    """What the candidates need that are not fitted fold by fold, and what there is to say where it cannot be had."""
    kinds = {way.kind for way in ways if way.told is not None}
    if not kinds:
        return None, []
    notes: list[str] = []
    if "stack" in kinds:
        tick(f"stack: {len(pool)} queries, cross-fitted")
        try:
            stacked = fit_stack(pool, seed)
            return Once(pool, Read(dict(stacked.arrays), stacked.crossed.rows), stacked), []
        except UsageError as error:
            if kind != "auto":
                raise
            notes.append(f"stack left out: {error}")
            tick(notes[0])
    tick(f"reading {len(pool)} queries, cross-fitted")
    return Once(pool, fit_reading(lesson_of(pool), seed)), notes


Tried = tuple[Candidate, Trial]


def _best(tried: Sequence[Tried], kind: Kind | Literal["auto"], data: Aligned) -> Tried:
    """The one that is taken; means where nothing is better than them beyond doubt."""
    best = _lowest([each for each in tried if kind in ("auto", each[0].kind)])
    if kind != "auto" or best[0].kind == "mean":
        return best
    mean = _lowest([each for each in tried if each[0].kind == "mean"])
    return best if beats(data, best[1].estimates, mean[1].estimates) else mean


def _lowest(tried: Sequence[Tried]) -> Tried:
    return min(tried, key=lambda each: each[1].scores["logloss"])


def beats(data: Aligned, one: Matrix, other: Matrix) -> bool:
    """True where the log-loss of the estimates ``one`` (n, k) is below that of the ``other`` by more than one standard
    error of the paired difference, whose groups of queries are independent of each other and queries of one are not."""
    less = _losses(data.quality, other) - _losses(data.quality, one)
    mean = float(less.mean())
    of_groups = np.bincount(data.groups, less - mean)
    few = len(of_groups) / max(len(of_groups) - 1, 1)
    return mean > float(np.sqrt(few * (of_groups**2).sum())) / len(less)


def _losses(quality: Matrix, estimates: Matrix) -> Vector:
    """(n,) each query's log-loss, of all stages together."""
    sure = np.clip(estimates, metrics.CLIP, 1 - metrics.CLIP)
    found: Vector = -(quality * np.log(sure) + (1 - quality) * np.log1p(-sure)).mean(axis=1)
    return found


def _points(
    crossed: Crossed, data: Aligned, reference: Reference, policies: Mapping[str, Policy], rng: np.random.Generator
) -> dict[str, float]:
    """The operating points of policies that look at answers, where the estimates do."""
    if not crossed.after:
        return {}
    numbers = drawn(data, REPLAYED, rng)
    return points_along(crossed_fit(crossed, numbers), data.take(numbers), reference, policies)


def _learner(fit: Fit, make: Make, seed: int) -> Callable[[Aligned], Predictor]:
    return lambda data: make(fit(data, seed))


def out_of_fold(
    learn: Callable[[Aligned], Predictor], data: Aligned, fold_of: Numbers, featurizer: Featurizer
) -> Matrix:
    """Estimates (n, k) of every query by a predictor that learned from none of its group."""
    estimates = np.zeros_like(data.quality)
    for fold in range(int(fold_of.max()) + 1):
        held = fold_of == fold
        predictor = learn(data.take(~held))
        estimates[held] = means(estimate(predictor, featurizer, data.take(held).requests), data.stages)
    return estimates


def by_means(data: Aligned, fold_of: Numbers) -> Trial:
    """The mean of each stage in the other folds."""
    estimates = np.zeros_like(data.quality)
    for fold in range(int(fold_of.max()) + 1):
        estimates[fold_of == fold] = data.quality[fold_of != fold].mean(axis=0)
    return _trial(STAGE_MEANS, data, estimates)


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
