"""Quality of every stage by gradient-boosted trees over sizes, digits and words, and a linear score of n-grams.

Up to three sets of trees: one before any answer, and, where the training rows told of answers, one for after, and one
for the beginning of an answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.contracts import LOGPROBS
from stepladder.errors import ArtifactError
from stepladder.predictors import history
from stepladder.predictors.artifact import array_of, content_version, numbers_of, shaped
from stepladder.predictors.grams import BUCKETS, DENSE, hashed_grams
from stepladder.predictors.lexical import NAMES, WORDS, numbers, packed
from stepladder.predictors.logistic import from_logit, sigmoid
from stepladder.types import Estimates, Features

MOST_NODES, DEEPEST = 1_000_000, 64
"""Nodes of all trees of all stages, and steps of a walk, at the most. A decision looks at every node (some milliseconds
for so many), and no fit of ours grows a tenth of them."""

AFTER, PREFIX = "after_", "prefix_"
"""What the names of arrays and parameters begin with: of trees for after an answer, and for the beginning of one."""

_NOBODY: Mapping[int, history.Signals] = MappingProxyType({})


class GBDTPredictor:
    """Quality of stage i is σ(base[i] + Σ of its trees), each tree reading NAMES and all scores grams · weights + bias.

    ``arrays``: ``weights`` (BUCKETS + 2, stages), ``bias`` and ``base`` (stages,), ``counts`` (WORDS,), and the trees,
    each (stages, trees, nodes): ``feature`` (a column of NAMES, then of the scores), ``threshold`` (up to it the left
    child is next), ``left`` and ``right`` (numbers of nodes; a leaf is its own child) and ``value`` (of a leaf).
    ``params``: ``depth`` (steps from a root to the deepest leaf), ``spread`` and ``measured`` as for ``logistic``.

    Optional are trees for after an answer: the same arrays with AFTER before their names (``after_base``, …), which
    read the columns above and then those of ``history``, and the params ``after_depth`` and ``after_signals``
    (what those columns are, such as ``history.SIGNALS``: trees of unknown signals are refused). They estimate every
    stage, those that answered and those that did not, as soon as one stage of the ladder answered; without them answers
    do not move the estimates. While some attempt has not ended (``history.is_partial``) yet other trees estimate, which
    were fitted to answers that were cut off, with PREFIX before the names of their arrays and parameters;
    ``prefix_chars`` (k,) are the characters of every stage's mean token. Without them no such attempt is looked at.
    Friedman, "Greedy function approximation" (2001); linear scores under the trees are stacking (Wolpert, 1992).

    Raises ArtifactError where parameters or arrays do not fit the ladder.
    """

    def __init__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.version = content_version("gbdt", stages, params, arrays)
        self._stages = stages
        self._spreads = numbers_of(params.get("spread", [1.0] * len(stages)), "spread", len(stages))
        self._calibrated = params.get("measured", True) is True
        self._weights = shaped(arrays, "weights", (BUCKETS + DENSE, len(stages))).astype(np.float32)
        self._bias = shaped(arrays, "bias", (len(stages),))
        self._base = shaped(arrays, "base", (len(stages),))
        self._counts = packed(shaped(arrays, "counts", (WORDS,)))
        columns = len(NAMES) + len(stages)
        self._trees = Trees(arrays, params.get("depth"), len(stages), columns)
        self._after = _later(params, arrays, AFTER, len(stages), columns)
        self._prefix = _later(params, arrays, PREFIX, len(stages), columns)
        if self._prefix is not None:
            self._chars = history.chars_of(params.get(f"{PREFIX}chars"), f"{PREFIX}chars", len(stages))

    @property
    def reads(self) -> frozenset[str]:
        """The log probabilities of answers' tokens, where there are trees for after an answer that look at them."""
        told = [later.signals for later in (self._after, self._prefix) if later is not None]
        return frozenset({LOGPROBS} if any(map(history.reads_logprobs, told)) else ())

    def predict(self, features: Features) -> Estimates:
        """Estimates for every stage, after the answers among the attempts where there are any."""
        logits, _ = self._logits(features)
        found = zip(self._stages, logits, self._spreads, strict=True)
        estimates = {stage: from_logit(logit, spread) for stage, logit, spread in found}
        return Estimates(estimates, calibrated=self._calibrated)

    def means(self, features: Features) -> tuple[list[float], Collection[int]]:
        """The means of ``predict``, and the numbers of the stages whose answers moved them."""
        logits, answered = self._logits(features)
        return [sigmoid(logit) for logit in logits], answered

    def _logits(self, features: Features) -> tuple[list[float], Collection[int]]:
        inputs = features.memo.get(self)
        if inputs is None:
            inputs = features.memo[self] = self._columns(features.text)
        base, trees, answered = self._base, self._trees, _NOBODY
        if features.attempts:
            later, answered = self._answered(features)
            if later is not None and answered:
                base, trees = later.base, later.trees
                inputs = np.concatenate((inputs, history.numbers(answered, len(self._stages), later.signals)))
        logits: list[float] = (base + trees.sums(inputs)).tolist()
        return logits, answered

    def _columns(self, text: str) -> NDArray[np.float64]:
        """What is read of a text: a number for each of NAMES, and for each stage's score."""
        rows, amounts = hashed_grams(text)
        scores = amounts.dot(self._weights.take(rows, axis=0)) + self._bias
        return np.frombuffer(array("d", [*numbers(text, self._counts), *scores.tolist()]))

    def _answered(self, features: Features) -> tuple[_Later | None, Mapping[int, history.Signals]]:
        """What estimates after these attempts, and their signals."""
        attempts, prompt = features.attempts, features.text
        if self._prefix is not None and history.runs(attempts, self._stages):
            signals = self._prefix.signals
            return self._prefix, history.begun(attempts, self._stages, signals, self._chars, prompt=prompt)
        if self._after is None:
            return None, _NOBODY
        return self._after, history.answered(attempts, self._stages, self._after.signals, prompt=prompt)


class _Later(NamedTuple):
    """What estimates once something was answered: its trees read the text's columns, and then those of ``signals``."""

    signals: tuple[str, ...]
    base: NDArray[np.float64]
    trees: Trees


def _later(
    params: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str, stages: int, columns: int
) -> _Later | None:
    """None where nothing in the artifact is named so. ``columns`` are those of the text."""
    if not any(name.startswith(prefix) for name in (*arrays, *params)):
        return None
    signals = history.known_signals(params.get(f"{prefix}signals"), f"{prefix}signals")
    every = columns + len(history.names(stages, signals))
    trees = Trees(arrays, params.get(f"{prefix}depth"), stages, every, prefix=prefix)
    return _Later(signals, shaped(arrays, f"{prefix}base", (stages,)), trees)


class Trees:
    """All trees of all stages side by side, walked one level at a time. ``prefix`` begins the names of their arrays.

    ``rows`` is how many rows of inputs ``sums_of`` takes at once. Nodes are numbered anew: leaves first, then those
    that test something, by what they test. All tests are then made by a few operations over memory in its order, which
    is what counts where caches have been emptied since the last request.
    """

    def __init__(
        self, arrays: Mapping[str, Any], depth: Any, stages: int, columns: int, *, prefix: str = "", rows: int = 1
    ) -> None:
        feature = array_of(arrays, f"{prefix}feature", 3)
        shape = feature.shape
        if shape[0] != stages or 0 in shape[1:]:
            raise ArtifactError(f"the trees should be of {stages} stages, each with trees of some nodes, not {shape}")
        if feature.size > MOST_NODES:
            raise ArtifactError(
                f"{prefix}feature: {feature.size:,} nodes are more than {MOST_NODES:,}, too many to serve"
            )
        deepest = min(shape[2] - 1, DEEPEST)
        if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= deepest:
            raise ArtifactError(f"{prefix}depth should be a whole number from 0 to {deepest}, not {depth!r}")
        self._depth = depth
        left, right = (_within(arrays, f"{prefix}{name}", shape, shape[2]) for name in ("left", "right"))
        column = _within(arrays, f"{prefix}feature", shape, columns)
        value, threshold = (shaped(arrays, f"{prefix}{name}", shape) for name in ("value", "threshold"))
        kept = (left[:, :, 0] != 0) | (value[:, :, 0] != 0)  # not what only fills up a stage with fewer trees
        kept[:, 0] = True  # so that every stage's sum is one of something
        self._starts = np.r_[0, kept.sum(axis=1).cumsum()[:-1]]
        first = np.arange(int(kept.sum())).reshape(-1, 1) * shape[2]
        left, right = ((child[kept] + first).reshape(-1) for child in (left, right))
        column, value, threshold = (each[kept].reshape(-1) for each in (column, value, threshold))
        self._lay_out(_Nodes(left, right, column, threshold, value), first.reshape(-1), columns, rows)

    def _lay_out(self, nodes: _Nodes, roots: NDArray[np.int64], columns: int, rows: int) -> None:
        """Each row has tests of its own, and leaves are the same for all: so a walk needs no row's number."""
        here = np.arange(len(nodes.left))
        is_leaf = (nodes.left == here) & (nodes.right == here)
        leaves, tests = np.flatnonzero(is_leaf), np.flatnonzero(~is_leaf)
        tests = tests[np.argsort(nodes.column[tests], kind="stable")]
        place = np.empty(len(here), dtype=np.intp)
        place[np.concatenate((leaves, tests))] = here
        further = np.arange(rows).reshape(-1, 1) * len(tests)

        def placed(found: NDArray[np.int64]) -> NDArray[np.intp]:
            own = place[found]
            return own if rows == 1 else np.where(own < len(leaves), own, own + further)

        small = np.min_scalar_type(-len(leaves) - rows * len(tests))  # two bytes for a node instead of eight
        self._left, self._right = (placed(at[tests]).astype(small) for at in (nodes.left, nodes.right))
        self._roots, self._leaves = placed(roots), here[: len(leaves)].astype(small)
        self._times = np.bincount(nodes.column[tests], minlength=columns)
        self._threshold = nodes.threshold[tests]
        self._value = np.concatenate((nodes.value[leaves], np.tile(nodes.value[tests], rows)))

    def sums(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the leaves of each stage's trees that a row of ``columns`` inputs falls into: (stages,)."""
        reached = self._reached(inputs.repeat(self._times) <= self._threshold)
        found: NDArray[np.float64] = np.add.reduceat(reached, self._starts)
        return found

    def sums_of(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of trees that all stages share: the sum of the leaves that each row (rows, columns) falls into, (rows,)."""
        reached = self._reached(inputs.repeat(self._times, axis=1) <= self._threshold)
        found: NDArray[np.float64] = reached.reshape(len(inputs), -1).sum(axis=1)
        return found

    def _reached(self, is_left: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What every tree comes to, (rows, trees), of one row (trees,), where these tests lead to the left."""
        child = np.concatenate((self._leaves, np.where(is_left, self._left, self._right).reshape(-1)))
        at = self._roots
        for _ in range(self._depth):
            at = child.take(at)
        return self._value.take(at)


class _Nodes(NamedTuple):
    """Nodes of all trees in a row, (n,) each. A leaf is its own ``left`` and ``right``."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    column: NDArray[np.int64]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]


def _within(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], end: int) -> NDArray[np.int64]:
    array = shaped(arrays, name, shape).astype(np.int64)
    if array.min() < 0 or array.max() >= end:
        raise ArtifactError(f"the array {name} should hold numbers from 0 to {end - 1}")
    return array
