"""stepladder reproduce, whole: on the embedded ladder twice, on a ladder of two stages, and all that it refuses."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from few_candidates import few_candidates
from outcome_tables import make_row, make_table
from stepladder.cli import main
from stepladder.cli import reproduce as verb
from stepladder.costs.fixed import FixedCosts
from stepladder.evaluate import outcomes
from stepladder.predictors.artifact import load
from stepladder.reproduce.experiment import without_times

WRITTEN = {
    "answers.journal.jsonl",
    "artifact",
    "artifact-paper",
    "judged.parquet",
    "report.json",
    "report.md",
    "ten-prompts.jsonl",
}
PICTURES = {"frontier.png", "frontier.svg", "r2.png", "r2.svg"}


def reproduce(out: Path, *more: str) -> int:
    return main(["reproduce", "--out", str(out), "--resamples", "50", *more])


def read(out: Path):
    return json.loads((out / "report.json").read_text("utf-8"))


# ── nano ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("nano") / "train.parquet"
    assert main(["collect", "--task", "nano", "--n", "60", "--seed", "5", "--out", str(out)]) == 0
    return out


@pytest.mark.timeout(240)  # two whole runs, beside another process
def test_nano_twice(table, tmp_path, capsys):
    asked = ["--outcomes", str(table), "--judged", "30"]
    assert reproduce(tmp_path / "one", *asked) == 0
    told = capsys.readouterr()
    assert "requests/s" in told.err
    assert "30 judged prompts, 180 training rows" in told.out
    assert {path.name for path in (tmp_path / "one").iterdir()} == WRITTEN | PICTURES
    (tmp_path / "two").mkdir()
    for name in ("frontier.png", "train.parquet"):
        (tmp_path / "two" / name).write_bytes(b"an earlier run's")
    assert reproduce(tmp_path / "two", *asked, "--no-plots") == 0
    assert not {"frontier.png", "train.parquet"} & {path.name for path in (tmp_path / "two").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == WRITTEN
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert without_times(one) == without_times(two)
    single = one["readings"]["measured"]["alone"][0]
    assert single["latency"]["mean"] > 0
    assert one["rows"]["ten"] == 10
    assert one["versions"]["artifacts"]["adaptive:ours"] == load(tmp_path / "one" / "artifact").version
    ten = [json.loads(line) for line in (tmp_path / "one" / "ten-prompts.jsonl").read_text("utf-8").splitlines()]
    assert len(ten) == 30
    assert all("quality" not in line and line["latency_s"] > 0 for line in ten)


# ── a ladder of two stages ───────────────────────────────────────────────────

TWO = "".join(
    f'[[stages]]\nname = "{name}"\nengine = "replay"\nmodel = "{name}"\ntable = "said.jsonl"\ncost = {cost}\n'
    for name, cost in (("cheap", 1.0), ("dear", 3.0))
)


@pytest.fixture(autouse=True)
def _few(request):
    """All but the run on the embedded ladder try little when they train."""
    if request.node.name == "test_nano_twice":
        yield
        return
    with few_candidates():
        yield


@pytest.fixture
def own(tmp_path) -> Path:
    """``cheap`` knows the even numbers; two prompts share each group."""
    lines, rows = [], []
    for n in range(80):
        prompt, answer = f"What is {n}+{n}?" if n % 2 else f"Name the double of {n}", str(2 * n)
        lines.append(
            {"query_id": f"q{n}", "prompt": prompt, "reference": answer, "grader": "numeric", "group_id": f"g{n // 2}"}
        )
        for name in ("cheap", "dear"):
            said = answer if name == "dear" or not n % 2 else "-1"
            seconds = 0.1 if name == "cheap" else 0.3
            rows.append(make_row(f"q{n}", name, 0.0, prompt=prompt, response=said, latency_s=seconds))
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    outcomes.write(rows, tmp_path / "said.jsonl")
    (tmp_path / "ladder.toml").write_text(TWO, "utf-8")
    return tmp_path


def ladder_of(own: Path) -> list[str]:
    return ["-l", str(own / "ladder.toml"), "--prompts", str(own / "mine.jsonl"), "--no-plots"]


def test_ones_own_ladder_of_two_stages(own, capsys):
    assert reproduce(own / "out", *ladder_of(own)) == 0
    found = read(own / "out")
    assert list(found["readings"]) == ["measured"]
    assert found["classes_by"] == "rules"
    rows = found["rows"]
    assert rows["train_queries"] + rows["judged_queries"] == 80
    assert rows["ten"] == 0
    groups = [
        {row.group_id for row in outcomes.read(own / "out" / name)} for name in ("train.parquet", "judged.parquet")
    ]
    assert not groups[0] & groups[1]
    page = (own / "out" / "report.md").read_text("utf-8")
    assert "the classes of all are those that the rules" in page
    assert "this ladder has 2" in page
    alone = {each["name"]: each for each in found["readings"]["measured"]["alone"]}
    assert alone["single:cheap"]["faster"] == pytest.approx(2 / 3)
    assert alone["single:cheap"]["cheaper"] == pytest.approx(2 / 3)
    assert alone["fixed:cheap+dear"]["latency"]["mean"] == pytest.approx(0.4)
    journal = (own / "out" / "answers.journal.jsonl").read_bytes()
    assert reproduce(own / "out", *ladder_of(own)) == 0
    again = (own / "out" / "answers.journal.jsonl").read_bytes()
    answered = [line for line in journal.splitlines() if b'"fault":null' in line]
    assert [line for line in again.splitlines() if b'"fault":null' in line] == answered
    assert without_times(read(own / "out")) == without_times(found)


def test_ones_own_prompts_with_a_table_to_train_on(own):
    train = [
        make_row(
            f"t{n}",
            name,
            float(name == "dear" or not n % 2),
            prompt=f"train on {'odd' if n % 2 else 'even'} {n}",
            cost=cost,
        )
        for n in range(30)
        for name, cost in (("cheap", 1.0), ("dear", 3.0))
    ]
    outcomes.write(train, own / "t.jsonl")
    assert reproduce(own / "out", *ladder_of(own), "--outcomes", str(own / "t.jsonl")) == 0
    rows = read(own / "out")["rows"]
    assert (rows["train_queries"], rows["judged_queries"]) == (30, 80)
    assert not (own / "out" / "train.parquet").exists()


def test_the_cap_stops_before_the_first_call(own, capsys):
    assert reproduce(own / "out", *ladder_of(own), "--max-cost", "100") == 2
    assert "above --max-cost 100" in capsys.readouterr().err
    assert {path.name for path in (own / "out").iterdir()} == set()


def test_a_cap_that_is_spent_on_the_way_keeps_the_answers(own, monkeypatch, capsys):
    monkeypatch.setattr(FixedCosts, "billed", lambda self, stage, attempt: 100.0)
    assert reproduce(own / "out", *ladder_of(own), "--max-cost", "400") == 1
    told = capsys.readouterr().err
    assert "stopped: --max-cost 400 is spent" in told
    assert "the same command goes on from there" in told
    assert {path.name for path in (own / "out").iterdir()} == {"answers.journal.jsonl"}


def test_a_report_that_cannot_be_written(own, capsys):
    (own / "out" / "report.md").mkdir(parents=True)
    assert reproduce(own / "out", *ladder_of(own)) == 2
    assert "report.md: cannot be written" in capsys.readouterr().err
    assert not [path for path in (own / "out").iterdir() if path.name.startswith(".")]


def test_a_ladder_that_answers_nothing(own, capsys):
    outcomes.write([make_row("x", "cheap", 0.0, prompt="x", response="x")], own / "said.jsonl")
    assert reproduce(own / "out", *ladder_of(own)) == 2
    assert "no judged prompt was answered by any stage" in capsys.readouterr().err


def test_a_stage_that_never_answers_is_named(own, capsys):
    rows = [row for row in outcomes.read(own / "said.jsonl") if row.model == "cheap"]
    outcomes.write(rows, own / "said.jsonl")
    assert reproduce(own / "out", *ladder_of(own)) == 2
    told = capsys.readouterr().err
    assert "no judged prompt was answered by dear: is the ladder at work? (left out in all: 100 bad_request)" in told
    assert {path.name for path in (own / "out").iterdir()} == {"answers.journal.jsonl"}


def test_a_run_that_breaks_off_leaves_the_last_report_whole(own, monkeypatch):
    assert reproduce(own / "out", *ladder_of(own)) == 0
    journal = own / "out" / "answers.journal.jsonl"
    before = {path: path.read_bytes() for path in (own / "out").rglob("*") if path.is_file() and path != journal}
    monkeypatch.setattr(verb.report, "page", _interrupted)
    assert reproduce(own / "out", *ladder_of(own), "--seed", "2") == 130
    after = {path: path.read_bytes() for path in (own / "out").rglob("*") if path.is_file() and path != journal}
    assert after == before


def _interrupted(*args, **more):
    raise KeyboardInterrupt


# ── what is refused ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judged", "0"], "--judged: 0 does not lie between 1 and 20000"),
        (["--judged", "20001"], "--judged: 20001 does not lie between 1 and 20000"),
        (["--judged", "19999"], "--judged: no new"),
        (["--judged", "5", "--prompts", "mine.jsonl"], "--judged is of nano's prompts"),
        (["--seed", "-1"], "--seed: -1 should not be negative"),
        (["--resamples", "0"], "--resamples: 0 should be at least 1"),
        (["--quality-loss", "2"], "--quality-loss: '2' is a share"),
        (["--quality-loss", "much"], "--quality-loss: 'much' is not a finite number"),
        (["--max-cost", "-3"], "--max-cost: '-3' is not a finite number"),
        (
            ["--outcomes", "none.parquet"],
            "none.parquet is no file; the training outcomes are made by: stepladder collect -l nano",
        ),
        (["-l", "qwen2.5"], "the ladder 'qwen2.5' has no prompts of its own"),
        (["--prompts", "none.jsonl"], "none.jsonl: cannot be read"),
        (["-l", "nonesuch", "--prompts", "none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, monkeypatch, capsys, words, told):
    if "19999" in words:
        monkeypatch.setattr(verb, "generate", _too_many)
    assert (
        reproduce(tmp_path / "out", *words, *([] if {"--judged", "--prompts"} & {*words} else ["--judged", "5"])) == 2
    )
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _too_many(split, n, seed):
    raise ValueError("no new simple 'facts' prompt left")


def test_a_table_that_does_not_come_with_this_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "SHIPPED", tmp_path / "outcomes.parquet")
    assert reproduce(tmp_path / "out", "--judged", "5") == 2
    told = capsys.readouterr().err
    assert "does not come with this copy" in told
    assert "stepladder collect -l nano --task nano --split train --n 33334 --out outcomes.parquet" in told


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    assert reproduce(tmp_path / "out") == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    (tmp_path / "under").write_text("x")
    assert reproduce(tmp_path / "under" / "out", *_small(tmp_path)) == 2
    assert "cannot be made" in capsys.readouterr().err


def _small(folder: Path) -> list[str]:
    outcomes.write(
        [
            make_row(f"t{n}", name, 1.0, cost=1.0, split="train")
            for n in range(6)
            for name in ("small", "medium", "large")
        ],
        folder / "t.jsonl",
    )
    return ["--outcomes", str(folder / "t.jsonl"), "--judged", "5"]


@pytest.mark.parametrize(("module", "extra"), [("matplotlib", "report"), ("sklearn", "train")])
def test_a_missing_extra_is_told_before_any_work(tmp_path, monkeypatch, capsys, module, extra):
    real = importlib.util.find_spec
    monkeypatch.setattr(verb, "find_spec", lambda name: None if name == module else real(name))
    assert reproduce(tmp_path / "out", *_small(tmp_path)) == 2
    assert f"pip install 'stepladder[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_rows_of_another_split_or_ladder(tmp_path, capsys):
    outcomes.write(make_table(20), tmp_path / "other.jsonl")
    rows = [row for row in outcomes.read(tmp_path / "other.jsonl") if row.split != "train"]
    outcomes.write(rows, tmp_path / "other.jsonl")
    assert reproduce(tmp_path / "out", "--outcomes", str(tmp_path / "other.jsonl"), "--judged", "5") == 2
    assert "no rows of split 'train'" in capsys.readouterr().err
    outcomes.write(make_table(20, models=("a", "b", "c")), tmp_path / "abc.jsonl")
    assert reproduce(tmp_path / "out", "--outcomes", str(tmp_path / "abc.jsonl"), "--judged", "5") == 2
    assert "the table has no outcomes of 'small'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_on_what_is_judged_is_refused_before_any_call(tmp_path, capsys):
    tasks = verb.generate("judged", 5, 1)
    rows = [
        make_row(task.query_id, name, 1.0, cost=1.0, prompt=task.prompt, group_id=task.group_id, split="train")
        for task in tasks
        for name in ("small", "medium", "large")
    ]
    outcomes.write(rows, tmp_path / "t.jsonl")
    assert reproduce(tmp_path / "out", "--outcomes", str(tmp_path / "t.jsonl"), "--judged", "5") == 2
    assert "5 of 5 judged prompts share their group" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "2+2?", "grader": "exact"}, "has no reference: measured quality needs a 'reference'"),
        ({"prompt": "2+2?", "reference": "4"}, "has no grader: measured quality needs"),
        ({"prompt": "2+2?", "reference": "4", "grader": "exakt"}, "there is no grader 'exakt'"),
        ({"prompt": "2+2?", "reference": "4", "grader": "exact", "split": "train"}, "leave nothing to judge on"),
        ({"prompt": "2+2?", "reference": "4", "grader": "exact", "query_id": "stepladder-paper-1"}, "are taken"),
    ],
)
def test_prompts_that_cannot_be_judged(own, capsys, line, told):
    (own / "mine.jsonl").write_text(json.dumps(line), "utf-8")
    assert reproduce(own / "out", *ladder_of(own)) == 2
    assert told in capsys.readouterr().err
    assert not (own / "out").exists()


def test_too_few_groups_are_told_before_any_call(own, capsys):
    lines = (own / "mine.jsonl").read_text("utf-8").splitlines()[:12]
    (own / "mine.jsonl").write_text("\n".join(lines), "utf-8")
    assert reproduce(own / "out", *ladder_of(own)) == 2
    assert "groups of prompts to train on are too few for 5 folds" in capsys.readouterr().err
    assert not (own / "out").exists()


def test_a_ladder_of_one_stage(own, capsys):
    (own / "ladder.toml").write_text(TWO.partition('[[stages]]\nname = "dear"')[0], "utf-8")
    assert reproduce(own / "out", *ladder_of(own)) == 2
    assert "has one stage, cheap: there is nothing to choose from" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_answered(table, tmp_path):
    out = tmp_path / "out"
    words = ["reproduce", "--out", str(out), "--outcomes", str(table), "--judged", "400", "--no-plots"]
    child = subprocess.Popen([sys.executable, "-m", "stepladder", *words], stderr=subprocess.PIPE, text=True)
    journal = out / "answers.journal.jsonl"
    while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    told = child.communicate()[1]
    assert child.returncode == 130, told
    assert "the same command goes on from there" in told
    assert "Traceback" not in told
    assert {path.name for path in out.iterdir()} == {"answers.journal.jsonl"}
