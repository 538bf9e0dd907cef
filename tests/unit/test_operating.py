"""Operating points: chosen on training rows, remembered in an artifact's metrics, applied once."""

from __future__ import annotations

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned, make_row
from stepladder.evaluate import compare, operating
from stepladder.evaluate.aligned import align
from stepladder.evaluate.compare import Bench
from stepladder.evaluate.operating import Point
from stepladder.evaluate.reference import reference_of
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.train import operating as training
from stepladder.types import Estimate, Estimates

DATA = align(
    [make_row(str(n), name, quality) for n in range(10) for name, quality in (("a", 0.2), ("b", 0.8))],
    ("a", "b"),
    pricing=(1.0, 4.0),
)
LAMBDAS = np.array([1.0, 2.0, 3.0, 4.0])


def chosen(quality: list[float], cost: list[float]) -> dict[str, Point]:
    return operating.points_of(DATA, LAMBDAS, np.array(quality), np.array(cost))


def test_the_points_by_hand():
    found = chosen([0.7, 0.8, 0.85, 0.82], [1.5, 3.0, 3.5, 2.5])
    assert found == {"cost_save": Point(4.0, 0.82, 2.5), "perf_gain": Point(3.0, 0.85, 3.5)}


def test_without_a_lambda_it_is_the_single_stage():
    found = chosen([0.2, 0.5, 0.7, 0.79], [1.0, 2.0, 3.0, 3.5])
    assert found == {kind: Point(None, pytest.approx(0.8), 4.0) for kind in operating.KINDS}
    dear = chosen([0.9] * 4, [5.0] * 4)
    assert dear["cost_save"].lam is None  # it keeps the quality and saves nothing
    assert dear["perf_gain"] == Point(1.0, 0.9, 5.0)


def test_metrics_remember_points():
    points = chosen([0.7, 0.8, 0.85, 0.82], [1.5, 3.0, 3.5, 2.5])
    flat = operating.to_metrics("greedy", points) | operating.to_metrics("late", {"cost_save": Point(None, 0.8, 4.0)})
    assert flat["lambda_cost_save:greedy"] == 4.0
    assert "lambda_cost_save:late" not in flat
    assert operating.from_metrics(flat, "greedy") == points
    assert operating.all_of(flat) == {"greedy": points, "late": {"cost_save": Point(None, 0.8, 4.0)}}
    assert operating.all_of({"r2_out_of_fold": 0.1}) == {}


def test_what_became_of_a_point():
    bench = Bench(DATA, DATA.cost)
    alone = compare.singles(bench, compare.as_estimates(DATA.quality, DATA.stages))
    mix = compare.by_chance(bench, "greedy", 7.0, np.full((10, 2), 0.5))
    played = operating.at_point("cost_save", Point(7.0, 0.6, 2.0), alone, [mix])
    found = operating.applied(DATA, Point(7.0, 0.6, 2.0), played, lambda parts: np.tile(parts.mean(axis=0), (3, 1)))
    assert (found["quality"], found["cost"]) == pytest.approx((0.5, 2.5))
    assert found["quality_ratio"] == pytest.approx(0.5 / 0.8)
    assert found["cost_save"] == pytest.approx(1 - 2.5 / 4)
    assert found["perf_gain"] == pytest.approx(0.5 / 0.8 - 1)
    assert found["cost_save_ci"] == pytest.approx((found["cost_save"],) * 2)
    assert found["out_of_fold"] == {"quality": 0.6, "cost": 2.0}
    for kind in operating.KINDS:
        assert operating.at_point(kind, Point(None, 0.8, 4.0), alone, []).name == "single:b"


def test_training_rows_choose_the_policy_too():
    points = {
        "a": {"cost_save": Point(1.0, 0.8, 2.0), "perf_gain": Point(2.0, 0.82, 3.0)},
        "b": {"cost_save": Point(1.0, 0.8, 1.5), "perf_gain": Point(2.0, 0.81, 1.0)},
        "c": {"cost_save": Point(None, 0.8, 1.0), "perf_gain": Point(None, 0.9, 1.0)},
        "d": {},
    }
    assert operating.chosen(points) == {"cost_save": "b", "perf_gain": "a"}
    assert operating.chosen({}) == {}


# ── in training ──────────────────────────────────────────────────────────────


def test_calibration_remembers_the_points_of_its_curve():
    data = make_aligned(200)
    said = 0.6 * data.quality + 0.4 * np.random.default_rng(0).random(data.quality.shape)
    found = training.calibrate(said, data, reference_of(data), 0.05)
    points = operating.from_metrics(found.metrics, "greedy")
    bench, estimates = Bench(data, data.cost), compare.as_estimates(said, STAGES)
    for point in points.values():
        played = compare.play(bench, "greedy", GreedyPolicy(), estimates, lam=point.lam)
        assert (played.quality.mean(), played.cost.mean()) == pytest.approx((point.quality, point.cost))
    assert points["cost_save"].quality >= data.quality[:, -1].mean()
    assert points["cost_save"].cost < data.cost[:, -1].mean()
    assert points["perf_gain"].quality >= points["cost_save"].quality


class Recognises:
    """Knows, once a stage answered, whether it is right; before that half and half. Refuses what it learned from."""

    version = "x"

    def __init__(self, texts: set[str]) -> None:
        self._known = texts

    def predict(self, features):
        assert features.text not in self._known
        right = {attempt.stage: float(attempt.text == "right") for attempt in features.attempts}
        return Estimates({name: Estimate(right.get(name, 0.5)) for name in STAGES})


def test_points_of_a_policy_that_looks_at_answers():
    rows = [
        make_row(f"q{n}", name, float(n % 4 >= bound), pred="right" if n % 4 >= bound else "wrong")
        for n in range(40)
        for name, bound in zip(STAGES, (2, 1, 1), strict=True)
    ]
    data = align(rows, STAGES, pricing=(1.0, 2.0, 9.0))
    fold_of = np.arange(40) % 5
    fitted = training.cross_fit(lambda rows: Recognises({row.text for row in rows}), data, fold_of, PaperFeatures())
    found = training.points_along(
        fitted, data, reference_of(data), {"cascade": GreedyPolicy(cascade=True), "greedy": GreedyPolicy()}
    )
    cascade = operating.from_metrics(found, "cascade")["cost_save"]
    assert (cascade.quality, cascade.cost) == pytest.approx((0.75, 0.5 * 1 + 0.25 * 3 + 0.25 * 3))
    assert operating.from_metrics(found, "greedy")["cost_save"].lam is None
