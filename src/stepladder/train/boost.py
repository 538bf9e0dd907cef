"""Rows of measured quality → gradient-boosted trees (``predictors/gbdt.py``). Needs the extra [train]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import UsageError
from stepladder.evaluate.metrics import log_loss
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.gbdt import Trees
from stepladder.predictors.grams import BUCKETS, DENSE
from stepladder.predictors.lexical import numbers, word_counts
from stepladder.train.fit import (
    Grams,
    Matrix,
    Row,
    check,
    halves_of,
    qualities,
    quiet,
    sklearn_module,
    spread_of_outcomes,
)

TREES, LEAVES = 300, 15
"""Trees of a stage at the most, and leaves of a tree."""

DEPTH = 8
"""Steps from a root to the deepest leaf, at the most: serving walks them all."""

RATE = 0.06
LEAF_ROWS = 20
FEW = 20
"""Trees where no held-out row tells how many are good."""

RIDGE = 1.0
"""Penalty of the linear score of n-grams."""

INNER_FOLDS = 4
"""The trees learn from linear scores of texts that the scores were not fitted to."""

FEWEST = 1e-3
"""How near a mean without trees may come to 0 and 1."""

COMPARED = 64
"""Rows on which the exported trees are held against scikit-learn's."""


class _Linear(NamedTuple):
    """A linear score of n-grams: weights (BUCKETS + 2,) and bias."""

    weights: Matrix
    bias: float

    def scores(self, grams: Any) -> Matrix:
        found: Matrix = grams @ self.weights + self.bias
        return found


class Forest(NamedTuple):
    """One stage's trees, each array (trees, nodes), and the logit that they add to."""

    base: float
    feature: NDArray[np.int16]
    threshold: Matrix
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    value: NDArray[np.float32]


def fit_gbdt(
    rows: Sequence[Row],
    stages: Sequence[str],
    seed: int = 0,
    *,
    leaves: int = LEAVES,
    grams: Grams | None = None,
) -> Artifact:
    """Boosted trees of each stage's quality, on ``lexical.NAMES`` and a ridge regression of hashed n-grams.

    A quality between 0 and 1 counts as that share of a right answer and the rest of a wrong one (log-loss). The linear
    scores that trees learn from are out of fold, whole groups at a time. How many trees are grown is chosen on the
    groups of one fold; then they are grown again on all rows. ``grams`` holds the rows' texts where they were hashed
    before. ``params["spread"]`` is the variance of a stage's outcomes as a share of what right-or-wrong answers of the
    same mean would have. ``metrics``: ``rows``, and ``trees`` of all stages. Raises UsageError for rows that cannot be
    fitted, MissingExtraError.
    """
    return before(prepared(rows, stages, grams), stages, seed, leaves=leaves)


def prepared(rows: Sequence[Row], stages: Sequence[str], grams: Grams | None = None) -> Prepared:
    """What the trees learn from. Raises UsageError for rows that cannot be fitted, MissingExtraError."""
    check(rows, stages)
    place = {text: number for number, text in enumerate(dict.fromkeys(row.text for row in rows))}
    groups = _groups(rows, place)
    counts = word_counts(by_group(place, groups))
    hashed = (grams or Grams(place)).of(place)
    asked = [_Asked.of(rows, stage, place) for stage in range(len(stages))]
    lines = [_ridge(hashed[each.texts], each.quality) for each in asked]
    scores = np.column_stack([_out_of_fold(hashed, each, groups) for each in asked])
    known = counts.tolist()
    inputs = np.column_stack([np.array([numbers(text, known, known=True) for text in place]), scores])
    return Prepared(place, counts, asked, lines, inputs, groups % INNER_FOLDS == 0)


def before(found: Prepared, stages: Sequence[str], seed: int, *, leaves: int = LEAVES) -> Artifact:
    """The artifact of the trees before an answer."""
    forests = [
        forest(found.inputs[each.texts], each.quality, found.held[each.texts], seed, Tree(leaves))
        for each in found.asked
    ]
    arrays = {
        "weights": np.stack([line.weights for line in found.lines], axis=1).astype(np.float32),
        "bias": np.array([line.bias for line in found.lines]),
        "counts": found.counts,
        **stacked(forests),
    }
    metrics = {"rows": sum(len(each.texts) for each in found.asked), "trees": sum(len(each.value) for each in forests)}
    params = {
        "depth": depth(arrays),
        "spread": [spread_of_outcomes(each.quality) for each in found.asked],
        "measured": True,
    }
    return Artifact("gbdt", tuple(stages), params=params, arrays=arrays, metrics=metrics)


class Prepared(NamedTuple):
    """What the trees learn from: ``place`` numbers the texts, ``counts`` are of their words, (WORDS,).

    ``inputs`` (texts, NAMES and stages) are what serving would see of new texts: scores out of fold, counts without the
    text's own group. ``held`` (texts,) marks whole groups, on which the number of trees is chosen.
    """

    place: Mapping[str, int]
    counts: NDArray[np.float32]
    asked: Sequence[_Asked]
    lines: Sequence[_Linear]
    inputs: Matrix
    held: NDArray[np.bool_]


class _Asked(NamedTuple):
    """What one stage was asked: numbers of the texts, and the quality of its answers, both (rows,)."""

    texts: NDArray[np.intp]
    quality: Matrix

    @classmethod
    def of(cls, rows: Sequence[Row], stage: int, place: Mapping[str, int]) -> _Asked:
        mine = [row for row in rows if row.stage == stage]
        return cls(np.array([place[row.text] for row in mine], dtype=np.intp), qualities(mine))


def _groups(rows: Sequence[Row], place: Mapping[str, int]) -> NDArray[np.intp]:
    """(texts,) numbers of the groups."""
    found = np.zeros(len(place), dtype=np.intp)
    known: dict[Any, int] = {}
    for row in rows:
        found[place[row.text]] = known.setdefault(row.text if row.group is None else row.group, len(known))
    return found


def by_group(texts: Iterable[str], groups: NDArray[np.intp]) -> list[list[str]]:
    """The texts of each group."""
    found: dict[int, list[str]] = {}
    for text, group in zip(texts, groups.tolist(), strict=True):
        found.setdefault(group, []).append(text)
    return list(found.values())


# ── the linear score ─────────────────────────────────────────────────────────


def _out_of_fold(grams: Any, asked: _Asked, groups: NDArray[np.intp]) -> Matrix:
    """The linear score of every text, (texts,), by a fit that saw none of its group."""
    found = np.full(len(groups), float(asked.quality.mean()))
    fold_of = groups % INNER_FOLDS  # groups are numbered as they come, which is by chance enough
    for fold in range(INNER_FOLDS):
        learned = fold_of[asked.texts] != fold
        if learned.any():
            line = _ridge(grams[asked.texts[learned]], asked.quality[learned])
            found[fold_of == fold] = line.scores(grams[np.flatnonzero(fold_of == fold)])
    return found


def _ridge(grams: Any, quality: Matrix) -> _Linear:
    if quality.min() == quality.max():
        return _Linear(np.zeros(BUCKETS + DENSE), float(quality[0]))
    model = sklearn_module("sklearn.linear_model").Ridge(alpha=RIDGE, solver="sparse_cg", tol=1e-4)
    with quiet():
        model.fit(grams, quality)
    return _Linear(model.coef_, float(model.intercept_))


# ── the trees ────────────────────────────────────────────────────────────────


class Tree(NamedTuple):
    """How trees grow: leaves at the most, rows of a leaf at the least, the share of the columns that a split may choose
    from, how much of each tree counts, and whether rows that all weigh 1 are told as such.

    scikit-learn 1.9 cuts weighted columns into bins some twenty times slower than columns whose rows weigh the same.
    """

    leaves: int = LEAVES
    leaf_rows: int = LEAF_ROWS
    columns: float = 1.0
    rate: float = RATE
    weighted: bool = True


def forest(inputs: Matrix, quality: Matrix, held: NDArray[np.bool_], seed: int, tree: Tree) -> Forest:
    """The trees of one stage; ``held`` marks the rows on which their number is chosen."""
    if not (quality > 0).any() or not (quality < 1).any():  # always right or always wrong: there is nothing to split
        mean = float(np.clip(quality[0], FEWEST, 1 - FEWEST))
        return _flat(float(np.log(mean / (1 - mean))))
    trees = best_number(grown(inputs[~held], quality[~held], seed, TREES, tree), inputs[held], quality[held])
    return forest_of(inputs, quality, trees, seed, tree)


def forest_of(inputs: Matrix, quality: Matrix, trees: int, seed: int, tree: Tree) -> Forest:
    """So many trees of one stage; none where its quality does not vary."""
    model = grown(inputs, quality, seed, trees, tree)
    if model is None:
        mean = float(np.clip(quality.mean(), FEWEST, 1 - FEWEST)) if len(quality) else 0.5
        return _flat(float(np.log(mean / (1 - mean))))
    found = _exported(model)
    _compare(found, model, inputs[:COMPARED])
    return found


def grown(inputs: Matrix, quality: Matrix, seed: int, trees: int, tree: Tree) -> Any:
    """scikit-learn's model; None where no row, or only rows of one kind, is there to learn from."""
    halves = halves_of(quality)
    if len(np.unique(halves.labels)) < 2:
        return None
    model = sklearn_module("sklearn.ensemble").HistGradientBoostingClassifier(
        max_iter=trees,
        max_leaf_nodes=tree.leaves,
        max_depth=DEPTH,
        learning_rate=tree.rate,
        max_features=tree.columns,
        min_samples_leaf=tree.leaf_rows,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    told = halves.weight if tree.weighted or (halves.weight != 1).any() else None
    with quiet():
        model.fit(inputs[halves.rows], halves.labels, sample_weight=told)
    return model


class Grown(NamedTuple):
    """Trees of one stage as scikit-learn grew them, or None where the quality of their rows does not vary."""

    model: Any
    mean: float

    def first(self, count: int) -> Forest:
        """The first so many of them."""
        if self.model is None:
            return _flat(float(np.log(self.mean / (1 - self.mean))))
        whole = _exported(self.model)
        return Forest(
            whole.base,
            whole.feature[:count],
            whole.threshold[:count],
            whole.left[:count],
            whole.right[:count],
            whole.value[:count],
        )

    def scores(self, inputs: Matrix, count: int) -> Matrix:
        """Logits (m,) of the first so many trees."""
        if self.model is None:
            return np.full(len(inputs), float(np.log(self.mean / (1 - self.mean))))
        with quiet():
            found: Matrix = next(islice(self.model.staged_decision_function(inputs), count - 1, None)).reshape(-1)
        return found


Rows = tuple[Matrix, Matrix]
"""Inputs (m, columns) and quality (m,)."""


def staged(learned: Rows, held: Rows, trees: int, seed: int, tree: Tree) -> tuple[Grown, Matrix]:
    """Trees, and the log-loss on held-out rows after each of them, (trees,)."""
    model = grown(*learned, trees=trees, seed=seed, tree=tree)
    mean = float(np.clip(learned[1].mean(), FEWEST, 1 - FEWEST))
    if model is None or not len(held[0]):
        return Grown(model, mean), np.zeros(trees)
    with quiet():
        losses = [log_loss(held[1], 1 / (1 + np.exp(-found))) for found in model.staged_decision_function(held[0])]
    return Grown(model, mean), np.array(losses)


def best_number(model: Any, inputs: Matrix, quality: Matrix) -> int:
    """The number of trees with the lowest log-loss on these rows; FEW where there is nothing to choose by."""
    if model is None or not len(inputs):
        return FEW
    with quiet():
        losses = [log_loss(quality, 1 / (1 + np.exp(-found))) for found in model.staged_decision_function(inputs)]
    return int(np.argmin(losses)) + 1


def _flat(base: float) -> Forest:
    whole, real = np.zeros((1, 1), dtype=np.int16), np.zeros((1, 1))
    return Forest(base, whole, real, whole, whole, real.astype(np.float32))


def _exported(model: Any) -> Forest:
    """scikit-learn's trees as arrays. It keeps them in a private attribute, so ``_compare`` follows."""
    grown = [iteration[0].nodes for iteration in model._predictors]
    shape = len(grown), max(len(nodes) for nodes in grown)
    feature, left, right = (np.zeros(shape, dtype=np.int16) for _ in range(3))
    threshold, value = np.zeros(shape), np.zeros(shape, dtype=np.float32)
    for tree, nodes in enumerate(grown):
        count, own = len(nodes), np.arange(len(nodes))
        ends = nodes["is_leaf"].astype(bool)
        feature[tree, :count] = np.where(ends, 0, nodes["feature_idx"])
        threshold[tree, :count] = np.where(ends, 0.0, nodes["num_threshold"])
        left[tree, :count] = np.where(ends, own, nodes["left"])
        right[tree, :count] = np.where(ends, own, nodes["right"])
        value[tree, :count] = nodes["value"]
    return Forest(float(np.asarray(model._baseline_prediction).reshape(-1)[0]), feature, threshold, left, right, value)


def _compare(forest: Forest, model: Any, inputs: Matrix) -> None:
    """Raise UsageError where the exported trees do not say what scikit-learn's do."""
    arrays = stacked([forest])
    ours = Trees(arrays, depth(arrays), 1, inputs.shape[1])
    found = np.array([forest.base + ours.sums(line)[0] for line in inputs])
    with quiet():
        theirs = model.decision_function(inputs)
    if not np.allclose(found, theirs, atol=1e-4):
        import sklearn

        raise UsageError(f"scikit-learn {sklearn.__version__} keeps its trees in a form that is not known here")


def stacked(forests: Sequence[Forest]) -> dict[str, NDArray[Any]]:
    """The stages' arrays as one, (stages, trees, nodes); what a smaller forest leaves over are leaves of value 0."""
    trees, nodes = (max(forest.value.shape[axis] for forest in forests) for axis in (0, 1))
    found: dict[str, NDArray[Any]] = {"base": np.array([forest.base for forest in forests])}
    for name in ("feature", "threshold", "left", "right", "value"):
        parts = [getattr(forest, name) for forest in forests]
        found[name] = np.stack(
            [np.pad(part, ((0, trees - part.shape[0]), (0, nodes - part.shape[1]))) for part in parts]
        )
    return found


def depth(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Steps from the roots until every walk stands on a leaf."""
    left, right = (arrays[name].reshape(-1, arrays[name].shape[2]) for name in ("left", "right"))
    own = np.arange(left.shape[1])
    depths = np.zeros(left.shape, dtype=np.int16)
    for node in own:  # a child has a higher number than its parent
        inner = (left[:, node] != node) & (left[:, node] > node)
        tree = np.flatnonzero(inner)
        for children in (left, right):
            depths[tree, children[tree, node]] = depths[tree, node] + 1
    return int(depths.max())
