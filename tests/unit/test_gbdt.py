"""Boosted trees: what was fitted is what is served, from numbers that anybody can check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.config import PRESETS
from stepladder.errors import ArtifactError, UsageError
from stepladder.predictors.artifact import load, save
from stepladder.predictors.gbdt import DEEPEST, MOST_NODES, GBDTPredictor, Trees
from stepladder.predictors.grams import BUCKETS, DENSE, hashed_grams
from stepladder.predictors.history import SIGNALS
from stepladder.predictors.lexical import NAMES, WORDS, numbers, place, tokens, word_counts
from stepladder.train import boost
from stepladder.train.boost import fit_gbdt
from stepladder.train.fit import Row
from stepladder.types import Attempt, Fault, Features

NO_COUNTS = [0.0] * WORDS


def said(text: str) -> Attempt:
    return Attempt("a", text, finish_reason="stop")


def value(text: str, name: str, counts: list[float] = NO_COUNTS, *, known: bool = False) -> float:
    return numbers(text, counts, known=known)[NAMES.index(name)]


# ── the numbers of a text ────────────────────────────────────────────────────


@given(st.text(max_size=300), st.booleans())
def test_every_text_has_all_numbers(text: str, known: bool) -> None:
    found = numbers(text, NO_COUNTS, known=known)
    assert len(found) == len(NAMES)
    assert np.isfinite(found).all()


def test_numbers_by_hand() -> None:
    text = "Add 38 and 5, then subtract 120."
    assert tokens(text) == ["add", "38", "and", "5", ",", "then", "subtract", "120", "."]
    assert (value(text, "numbers"), value(text, "words"), value(text, "tokens")) == (3, 4, 9)
    assert (value(text, "number_max"), value(text, "number_min"), value(text, "number_sum")) == (120, 5, 163)
    assert (value(text, "digits_sum"), value(text, "last_digits"), value(text, "carries")) == (6, 13, 1)
    assert [value(text, f"number {i}") for i in range(4)] == [38, 5, 120, -1]
    assert [value(text, f"last digit {i}") for i in range(3)] == [8, 5, 0]
    assert (value(text, "number -1"), value(text, "number -2")) == (120, 5)
    assert (value(text, "sign ,"), value(text, "capitals"), value(text, "word_max")) == (1, 1, 8)


def test_counts_are_of_groups_and_leave_out_a_texts_own() -> None:
    counts = word_counts([["the cat", "the cat again"], ["the dog"]])
    assert counts[place("the")] == pytest.approx(np.log(3))
    assert counts[place("cat")] == pytest.approx(np.log(2))
    known = counts.tolist()
    assert value("the cat", "count 0", known, known=True) == pytest.approx(0, abs=1e-6)  # nobody else asked about a cat
    assert value("the cat", "count 1", known, known=True) == pytest.approx(np.log(2))
    assert value("the cat", "count 0", known) == pytest.approx(np.log(2))
    assert value("the cow", "unseen", known) == 1


# ── fitting ──────────────────────────────────────────────────────────────────


def make_rows(queries: int = 400, seed: int = 0) -> list[Row]:
    """Stage 0 can add small numbers, stage 1 everything but sevens; shares of a right answer are among them."""
    chance = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        one, other = (int(drawn) for drawn in chance.integers(1, 99, size=2))
        text = f"add {one} and {other}"
        small, large = float(one + other < 60), 0.5 if one % 10 == 7 else 1.0
        rows += [Row(text, 0, small, group=number), Row(text, 1, large, group=number)]
    return rows


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """As many as these rows need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost, "TREES", 60)
        yield


@pytest.fixture(scope="module")
def fitted() -> Any:
    return fit_gbdt(make_rows(), ("a", "b"))


def test_it_learns_sums_that_no_word_tells(fitted: Any, tmp_path: Path) -> None:
    save(fitted, tmp_path)
    found = load(tmp_path)
    predictor = GBDTPredictor(("a", "b"), found.params, found.arrays)
    assert predictor.version == fitted.version
    small, large, seven = (
        predictor.predict(Features({}, text)) for text in ("add 11 and 13", "add 88 and 92", "add 27 and 80")
    )
    assert small["a"].mean > 0.9
    assert large["a"].mean < 0.1
    assert large["b"].mean > 0.9
    assert abs(seven["b"].mean - 0.5) < 0.2
    assert small.calibrated


def test_the_same_seed_gives_the_same_artifact(fitted: Any) -> None:
    assert fit_gbdt(make_rows(), ("a", "b")).version == fitted.version


def test_exported_trees_are_held_against_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = boost._exported
    monkeypatch.setattr(boost, "_exported", lambda model: real(model)._replace(base=9.0))
    with pytest.raises(UsageError, match=r"scikit-learn \d.* keeps its trees in a form that is not known"):
        fit_gbdt(make_rows(100), ("a", "b"))


@pytest.mark.parametrize(("quality", "mean"), [(1.0, 0.999), (0.0, 0.001)])
def test_a_stage_that_is_always_right_or_wrong(quality: float, mean: float) -> None:
    artifact = fit_gbdt([Row("x", 0, quality), Row("y", 0, quality)], ("a",))
    found = GBDTPredictor(("a",), artifact.params, artifact.arrays).predict(Features({}, "z"))["a"]
    assert found.mean == pytest.approx(mean, abs=1e-4)


def test_few_rows_and_one_group_still_fit() -> None:
    rows = [Row("x", 0, 1.0, group=0), Row("y", 0, 0.0, group=0), Row("z", 0, 0.5, group=0)]
    artifact = fit_gbdt(rows, ("a",))
    found = GBDTPredictor(("a",), artifact.params, artifact.arrays).predict(Features({}, "x"))["a"]
    assert 0.2 < found.mean < 0.8


def test_a_text_that_one_stage_was_not_asked(fitted: Any) -> None:
    rows = [row for row in make_rows(60) if row.stage == 0 or "7" not in row.text]
    artifact = fit_gbdt(rows, ("a", "b"))
    assert artifact.arrays["value"].shape[0] == 2


# ── artifacts that do not fit ────────────────────────────────────────────────


def arrays_of(stages: int = 1) -> dict[str, Any]:
    shape = (stages, 1, 3)
    return {
        "weights": np.zeros((BUCKETS + DENSE, stages)),
        "bias": np.zeros(stages),
        "base": np.zeros(stages),
        "counts": np.zeros(WORDS),
        "feature": np.zeros(shape),
        "threshold": np.full(shape, 5.0),
        "left": np.broadcast_to([1, 1, 2], shape).copy(),
        "right": np.broadcast_to([2, 1, 2], shape).copy(),
        "value": np.broadcast_to([0.0, -1.0, 1.0], shape).copy(),
    }


def test_the_threshold_itself_goes_left() -> None:
    trees = Trees(arrays_of(), 1, 1, 2)
    assert [trees.sums(np.array([x, 0.0]))[0] for x in (4.0, 5.0, 5.1)] == [-1.0, -1.0, 1.0]


def walked(arrays: dict[str, Any], tree: int, inputs: list[float]) -> float:
    """The leaf of one tree, step by step."""
    at = 0
    while arrays["left"][0, tree, at] != at:
        goes_left = inputs[arrays["feature"][0, tree, at]] <= arrays["threshold"][0, tree, at]
        at = arrays["left" if goes_left else "right"][0, tree, at]
    return float(arrays["value"][0, tree, at])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 4), st.integers(1, 3))
def test_a_forest_comes_to_what_a_walk_through_each_tree_comes_to(seed: int, trees: int, depth: int, rows: int) -> None:
    """Full trees, some of whose tests are leaves before the last level; one row, and several rows at once."""
    rng, columns, nodes = np.random.default_rng(seed), 3, 2 ** (depth + 1) - 1
    own = np.broadcast_to(np.arange(nodes), (1, trees, nodes))
    is_leaf = (own >= 2**depth - 1) | ((rng.random(own.shape) < 0.2) & (own > 0))
    arrays = {
        "feature": rng.integers(0, columns, own.shape),
        "threshold": rng.integers(-2, 3, own.shape).astype(float),
        "left": np.where(is_leaf, own, 2 * own + 1),
        "right": np.where(is_leaf, own, 2 * own + 2),
        "value": rng.normal(size=own.shape),
    }
    inputs = rng.integers(-2, 3, (rows, columns)).astype(float)
    wanted = [sum(walked(arrays, tree, row) for tree in range(trees)) for row in inputs.tolist()]
    assert Trees(arrays, depth, 1, columns, rows=rows).sums_of(inputs).tolist() == pytest.approx(wanted)
    one = Trees(arrays, depth, 1, columns)
    assert [one.sums(row)[0] for row in inputs] == pytest.approx(wanted)


def test_a_text_is_read_once_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, read = GBDTPredictor(("a",), {"depth": 1}, arrays_of()), list[str]()
    monkeypatch.setattr("stepladder.predictors.gbdt.hashed_grams", lambda text: read.append(text) or hashed_grams(text))
    memo: dict[Any, Any] = {}
    first = predictor.predict(Features({}, "Add 5 and 7", (), memo))
    assert predictor.predict(Features({}, "Add 5 and 7", (said("12"),), memo)) == first
    assert len(read) == 1
    assert predictor.predict(Features({}, "Add 5 and 7")) == first
    assert len(read) == 2


def test_a_tree_of_one_leaf_counts_and_filling_does_not() -> None:
    filled = {name: np.concatenate([array] * 3, axis=1) for name, array in arrays_of().items() if array.ndim == 3}
    for name in ("left", "right", "value"):
        filled[name][0, 1:] = 0
    filled["value"][0, 2, 0] = 10.0
    filled["left"], filled["right"] = filled["left"].astype(int), filled["right"].astype(int)
    assert Trees(filled, 1, 1, 2).sums(np.zeros(2)).tolist() == [9.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": np.zeros((3, 1))}, "the array weights should be"),
        ({"base": np.zeros(2)}, "the array base should be"),
        ({"counts": np.zeros(5)}, "the array counts should be"),
        ({"value": np.zeros((1, 1, 2))}, "the array value should be"),
        ({"left": np.full((1, 1, 3), 3)}, "the array left should hold numbers from 0 to 2"),
        ({"right": np.full((1, 1, 3), -1)}, "the array right should hold numbers from 0 to 2"),
        ({"feature": np.full((1, 1, 3), 500)}, "the array feature should hold numbers from 0 to"),
        ({"feature": np.zeros((2, 1, 3))}, "the trees should be of 1 stages"),
        ({"threshold": np.full((1, 1, 3), np.nan)}, "array 'threshold' holds numbers that are not finite"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        GBDTPredictor(("a",), {"depth": 1}, arrays_of() | change)


@pytest.mark.parametrize("shape", [(1, 1, MOST_NODES + 1), (1, MOST_NODES // 2, 3)])
def test_forests_too_large_to_serve_are_refused(shape: tuple[int, ...]) -> None:
    """Zeros pack well: a small file could hold them, and every decision would walk them."""
    whole, real = np.zeros(shape, dtype=np.int16), np.zeros(shape, dtype=np.float16)
    change = {"feature": whole, "left": whole, "right": whole, "threshold": real, "value": real}
    with pytest.raises(ArtifactError, match="feature: .* nodes are more than 1,000,000"):
        GBDTPredictor(("a",), {"depth": 1}, arrays_of() | change)


def test_walks_that_do_not_come_to_an_end_are_refused() -> None:
    """One long branch, on which a depth within its nodes would be walked by every decision."""
    many = 5000
    own = np.arange(many, dtype=np.int16).reshape(1, 1, -1)
    shape = np.zeros((1, 1, many))
    change = {"feature": shape.astype(np.int16), "left": np.minimum(own + 1, many - 1), "right": own}
    change |= {"threshold": shape, "value": shape}
    with pytest.raises(ArtifactError, match=f"depth should be a whole number from 0 to {DEEPEST}, not 4999"):
        GBDTPredictor(("a",), {"depth": 4999}, arrays_of() | change)


@pytest.mark.parametrize("depth", [None, -1, 3, 1.0, True])
def test_a_depth_that_is_none(depth: Any) -> None:
    with pytest.raises(ArtifactError, match="depth should be a whole number from 0 to 2"):
        GBDTPredictor(("a",), {"depth": depth}, arrays_of())


# ── trees for after an answer ────────────────────────────────────────────────


def with_after(**change: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Params and arrays whose trees for after an answer say whether stage a answered."""
    plain = arrays_of()
    answered = len(NAMES) + 1
    own = {name: plain[name] for name in ("base", "feature", "threshold", "left", "right", "value")}
    own |= {"feature": np.full((1, 1, 3), answered), "threshold": np.full((1, 1, 3), 0.5)}
    arrays = plain | {f"after_{name}": array for name, array in own.items()} | change
    return {"depth": 1, "after_depth": 1, "after_signals": list(SIGNALS)}, arrays


def test_trees_for_after_an_answer_are_asked_once_there_is_one() -> None:
    params, arrays = with_after()
    both, plain = GBDTPredictor(("a",), params, arrays), GBDTPredictor(("a",), {"depth": 1}, arrays_of())
    told = Features({}, "", (said("4"),))
    failed = Features({}, "", (Attempt("a", fault=Fault("server", "broken")),))
    assert both.predict(Features({}, "")) == both.predict(failed) == plain.predict(Features({}, ""))
    assert both.predict(told)["a"].mean == pytest.approx(1 / (1 + np.exp(-1)))
    assert plain.predict(told) == plain.predict(Features({}, ""))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"after_base": np.zeros(2)}, "the array after_base should be"),
        ({"after_left": np.full((1, 1, 3), 3)}, "the array after_left should hold numbers from 0 to 2"),
        ({"after_feature": np.full((1, 1, 3), 500)}, "the array after_feature should hold numbers from 0 to"),
        ({"after_feature": np.zeros((2, 1, 3))}, "the trees should be of 1 stages"),
        ({"after_value": None}, "array 'after_value' is missing"),
        ({"after_threshold": np.full((1, 1, 3), np.inf)}, "array 'after_threshold' holds numbers that are not finite"),
    ],
)
def test_arrays_for_after_an_answer_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    params, arrays = with_after(**change)
    with pytest.raises(ArtifactError, match=told):
        GBDTPredictor(("a",), params, arrays)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"after_depth": 3}, "after_depth should be a whole number from 0 to 2"),
        ({"after_depth": None}, "after_depth should be a whole number"),
        ({"after_signals": ["mood"]}, "after_signals: this Stepladder reads no signal 'mood'"),
        ({"after_signals": None}, "after_signals should be a list of different names, such as answered, tokens"),
    ],
)
def test_params_for_after_an_answer_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    params, arrays = with_after()
    with pytest.raises(ArtifactError, match=told):
        GBDTPredictor(("a",), params | change, arrays)


def test_params_for_after_an_answer_without_its_trees() -> None:
    with pytest.raises(ArtifactError, match="array 'after_feature' is missing"):
        GBDTPredictor(("a",), with_after()[0], arrays_of())


# ── which signals ────────────────────────────────────────────────────────────


def of_signals(*signals: str) -> GBDTPredictor:
    """Trees that say whether the first of these signals of stage a is above a half."""
    params, arrays = with_after(after_feature=np.full((1, 1, 3), len(NAMES) + 1))
    return GBDTPredictor(("a",), params | {"after_signals": list(signals)}, arrays)


@pytest.mark.parametrize(
    ("signal", "low", "high"),
    [
        ("digits", "four", "4"),
        ("code", "import of goods", "import goods"),
        ("same_as_prompt", "four", "2+2?"),
        ("repeats", "a\nb\nc", "a\na\na"),
    ],
)
def test_trees_read_the_signals_that_their_artifact_names(signal: str, low: str, high: str) -> None:
    for signals in ([signal], [signal, "answered"]):
        predictor = of_signals(*signals)
        below, above = (predictor.predict(Features({}, "2+2?", (said(text),)))["a"] for text in (low, high))
        assert (below.mean, above.mean) == (pytest.approx(1 / (1 + np.exp(1))), pytest.approx(1 / (1 + np.exp(-1))))


def test_who_reads_log_probabilities_says_so() -> None:
    assert GBDTPredictor(("a",), {"depth": 1}, arrays_of()).reads == frozenset()
    assert of_signals("answered", "digits").reads == frozenset()
    for signal in ("logprob", "min_logprob", "tail_logprob"):
        assert of_signals("answered", signal).reads == {"logprobs"}


def test_the_shipped_artifact_keeps_its_older_list_of_signals() -> None:
    artifact = load(PRESETS / "nano" / "artifact")
    assert artifact.params["after_signals"] == list(SIGNALS)
    assert GBDTPredictor(artifact.stages, artifact.params, artifact.arrays).reads == {"logprobs"}
