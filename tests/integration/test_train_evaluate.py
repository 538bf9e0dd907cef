"""stepladder train and evaluate, from a table to a router, and on outcomes of real models where they are at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from outcome_tables import STAGES, make_row, make_table
from stepladder import build, config
from stepladder.cli import main
from stepladder.evaluate.outcomes import read, write
from stepladder.predictors.artifact import load
from stepladder.sync import Stepladder
from stepladder.train import boost

SHARED = Path(__file__).parents[3] / "shared" / "data"
PRICED = ["--stages", "small,medium,large", "--costs", "1,2,4"]
FIGURES = {"cost_save", "perf_gain", "apgr", "cpt50", "cpt80", "cost_auc", "gap_closed"}

LADDERS = {
    "A": ("mmlu_pro.parquet", "Llama-2-7b-hf,Llama-2-13b-hf,Llama-2-70b-hf", "0.1,0.186,1"),
    "D": (
        "llmrouter_ulab.parquet",
        "mistral-7b-instruct-v0.3,llama-3.1-8b-instruct,llama-3.1-nemotron-51b-instruct",
        "0.141,0.157,1",
    ),
}

LADDER_TOML = """\
[predictor]
artifact = "artifact"
""" + "".join(
    f'[[stages]]\nname = "{name}"\nengine = "scripted"\nmodel = "m"\ncost = {cost}\n'
    f'options = {{ reply = "from {name}" }}\n'
    for name, cost in zip(STAGES, (1.0, 2.0, 4.0), strict=True)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write(make_table(400), folder / "table.parquet")
    words = ["train", "--outcomes", str(folder / "table.parquet"), *PRICED, "--predictor", "logistic"]
    assert main([*words, "--quality-loss", "0.05", "--out", str(folder / "artifact")]) == 0
    return folder


def evaluate(folder: Path, *more: str) -> int:
    table = str(folder / "table.parquet")
    words = ["evaluate", "--outcomes", table, "--artifact", str(folder / "artifact"), "--resamples", "100"]
    return main([*words, "--costs", "1,2,4", *more])


def test_the_artifact_serves(trained):
    (trained / "ladder.toml").write_text(LADDER_TOML, "utf-8")
    artifact = load(trained / "artifact")
    assert artifact.stages == STAGES
    assert artifact.lambda_ is not None
    with Stepladder(build.build(config.read(trained / "ladder.toml"))) as ladder:
        easy = ladder.ask("What is 812+77?")
        hard = ladder.ask("Prove lemma 812 about 77 primes")
    assert easy.trace.steps[0].view.lam == artifact.lambda_
    assert easy.trace.versions.artifact == artifact.version
    assert (easy.stage, hard.stage) == ("small", "large")


def test_the_judgement_as_json_and_html(trained, capsys):
    out, page = trained / "out.json", trained / "out.html"
    assert evaluate(trained, "--json", str(out), "--html", str(page)) == 0
    printed = capsys.readouterr().out
    assert "100 queries of split 'validation'" in printed
    found = json.loads(out.read_text("utf-8"))
    before = found["predictor"]["before"]
    assert {"r2", "auc", "brier", "logloss", "ece", "ece_floor", "n"} <= set(before["pooled"])
    assert [each["stage"] for each in before["per_stage"]] == list(STAGES)
    assert before["pooled"]["n"] == 300
    assert before["pooled"]["r2"] > before["pooled"]["r2_within_stage"] > before["pooled"]["r2_within_class"]
    for entry in found["policies"] + found["baselines"]:
        assert set(entry) == {"name", "lambda", "quality", "quality_ci", "cost", "cost_ci", "shares"}
        assert sum(entry["shares"].values()) == pytest.approx(1.0)
        assert entry["quality_ci"][0] <= entry["quality"] <= entry["quality_ci"][1]
    assert all(FIGURES | {f"{name}_ci" for name in FIGURES} <= set(each) for each in found["summary"].values())
    names = {entry["name"] for entry in found["baselines"]}
    assert names >= {"single:small", "fixed:small+large", "random-mix", "zero-router", "class-router", "oracle"}
    assert found["summary"]["greedy"]["gap_closed"] > 0
    assert len(found["lambda_grid"]) == 9
    assert load(trained / "artifact").lambda_ in {entry["lambda"] for entry in found["policies"]}
    html = page.read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert "<svg" in html
    assert "src=" not in html
    assert len(html) < 800_000


def test_answers_that_tell_are_read_and_the_cascade_is_judged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(boost, "TREES", 20)
    table = [replace(row, pred="42" if row.quality else "?") for row in make_table(240, seed=2)]
    write(table, tmp_path / "table.parquet")
    words = ["train", "--outcomes", str(tmp_path / "table.parquet"), *PRICED, "--predictor", "gbdt"]
    assert main([*words, "--out", str(tmp_path / "artifact")]) == 0
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert evaluate(tmp_path, "--json", str(out), "--html", str(page)) == 0
    found = json.loads(out.read_text("utf-8"))
    before, after = (found["predictor"][when]["pooled"] for when in ("before", "after"))
    assert set(before) == set(after)
    assert after["r2"] > before["r2"] + 0.1
    assert [each["stage"] for each in found["predictor"]["after"]["per_stage"]] == list(STAGES)
    lines = {name: [e for e in found["policies"] if e["name"] == name] for name in ("greedy", "cascade")}
    assert all({e["lambda"] for e in line} >= set(found["lambda_grid"]) for line in lines.values())
    greedy, cascade = (found["summary"][name] for name in ("greedy", "cascade"))
    assert cascade["gap_closed"] > greedy["gap_closed"]
    assert not any("no estimates after an answer" in note for note in found["notes"])
    assert "after its own answer" in page.read_text("utf-8")
    assert "after its own answer" in capsys.readouterr().out


def test_a_predictor_that_reads_no_answers_says_so(trained):
    assert evaluate(trained, "--json", str(trained / "plain.json")) == 0
    found = json.loads((trained / "plain.json").read_text("utf-8"))
    assert set(found["predictor"]) == {"before"}
    assert "cascade" not in found["summary"]
    assert any("no estimates after an answer" in note for note in found["notes"])


def test_the_same_twice(trained):
    texts = []
    for name in ("one.json", "two.json"):
        assert evaluate(trained, "--json", str(trained / name)) == 0
        texts.append((trained / name).read_text("utf-8"))
    assert texts[0] == texts[1]


def test_overlap_is_refused(trained, capsys):
    assert evaluate(trained, "--split", "train") == 2
    told = capsys.readouterr().err
    assert "trained on 300 of these 300 queries" in told
    assert "--allow-overlap" in told
    out = trained / "marked.json"
    assert evaluate(trained, "--split", "train", "--allow-overlap", "--json", str(out)) == 0
    assert "OVERLAP: 300 of these queries" in capsys.readouterr().out
    assert json.loads(out.read_text("utf-8"))["overlap"] == {
        "queries": 300,
        "share": 1.0,
        "judged_nevertheless": True,
    }


def test_a_little_overlap_is_left_out(trained, tmp_path, capsys):
    rows = read(trained / "table.parquet")
    few = {row.query_id for row in rows if row.split == "train"}
    few = set(sorted(few)[:5])
    write([row for row in rows if row.split == "validation" or row.query_id in few], tmp_path / "table.parquet")
    words = ["--outcomes", str(tmp_path / "table.parquet"), "--split", "all", "--json", str(tmp_path / "o.json")]
    assert evaluate(trained, *words) == 0
    found = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert (found["n"], found["overlap"]["queries"]) == (100, 5)


def test_another_table_under_other_names(trained, tmp_path, capsys):
    write(make_table(60, seed=9, models=("s", "m", "l")), tmp_path / "t.jsonl")
    other = [
        make_row(f"x{n}", name, float(n % 2), dataset="new", split="validation") for n in range(9) for name in "sml"
    ]
    write([*read(tmp_path / "t.jsonl"), *other], tmp_path / "t.jsonl")
    words = ["--outcomes", str(tmp_path / "t.jsonl"), "--stages", "s,m,l", "--json", str(tmp_path / "o.json")]
    assert evaluate(trained, *words) == 0
    assert "datasets not seen in training: new" in capsys.readouterr().out
    found = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert found["datasets"]["new"] == {"queries": 9, "seen_in_training": False}
    assert (found["stages"], found["models"]) == (list(STAGES), ["s", "m", "l"])
    assert "class-router" not in found["summary"]


def test_with_prices_of_tokens(trained, tmp_path, capsys):
    prices = tmp_path / "prices.toml"
    prices.write_text(
        "".join(f"[{name}]\nprice_in = 1\nprice_out = {2 + i}\n" for i, name in enumerate(STAGES)), "utf-8"
    )
    table = str(trained / "table.parquet")
    words = ["--stages", "small,medium,large", "--prices", str(prices), "--predictor", "matrix"]
    assert main(["train", "--outcomes", table, *words, "--names", "a,b,c", "--out", str(tmp_path / "art")]) == 0
    artifact = load(tmp_path / "art")
    assert (artifact.stages, artifact.cost_unit, artifact.kind) == (("a", "b", "c"), "usd", "matrix")
    judged = ["--stages", "small,medium,large", "--prices", str(prices), "--resamples", "20"]
    assert main(["evaluate", "--outcomes", table, "--artifact", str(tmp_path / "art"), *judged]) == 0
    assert "costs in usd" in capsys.readouterr().out


def test_no_lambda_is_said_plainly(tmp_path, capsys):
    rows = [
        make_row(f"{n}-{k}", name, quality, prompt=f"{n} {k}", split="train")
        for n in range(20)
        for k, (low, high) in enumerate(((0.0, 1.0), (1.0, 0.0), (0.5, 0.5)))
        for name, quality in (("a", low), ("b", high))
    ]
    write(rows, tmp_path / "t.jsonl")
    words = ["train", "--outcomes", str(tmp_path / "t.jsonl"), "--stages", "a,b", "--costs", "1,2"]
    assert main([*words, "--predictor", "matrix", "--quality-loss", "0", "--out", str(tmp_path / "art")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    lam = load(tmp_path / "art").lambda_
    assert ("no λ keeps the loss within" in printed) == (lam is None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--stages", "small,medum,large"], "no outcomes of 'medum'; did you mean 'medium'"),
        (["--stages", "small,large"], "--stages names 2; the artifact is of 3 stages"),
        (["--stages", "small,,large"], "--stages: 'small,,large' should be names"),
        (["--costs", "1,2"], "2 costs for 3 stages"),
        (["--costs", "1,x,2"], "--costs: 'x' is not a finite number"),
        (["--split", "test"], "no rows of split 'test'"),
        (["--seed", "-1"], "--seed: -1 should not be negative"),
        (["--resamples", "0"], "--resamples: 0 should be at least 1"),
        (["--json", "/none/such/folder/x.json"], "cannot be written"),
    ],
)
def test_what_is_refused(trained, capsys, words, told):
    assert evaluate(trained, *words) == 2
    assert told in capsys.readouterr().err


def test_a_bad_row_is_named(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text(
        '{"query_id": "1", "model": "a", "quality": 1}\n{"query_id": "2", "model": "a", "quality": 7}\n', "utf-8"
    )
    words = ["train", "--outcomes", str(tmp_path / "t.jsonl"), "--stages", "a", "--costs", "1", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "row 2: quality does not lie between 0 and 1: 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", LADDERS)
def test_real_outcomes(name, tmp_path):
    table, stages, costs = LADDERS[name]
    if not (SHARED / table).is_file():
        pytest.skip(f"{SHARED / table} is not there: outcomes of real models are not part of the repository")
    rows = [row for row in read(SHARED / table) if row.model in stages.split(",")]
    ids = sorted({row.query_id for row in rows})[::12]
    write([row for row in rows if row.query_id in set(ids)], tmp_path / "t.parquet")
    common = ["--outcomes", str(tmp_path / "t.parquet"), "--stages", stages, "--costs", costs]
    assert main(["train", *common, "--predictor", "mlp", "--out", str(tmp_path / "art")]) == 0
    judged = ["--artifact", str(tmp_path / "art"), "--json", str(tmp_path / "o.json"), "--resamples", "50"]
    assert main(["evaluate", *common, *judged]) == 0
    found = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert found["n"] > 50
    assert found["predictor"]["before"]["pooled"]["auc"] > 0.5
    assert found["summary"]["oracle"]["gap_closed"] == pytest.approx(1.0)
