"""stepladder evaluate's policies and pages, and stepladder calibrate from a table to the λ that serving takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from outcome_tables import STAGES, make_table
from stepladder import build, config
from stepladder.cli import main
from stepladder.evaluate.outcomes import write
from stepladder.predictors.artifact import load, save
from stepladder.sync import Stepladder

COSTS = ["--costs", "1,2,4"]
LADDER_TOML = '[predictor]\nartifact = "artifact"\n' + "".join(
    f'[[stages]]\nname = "{name}"\nengine = "scripted"\nmodel = "m"\ncost = {cost}\noptions = {{ reply = "hi" }}\n'
    for name, cost in zip(STAGES, (1.0, 2.0, 4.0), strict=True)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write(make_table(320, seed=6), folder / "table.jsonl")
    words = ["train", "--outcomes", str(folder / "table.jsonl"), "--stages", ",".join(STAGES), *COSTS]
    assert main([*words, "--predictor", "matrix", "--out", str(folder / "artifact")]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "own")
    return tmp_path / "own"


def verb(name: str, folder: Path, *more: str) -> int:
    words = ["--outcomes", str(folder / "table.jsonl"), "--artifact", str(folder / "artifact"), "--resamples", "20"]
    return main([name, *words, *COSTS, *more])


def set_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    save(replace(load(folder / "artifact"), metrics=metrics), folder / "artifact")


# ── evaluate ─────────────────────────────────────────────────────────────────


def test_training_stored_points_and_they_are_judged(folder):
    stored = dict(load(folder / "artifact").metrics)
    assert {f"{name}_{kind}:greedy" for name in ("quality", "cost") for kind in ("cost_save", "perf_gain")} <= set(
        stored
    )
    set_metrics(folder, stored | {"lambda_cost_save:greedy": 3.0, "cost_cost_save:greedy": 2.5})
    out, page = folder / "o.json", folder / "o.md"
    assert verb("evaluate", folder, "--json", str(out), "--markdown", str(page), "--policies", "greedy") == 0
    found = json.loads(out.read_text("utf-8"))
    point = found["summary"]["greedy"]["operating"]["cost_save"]
    assert (point["lambda"], point["out_of_fold"]["cost"]) == (3.0, 2.5)
    assert point["cost_save"] == pytest.approx(1 - point["cost"] / 4)
    assert found["operating"]["cost_save"]["policy"] == "greedy"
    assert {"task-mean", "neighbours", "prompt-length"} <= set(found["summary"])
    assert "## Operating points" in page.read_text("utf-8")


def test_policies_by_name(trained, capsys):
    assert verb("evaluate", trained, "--policies", "greedy,pandora") == 0
    assert "no estimates after an answer" in capsys.readouterr().out
    assert verb("evaluate", trained, "--policies", "greedy,pandra") == 2
    assert "no policy is called 'pandra'; did you mean 'pandora'" in capsys.readouterr().err
    assert verb("evaluate", trained, "--policies", "budget") == 2
    assert "policy 'budget' needs 'lambdas'" in capsys.readouterr().err


def test_a_table_without_training_rows_says_what_is_missing(trained, tmp_path, capsys):
    write([row for row in make_table(320, seed=6) if row.split == "validation"], tmp_path / "table.jsonl")
    words = ["--outcomes", str(tmp_path / "table.jsonl"), "--artifact", str(trained / "artifact"), *COSTS]
    assert main(["evaluate", *words, "--resamples", "5", "--json", str(tmp_path / "o.json")]) == 0
    told = capsys.readouterr().out
    assert "no training rows: the table has no rows of split 'train'" in told
    assert "no task means, no neighbours, no clusters" in told
    assert "task-mean" not in json.loads((tmp_path / "o.json").read_text("utf-8"))["summary"]


def test_rows_that_the_artifact_did_not_learn_from_are_told(trained, tmp_path, capsys):
    write(make_table(60, seed=8), tmp_path / "table.jsonl")
    words = ["--outcomes", str(tmp_path / "table.jsonl"), "--artifact", str(trained / "artifact"), *COSTS]
    assert main(["evaluate", *words, "--resamples", "5"]) == 0
    assert "baselines learned from 45 rows of split 'train' that the artifact was not trained on" in (
        capsys.readouterr().out
    )


def test_an_artifact_without_points_says_so(folder, capsys):
    stored = load(folder / "artifact").metrics
    set_metrics(folder, {name: value for name, value in stored.items() if "greedy" not in name})
    assert verb("evaluate", folder, "--policies", "greedy") == 0
    assert "no operating points chosen on training rows" in capsys.readouterr().out


# ── calibrate ────────────────────────────────────────────────────────────────


def calibrated(folder: Path) -> dict[str, float]:
    metrics = load(folder / "artifact").metrics
    return {name.removeprefix("calibrated.greedy."): v for name, v in metrics.items() if name.startswith("calibrated.")}


def test_a_budget_becomes_the_lambda_that_serving_takes(folder, capsys):
    before = load(folder / "artifact")
    assert verb("calibrate", folder, "--target-cost", "2.2") == 0
    printed = capsys.readouterr().out
    after, told = load(folder / "artifact"), calibrated(folder)
    assert after.version == before.version
    assert after.lambda_ == told["mix_lower"] != before.lambda_
    assert told["cost"] <= 2.2
    assert (told["target_cost"], told["n"]) == (2.2, 80)
    assert told["quality_low"] <= told["quality"] <= told["quality_high"]
    assert f"before: λ = {before.lambda_:.4g}" in printed
    assert f"after:  λ = {after.lambda_:.4g}" in printed
    (folder / "ladder.toml").write_text(LADDER_TOML, "utf-8")
    with Stepladder(build.build(config.read(folder / "ladder.toml"))) as ladder:
        assert ladder.ask("What is 1+1?").trace.steps[0].view.lam == after.lambda_


def test_the_printed_policy_can_be_built(folder, capsys):
    assert verb("calibrate", folder, "--target-cost", "2.2") == 0
    printed = capsys.readouterr().out
    policy = printed[printed.index("[policy]") : printed.index("written:")]
    (folder / "ladder.toml").write_text(LADDER_TOML + policy, "utf-8")
    with Stepladder(build.build(config.read(folder / "ladder.toml"))) as ladder:
        assert ladder.ask("What is 1+1?").trace.policy == "budget(greedy)"


def test_what_was_promised_replaces_what_was(folder):
    assert verb("calibrate", folder, "--target-quality", "0.7") == 0
    assert calibrated(folder)["quality"] >= 0.7
    assert verb("calibrate", folder, "--floor", "0.5,0.2") == 0
    assert {"epsilon", "delta"} <= set(calibrated(folder))
    assert "target_quality" not in calibrated(folder)
    assert verb("calibrate", folder, "--lambda", "3") == 0
    assert (load(folder / "artifact").lambda_, calibrated(folder)["lambda"]) == (3.0, 3.0)
    assert verb("evaluate", folder, "--json", str(folder / "o.json"), "--policies", "greedy") == 0
    found = json.loads((folder / "o.json").read_text("utf-8"))
    at = next(line for line in found["policies"] if line["lambda"] == 3.0)
    assert (at["quality"], at["cost"]) == pytest.approx((calibrated(folder)["quality"], calibrated(folder)["cost"]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target-cost", "2", "--split", "train"], "trained on 240 of these 240 queries"),
        (["--target-cost", "0.5"], "no mix has the mean cost 0.5"),
        (["--target-cost", "x"], "--target-cost: 'x' is not a finite number"),
        (["--target-quality", "1.2"], "--target-quality: '1.2' is a share"),
        (["--target-quality", "1"], "no λ reaches the mean quality 1"),
        (["--floor", "0.1"], "--floor: '0.1' should be two shares"),
        (["--floor", "0,0"], "no λ keeps the risk at 0"),
        (["--lambda", "-1"], "--lambda: '-1' is not a finite number"),
        (["--lambda", "1", "--policy", "gredy"], "no policy is called 'gredy'"),
        (["--lambda", "1", "--resamples", "0"], "--resamples: 0 should be at least 1"),
        (["--lambda", "1", "--stages", "small,large"], "--stages names 2; the artifact is of 3"),
    ],
)
def test_what_is_refused_leaves_the_artifact_alone(folder, capsys, words, told):
    before = (folder / "artifact" / "artifact.json").read_bytes()
    assert verb("calibrate", folder, *words) == 2
    assert told in capsys.readouterr().err
    assert (folder / "artifact" / "artifact.json").read_bytes() == before


def test_costs_of_another_unit_are_refused(folder, capsys):
    rows = [row for row in make_table(320, seed=6) if row.split == "validation"]
    prices = folder / "prices.toml"
    prices.write_text("".join(f"[{name}]\nprice_in = 1\nprice_out = 2\n" for name in STAGES), "utf-8")
    write(rows, folder / "table.jsonl")
    words = ["--outcomes", str(folder / "table.jsonl"), "--artifact", str(folder / "artifact"), "--lambda", "1"]
    assert main(["calibrate", *words, "--prices", str(prices)]) == 2
    assert "the artifact counts costs in relative, these rows are in usd" in capsys.readouterr().err


def test_one_aim_at_a_time(folder, capsys):
    with pytest.raises(SystemExit) as left:
        verb("calibrate", folder, "--lambda", "1", "--target-cost", "2")
    assert left.value.code == 2
    with pytest.raises(SystemExit):
        verb("calibrate", folder)
    assert "one of the arguments" in capsys.readouterr().err
