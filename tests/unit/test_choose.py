"""Training: folds that keep groups whole, the choice among predictors, the calibrated λ, what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned, make_row
from stack_tables import noise, small
from stepladder import build
from stepladder.cli.train import predictor_of
from stepladder.errors import UsageError
from stepladder.evaluate import compare, operating
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
    data = grouped(60, 20)
    some = sample(data, 23, chance())
    assert len(some) == 21
    assert set(np.bincount(some.groups).tolist()) == {3}
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


def test_the_same_seed_trains_the_same(monkeypatch):
    monkeypatch.setattr(choose, "PENALTIES", (1.0,))
    one, again = (choose.train(make_aligned(120), "logistic", predictor_of, PaperFeatures(), seed=1) for _ in range(2))
    assert again.artifact.version == one.artifact.version
    assert again.artifact.lambda_ == one.artifact.lambda_
    assert again.artifact.metrics == one.artifact.metrics


def test_noise_is_left_to_the_means(monkeypatch):
    monkeypatch.setattr(boost, "TREES", 10)
    monkeypatch.setattr(stack, "TREES", 10)
    data = noise(100)
    found = choose.train(data, "auto", predictor_of, PaperFeatures())
    assert found.chosen == choose.STAGE_MEANS
    assert found.artifact.kind == "mean"
    assert found.artifact.arrays["cells"] == pytest.approx(data.quality.mean(axis=0).reshape(1, -1))
    assert found.notes == ()


def test_what_is_better_by_chance_alone_is_not_taken():
    data = noise(400)
    means = np.tile(data.quality.mean(axis=0), (400, 1))
    knowing = 0.9 * means + 0.1 * data.quality
    assert choose.beats(data, knowing, means)
    assert not choose.beats(data, means, knowing)
    assert not choose.beats(data, means, means)
    once = np.clip(means - 0.0002 * np.sign(data.quality - means), 0.0, 1.0)
    once[0] = data.quality[0]  # one query's luck is no more than its own standard error
    assert choose._losses(data.quality, once).mean() < choose._losses(data.quality, means).mean()
    assert not choose.beats(data, once, means)


def test_queries_of_one_group_are_no_evidence_of_their_own():
    """Better on most queries, worse on some: beyond doubt where each is for itself, not where they are two groups."""
    means, better = np.full((40, 1), 0.5), np.full((40, 1), 0.75)
    quality = [float(number % 20 < 15) for number in range(40)]
    apart, together = (
        align(
            [make_row(str(n), "a", value, group_id=f"g{group(n)}") for n, value in enumerate(quality)],
            ("a",),
            pricing=(1.0,),
        )
        for group in (lambda n: n, lambda n: int(quality[n]))
    )
    assert choose.beats(apart, better, means)
    assert not choose.beats(together, better, means)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("mean", ["mean, by task"]), ("knn", ["knn"]), ("stack", ["stack"]), ("logistic", None)],
)
def test_one_kind_alone(kind, names):
    ways = choose.candidates(small(), kind, classes=False)
    assert [way.name for way in ways] == (names or [f"logistic, C = {penalty:g}" for penalty in choose.PENALTIES])
    assert {way.kind for way in ways} == {kind}


def test_means_by_task_are_taken_where_they_are_best():
    found = choose.train(tasked(), "mean", predictor_of, PaperFeatures())
    assert found.chosen == "mean, by task"
    losses = [trial.scores["logloss"] for trial in found.trials]
    assert losses[1] < losses[0]
    assert len(found.artifact.arrays["cells"]) == 2


def tasked() -> Aligned:
    """Sums are done, places are not known."""
    data = small()
    rows = [
        replace(row, quality=float(row.dataset == "sums") if row.model == "a" else 0.5)
        for line in data.rows
        for row in line
    ]
    return align(rows, data.stages, pricing=(1.0, 3.0))


def test_too_few_for_a_stack_is_told(monkeypatch):
    monkeypatch.setattr(boost, "TREES", 10)
    data = make_aligned(40)
    told: list[str] = []
    found = choose.train(data, "auto", predictor_of, PaperFeatures(), tick=told.append)
    names = {trial.name for trial in found.trials}
    assert "knn" in names  # what else is fitted once does not need as many
    assert "stack" not in names
    (note,) = found.notes
    assert "stack left out: a stack learns from 60 queries" in note
    assert note in told
    with pytest.raises(UsageError, match="learns from 60 queries"):
        choose.train(data, "stack", predictor_of, PaperFeatures())


def test_a_stack_brings_its_fast_profile_and_operating_points(monkeypatch):
    monkeypatch.setattr(boost, "TREES", 10)
    monkeypatch.setattr(stack, "TREES", 20)
    monkeypatch.setattr(choose, "REPLAYED", 100)
    policies = {"cascade": GreedyPolicy(cascade=True)}
    found = choose.train(small(), "stack", predictor_of, PaperFeatures(), policies=policies)
    artifact = found.artifact
    assert (artifact.kind, found.chosen) == ("stack", "stack")
    assert {"depth", "spread", "after_signals"} <= set(artifact.params["fast"])
    points = operating.all_of(artifact.metrics)
    assert set(points) == {"greedy", "cascade"}
    assert points["cascade"]["cost_save"].quality >= small().quality[:, -1].mean() - 0.1
    assert len(found.trials) == 2
    full, fast = (predictor_of(build.profiled(artifact, name, "profile")) for name in ("full", "fast"))
    assert full.version == artifact.version != fast.version


def test_without_answers_there_are_no_points_of_policies_that_look_at_them(monkeypatch):
    monkeypatch.setattr(stack, "TREES", 10)
    monkeypatch.setattr(boost, "TREES", 10)
    mute = [replace(row, pred=None, output_tokens=None) for line in small().rows for row in line]
    data = align(mute, small().stages, pricing=(1.0, 3.0))
    found = choose.train(data, "stack", predictor_of, PaperFeatures(), policies={"cascade": GreedyPolicy(cascade=True)})
    assert set(operating.all_of(found.artifact.metrics)) == {"greedy"}


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
