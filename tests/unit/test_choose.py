"""Training: folds that keep groups whole, the choice among predictors, the calibrated λ, what is remembered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.cli.train import predictor_of
from stepladder.errors import UsageError
from stepladder.evaluate import compare
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.reference import SEEN, overlap, reference_of
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.train import boost, choose, stack
from stepladder.train.rows import fit_rows, folds, has_classes, sample


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grouped(queries: int, groups: int) -> Aligned:
    rows = [make_row(str(n), "a", float(n % 2), group_id=f"g{n % groups}") for n in range(queries)]
    return align(rows, ("a",), pricing=(1.0,))


def unlabelled(data: Aligned) -> Aligned:
    rows: Sequence[Sequence[object]] = data.rows
    plain = [make_row(row.query_id, row.model, row.quality, prompt=row.prompt) for line in data.rows for row in line]
    assert len(plain) == 3 * len(rows)
    return align(plain, data.stages, pricing=(1.0, 2.0, 4.0))


def test_rows_carry_stage_quality_and_class():
    data = make_aligned(3)
    rows = fit_rows(data)
    assert [row.stage for row in rows] == [0, 1, 2] * 3
    assert [row.quality for row in rows] == data.quality.ravel().tolist()
    assert [row.label for row in rows[::3]] == list(data.levels)
    strange = align([make_row("1", "a", 1.0, level="hard")], ("a",), pricing=(1.0,))
    assert fit_rows(strange)[0].label is None
    assert has_classes(make_aligned(90))
    assert not has_classes(make_aligned(20))
    assert not has_classes(strange)


def test_a_group_falls_into_one_fold():
    data = grouped(60, 12)
    found = folds(data, 5, chance())
    assert set(found.tolist()) == set(range(5))
    for group in range(12):
        assert len(set(found[data.groups == group].tolist())) == 1
    with pytest.raises(UsageError, match="3 groups of queries are too few for 5 folds"):
        folds(grouped(60, 3), 5, chance())


def test_samples_are_of_whole_groups():
    data = grouped(60, 12)
    some = sample(data, 23, chance())
    assert len(some) == 20
    assert set(np.bincount(some.groups).tolist()) == {5}
    assert sample(data, 60, chance()) is data


def test_estimates_are_out_of_fold(monkeypatch):
    """A predictor that knows its training texts by heart says nothing of those that it did not see."""
    data = unlabelled(make_aligned(40))
    known: list[set[str]] = []

    class ByHeart:
        version = "x"

        def __init__(self, texts):
            known.append(set(texts))
            self.texts = known[-1]

        def predict(self, features):
            level = float(features.text in self.texts)
            return compare.as_estimates(np.full((1, 3), level), STAGES)[0]

    found = choose.out_of_fold(
        lambda rows: ByHeart(each.text for each in rows.requests), data, folds(data, 5, chance()), PaperFeatures()
    )
    assert not found.any()
    assert len(known) == 5


def test_auto_takes_the_lowest_log_loss_and_remembers(monkeypatch):
    monkeypatch.setattr(choose, "COMPARED", 100)
    monkeypatch.setattr(boost, "TREES", 20)
    monkeypatch.setattr(stack, "TREES", 20)
    data, told = make_aligned(160), []
    found = choose.train(data, "auto", predictor_of, PaperFeatures(), seed=1, tick=told.append)
    names = [trial.name for trial in found.trials]
    assert names == [
        "stage means",
        "knn",
        "matrix, learned",
        "logistic, C = 0.1",
        "logistic, C = 1",
        "gbdt",
        "stack",
    ]
    losses = {trial.name: trial.scores["logloss"] for trial in found.trials[1:]}
    assert found.chosen == min(losses, key=losses.__getitem__)
    assert losses[found.chosen] < found.trials[0].scores["logloss"]
    assert found.compared == 100
    assert "gbdt: 5 folds of 100 queries" in told
    artifact = found.artifact
    assert artifact.metrics["train.queries:made"] == 160
    assert artifact.metrics["logloss_out_of_fold"] == losses[found.chosen]
    assert overlap(data, artifact.arrays).all()
    assert not overlap(make_aligned(40, seed=5), artifact.arrays).any()
    assert len(artifact.arrays[SEEN]) == 160
    again = choose.train(data, "auto", predictor_of, PaperFeatures(), seed=1)
    assert again.artifact.version == artifact.version
    assert again.artifact.lambda_ == artifact.lambda_


def test_without_classes_there_is_no_learned_matrix():
    data = unlabelled(make_aligned(20))
    assert "matrix" not in {each.kind for each in choose.candidates(data, "auto", classes=False)}
    assert [each.name for each in choose.candidates(data, "matrix", classes=False)] == ["matrix, rules"]
    assert [each.name for each in choose.candidates(data, "matrix", classes=True)] == ["matrix, learned"]


def test_the_calibrated_lambda_keeps_the_quality_and_no_smaller_one_does():
    data = make_aligned(300)
    said = 0.7 * data.quality + 0.3 * chance().random(data.quality.shape)
    found = choose.calibrate(said, data, reference_of(data), 0.05)
    assert found.lam is not None
    bench, estimates = Bench(data, data.cost), compare.as_estimates(said, STAGES)
    wanted = 0.95 * data.quality[:, -1].mean()
    played = compare.play(bench, "greedy", GreedyPolicy(), estimates, lam=found.lam)
    assert played.quality.mean() == pytest.approx(found.quality)
    assert played.cost.mean() == pytest.approx(found.cost)
    assert played.quality.mean() >= wanted
    assert found.cost < 4.0
    for share in (0.3, 0.6, 0.9):
        less = compare.play(bench, "greedy", GreedyPolicy(), estimates, lam=share * found.lam)
        assert less.quality.mean() < wanted


def test_no_lambda_where_the_estimates_mislead():
    data = make_aligned(200)
    found = choose.calibrate(1 - data.quality, data, reference_of(data), 0.0)
    assert found.lam is None
    assert found.quality < data.quality[:, -1].mean()


def test_lambda_zero_where_the_cheapest_stage_is_as_good():
    data = make_aligned(50)
    best_first = align(
        [make_row(str(n), name, quality) for n in range(20) for name, quality in (("a", 1.0), ("b", 0.5))],
        ("a", "b"),
        pricing=(1.0, 2.0),
    )
    found = choose.calibrate(np.tile([0.9, 0.4], (20, 1)), best_first, reference_of(best_first), 0.01)
    assert (found.lam, found.cost) == (0.0, 1.0)
    assert len(data) == 50
