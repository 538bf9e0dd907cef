"""How good a predictor's estimates are on measured outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stepladder.contracts import Featurizer, Predictor
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.metrics import Labels, Matrix
from stepladder.types import Attempt, Estimates, Request


def estimate(predictor: Predictor, featurizer: Featurizer, requests: Iterable[Request]) -> list[Estimates]:
    """What the predictor says of every request before anything was answered, through the features that serve."""
    return [predictor.predict(featurizer.features(request)) for request in requests]


class Posterior:
    """What the predictor says of the requests after recorded answers, through the features that serve.

    Called with the number of a request and the attempts made (``compare.After``). Each request has one recorded answer
    a stage, so every set of stages is asked about once and then remembered.
    """

    def __init__(self, predictor: Predictor, featurizer: Featurizer, requests: Sequence[Request]) -> None:
        self._predictor, self._featurizer, self._requests = predictor, featurizer, requests
        self._known: dict[tuple[int, frozenset[str]], Estimates] = {}

    def __call__(self, number: int, attempts: tuple[Attempt, ...]) -> Estimates:
        """Estimates after these attempts."""
        key = number, frozenset(attempt.stage for attempt in attempts)
        if key not in self._known:
            features = self._featurizer.features(self._requests[number], attempts)
            self._known[key] = self._predictor.predict(features)
        return self._known[key]


def means(estimates: Sequence[Estimates], stages: Sequence[str]) -> Matrix:
    """The estimated qualities, (n, k)."""
    return np.array([[found[stage].mean for stage in stages] for found in estimates], dtype=np.float64)


def scores(quality: Matrix, estimated: Matrix, rng: np.random.Generator) -> dict[str, Any]:
    """``r2``, ``auc``, ``brier``, ``logloss``, ``ece``, ``ece_floor`` and ``n``, over all entries of two arrays, and
    ``reliability``: the bins of the ECE, each with ``estimate``, ``quality`` and ``n``.

    Formulas: ``metrics.py``. The floor is simulated with ``rng``.
    """
    spread = metrics.outcome_spread(quality, estimated)
    return {
        "r2": metrics.r2(quality, estimated),
        "auc": metrics.auc(quality, estimated),
        "brier": metrics.brier(quality, estimated),
        "logloss": metrics.log_loss(quality, estimated),
        "ece": metrics.ece(quality, estimated),
        "ece_floor": metrics.ece_floor(estimated, rng, spread=spread),
        "n": quality.size,
        "reliability": [each._asdict() for each in metrics.reliability(quality, estimated)],
    }


def predictor_report(
    quality: Matrix,
    estimated: Matrix,
    stages: Sequence[str],
    rng: np.random.Generator,
    *,
    classes: Labels | None = None,
) -> Mapping[str, Any]:
    """``pooled`` scores over all (n, k) entries, and ``per_stage``, a list with a ``stage`` each.

    ``pooled`` has two more: ``r2_within_stage``, and with ``classes`` (n,) ``r2_within_class``, of what is left once
    the means of each class on each stage are known.
    """
    stage_of = np.broadcast_to(np.arange(len(stages)), quality.shape)
    pooled = scores(quality, estimated, rng)
    pooled["r2_within_stage"] = metrics.r2_within(quality, estimated, stage_of)
    if classes is not None:
        number = np.unique(classes, return_inverse=True)[1].reshape(-1, 1)
        pooled["r2_within_class"] = metrics.r2_within(quality, estimated, number * len(stages) + stage_of)
    alone = [{"stage": name, **scores(quality[:, [j]], estimated[:, [j]], rng)} for j, name in enumerate(stages)]
    return {"pooled": pooled, "per_stage": alone}


def ceilings(data: Aligned) -> list[dict[str, Any]]:
    """Each stage's highest R², from the queries that it answered twice or more; a stage without such is left out.

    ``r2_single`` is that of one answer, ``r2_mean`` of the mean of a query's answers, ``queries`` counts them.
    """
    if data.samples is None:
        return []
    found = []
    for column, stage in enumerate(data.stages):
        again = data.samples.count[:, column] > 1
        if again.any():
            best = metrics.r2_ceiling(data.samples.mean[again, column], data.samples.count[again, column])
            told = {"r2_single": best.single, "r2_mean": best.mean, "queries": int(again.sum())}
            found.append({"stage": stage, **told})
    return found
