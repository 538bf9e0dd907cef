"""Quality of every stage from a reading of the text: boosted trees and a regression, averaged and calibrated.

One artifact holds two profiles: ``full``, and ``fast``, which is a ``gbdt`` on fewer numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import log, sqrt
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stepladder.contracts import LOGPROBS
from stepladder.errors import ArtifactError
from stepladder.predictors import history
from stepladder.predictors.artifact import content_version, numbers_of, shaped
from stepladder.predictors.gbdt import GBDTPredictor, Trees
from stepladder.predictors.history import Signals
from stepladder.predictors.logistic import sigmoid
from stepladder.predictors.posterior import Correction
from stepladder.predictors.reading import Reading
from stepladder.types import Estimate, Estimates, Features

Profile = Literal["full", "fast"]
AFTER, PREFIX, FAST = "after_", "prefix_", "fast_"
"""What the names of arrays and parameters begin with: of heads for after an answer, of those for the beginning of one,
and of the profile ``fast``."""

CLIP = 5.0
"""Standard deviations from its mean beyond which a regression does not follow a column."""

LARGEST = 1e12
"""No number of a head may be larger: sums of such products are finite."""

SUREST = 1e-4
"""How near an estimate may come to 0 and 1."""


class StackPredictor:
    """Quality of stage i is calibrated(½·σ(trees) + ½·σ(regression)), both reading ``Reading.row`` of the text.

    Stacking (Wolpert, 1992) over linear scores, topics, neighbours and tasks; calibration is Platt's (1999) on
    cross-fitted estimates. The posterior after an answer is another head's, which reads the logits before any answer
    and what the answers tell (``posterior.Correction``). A third head, fitted to answers that were cut off, takes its
    place while some attempt has not ended (``history.is_partial``); an artifact without one reads no such attempt.

    ``arrays``: those of ``Reading``, of ``Head`` (and with AFTER before their names, for after an answer, with PREFIX
    for the beginning of one), and with FAST before their names those of a ``gbdt``. ``params``: ``spread`` and
    ``measured`` as for ``logistic``; ``told`` and ``told_after`` (each (k,), the share of q(1−q) by which a stage's own
    answer will move its estimate, before any answer and after others' answers; 0 by default, and in the profile
    ``fast``); ``depth``, and with AFTER or PREFIX ``depth``, ``signals`` and ``chars``, as for ``gbdt``;
    ``prefix_trust`` as in ``PrefixHead``; ``values`` (none by default), the names of numbers that the featurizer tells
    beside the text, of which one that it does not tell is 0: the head before an answer reads them after the text's row;
    ``fast`` (the parameters of that ``gbdt``; absent where there is none) and ``profile``, which one serves.

    Raises ArtifactError where parameters or arrays do not fit the ladder, or lack the profile.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        count = len(stages)
        self.version = content_version("stack", stages, params, arrays)
        self._stages = stages
        self._spreads = numbers_of(params.get("spread", [1.0] * count), "spread", count)
        told = tuple(numbers_of(params.get(name, [0.0] * count), name, count) for name in ("told", "told_after"))
        self._calibrated = params.get("measured", True) is True
        self.profile = _profile(params)
        # measured on the full profile's posteriors: the fast one's move less, and nobody measured by how much
        self._told = told if self.profile == "full" else ((0.0,) * count,) * 2
        self._signals: tuple[str, ...] = ()
        self._prefix: PrefixHead | None = None
        self._fast = _fast(stages, params, arrays) if self.profile == "fast" else None
        if self._fast is None:
            self._open(params, arrays)

    def _open(self, params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        count = len(self._stages)
        self._reading = Reading(arrays, count)
        self._values = _names(params.get("values", []))
        self._before = Head(arrays, params, "", count, self._reading.columns + len(self._values) + count)
        self._after: Head | None = None
        if f"{AFTER}signals" in params:
            self._signals = history.known_signals(params[f"{AFTER}signals"], f"{AFTER}signals")
            self._correction = Correction(count, self._signals)
            self._after = Head(arrays, params, AFTER, count, self._correction.columns)
        if f"{PREFIX}signals" in params:
            self._prefix = _prefix(arrays, params, count)

    @property
    def reads(self) -> frozenset[str]:
        """The log probabilities of answers' tokens, where the heads for after an answer look at them."""
        if self._fast is not None:
            return self._fast.reads
        signals = (*self._signals, *(() if self._prefix is None else self._prefix.correction.signals))
        return frozenset({LOGPROBS} if history.reads_logprobs(signals) else ())

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage, after the answers among the attempts where there are any."""
        if self._fast is not None:
            means, answered = self._fast.means(features)
        else:
            row = features.memo.get(self)
            if row is None:
                row = features.memo[self] = self._reading.row(features.text)
            if self._values:
                row = np.append(row, [features.values.get(name, 0.0) for name in self._values])
            means = self._before.means(for_each_stage(row, len(self._stages)))
            means, answered = self._posterior(means, features)
        estimates = estimates_of(means, self._spreads, self._told[bool(answered)], answered)
        return Estimates(dict(zip(self._stages, estimates, strict=True)), calibrated=self._calibrated)

    def _posterior(self, means: list[float], features: Features) -> tuple[list[float], Collection[int]]:
        """The means after the attempts, and which stages' answers moved them."""
        attempts, prompt = features.attempts, features.text
        if not attempts:
            return means, {}
        answered = history.answered(attempts, self._stages, self._signals, prompt=prompt)
        logits = [logit(mean) for mean in means]
        if self._after is not None and answered:
            means = self._after.means(self._correction.rows(logits, answered))
        if self._prefix is None or not history.runs(attempts, self._stages):
            return means, answered
        signals, chars = self._prefix.correction.signals, self._prefix.chars
        begun = history.begun(attempts, self._stages, signals, chars, prompt=prompt)
        return self._prefix.means(logits, means, begun), begun


class PrefixHead(NamedTuple):
    """What estimates are made with while an answer has not ended.

    ``chars`` (k,) are of every stage's mean token. ``trust`` (BANDS,) says how far the head is followed after so many
    tokens (``history.band``), and how far what would be said without that answer: 1 is all the way.
    """

    correction: Correction
    head: Head
    chars: tuple[float, ...]
    trust: tuple[float, ...]

    def means(self, logits: Sequence[float], without: Sequence[float], found: Mapping[int, Signals]) -> list[float]:
        """(k,) estimates after these beginnings; ``logits`` (k,) are of those before any answer, ``without`` (k,) the
        means after the whole answers alone."""
        share = self.trust[history.band(found)]
        told = self.head.means(self.correction.rows(logits, found))
        return blended(told, without, share)


def blended(told: Sequence[float], without: Sequence[float], share: float) -> list[float]:
    """Means whose logits lie between two others': ``share`` of the way from ``without`` to ``told``."""
    pairs = zip(told, without, strict=True)
    return [sigmoid(share * logit(one) + (1 - share) * logit(other)) for one, other in pairs]


def _prefix(arrays: Mapping[str, Any], params: Mapping[str, Any], stages: int) -> PrefixHead:
    correction = Correction(stages, history.known_signals(params[f"{PREFIX}signals"], f"{PREFIX}signals"))
    chars = history.chars_of(params.get(f"{PREFIX}chars"), f"{PREFIX}chars", stages)
    trust = numbers_of(params.get(f"{PREFIX}trust"), f"{PREFIX}trust", history.BANDS)
    return PrefixHead(correction, Head(arrays, params, PREFIX, stages, correction.columns), chars, trust)


class Head:
    """Trees that all stages share, and a regression of each, over rows of ``columns`` numbers, one row a stage.

    ``arrays``, after ``prefix``: ``middle`` and ``scale`` (columns,), by which columns are brought to one size;
    ``line`` (columns, k) and ``line_bias`` (k,); ``base`` (1,) and the trees as for a ``gbdt`` of one stage; ``platt``
    (k, 2), slope and offset of the calibration on the logit scale.
    """

    def __init__(
        self, arrays: Mapping[str, Any], params: Mapping[str, Any], prefix: str, stages: int, columns: int
    ) -> None:
        def mine(name: str, *shape: int) -> NDArray[np.float64]:
            return shaped(arrays, prefix + name, shape, largest=LARGEST)

        self._middle, self._scale = mine("middle", columns), mine("scale", columns)
        self._line, self._bias = np.ascontiguousarray(mine("line", columns, stages).T), mine("line_bias", stages)
        self._base, self._platt = mine("base", 1), mine("platt", stages, 2).tolist()
        self._trees = Trees(arrays, params.get(f"{prefix}depth"), 1, columns, prefix=prefix, rows=stages)

    def means(self, rows: NDArray[np.float64]) -> list[float]:
        """Calibrated quality of every stage; rows are (k, columns)."""
        return [calibrated(raw, *platt) for raw, platt in zip(self.raw(rows), self._platt, strict=True)]

    def raw(self, rows: NDArray[np.float64]) -> list[float]:
        """Quality of every stage before calibration."""
        scaled = np.minimum(np.maximum((rows - self._middle) * self._scale, -CLIP), CLIP)
        lines = np.einsum("ij,ij->i", scaled, self._line) + self._bias
        trees = self._base + self._trees.sums_of(rows)
        return [(sigmoid(one) + sigmoid(other)) / 2 for one, other in zip(lines.tolist(), trees.tolist(), strict=True)]


def for_each_stage(row: NDArray[np.float64], stages: int) -> NDArray[np.float64]:
    """(k, columns + k): the row once for each stage, and which stage it is."""
    return np.hstack([np.tile(row, (stages, 1)), np.eye(stages)])


def calibrated(mean: float, slope: float, offset: float) -> float:
    """σ(slope · logit(mean) + offset)."""
    return sigmoid(slope * logit(mean) + offset)


def logit(mean: float) -> float:
    """log(q / (1 − q)), finite at 0 and 1 too."""
    inner = min(max(mean, SUREST), 1 - SUREST)
    return log(inner / (1 - inner))


def estimates_of(
    means: Sequence[float], spreads: Sequence[float], told: Sequence[float], answered: Collection[int]
) -> list[Estimate]:
    """``estimate_of`` every stage: one that answered has nothing more to tell."""
    if answered:
        told = [0.0 if stage in answered else share for stage, share in enumerate(told)]
    return list(map(estimate_of, means, spreads, told))


def estimate_of(mean: float, spread: float, told: float) -> Estimate:
    """An outcome's variance is the share ``spread`` of q(1−q), and that of the estimate after an answer ``told``."""
    variance = mean * (1 - mean)
    return Estimate(mean, sqrt(spread * variance), sqrt(min(told, spread) * variance))


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ArtifactError(f"values should be a list of names of numbers beside the text, not {value!r}")
    return tuple(value)


def _profile(params: Mapping[str, Any]) -> Profile:
    wanted = params.get("profile", "full")
    for profile in get_args(Profile):
        if wanted == profile:
            return profile  # type: ignore[no-any-return]
    raise ArtifactError(f"profile should be full or fast, not {wanted!r}")


def _fast(stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> GBDTPredictor:
    own = params.get("fast")
    if not isinstance(own, Mapping):
        raise ArtifactError("this artifact holds no profile 'fast': train it again, or choose 'full'")
    mine = {name.removeprefix(FAST): array for name, array in arrays.items() if name.startswith(FAST)}
    return GBDTPredictor(stages, own, mine)
