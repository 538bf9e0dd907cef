"""The whole judgement on made-up tables: what it holds, what it leaves out with a note, how it is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned, make_row, make_table
from stepladder.evaluate import compare, html, likeness, markdown, tables
from stepladder.evaluate import report as reports
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.clusters import Clusters, cluster_report
from stepladder.evaluate.compare import Family
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.operating import Point
from stepladder.evaluate.reference import reference_of
from stepladder.evaluate.report import Subject, report
from stepladder.evaluate.scores import ceilings
from stepladder.evaluate.summaries import Judge, deferral, values, versus, worth
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.types import Attempt, Estimate, Estimates

TRAIN, DATA = make_aligned(200, seed=1), make_aligned(80, seed=2)
FACTS = {
    "outcomes": "made|up.parquet",
    "split": "validation",
    "artifact": {"kind": "made", "version": "x"},
    "overlap": {"queries": 0, "share": 0.0, "judged_nevertheless": False},
    "seed": 0,
    "resamples": 20,
}


def blurred(data: Aligned, share: float, seed: int = 0) -> list[Estimates]:
    noise = np.random.default_rng(seed).random(data.quality.shape)
    return compare.as_estimates(share * data.quality + (1 - share) * noise, data.stages)


def looking(data: Aligned, before: list[Estimates]):
    """After an answer its own quality is known, and nothing else."""

    def after(number: int, attempts: tuple[Attempt, ...]) -> Estimates:
        known = {each.stage: data.quality[number, STAGES.index(each.stage)] for each in attempts}
        return Estimates({name: Estimate(known.get(name, before[number][name].mean)) for name in STAGES})

    return after


def subject(share: float = 0.5, **more) -> Subject:
    said = blurred(DATA, share)
    settings = {"after": looking(DATA, said), "train": TRAIN} | more
    return Subject(DATA, said, reference_of(TRAIN), **settings)


@pytest.fixture(scope="module")
def found() -> dict:
    points = {"greedy": {"cost_save": Point(7.5, 0.9, 2.0), "perf_gain": Point(None, 0.9, 4.0)}}
    policies = {**reports.POLICIES, "pandora": PandoraPolicy()}
    return {**FACTS, **report(subject(points=points, lam=5.0), policies=policies, times=20)}


def test_it_is_json_and_all_baselines_are_there(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    names = {line["name"] for line in found["baselines"]}
    assert names >= {
        *(f"single:{stage}" for stage in STAGES),
        *("fixed:small+medium", "random-mix", "zero-router", "prompt-length"),
        *("task-mean", "neighbours", "class-router", "perfect-verifier", "oracle"),
    }
    assert names <= set(found["summary"])
    assert {line["name"] for line in found["policies"]} == {"greedy", "cascade", "pandora"}


def test_policies_that_look_ahead_are_played_at_fewer_lambda(found):
    played = {n: {e["lambda"] for e in found["policies"] if e["name"] == n} for n in ("greedy", "cascade", "pandora")}
    assert all(lambdas >= {*found["lambda_grid"], 5.0} for lambdas in played.values())
    assert len(played["pandora"]) < 0.7 * len(played["cascade"])


def test_no_policy_and_no_baseline_has_less_regret_than_the_oracle(found):
    for name, each in found["summary"].items():
        assert len(each["regret"]) == 9
        assert min(each["regret"]) >= -1e-9, name
        assert each["score"] <= found["summary"]["oracle"]["score"] + 1e-9
        assert each["score_ci"][0] <= each["score"] <= each["score_ci"][1]
    assert found["summary"]["oracle"]["regret"] == pytest.approx([0.0] * 9, abs=1e-9)


def test_the_lead_is_over_the_best_of_its_kind(found):
    summary = found["summary"]
    routes = {name: each for name, each in summary.items() if name.startswith(reports.ROUTES)}
    for name in ("greedy", "cascade"):
        lead = summary[name]["vs_best_baseline"]
        rivals = routes if name == "greedy" else {n: e for n, e in summary.items() if n in routes or "fixed:" in n}
        best = max(rivals, key=lambda each: rivals[each]["score"])
        assert lead["name"] == best
        assert lead["value_diff"] == pytest.approx(summary[name]["score"] - summary[best]["score"])
        assert lead["ci"][0] <= lead["value_diff"] <= lead["ci"][1]


def test_points_are_applied_once_and_training_chose_among_them(found):
    greedy = found["summary"]["greedy"]["operating"]
    played = next(line for line in found["policies"] if line["name"] == "greedy" and line["lambda"] == 7.5)
    assert (greedy["cost_save"]["quality"], greedy["cost_save"]["cost"]) == (played["quality"], played["cost"])
    assert greedy["perf_gain"]["policy_used"] == "single:large"
    assert found["summary"]["cascade"]["operating"] == {}
    assert found["operating"]["cost_save"] == {"policy": "greedy", **greedy["cost_save"]}


def test_without_answers_that_tell_only_the_first_decision_is_judged():
    said = blurred(DATA, 0.5)
    quiet = report(subject(after=lambda number, attempts: said[number], train=None), times=5)
    assert set(quiet["predictor"]) == {"before"}
    assert {line["name"] for line in quiet["policies"]} == {"greedy"}
    assert any("cascade of the policies" in note for note in quiet["notes"])
    assert any("no training rows to learn them from" in note for note in quiet["notes"])
    assert quiet["clusters"] is None
    assert "task-mean" not in quiet["summary"]


def test_without_scipy_the_rest_is_there(monkeypatch):
    def missing(texts):
        raise likeness.MissingExtraError("finding prompts that are alike", "train")

    monkeypatch.setattr(reports, "Likeness", missing)
    found = report(subject(), times=5)
    assert "task-mean" in found["summary"]
    assert "neighbours" not in found["summary"]
    assert any("no neighbours, no clusters: finding prompts" in note for note in found["notes"])


def test_estimates_that_tell_are_not_told_of(found):
    assert any("look ahead decide as 'cascade'" in note for note in found["notes"])
    telling = [
        Estimates({name: Estimate(e.mean, 0.5, 0.1) for name, e in said.stages.items()}) for said in blurred(DATA, 0.5)
    ]
    said = Subject(DATA, telling, reference_of(TRAIN), after=looking(DATA, telling))
    assert not any("look ahead" in note for note in report(said, times=2)["notes"])


# ── figures along λ ──────────────────────────────────────────────────────────


def judge(times: int = 50) -> Judge:
    return Judge(DATA, subject().grid, 0, times)


def test_a_family_leads_itself_by_nothing():
    played = compare.curve(subject().bench, "greedy", GreedyPolicy(), blurred(DATA, 0.5), judge().grid.tolist())
    family = Family("greedy", played)
    assert versus(judge(), family, [family]) == {"name": "greedy", "value_diff": 0.0, "ci": (0.0, 0.0)}
    assert versus(judge(), family, []) is None
    assert deferral(judge(), family) is None


def test_value_and_regret_by_hand():
    single = Family("single:large", compare.singles(subject().bench, blurred(DATA, 0.5))[-1:])
    found, grid = worth(judge(), single), judge().grid
    quality = DATA.quality[:, -1].mean()
    assert found["score"] == pytest.approx(np.mean(grid * quality - 4))
    best = np.mean([(lam * DATA.quality - DATA.cost).max(axis=1).mean() for lam in grid])
    assert np.mean(found["regret"]) == pytest.approx(best - found["score"])
    assert values(judge(), single).shape == (len(DATA), 9)


def test_a_random_order_has_the_apgr_of_chance():
    found = []
    for seed in range(30):
        score = np.random.default_rng(seed).random(len(DATA))
        family = Family("chance", compare.singles(subject().bench, blurred(DATA, 0.5))[-1:], score)
        found.append(compare.summarise(DATA, family, judge().grid, np.random.default_rng(0), times=2)["apgr"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


# ── ceilings and clusters ────────────────────────────────────────────────────


def test_repeated_answers_make_a_ceiling():
    rows = [
        make_row(f"q{n}", name, float(n % 2 if name == "a" else m % 2))
        for n in range(12)
        for name in ("a", "b")
        for m in range(4)
    ]
    data = align(rows, ("a", "b"), pricing=(1.0, 2.0))
    assert data.repeated == 72
    assert data.samples is not None
    assert data.samples.mean[:, 1].tolist() == [0.5] * 12
    sure, chance = ceilings(data)
    assert (sure["stage"], sure["queries"]) == ("a", 12)
    assert (sure["r2_single"], sure["r2_mean"]) == pytest.approx((1.0, 1.0))
    assert chance["r2_single"] is None or np.isnan(chance["r2_single"])
    assert data.take(np.arange(3)).samples.count.tolist() == [[4.0, 4.0]] * 3
    assert ceilings(DATA) == []


def test_clusters_are_of_training_prompts_and_the_control_is_of_chance():
    drawn = Clusters(Likeness([request.text for request in TRAIN.requests]), 0)
    labels = drawn.labels([request.text for request in DATA.requests], (3, 100_000))
    assert set(labels) == {3}
    levels = np.array(DATA.levels)
    assert all(len(set(levels[labels[3] == label])) == 1 for label in range(3))  # each class has its own wording
    said = np.array([[{"simple": 0.9, "medium": 0.3, "complex": 0.05}[level]] * 3 for level in DATA.levels])
    (entry,) = cluster_report(DATA.quality, said, STAGES, labels, np.random.default_rng(0))
    assert entry["per_stage"][0]["r2"] > 0.9
    assert entry["control"][0]["signal"] < entry["per_stage"][0]["signal"]
    assert entry["control"][0]["r2_raw"] < entry["per_stage"][0]["r2_raw"]


# ── showing ──────────────────────────────────────────────────────────────────


def test_every_table_has_as_many_cells_as_heads(found):
    shown = tables.tables(found)
    titles = {table.title for table in shown}
    assert titles >= {"Policies along λ", "Baselines", "Operating points", "Along λ", "Along the curve"}
    assert all(len(line) == len(table.head) for table in shown for line in table.lines)
    operating = next(table for table in shown if table.title == "Operating points")
    assert operating.lines[0][:3] == ["the dearest stage's quality at the least cost", "greedy ▲", "7.5"]
    assert operating.lines[1][2] == "single:large"


def test_markdown_is_tables_that_hold(found):
    page = markdown.page(found)
    assert page.startswith("# small \\< medium \\< large\n")
    assert "made\\|up.parquet" in page
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) == len(tables.tables(found))
    for block in blocks:
        bars = {line.replace("\\|", "").count("|") for line in block}
        assert len(bars) == 1
    assert all(f"- {note[:20]}" in page.replace("\\", "") for note in found["notes"])


def test_html_has_three_pictures_and_fetches_nothing(found):
    page = html.page(found)
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "mean estimate" in page
    assert "share of queries sent" in page
    assert "Operating points" in page


def test_figures_in_words():
    assert [tables.figure(value) for value in (None, 0.12345, -0.00001, 123.456, 7, "x")] == [
        *("–", "0.123", "0.000", "123.5", "7", "x")
    ]
    assert tables.span((None, 1.0)) == ""
    assert tables.span((0.1, 0.2)) == "0.100 … 0.200"
    assert "OVERLAP: 3" in tables.overlap({"queries": 3, "judged_nevertheless": True})
    assert len(make_table(2)) == 6
