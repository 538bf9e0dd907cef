"""How well quality is predicted (table 4.4): the predictors, the paper's stand-in for quality, and the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.scores import means
from stepladder.train.fit import Grams
from stepladder.types import Estimates

NEAREST = (1, 25)
AT_ONCE = 512
"""Judged queries whose neighbours are sought at once: bounds the memory of their similarities."""


def scores(quality: Matrix, estimated: Matrix, classes: Sequence[str], stages: Sequence[str]) -> dict[str, Any]:
    """R² over all (n, k) entries: ``pooled``, ``within_stage``, ``within_class``; ``auc``; and ``per_stage``.

    Within is what is left to explain once the means of each stage, or of each class on each stage, are known. Entries
    that are NaN in either array are left out.
    """
    there = np.isfinite(quality) & np.isfinite(estimated)
    stage_of = np.broadcast_to(np.arange(len(stages)), quality.shape)
    class_of = np.unique(np.array(classes), return_inverse=True)[1].reshape(-1, 1) * len(stages) + stage_of
    y, p = quality[there], estimated[there]
    return {
        "pooled": metrics.r2(y, p),
        "within_stage": metrics.r2_within(y, p, stage_of[there]),
        "within_class": metrics.r2_within(y, p, class_of[there]),
        "auc": metrics.auc(y, p),
        "per_stage": {name: _r2(quality[there[:, j], j], estimated[there[:, j], j]) for j, name in enumerate(stages)},
        "n": int(there.sum()),
    }


def of_estimates(estimates: Sequence[Estimates], judged: Aligned, classes: Sequence[str]) -> dict[str, Any]:
    """``scores`` of a predictor, and beside the measured ones its mean estimates by class on the cheapest stage."""
    estimated = means(estimates, judged.stages)
    of = np.array(classes)
    by_class = {
        str(level): {
            "estimated": float(estimated[of == level, 0].mean()),
            "measured": float(judged.quality[of == level, 0].mean()),
        }
        for level in np.unique(of)
    }
    return {**scores(judged.quality, estimated, classes, judged.stages), "cheapest_stage_by_class": by_class}


# ── the stand-in ─────────────────────────────────────────────────────────────


def confidence(data: Aligned) -> Matrix:
    """(n, k) exp(mean log-probability of the answer's tokens): the geometric mean of their probabilities.

    The paper's stand-in for quality is the highest predicted probability (§5.3.2); at temperature 0 each token written
    is the likeliest one, so this is that, as a mean over the answer. NaN where the engine told none.
    """
    lines = [[np.nan if row.confidence is None else row.confidence for row in line] for line in data.rows]
    return np.exp(np.minimum(np.array(lines, dtype=np.float64), 0.0))


def stand_in(data: Aligned, classes: Sequence[str]) -> dict[str, Any] | None:
    """How well the stand-in follows measured quality: ``correlation``, ``auc``, ``r2`` as an estimate; and per stage.

    None where no answer has a confidence.
    """
    said = confidence(data)
    if not np.isfinite(said).any():
        return None
    there = np.isfinite(said)
    return {
        **_follows(data.quality[there], said[there]),
        "within_stage": scores(data.quality, said, classes, data.stages)["within_stage"],
        "n": int(there.sum()),
        "per_stage": {
            name: _follows(data.quality[there[:, j], j], said[there[:, j], j]) for j, name in enumerate(data.stages)
        },
    }


def _follows(quality: Vector, said: Vector) -> dict[str, float]:
    return {
        "correlation": correlation(quality, said),
        "auc": metrics.auc(quality, said),
        "r2": _r2(quality, said),
        "mean": float(said.mean()) if len(said) else float("nan"),
    }


def _r2(quality: Vector, said: Vector) -> float:
    return metrics.r2(quality, said) if len(quality) else float("nan")


def correlation(one: Vector, other: Vector) -> float:
    """Pearson's; NaN where either does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


Learn = Callable[[Aligned], list[Estimates]]
"""Rows to learn from → estimates of the judged queries."""


def stand_in_predicted(train: Aligned, judged: Aligned, classes: Sequence[str], learn: Learn) -> dict[str, Any] | None:
    """``scores`` of a predictor trained on the stand-in and judged against it; None without confidences."""
    trained, asked = confidence(train), confidence(judged)
    if not (np.isfinite(trained).any(axis=0).all() and np.isfinite(asked).any()):
        return None
    whole = np.flatnonzero(np.isfinite(trained).all(axis=1))
    if not len(whole):
        return None
    rows = replace(train.take(whole), quality=trained[whole])
    return scores(asked, means(learn(rows), judged.stages), classes, judged.stages)


# ── the ceiling ──────────────────────────────────────────────────────────────


def ceiling(train: Aligned, judged: Aligned, classes: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    """What means of training rows explain of the judged ones: by class, by family and class, by nearest neighbours.

    ``classes`` are those of the training rows and of the judged ones. Neighbours are of the same family and class, by
    cosine of hashed n-grams; where all are fewer, all of them. Where training has no such cell, its coarser mean is
    taken. ``nearest_1_shared`` is the covariance of a judged outcome with its neighbour's over the variance of
    outcomes: the share that would be explained by the chance of success that the two have in common.
    """
    trained, asked = classes
    families = _families(train), _families(judged)
    known = [f"{family}/{level}" for family, level in zip(families[0], trained, strict=True)]
    wanted = [f"{family}/{level}" for family, level in zip(families[1], asked, strict=True)]
    by_class = _cell_means(train.quality, trained, asked, np.tile(train.quality.mean(axis=0), (len(judged), 1)))
    by_family = _cell_means(train.quality, known, wanted, by_class)
    first, many = neighbours(train, judged, known, wanted, by_family)
    named = {
        "class_stage": by_class,
        "family_class_stage": by_family,
        f"nearest_{NEAREST[0]}": first,
        f"nearest_{NEAREST[1]}": many,
    }
    found: dict[str, Any] = {
        name: scores(judged.quality, estimated, asked, judged.stages) for name, estimated in named.items()
    }
    flat = judged.quality.ravel()
    spread = float(np.var(flat))
    shared = float(np.mean((flat - flat.mean()) * (first.ravel() - first.mean()))) / spread if spread else float("nan")
    return {**found, "nearest_1_shared": shared, "has_families": bool(set(families[1]) - {""})}


def _families(data: Aligned) -> list[str]:
    return [line[0].family or "" for line in data.rows]


def _cell_means(quality: Matrix, known: Sequence[str], wanted: Sequence[str], otherwise: Matrix) -> Matrix:
    """The mean of each wanted cell's training rows, (m, k); ``otherwise`` where there are none."""
    found, of, asked = otherwise.copy(), np.array(known), np.array(wanted)
    for cell in np.unique(asked):
        if (of == cell).any():
            found[asked == cell] = quality[of == cell].mean(axis=0)
    return found


def neighbours(
    train: Aligned, judged: Aligned, known: Sequence[str], wanted: Sequence[str], otherwise: Matrix
) -> tuple[Matrix, Matrix]:
    """Mean qualities (m, k) of the 1 and of the 25 most similar training queries of the same cell."""
    texts = [[request.text for request in data.requests] for data in (train, judged)]
    grams = Grams([*texts[0], *texts[1]])
    of, asked = np.array(known), np.array(wanted)
    found = [otherwise.copy() for _ in NEAREST]
    for cell in np.unique(asked):
        there, here = np.flatnonzero(of == cell), np.flatnonzero(asked == cell)
        if not len(there):
            continue
        base = _unit(grams.of([texts[0][i] for i in there]))
        for start in range(0, len(here), AT_ONCE):
            part = here[start : start + AT_ONCE]
            order = _most_similar(_unit(grams.of([texts[1][i] for i in part])), base)
            for place, count in enumerate(NEAREST):
                found[place][part] = train.quality[there][order[:, :count]].mean(axis=1)
    return found[0], found[1]


def _unit(lines: Any) -> Any:
    """Sparse lines at length 1."""
    length = np.sqrt(np.asarray(lines.multiply(lines).sum(axis=1)))
    return lines.multiply(1 / np.maximum(length, 1e-12)).tocsr()


def _most_similar(asked: Any, base: Any) -> NDArray[np.intp]:
    """(b, up to 25) places in ``base``, most similar first; of equals the earlier."""
    similar = np.asarray((asked @ base.T).todense())
    order: NDArray[np.intp] = np.argsort(-similar.round(9), axis=1, kind="stable")[:, : max(NEAREST)]
    return order
