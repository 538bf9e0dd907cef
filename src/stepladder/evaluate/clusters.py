"""Expected quality of kinds of prompts: how well a predictor's means fit clusters that training prompts have drawn.

Whether one answer will be right is mostly chance; how often a kind of question is answered right is not. Clusters are
drawn on training prompts alone, so that judged rows have no part in them, and the figures are within a stage, so that
knowing which stage is the better one counts for nothing. Random groups of the same sizes stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepladder.errors import MissingExtraError
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.metrics import Labels, Matrix, group_fit

COUNTS = (100, 30)
DIMENSIONS = 48
"""Prompts are clustered in the space of this many singular vectors (latent semantic analysis)."""

POWER_STEPS = 1
"""Of the randomised SVD: the directions need not be exact to tell kinds of prompts apart."""

STEPS = 50
"""Of Lloyd's algorithm, at the most."""


class Clusters:
    """Centres drawn on the prompts of ``space``. Raises MissingExtraError without the extra [train]."""

    def __init__(self, space: Likeness, seed: int) -> None:
        try:
            from sklearn.decomposition import TruncatedSVD
        except ImportError as error:
            raise MissingExtraError("clusters of prompts", "train") from error
        self._space, self._seed = space, seed
        width = min(DIMENSIONS, min(space.known.shape) - 1)
        self._svd = TruncatedSVD(width, random_state=seed, n_iter=POWER_STEPS)
        self._known: Matrix = self._svd.fit_transform(space.known)

    def labels(self, texts: Sequence[str], counts: Sequence[int] = COUNTS) -> dict[int, Labels]:
        """For each number of clusters the cluster of every text; numbers that training prompts are too few for are
        left out."""
        from sklearn.cluster import KMeans

        here = self._svd.transform(self._space.rows(texts))
        found: dict[int, Labels] = {}
        distinct = len(np.unique(np.round(self._known, 6), axis=0))
        for count in counts:
            if 2 * count <= distinct:
                means = KMeans(count, n_init=1, max_iter=STEPS, random_state=self._seed).fit(self._known)
                found[count] = means.predict(here)
        return found


def cluster_report(
    quality: Matrix, estimated: Matrix, stages: Sequence[str], labels: dict[int, Labels], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One entry for each number of clusters: ``per_stage`` and, for the same sizes by chance, ``control``.

    Each holds ``stage`` and what ``metrics.group_fit`` says: ``r2_raw``, ``r2`` (noise-corrected), ``r2_strict``,
    ``signal``, ``clusters`` and ``n``. The control's groups differ by chance alone: its ``signal`` should be about 0.
    """
    found = []
    for count, label in labels.items():
        fits = [_fits(quality, estimated, stages, groups) for groups in (label, rng.permutation(label))]
        found.append({"k": count, "per_stage": fits[0], "control": fits[1]})
    return found


def _fits(quality: Matrix, estimated: Matrix, stages: Sequence[str], groups: Labels) -> list[dict[str, Any]]:
    found = []
    for column, stage in enumerate(stages):
        fit = group_fit(quality[:, column], estimated[:, column], groups)
        figures = {"r2": fit.corrected, "r2_raw": fit.raw, "r2_strict": fit.strict, "signal": fit.signal}
        found.append({"stage": stage, **figures, "clusters": fit.groups, "n": fit.n})
    return found
