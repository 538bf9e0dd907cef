"""Baselines that know a prompt's length, its task or its like, and the verifier that is never wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.evaluate import baselines, compare
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.scores import means

GRID = np.geomspace(1, 50, 9)


def table(*lines: tuple[str, str, tuple[float, ...]], costs: tuple[float, ...] = (1.0, 3.0)) -> Aligned:
    """Rows of (subset, prompt, quality of each stage)."""
    rows = [
        make_row(f"q{n}", name, value, dataset="d", subset=subset, prompt=prompt)
        for n, (subset, prompt, qualities) in enumerate(lines)
        for name, value in zip("abc", qualities, strict=False)
    ]
    return align(rows, tuple("abc"[: len(costs)]), pricing=costs)


def bench(data: Aligned) -> Bench:
    return Bench(data, data.cost)


# ── length ───────────────────────────────────────────────────────────────────

LENGTHS = table(*(("s", "x" * size, (0.0, 1.0)) for size in (4, 1, 3, 2, 3)))


def test_long_prompts_go_up():
    found = baselines.prompt_length(bench(LENGTHS), [0, 1], GRID, None)
    ups = {round(each.shares[1], 3): each.chances[:, 1].tolist() for each in found.played}
    assert ups[0.0] == [0.0] * 5
    assert ups[1.0] == [1.0] * 5
    assert ups[0.125] == pytest.approx([0.625, 0, 0, 0, 0])
    assert ups[0.5] == pytest.approx([1, 0, 0.75, 0, 0.75])  # the two of length 3 share what is left
    assert found.score.tolist() == [4, 1, 3, 2, 3]


def test_the_mix_at_each_lambda_is_the_training_rows_choice():
    """In training long prompts gain from the dearer stage and short ones do not; judged rows say the opposite."""
    train = table(("s", "x" * 90, (0.0, 1.0)), ("s", "x", (1.0, 1.0)))
    judged = table(("s", "x" * 90, (1.0, 1.0)), ("s", "x", (0.0, 1.0)))
    found = baselines.prompt_length(bench(judged), [0, 1], GRID, train)
    for lam in GRID.tolist():
        played = found.at(lam)
        assert played.lam == lam
        assert played.chances[:, 1].tolist() == ([1.0, 0.0] if lam > 2 else [0.0, 0.0])


def test_one_worthwhile_stage_leaves_nothing_to_mix():
    (only,) = baselines.prompt_length(bench(LENGTHS), [1], GRID, None).played
    assert only.shares.tolist() == [0.0, 1.0]


# ── tasks ────────────────────────────────────────────────────────────────────


def test_task_means_are_shrunk_to_the_stages():
    train = table(*[("maths", "p", (1.0, 1.0))] * 10, *[("law", "p", (0.0, 1.0))] * 30)
    judged = table(("maths", "p", (0, 0)), ("law", "p", (0, 0)), ("art", "p", (0, 0)))
    found = means(baselines.task_estimates(judged, train), ("a", "b"))
    overall = 10 / 40
    expected = [(10 + 10 * overall) / 20, (0 + 10 * overall) / 40, overall]
    np.testing.assert_allclose(found, np.column_stack([expected, [1.0] * 3]))


# ── likeness ─────────────────────────────────────────────────────────────────

KINDS = (
    "capital of the country",
    "integrate the polynomial",
    "sum of a series",
    "who wrote",
    "boiling point",
    "verdict",
)


def test_the_nearest_are_of_the_same_kind():
    def asked(n: int) -> str:
        return f"{KINDS[n % 6]} {n * 7919:x}"

    train = table(*(("s", asked(n), (float(n % 6 == 0), 1.0)) for n in range(180)))
    judged = table(*(("s", asked(1000 + n), (0.0, 0.0)) for n in range(6)))
    space = Likeness(baselines.texts_of(train))
    found = means(baselines.neighbour_estimates(judged, train, space), ("a", "b"))
    assert found[:, 0].tolist() == [float((1000 + n) % 6 == 0) for n in range(6)]
    assert found[:, 1].tolist() == [1.0] * 6


def test_a_text_is_most_like_itself():
    texts = [f"{word} {number}" for number, word in enumerate(("alpha", "beta", "gamma", "delta", "omega"))]
    space = Likeness(texts)
    assert space.nearest(texts, 1)[:, 0].tolist() == [0, 1, 2, 3, 4]
    lengths = np.sqrt(np.asarray(space.known.multiply(space.known).sum(axis=1)).reshape(-1))
    np.testing.assert_allclose(lengths, 1.0)
    assert space.nearest([""], 99).shape == (1, 5)


def test_what_most_texts_hold_tells_nothing():
    texts = [f"common words here {number}" for number in range(baselines.NEIGHBOURS * 4)]
    space = Likeness([*texts[:-1], "zebra quagga"])
    assert space.rows(["common words here"]).nnz == 0
    assert space.rows(["zebra quagga"]).nnz > 0


# ── the verifier ─────────────────────────────────────────────────────────────


def test_the_verifier_by_hand():
    data = table(
        ("s", "p", (1.0, 0.0, 1.0)),
        ("s", "p", (0.0, 0.6, 1.0)),
        ("s", "p", (0.1, 0.3, 0.2)),
        ("s", "p", (0.0, 0.0, 0.0)),
        costs=(1.0, 2.0, 4.0),
    )
    found = baselines.perfect_verifier(bench(data))
    (played,) = found.played
    assert played.cost.tolist() == [1.0, 3.0, 7.0, 7.0]
    assert played.quality.tolist() == [1.0, 0.6, 0.3, 0.0]
    assert played.chances.argmax(axis=1).tolist() == [0, 1, 1, 0]
    assert found.score.tolist() == [-1.0, 0.0, -0.1, 0.0]


@given(st.integers(0, 500), st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_any_stage_right_and_no_better_than_the_oracle(seed, lam):
    data = make_aligned(40, seed=seed)
    (played,) = baselines.perfect_verifier(bench(data)).played
    assert played.quality.mean() == data.quality.max(axis=1).mean()
    best = compare.oracle(bench(data), [lam])[0]
    assert played.value(lam).mean() <= best.value(lam).mean() + 1e-9
    assert (played.cost <= data.cost.sum(axis=1)).all()


def test_no_baseline_is_worth_more_than_the_oracle():
    judged, train = make_aligned(60, seed=1), make_aligned(90, seed=2)
    space = Likeness(baselines.texts_of(train))
    here = bench(judged)
    played = list(baselines.prompt_length(here, [0, 1, 2], GRID, train).played)
    for said in (baselines.task_estimates(judged, train), baselines.neighbour_estimates(judged, train, space)):
        played += compare.curve(here, "learned", compare.GreedyPolicy(), said, GRID.tolist())
    for lam, best in zip(GRID.tolist(), compare.oracle(here, GRID.tolist()), strict=False):
        assert all(each.value(lam).mean() <= best.value(lam).mean() + 1e-9 for each in played)
    assert judged.stages == STAGES
