"""The experiment on a made table: the JSON value is whole and repeatable, the page says what the value says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from few_candidates import few_candidates
from outcome_tables import STAGES, make_aligned, make_row
from stepladder.cli.train import predictor_of
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.prompts import Prompt
from stepladder.features.paper import PaperFeatures
from stepladder.reproduce import experiment, plots, report
from stepladder.reproduce.experiment import Plan, prepared
from stepladder.reproduce.fits import OURS, PAPERS, Makers
from stepladder.types import CostUnit

MAKERS = Makers(predictor_of, lambda name: PaperFeatures())
PLAN = Plan(quality_loss=0.05, resamples=40, seed=3)
RUN = {
    "command": "stepladder reproduce --out x",
    "date": "2026-01-01",
    "seconds": 1.0,
    "machine": {"platform": "p", "cores": 2, "python": "3"},
}
VERSIONS = {"code": "0", "config": "c", "costs": "k", "artifacts": {}}


def timed(data: Aligned, seconds: tuple[float, ...]) -> Aligned:
    lines = (
        tuple(
            replace(row, latency_s=time, confidence=-0.1 * (1 - row.quality) - 0.01)
            for row, time in zip(line, seconds, strict=True)
        )
        for line in data.rows
    )
    return replace(data, rows=tuple(lines))


@pytest.fixture(autouse=True, scope="module")
def _few():
    with few_candidates():
        yield


def made(seconds: tuple[float, ...] = (0.1, 0.2, 0.4), unit: CostUnit = "relative") -> dict[str, object]:
    train, judged = (timed(make_aligned(count, seed=seed), seconds) for count, seed in ((120, 0), (50, 7)))
    if unit == "usd":
        train, judged = (replace(part, cost=part.cost * 1e-5, cost_unit=unit) for part in (train, judged))
    ten = [make_row(f"t{n}", name, 0.0, cost=1.0, latency_s=0.5) for n in range(10) for name in STAGES]
    data = prepared(train, judged, align(ten, STAGES))
    fitted = experiment.fit_both(data.train, MAKERS, PLAN)
    found = experiment.experiment(data, fitted, MAKERS, PLAN, clock=iter(range(100)).__next__)
    return {**found, "versions": VERSIONS, "run": RUN}


@pytest.fixture(scope="module")
def found():
    return made()


@pytest.fixture(scope="module")
def usd():
    return made(unit="usd")


def test_it_is_plain_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rows"] == {
        "train": 360,
        "train_queries": 120,
        "compared": 120,
        "train_left_out": 0,
        "judged_queries": 50,
        "judged_left_out": 0,
        "ten": 10,
    }
    assert list(found["readings"]) == ["measured", "paper", "finer"]


def test_the_same_again_but_for_times(found):
    again = made((0.3, 0.5, 0.9))
    assert again != found
    assert experiment.without_times(again) == experiment.without_times(found)


def test_every_arm_is_there_with_its_intervals(found):
    for reading in found["readings"].values():
        names = [each["name"] for each in reading["alone"]]
        assert names == [
            *(f"single:{s}" for s in STAGES),
            "fixed:small+medium",
            "fixed:small+large",
            "split:small+large",
        ]
        assert list(reading["by_lambda"]) == ["class-router", PAPERS, OURS]
        for line in reading["by_lambda"].values():
            assert [each["lambda"] for each in line] == [0.5, 1, 2, 5, 10, 20]
        entries = [*reading["alone"], *reading["calibrated"].values(), reading["oracle"]]
        for each in entries:
            assert sum(each["shares"].values()) == pytest.approx(1.0)
            for key in ("quality", "cost", "cheaper", "faster", "quality_diff"):
                low, high = each[f"{key}_ci"]
                assert low - 1e-6 <= each[key] <= high + 1e-6 or key in ("quality", "quality_diff")
    assert found["readings"]["paper"]["stage_costs"] == {"small": 1.0, "medium": 1.3, "large": 1.8}


def test_the_random_mix_costs_what_ours_costs(found):
    reading = found["readings"]["measured"]
    assert reading["mixes"][-1]["cost"] == pytest.approx(reading["calibrated"][OURS]["cost"])
    assert reading["oracle"]["quality"] >= reading["wanted_quality"] - 1e-6


def test_predictors_stand_in_and_ceiling(found):
    scores = found["predictors"]
    assert scores["measured_quality"][OURS]["pooled"] > scores["ceiling"]["class_stage"]["within_class"]
    assert scores["stand_in"]["auc"] == 1.0
    assert set(scores["stand_in_predicted"]) == {PAPERS, OURS}
    assert scores["measured_quality"][PAPERS]["kind"] == "mlp"


def test_the_page(found):
    page = report.page(found, with_plots=True)
    for part in ("## Table 4.2", "## Table 4.1", "## Table 4.3", "## Table 4.4", "## The paper's ten prompts"):
        assert part in page
    assert "879<sup>✗18</sup> · 1.30<sup>✗6</sup> · 0.936<sup>✗1,2</sup>" in page
    assert (
        "| 5 | 40% / 60% / 0%<sup>✗2,10,15</sup> · 1.30<sup>✗6</sup> | 40% / 30% / 30% · 1.33 (quality 0.877, 1,141 ms)"
        in page
    )
    assert "| 998 · 1.36<sup>✗16</sup> · 0.832 | – (1.36 is no mix of 1.0 and 1.3) |" in page
    assert "75 % 13B, 25 % 34B<sup>✗14,15</sup>" in page
    assert "0 of 15 differ by more than rounding" in page
    assert "![cost and quality](frontier.svg)" in page
    assert "![" not in report.page(found, with_plots=False)
    measured = found["readings"]["measured"]["calibrated"][OURS]
    assert f"{100 * measured['cheaper']:.1f} %" in page
    assert "nan" not in page
    assert "None" not in page
    widths = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert min(widths) > 2


def test_tables_are_rectangular(found):
    wide = None
    for line in report.page(found, with_plots=True).splitlines():
        wide = None if not line.startswith("|") else wide or line.count("|")
        assert wide is None or line.count("|") == wide, line


def test_costs_in_usd_are_told_to_four_digits(usd):
    page = report.page(usd, with_plots=False)
    for mean in usd["readings"]["measured"]["stage_costs"].values():
        assert mean < 1e-4
        assert f"{mean:.4g}" in page
    measured = page.partition("### Costs measured")[2].partition("### Costs the paper's")[0]
    assert "| 0.000 |" not in measured
    assert "measured costs are in usd, the paper's λ are for costs near 1" in page


def test_the_papers_saving_stands_beside_one_at_its_own_costs(found):
    line = next(line for line in report.page(found, with_plots=False).splitlines() if "cheaper, at the paper's" in line)
    ours = found["readings"]["paper"]["calibrated"][OURS]["cheaper"]
    assert line.startswith("| cheaper, at the paper's costs 1.0 : 1.3 : 1.8 | 28 %<sup>✗6</sup> |")
    assert f"{100 * ours:.1f} %" in line


def test_a_name_with_the_sign_that_parts_cells():
    assert report._row("a|b", "c") == r"| a\|b | c |"


def test_on_what_the_operating_point_rests(found):
    page = report.page(found, with_plots=False)
    assert "on 120 prompts and with fits to four fifths of those" in page
    assert "predictors, λ, mixes and the oracle's choice stay as they are" in page
    assert "ceiling:" not in page


def test_the_screen(found):
    told = report.summary(found)
    assert "50 judged prompts, 360 training rows" in told
    assert "adaptive, ours" in told
    assert "(the paper: 0.489)" in told
    assert max(map(len, told.splitlines())) < 140


def test_the_pictures_are_the_same_twice(found):
    first = plots.draw(found)
    assert sorted(first) == ["frontier.png", "frontier.svg", "r2.png", "r2.svg"]
    assert first == plots.draw(found)
    assert first["frontier.png"].startswith(b"\x89PNG")
    assert b"<svg" in first["r2.svg"]


def test_without_an_operating_point_the_page_says_so(found):
    reading = found["readings"]["measured"] | {"calibrated": {}}
    page = report.page(found | {"readings": {"measured": reading}}, with_plots=False)
    assert "No λ was found on training rows" in page
    points = {OURS: {"lambda": None}}
    told = report.summary(found | {"readings": {"measured": reading | {"operating_points": points}}})
    assert "adaptive, ours: no λ on training rows keeps the loss within" in told


# ── data ─────────────────────────────────────────────────────────────────────


def bare(count: int, name: str) -> Aligned:
    rows = [
        make_row(f"{name}{n}", s, float(n % 2), cost=1.0, group_id=f"{name}{n}") for n in range(count) for s in STAGES
    ]
    return align(rows, STAGES)


def test_classes_come_from_the_rules_where_the_table_has_none():
    data = prepared(bare(6, "a"), bare(4, "b"), bare(1, "c"))
    assert data.classes_by == "rules"
    assert set(data.classes[1]) == {"simple"}
    assert prepared(make_aligned(6), make_aligned(4, seed=2), bare(1, "c")).classes_by == "table"


def test_overlap_is_refused():
    with pytest.raises(UsageError, match=r"4 of 4 judged prompts share their group .* first 'a0'"):
        prepared(bare(6, "a"), bare(4, "a"), bare(1, "c"))


def own(splits: list[str | None]) -> list[Prompt]:
    return [
        Prompt(query_id=f"q{n}", messages=({"role": "user", "content": f"ask {n}"},), split=split)
        for n, split in enumerate(splits)
    ]


def test_ones_own_prompts_by_split_or_by_group():
    assert experiment.is_training(own(["train", "test", None])) == [True, False, False]
    prompts = own([None] * 200)
    found = experiment.is_training(prompts)
    assert 70 < sum(found) < 130
    assert experiment.is_training(prompts[::-1]) == found[::-1]
    same = [replace(prompt, group_id="g") for prompt in prompts]
    with pytest.raises(UsageError, match="the 200 prompts leave nothing to .* they are too few"):
        experiment.is_training(same)


@pytest.mark.parametrize(("split", "told"), [("train", "judge on"), ("test", "train on")])
def test_prompts_of_one_split_are_not_enough(split, told):
    with pytest.raises(UsageError, match=f"leave nothing to {told}.*their splits are: {split}"):
        experiment.is_training(own([split] * 3))


def test_the_ten_that_not_all_stages_answered_are_left_out():
    rows = [make_row("t1", name, 0.0, cost=1.0) for name in STAGES] + [make_row("t2", "small", 0.0, cost=1.0)]
    like = make_aligned(3)
    assert len(experiment.ten_aligned(rows, STAGES, like)) == 1
    assert len(experiment.ten_aligned(rows[3:], STAGES, like)) == 0
