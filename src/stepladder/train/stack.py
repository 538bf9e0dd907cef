"""Lessons → stacked predictors (``predictors/stack.py``), with what they say of queries that they did not learn from.

Needs the extra [train].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned
from stepladder.features.conversation import NAMES as CONVERSATION
from stepladder.features.conversation import conversation
from stepladder.predictors import history
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.history import Signals
from stepladder.predictors.posterior import Correction
from stepladder.predictors.stack import (
    AFTER,
    CLIP,
    PREFIX,
    Head,
    PrefixHead,
    blended,
    estimates_of,
    for_each_stage,
    logit,
)
from stepladder.train.after import HIDDEN, drawn_sets, stage_sets, tells
from stepladder.train.boost import Forest, Tree, depth, forest_of, stacked, staged
from stepladder.train.fit import halves_of, quiet, sklearn_module, spread_of_outcomes
from stepladder.train.lesson import Lesson, lesson_of
from stepladder.train.prefix import AGAIN, cutter_of, untold
from stepladder.train.prefix import read as read_beginning
from stepladder.train.reading import fit_reading
from stepladder.train.rows import drawn
from stepladder.types import Attempt, Estimates

Matrix = NDArray[np.float64]
Numbers = NDArray[np.intp]

FOLDS = 3
"""Heads are cross-fitted in so many parts, to be calibrated and to be judged."""

TREE = Tree(leaves=31, leaf_rows=80, columns=0.2, rate=0.05, weighted=False)
AFTER_TREE = TREE._replace(leaves=15)
TREES = 400
PENALTY = 0.005
"""scikit-learn's C of the regression, whose columns have variance 1."""

FEWEST = 60
"""Queries that a stack is fitted to, at the least."""

MOST = 20_000
"""Queries that heads learn from, at the most."""

MOST_AFTER = 40_000
"""Examples of sets of answers that heads for after an answer learn from, at the most."""

FEWEST_CONVERSATIONS = 20
"""Queries with something before the question, from which on it is learned what that tells."""

TRUSTS = tuple(np.linspace(0.0, 1.0, 11).round(1).tolist())
"""How far heads for the beginning of an answer may be followed."""

FLAT = 1e-9
"""A column whose standard deviation is below this says nothing."""

LOOKED_AT = 600
"""Queries whose answers are looked at to see which signals there are."""

PROBED = 1500
"""Queries on which it is measured how far answers move the estimates."""


@dataclass(frozen=True, eq=False)
class Stacked:
    """A fitted stack: its arrays and parameters, and ``crossed``, what it says of its own queries when it has not seen
    them."""

    arrays: Mapping[str, NDArray[Any]]
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    crossed: Crossed

    def artifact(self, stages: Sequence[str]) -> Artifact:
        """As an artifact of the profile ``full`` alone."""
        return Artifact("stack", tuple(stages), params=self.params, arrays=self.arrays, metrics=self.metrics)


@dataclass(eq=False)
class Crossed:
    """Estimates of the queries that were learned from, each by heads that saw none of its group.

    ``numbers`` are the queries' places in the table that was handed in; others are not known.
    """

    stages: tuple[str, ...]
    numbers: Numbers
    rows: Matrix
    fold_of: Numbers
    before: Sequence[Head]
    after: Sequence[Head]
    texts: Sequence[str]
    spread: Sequence[float]
    correction: Correction | None = None
    prefix: Sequence[PrefixHead] = ()
    told: tuple[Sequence[float], Sequence[float]] = ((), ())
    _means: dict[int, list[float]] = field(default_factory=dict)

    @property
    def signals(self) -> tuple[str, ...]:
        """What is read of answers; nothing where the table told of none."""
        return () if self.correction is None else self.correction.signals

    def means(self, place: int) -> list[float]:
        """The query's estimates before any answer."""
        if place not in self._means:
            rows = for_each_stage(self.rows[place], len(self.stages))
            self._means[place] = self.before[int(self.fold_of[place])].means(rows)
        return self._means[place]

    def posterior(self, place: int, answered: Mapping[int, Signals]) -> list[float]:
        """The query's estimates after answers with these signals, of which some may not have ended."""
        means = self.means(place)
        fold, logits = int(self.fold_of[place]), [logit(mean) for mean in means]
        whole = _whole(answered)
        if self.correction is not None and whole:
            means = self.after[fold].means(self.correction.rows(logits, whole))
        if self.prefix and len(whole) < len(answered):
            return self.prefix[fold].means(logits, means, answered)
        return means

    def estimates(self, place: int, attempts: tuple[Attempt, ...] = ()) -> Estimates:
        """What the router would be told of the query after these attempts."""
        prompt = self.texts[place]
        if self.prefix and history.runs(attempts, self.stages):
            signals, chars = self.prefix[0].correction.signals, self.prefix[0].chars
            found = history.begun(attempts, self.stages, signals, chars, prompt=prompt)
        else:
            found = history.answered(attempts, self.stages, self.signals, prompt=prompt)
        told = self.told[bool(found)] or [0.0] * len(self.stages)
        said = estimates_of(self.posterior(place, found), self.spread, told, found)
        return Estimates(dict(zip(self.stages, said, strict=True)), calibrated=True)


def fit_stack(data: Aligned, seed: int = 0) -> Stacked:
    """A reading of the texts, heads for before an answer, for after one where the table holds answers, and for the
    beginning of one where it holds their texts.

    A quality between 0 and 1 counts as that share of a right answer (log-loss). Heads are calibrated, and
    ``params["told"]`` measured, on cross-fitted estimates. At most MOST queries are learned from. Raises UsageError
    where there are fewer than FEWEST queries or too few groups, MissingExtraError.
    """
    rng = np.random.default_rng(seed)
    chosen = drawn(data, MOST, rng)
    some = data.take(chosen)
    lesson = lesson_of(some)
    _check(lesson)
    read = fit_reading(lesson, seed)
    fold_of = (rng.permutation(int(lesson.groups.max()) + 1) % FOLDS)[lesson.groups]
    values, rows = _with_values(some, read.rows)
    inputs = np.stack([for_each_stage(row, len(data.stages)) for row in rows])
    before = _heads(inputs, lesson.quality, fold_of, _Way("", TREE, seed))
    del inputs  # k times as large as the rows
    spread = [spread_of_outcomes(quality) for quality in lesson.quality.T]
    crossed = Crossed(data.stages, chosen, rows, fold_of, before.crossed, (), lesson.texts, spread)
    arrays: dict[str, NDArray[Any]] = {**read.arrays, **before.arrays}
    params: dict[str, Any] = {"depth": before.depth, "spread": spread, "measured": True}
    if values:
        params["values"] = list(values)
    metrics = {"rows": float(lesson.quality.size), "trees": float(before.trees)}
    answers = _answers(some)
    if answers is not None:
        after = _fit_after(crossed, lesson, answers, seed, rng)
        arrays |= after.arrays
        params |= {f"{AFTER}depth": after.depth, f"{AFTER}signals": list(crossed.signals)}
        crossed.told = _told(crossed, answers, rng)
        params |= {"told": list(crossed.told[0]), "told_after": list(crossed.told[1])}
        metrics |= {"after_rows": float(after.rows), "after_trees": float(after.trees)}
        prefix = _fit_prefix(crossed, lesson, answers, np.random.default_rng(seed), seed)
        if prefix is not None:
            one = crossed.prefix[0]
            arrays |= prefix.arrays
            params |= {f"{PREFIX}depth": prefix.depth, f"{PREFIX}signals": list(one.correction.signals)}
            params |= {f"{PREFIX}chars": list(one.chars), f"{PREFIX}trust": list(one.trust)}
            metrics |= {"prefix_rows": float(prefix.rows), "prefix_trees": float(prefix.trees)}
    return Stacked(arrays, params, metrics, crossed)


def _with_values(data: Aligned, rows: Matrix) -> tuple[tuple[str, ...], Matrix]:
    """What is read beside the texts, and (n, columns) rows with it: of conversations, where there are enough."""
    told = [conversation(request) for request in data.requests]
    if sum(map(bool, told)) < FEWEST_CONVERSATIONS:
        return (), rows
    own = np.array([[each.get(name, 0.0) for name in CONVERSATION] for each in told])
    return CONVERSATION, np.hstack([rows, own])


def _check(lesson: Lesson) -> None:
    groups = len(np.unique(lesson.groups))
    if len(lesson.texts) < FEWEST or groups < FEWEST // 2:
        raise UsageError(
            f"a stack learns from {FEWEST} queries of {FEWEST // 2} groups at the least; these are "
            f"{len(lesson.texts)} of {groups}: collect more, or train 'logistic'"
        )


# ── heads ────────────────────────────────────────────────────────────────────


class _Way(NamedTuple):
    """How heads are fitted: what their arrays' names begin with, how trees grow, and the seed."""

    prefix: str
    tree: Tree
    seed: int


class _Heads(NamedTuple):
    """Arrays of the head that was fitted to all rows, and the ``crossed`` ones, calibrated alike."""

    arrays: dict[str, NDArray[Any]]
    depth: int
    trees: int
    rows: int
    crossed: tuple[Head, ...]


def _heads(inputs: Matrix, quality: Matrix, fold_of: Numbers, way: _Way) -> _Heads:
    """Heads over ``inputs`` (m, k, c) for ``quality`` (m, k); ``fold_of`` is (m,)."""
    many, stages, columns = inputs.shape
    flat = inputs.reshape(-1, columns)
    middle, spread = flat.mean(axis=0), flat.std(axis=0)
    scale = np.where(spread > FLAT, 1 / np.maximum(spread, FLAT), 0.0)
    scaled = np.clip((inputs - middle) * scale, -CLIP, CLIP)
    count, trees = _crossed_trees(inputs, quality, fold_of, way)
    rests = [np.flatnonzero(fold_of != fold) for fold in range(FOLDS)]
    lines = [[_line(scaled[rest, stage], quality[rest, stage]) for stage in range(stages)] for rest in rests]
    raw = np.zeros_like(quality)
    for fold, of_stages in enumerate(lines):
        held = fold_of == fold
        for stage, line in enumerate(of_stages):
            told = scaled[held, stage] @ line[:-1] + line[-1]
            raw[held, stage] = (_sigmoids(told) + _sigmoids(trees.scores[held, stage])) / 2
    platt = np.array([_platt(raw[:, stage], quality[:, stage]) for stage in range(stages)])
    whole = np.arange(many)
    forest = _forest(inputs, quality, whole, count, way)
    own = [_line(scaled[:, stage], quality[:, stage]) for stage in range(stages)]

    def arrays(one: Forest, of_stages: Sequence[Matrix]) -> dict[str, NDArray[Any]]:
        line = np.stack(of_stages, axis=1)
        found = {"middle": middle, "scale": scale, "line": line[:-1], "line_bias": line[-1], "platt": platt}
        return {way.prefix + name: array for name, array in {**found, **stacked([one])}.items()}

    crossed = tuple(
        _head(arrays(one, of_stages), way.prefix, columns, stages)
        for one, of_stages in zip(trees.forests, lines, strict=True)
    )
    final = arrays(forest, own)
    return _Heads(final, depth(_bare(final, way.prefix)), count, many * stages, crossed)


class _CrossedTrees(NamedTuple):
    """A forest of every fold, grown on the others, and its ``scores`` (m, k) of the fold itself."""

    forests: Sequence[Forest]
    scores: Matrix


def _crossed_trees(inputs: Matrix, quality: Matrix, fold_of: Numbers, way: _Way) -> tuple[int, _CrossedTrees]:
    """How many trees have the lowest log-loss over all folds, and those trees."""
    rests = [np.flatnonzero(fold_of != fold) for fold in range(FOLDS)]
    helds = [np.flatnonzero(fold_of == fold) for fold in range(FOLDS)]
    losses = np.zeros(TREES)
    grown_of = []
    for rest, held in zip(rests, helds, strict=True):
        model, scores = staged(_rows(inputs, quality, rest), _rows(inputs, quality, held), TREES, way.seed, way.tree)
        losses += scores
        grown_of.append(model)
    count = int(np.argmin(losses)) + 1
    forests = [model.first(count) for model in grown_of]
    found = np.zeros_like(quality)
    for forest, held in zip(grown_of, helds, strict=True):
        found[held] = forest.scores(inputs[held].reshape(-1, inputs.shape[2]), count).reshape(len(held), -1)
    return count, _CrossedTrees(forests, found)


def _rows(inputs: Matrix, quality: Matrix, some: Numbers) -> tuple[Matrix, Matrix]:
    return inputs[some].reshape(-1, inputs.shape[2]), quality[some].reshape(-1)


def _forest(inputs: Matrix, quality: Matrix, some: Numbers, count: int, way: _Way) -> Forest:
    return forest_of(*_rows(inputs, quality, some), count, way.seed, way.tree)


def _head(arrays: Mapping[str, NDArray[Any]], prefix: str, columns: int, stages: int) -> Head:
    return Head(arrays, {f"{prefix}depth": depth(_bare(arrays, prefix))}, prefix, stages, columns)


def _bare(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name: arrays[prefix + name] for name in ("left", "right")}


def _sigmoids(values: Matrix) -> Matrix:
    found: Matrix = 1 / (1 + np.exp(-np.clip(values, -30.0, 30.0)))
    return found


def _line(scaled: Matrix, quality: Matrix) -> Matrix:
    """Weights, and at the end the bias, of a logistic regression."""
    halves = halves_of(quality)
    if len(np.unique(halves.labels)) < 2:
        return np.append(np.zeros(scaled.shape[1]), logit(float(quality.mean())))
    model: Any = sklearn_module("sklearn.linear_model").LogisticRegression(C=PENALTY, max_iter=300)
    with quiet():
        model.fit(scaled[halves.rows], halves.labels, sample_weight=halves.weight)
    found: Matrix = np.concatenate((model.coef_[0], model.intercept_))
    return found


def _platt(raw: Matrix, quality: Matrix) -> tuple[float, float]:
    """Slope and offset on the logit scale that make estimates right on average (Platt, 1999).

    Where quality does not vary, or estimates say less than nothing, the offset alone is fitted.
    """
    logits = np.array([logit(mean) for mean in raw.tolist()])
    flat = (1.0, logit(float(quality.mean())) - float(logits.mean()))
    if quality.min() == quality.max():
        return flat
    model = sklearn_module("sklearn.linear_model").LogisticRegression(C=1e3)
    twice, weight = np.r_[logits, logits].reshape(-1, 1), np.r_[quality, 1 - quality]
    with quiet():
        model.fit(twice[weight > 0], np.repeat([1, 0], len(logits))[weight > 0], sample_weight=weight[weight > 0])
    slope = float(model.coef_[0, 0])
    return (slope, float(model.intercept_[0])) if slope > 0 else flat


def _against_others(moved: Matrix, stage: int) -> float:
    """How far one stage's estimate moved beyond the mean of the others."""
    others = np.delete(moved, stage)
    return float(moved[stage] - (others.mean() if len(others) else 0.0))


# ── after an answer ──────────────────────────────────────────────────────────

Answers = Sequence[Sequence[Attempt]]


def _answers(data: Aligned) -> Answers | None:
    """(n, k) the recorded answers; None where the table tells answers to fewer than FEWEST queries."""
    found = [tuple(row.attempt(stage) for stage, row in zip(data.stages, line, strict=True)) for line in data.rows]
    return found if sum(any(map(tells, line)) for line in found) >= FEWEST else None


def _signals(answers: Answers, texts: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """The signals that some answer of LOOKED_AT queries has; those that none has would only take time."""
    not_own = ("answered", "agreement", history.PAIRED, *history.OF_BEGINNINGS)
    own = [name for name in history.ALL_SIGNALS if name not in not_own]
    known = set()
    for place in rng.permutation(len(answers))[:LOOKED_AT].tolist():
        for answer in answers[place]:
            read = history.read(answer, history.ALL_SIGNALS, prompt=texts[place])
            known |= {name for name in own if getattr(read, name) not in (history.UNKNOWN, history.UNTOLD)}
    return ("answered", "agreement", *(name for name in own if name in known), history.PAIRED)


def _fit_after(crossed: Crossed, lesson: Lesson, answers: Answers, seed: int, rng: np.random.Generator) -> _Heads:
    """Heads for after an answer; they and what they read are written into ``crossed``."""
    stages = lesson.quality.shape[1]
    signals = _signals(answers, lesson.texts, np.random.default_rng(seed))
    correction = Correction(stages, signals)
    read = [_read(line, signals, text) for line, text in zip(answers, lesson.texts, strict=True)]
    queries, sets = drawn_sets(len(read), stage_sets(stages, rng), rng, most=MOST_AFTER)
    hidden = rng.random(len(queries)) < HIDDEN
    rows, learned = [], []
    for place, stages_of, hide in zip(queries.tolist(), sets, hidden.tolist(), strict=True):
        found = {stage: read[place][stage] for stage in stages_of if stage in read[place]}
        if not found:
            continue
        if hide:
            found = untold(found)
        rows.append(correction.rows([logit(mean) for mean in crossed.means(place)], found))
        learned.append(place)
    way = _Way(AFTER, AFTER_TREE, seed)
    heads = _heads(np.stack(rows), lesson.quality[learned], crossed.fold_of[learned], way)
    crossed.after, crossed.correction = heads.crossed, correction
    return heads


def _fit_prefix(
    crossed: Crossed, lesson: Lesson, answers: Answers, rng: np.random.Generator, seed: int
) -> _Heads | None:
    """Heads for the beginning of an answer; they and what they read are written into ``crossed``. None where too few
    answers have a text that can be cut off."""
    stages = lesson.quality.shape[1]
    told = [{stage: answer for stage, answer in enumerate(line) if tells(answer)} for line in answers]
    cutter = cutter_of(told, stages, FEWEST)
    if cutter is None:
        return None
    signals = (*crossed.signals, *history.OF_BEGINNINGS)
    correction = Correction(stages, signals)
    drawn = drawn_sets(len(told), stage_sets(stages, rng), rng, most=MOST_AFTER // AGAIN)
    rows: list[Matrix] = []
    learned: list[int] = []
    heard: list[dict[int, Signals]] = []
    for place, found in cutter.beginnings(told, *drawn, rng):
        read = read_beginning(found, signals, lesson.texts[place], hidden=bool(rng.random() < HIDDEN))
        rows.append(correction.rows([logit(mean) for mean in crossed.means(place)], read))
        learned.append(place)
        heard.append(read)
    if len(rows) < FEWEST:
        return None
    way = _Way(PREFIX, AFTER_TREE, seed)
    heads = _heads(np.stack(rows), lesson.quality[learned], crossed.fold_of[learned], way)
    folds = crossed.fold_of[learned].tolist()
    said = np.array([heads.crossed[fold].means(row) for fold, row in zip(folds, rows, strict=True)])
    without = np.array([crossed.posterior(place, _whole(read)) for place, read in zip(learned, heard, strict=True)])
    bands = np.array([history.band(read) for read in heard])
    trust = _trust(bands, np.array(learned), said, without, lesson.quality[learned])
    crossed.prefix = [PrefixHead(correction, head, cutter.chars, trust) for head in heads.crossed]
    return heads


def _trust(bands: Numbers, places: Numbers, told: Matrix, without: Matrix, quality: Matrix) -> tuple[float, ...]:
    """(BANDS,) how far heads for beginnings are followed after so many tokens.

    ``told`` (m, k) are their estimates of queries that they did not learn from, ``without`` those without a beginning,
    and ``places`` (m,) says whose they are. Of the blends that are as good as the best by log-loss, within one standard
    error of the paired difference, the one that follows the heads least (Breiman et al., 1984). A band that has too few
    queries takes the one before it, the first none of it.
    """
    found: list[float] = []
    for number in range(history.BANDS):
        mine = bands == number
        queries = np.unique(places[mine], return_inverse=True)[1]
        if not len(queries) or queries.max() + 1 < FEWEST:
            found.append(found[-1] if found else 0.0)
            continue
        losses = np.array([_losses(told[mine], without[mine], quality[mine], share) for share in TRUSTS])
        count = np.bincount(queries)
        over = losses - losses[int(np.argmin(losses.mean(axis=1)))]
        error = [float(np.std(np.bincount(queries, line) / count)) / len(count) ** 0.5 for line in over]
        found.append(next(s for s, line, e in zip(TRUSTS, over, error, strict=True) if float(line.mean()) <= e))
    return tuple(found)


def _losses(told: Matrix, without: Matrix, quality: Matrix, share: float) -> Matrix:
    """(m,) log-losses of the blend, each the mean of all stages."""
    said = np.array([blended(*pair, share) for pair in zip(told, without, strict=True)])
    found: Matrix = -(quality * np.log(said) + (1 - quality) * np.log1p(-said)).mean(axis=1)
    return found


def _whole(read: Mapping[int, Signals]) -> dict[int, Signals]:
    return {stage: told for stage, told in read.items() if not told.partial}


def _read(line: Sequence[Attempt], signals: tuple[str, ...], text: str) -> dict[int, Signals]:
    """Signals of the answers that the table tells: one that it does not is no empty answer."""
    return {stage: history.read(answer, signals, prompt=text) for stage, answer in enumerate(line) if tells(answer)}


def _told(crossed: Crossed, answers: Answers, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """The share of q(1−q) by which a stage's own answer moves its estimate against the others', (k,) each: before any
    answer, and when the cheaper stages have answered.

    An answer that tells how hard the question is moves all estimates alike, and changes no choice.
    """
    places = rng.permutation(len(answers))[:PROBED].tolist()
    stages = len(crossed.stages)
    moved, room = np.zeros((2, stages)), np.full((2, stages), 1e-9)
    for place in places:
        read = _read(answers[place], crossed.signals, crossed.texts[place])
        for stage in read:
            cheaper = {number: read[number] for number in range(stage) if number in read}
            for turn, known in enumerate(({}, cheaper) if cheaper else ({},)):
                now = np.array(crossed.posterior(place, known))
                then = np.array(crossed.posterior(place, {**known, stage: read[stage]}))
                moved[turn, stage] += _against_others(then - now, stage) ** 2
                room[turn, stage] += now[stage] * (1 - now[stage])
    moved[1, 0], room[1, 0] = moved[0, 0], room[0, 0]
    shares = np.clip(moved / room, 0.0, 1.0)
    return shares[0].tolist(), shares[1].tolist()
