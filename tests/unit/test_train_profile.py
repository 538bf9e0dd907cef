"""The profile of a stack: in ladder.toml, in evaluate, in train; and that nothing else has one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from outcome_tables import make_aligned
from stack_tables import SMALL, both_profiles, small
from stepladder import build, config
from stepladder.cli import main
from stepladder.errors import ArtifactError, ConfigError
from stepladder.evaluate import outcomes
from stepladder.evaluate.reference import reference_of
from stepladder.predictors.artifact import load, save
from stepladder.sync import Stepladder
from stepladder.train.choose import by_means, calibrate, remember
from stepladder.train.plain import fit_mean

LADDER = '[predictor]\nartifact = "artifact"\nPROFILE\n' + "".join(
    f'[[stages]]\nname = "{name}"\nengine = "scripted"\nmodel = "m"\ncost = {cost}\noptions = {{ reply = "{name}" }}\n'
    for name, cost in zip(SMALL, (1.0, 3.0), strict=True)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("profiles")
    save(replace(both_profiles(), lambda_=5.0), made / "artifact")
    new = small(60, seed=8)
    rows = [replace(row, split="validation") for line in new.rows for row in line]
    outcomes.write(rows, made / "table.jsonl")
    return made


def ladder(folder: Path, profile: str | None) -> Path:
    path = folder / f"{profile}.toml"
    path.write_text(LADDER.replace("PROFILE", f'profile = "{profile}"' if profile else ""), "utf-8")
    return path


def test_ladder_toml_names_the_profile_that_serves(folder):
    versions = {}
    for profile in (None, "full", "fast"):
        with Stepladder(build.build(config.read(ladder(folder, profile)))) as made:
            versions[profile] = made.ask("Add the prime 5 to 7").trace.versions.artifact
    artifact = both_profiles()
    assert versions[None] == versions["full"] == artifact.version
    assert versions["fast"] == replace(artifact, params={**artifact.params, "profile": "fast"}).version


def test_another_profile_is_refused(folder):
    with pytest.raises(ConfigError, match="full.*fast"):
        config.read(ladder(folder, "quick"))


def test_only_a_stack_has_profiles(tmp_path):
    path = ladder(tmp_path, "fast")
    save(fit_mean(small()), tmp_path / "artifact")
    told = "predictor.profile is 'fast', but only a 'stack' has profiles, and the artifact holds a 'mean' predictor"
    with pytest.raises(ArtifactError, match=told):
        build.build(config.read(path))
    assert any(told in problem.message for problem in build.problems(config.read(path)))
    path.write_text(path.read_text("utf-8").replace('artifact = "artifact"\n', ""), "utf-8")
    with pytest.raises(ArtifactError, match="without an artifact there are no profiles"):
        build.build(config.read(path))


def test_an_artifact_that_lacks_the_profile(folder, tmp_path):
    path, artifact = ladder(tmp_path, "fast"), both_profiles()
    params = {name: value for name, value in artifact.params.items() if name != "fast"}
    save(replace(artifact, params=params), tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="this artifact holds no profile 'fast'"):
        build.build(config.read(path))


# ── evaluate and train ───────────────────────────────────────────────────────


def judged(folder: Path, *more: str) -> int:
    words = ["evaluate", "--outcomes", str(folder / "table.jsonl"), "--artifact", str(folder / "artifact")]
    return main([*words, "--costs", "1,3", "--resamples", "20", "--policies", "greedy,cascade", *more])


def test_evaluate_tells_of_both(folder, capsys):
    out, page = folder / "full.json", folder / "full.html"
    assert judged(folder, "--json", str(out), "--html", str(page)) == 0
    found = json.loads(out.read_text("utf-8"))
    full, fast = found["predictor"], found["predictor_fast"]
    assert (full["profile"], fast["profile"]) == ("full", "fast")
    assert set(full) == set(fast) == {"profile", "before", "after"}
    assert set(full["before"]["pooled"]) == set(fast["before"]["pooled"])
    assert full["before"]["pooled"]["logloss"] != fast["before"]["pooled"]["logloss"]
    assert "before an answer, profile fast" in capsys.readouterr().out
    assert "profile fast" in page.read_text("utf-8")

    assert judged(folder, "--json", str(folder / "fast.json"), "--profile", "fast") == 0
    alone = json.loads((folder / "fast.json").read_text("utf-8"))
    assert alone["predictor"] == fast
    assert "predictor_fast" not in alone


def test_what_has_no_profiles_says_nothing_of_them(folder, tmp_path, capsys):
    data = small()
    trial, reference = by_means(data, data.groups % 5), reference_of(data)
    found = calibrate(trial.estimates, data, reference, 0.05)
    save(remember(fit_mean(data), data, reference, trial, found), tmp_path / "artifact")
    (tmp_path / "table.jsonl").write_bytes((folder / "table.jsonl").read_bytes())
    assert judged(tmp_path, "--json", str(tmp_path / "mean.json")) == 0
    told = json.loads((tmp_path / "mean.json").read_text("utf-8"))
    assert set(told["predictor"]) == {"before"}
    assert "predictor_fast" not in told
    assert judged(tmp_path, "--profile", "fast") != 0
    assert "--profile is 'fast', but only a 'stack' has profiles" in capsys.readouterr().err


def test_train_knows_which_kinds_have_profiles(tmp_path, capsys):
    rows = [replace(row, split="train") for line in make_aligned(30).rows for row in line]
    outcomes.write(rows, tmp_path / "t.jsonl")
    words = ["train", "--outcomes", str(tmp_path / "t.jsonl"), "--stages", "small,medium,large", "--costs", "1,2,4"]
    words += ["--out", str(tmp_path / "a"), "--profile", "fast", "--predictor"]
    assert main([*words, "mean"]) == 2
    assert "--profile: only a stack has profiles, not 'mean'" in capsys.readouterr().err
    assert main([*words, "auto"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "stack left out: a stack learns from 60 queries" in printed
    assert "--profile fast: what was chosen is no stack and has no profiles" in printed
    assert load(tmp_path / "a").kind != "stack"
