"""Rows with answers → boosted trees for after an answer, and for the beginning of one (``predictors/gbdt.py``).

Needs the extra [train]. An example is a query and the set of stages that answered it; each stage's trees learn that
stage's quality from the text and from those answers, whether the stage itself is among them or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder.predictors import history
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.gbdt import AFTER, PREFIX
from stepladder.predictors.history import Signals
from stepladder.train import prefix
from stepladder.train.boost import LEAF_ROWS, LEAVES, Prepared, Tree, before, depth, forest, prepared, stacked
from stepladder.train.fit import Grams, Matrix, Row
from stepladder.train.prefix import AGAIN, Cutter, cutter_of
from stepladder.types import Attempt

PER_QUERY = 3
"""Sets of stages drawn for a query, at the most."""

MOST = 60_000
"""Examples of a stage, at the most: more take longer and hardly tell more."""

MOST_BEGINNINGS = 30_000
"""The same of beginnings: each has to be read anew."""

WEIGHT_OF_PREFIX = 2.0
"""How much likelier a set of the lowest stages is drawn than another: cascades meet those most."""

ALL_SETS = 3
"""Stages up to which all sets of stages are drawn from."""

FEWEST_CUT = 60
"""Answers with a text, from which trees for the beginning of one are grown."""

HIDDEN = 0.5
"""Share of the examples without log probabilities: where the training table has them, a server may still tell none."""


def fit_gbdt_after(
    rows: Sequence[Row],
    stages: Sequence[str],
    seed: int = 0,
    *,
    leaves: int = LEAVES,
    grams: Grams | None = None,
) -> Artifact:
    """``boost.fit_gbdt``, and where rows tell of answers trees for after one, that learn from PER_QUERY sets of stages
    of each query, MOST examples a stage; where they tell whole texts, trees for the beginning of one too (``prefix``).

    Examples of one query share its outcomes, so a leaf holds PER_QUERY times as many as before an answer. The arrays
    before an answer are those of ``fit_gbdt``, bit for bit. Without any answer among the rows that is all.
    ``metrics``: also ``after_rows`` and ``after_trees``, ``prefix_rows`` and ``prefix_trees``, of all stages. Raises
    UsageError for rows that cannot be fitted, MissingExtraError.
    """
    known = prepared(rows, stages, grams)
    artifact = before(known, stages, seed, leaves=leaves)
    asked = _queries(rows)
    if not any(tells(row.answer) for line in asked for row in line.values()):
        return artifact
    examples = _examples(asked, len(stages), known.place, np.random.default_rng(seed))
    grown = _grown(asked, examples, known, len(stages), _Way(AFTER, seed, Tree(leaves, LEAF_ROWS * PER_QUERY)))
    if grown is None:
        return artifact
    artifact = _with(artifact, grown, AFTER, {"signals": list(history.SIGNALS)})
    told = [{n: row.answer for n, row in line.items() if row.answer is not None} for line in asked]
    cutter = cutter_of(told, len(stages), FEWEST_CUT)
    if cutter is None:
        return artifact
    examples = _beginnings(asked, told, cutter, known.place, np.random.default_rng(seed))
    grown = _grown(asked, examples, known, len(stages), _Way(PREFIX, seed, Tree(leaves, LEAF_ROWS * PER_QUERY)))
    if grown is None:
        return artifact
    return _with(artifact, grown, PREFIX, {"signals": list(prefix.SIGNALS), "chars": list(cutter.chars)})


class _Way(NamedTuple):
    """How trees are grown: what the names of their arrays begin with, the seed, and their shape."""

    prefix: str
    seed: int
    tree: Tree


class _Grown(NamedTuple):
    arrays: Mapping[str, NDArray[Any]]
    metrics: Mapping[str, float]


def _grown(
    asked: Sequence[Mapping[int, Row]], examples: _Examples, known: Prepared, stages: int, way: _Way
) -> _Grown | None:
    """The trees of all stages; None where one's queries told of no answer, or none was drawn."""
    if not len(examples.query):
        return None
    forests, count = [], 0
    for stage in range(stages):
        inputs, quality, held = _stage(stage, asked, examples, known)
        if not len(quality):
            return None
        forests.append(forest(inputs, quality, held, way.seed, way.tree))
        count += len(quality)
    trees = sum(len(each.value) for each in forests)
    return _Grown(stacked(forests), {f"{way.prefix}rows": count, f"{way.prefix}trees": trees})


def _with(artifact: Artifact, grown: _Grown, name: str, params: Mapping[str, Any]) -> Artifact:
    own = {"depth": depth(grown.arrays), **params}
    return replace(
        artifact,
        params={**artifact.params, **{name + key: value for key, value in own.items()}},
        arrays={**artifact.arrays, **{name + key: array for key, array in grown.arrays.items()}},
        metrics={**artifact.metrics, **grown.metrics},
    )


# ── examples ─────────────────────────────────────────────────────────────────


class _Examples(NamedTuple):
    """``query`` (m,) and ``text`` (m,) are numbers of the examples' queries and texts, ``signals`` (m, columns)."""

    query: NDArray[np.intp]
    text: NDArray[np.intp]
    signals: Matrix


def _queries(rows: Sequence[Row]) -> list[dict[int, Row]]:
    """The rows of each query by stage. The n-th row of a text and stage belongs to the n-th query of that text."""
    seen: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], dict[int, Row]] = {}
    for row in rows:
        turn = seen.get((row.text, row.stage), 0)
        seen[row.text, row.stage] = turn + 1
        found.setdefault((row.text, turn), {})[row.stage] = row
    return list(found.values())


def tells(answer: Attempt | None) -> bool:
    """True where anything is known of an answer."""
    return answer is not None and bool(answer.text or answer.usage.output_tokens or answer.logprobs)


def _examples(
    asked: Sequence[Mapping[int, Row]], stages: int, place: Mapping[str, int], rng: np.random.Generator
) -> _Examples:
    queries, sets = drawn_sets(len(asked), stage_sets(stages, rng), rng)
    hidden = rng.random(len(queries)) < HIDDEN
    read = [_read(line) for line in asked]
    query: list[int] = []
    signals: list[list[float]] = []
    for number, stages_of, hide in zip(queries.tolist(), sets, hidden.tolist(), strict=True):
        found = {stage: read[number][stage] for stage in stages_of if stage in read[number]}
        if found:
            query.append(number)
            signals.append(history.numbers(prefix.untold(found) if hide else found, stages))
    texts = [place[next(iter(asked[number].values())).text] for number in query]
    return _Examples(np.array(query, dtype=np.intp), np.array(texts, dtype=np.intp), np.array(signals))


def _beginnings(
    asked: Sequence[Mapping[int, Row]],
    told: Sequence[Mapping[int, Attempt]],
    cutter: Cutter,
    place: Mapping[str, int],
    rng: np.random.Generator,
) -> _Examples:
    """Examples with one answer cut off."""
    stages = len(cutter.chars)
    drawn = drawn_sets(len(asked), stage_sets(stages, rng), rng, most=MOST_BEGINNINGS // AGAIN)
    query: list[int] = []
    signals: list[list[float]] = []
    texts: list[int] = []
    for number, found in cutter.beginnings(told, *drawn, rng):
        text = next(iter(asked[number].values())).text
        read = prefix.read(found, prefix.SIGNALS, text, hidden=bool(rng.random() < HIDDEN))
        query.append(number)
        texts.append(place[text])
        signals.append(history.numbers(read, stages, prefix.SIGNALS))
    return _Examples(np.array(query, dtype=np.intp), np.array(texts, dtype=np.intp), np.array(signals))


def stage_sets(stages: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Sets of stages that examples are drawn from, the prefixes of the ladder first: all sets of a short ladder, else
    the prefixes, each stage alone, and as many sets by chance."""
    prefixes = [tuple(range(count)) for count in range(1, stages + 1)]
    if stages <= ALL_SETS:
        others = [tuple(i for i in range(stages) if bits >> i & 1) for bits in range(1, 2**stages)]
    else:
        chance = rng.random((stages, stages)) < 0.5
        others = [*((stage,) for stage in range(stages)), *(tuple(np.flatnonzero(line).tolist()) for line in chance)]
    return list(dict.fromkeys([*prefixes, *(each for each in others if each)]))


def drawn_sets(
    queries: int, sets: Sequence[tuple[int, ...]], rng: np.random.Generator, most: int = MOST
) -> tuple[NDArray[np.intp], list[tuple[int, ...]]]:
    """(m,) numbers of queries, and a set of stages for each: PER_QUERY different ones a query, fewer where ``most``
    examples say so.

    Drawn without replacement by weight, as Efraimidis and Spirakis do (2006): the largest of u^(1/weight).
    """
    each = min(PER_QUERY, len(sets), max(1, -(-most // queries)))
    prefixes = np.array([stages_of == tuple(range(len(stages_of))) for stages_of in sets])
    keys = rng.random((queries, len(sets))) ** (1 / np.where(prefixes, WEIGHT_OF_PREFIX, 1.0))
    chosen = np.argsort(-keys, axis=1)[:, :each].reshape(-1)
    numbers = np.repeat(np.arange(queries), each)
    if len(numbers) > most:
        kept = np.sort(rng.permutation(len(numbers))[:most])
        numbers, chosen = numbers[kept], chosen[kept]
    return numbers, [sets[which] for which in chosen.tolist()]


def _read(line: Mapping[int, Row]) -> dict[int, Signals]:
    return {stage: history.read(row.answer) for stage, row in line.items() if row.answer is not None}


def _stage(
    stage: int, asked: Sequence[Mapping[int, Row]], examples: _Examples, known: Prepared
) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
    """Inputs, quality and the held-out mark of a stage's examples."""
    rows = [asked[number].get(stage) for number in examples.query.tolist()]
    mine = np.array([row is not None for row in rows], dtype=bool)
    quality = np.array([row.quality for row in rows if row is not None])
    texts = examples.text[mine]
    return np.column_stack([known.inputs[texts], examples.signals[mine]]), quality, known.held[texts]
