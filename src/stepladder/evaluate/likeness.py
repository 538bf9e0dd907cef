"""Which prompts are alike: cosine of weighted hashed n-grams. Needs the extra [train], for SciPy's sparse arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import MissingExtraError
from stepladder.evaluate.metrics import Matrix
from stepladder.predictors.grams import BUCKETS, DENSE, hashed_grams

COMMON = 0.5
"""n-grams that more than this share of the known texts hold are left out: they tell nothing and take most time."""

SMALL = 50
"""Among fewer known texts than these no n-gram counts as common."""

CHUNK = 256
"""Texts compared at once."""


class Likeness:
    """Texts as rows of length 1: (1 + ln count) · ln(texts/texts with the n-gram), of the n-grams of known ones.

    The weights are learned from ``texts``, whose rows are ``known`` (a SciPy sparse array). Raises MissingExtraError
    where SciPy is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = _counts(texts)
        having = np.bincount(counts.indices, minlength=BUCKETS)
        most = COMMON * len(texts) if len(texts) >= SMALL else len(texts)
        self._weight = np.where((having > 0) & (having <= most), np.log((len(texts) + 1) / np.maximum(having, 1)), 0.0)
        self.known = self._weighted(counts)

    def rows(self, texts: Sequence[str]) -> Any:
        """The texts as a sparse array, (n, BUCKETS)."""
        return self._weighted(_counts(texts))

    def nearest(self, texts: Sequence[str], many: int) -> NDArray[np.intp]:
        """Numbers of the known texts that are nearest to each text, (n, many), in no order."""
        rows, found = self.rows(texts), []
        many = min(many, self.known.shape[0])
        for start in range(0, len(texts), CHUNK):
            alike: Matrix = (rows[start : start + CHUNK] @ self.known.T).toarray()
            found.append(np.argpartition(-alike, many - 1, axis=1)[:, :many])
        return np.concatenate(found)

    def _weighted(self, counts: Any) -> Any:
        found = counts.copy()
        found.data = (1 + np.log(found.data)) * self._weight[found.indices]
        found.eliminate_zeros()
        lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).reshape(-1))
        found.data /= np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(found.indptr))
        return found


def _counts(texts: Sequence[str]) -> Any:
    """(n, BUCKETS) how often each text holds each n-gram."""
    try:
        from scipy.sparse import csr_array  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("finding prompts that are alike", "train") from error
    found = [np.unique(hashed_grams(text)[0][:-DENSE], return_counts=True) for text in texts]
    starts = np.r_[0, np.cumsum([len(buckets) for buckets, _ in found])]
    buckets, counts = (np.concatenate([pair[i] for pair in found]) for i in range(2))
    return csr_array((counts.astype(np.float64), buckets, starts), shape=(len(texts), BUCKETS))
