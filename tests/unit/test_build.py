"""Wiring: settings become the parts they name, and what does not fit is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import stepladder
from stepladder import config, plugins
from stepladder.build import build, make_engines, make_ladder, problems
from stepladder.errors import ArtifactError, ConfigError, PluginError, UsageError
from stepladder.predictors.artifact import Artifact, save
from stepladder.testing import make_request
from stepladder.train.fit import Row, fit_matrix
from stepladder.types import Stage

STAGES = [{"name": name, "engine": "scripted", "model": name, "cost": cost} for name, cost in (("a", 1.0), ("b", 2.0))]


def settings(folder: Path = Path(), **tables):
    return config.parse({"stages": STAGES, **tables}, folder=folder)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    rows = [Row("why", stage, quality) for stage, quality in ((0, 0.2), (1, 0.9)) for _ in range(50)]
    made = fit_matrix(rows, ("a", "b"))
    save(
        Artifact(**{name: getattr(made, name) for name in ("kind", "stages", "params", "arrays")}, lambda_=3.5),
        tmp_path / "art",
    )
    return tmp_path


def test_day_one_is_an_uncalibrated_prior_at_lambda_5():
    router = build(settings())
    trace = router.decide(make_request())
    assert router.parts.lam == 5.0
    assert not trace.steps[0].view.estimates.calibrated


def test_a_preset_gives_lambda():
    assert build(settings(policy={"preset": "research"})).parts.lam == 15.0


def test_an_artifact_brings_predictor_features_and_lambda(artifact):
    router = build(settings(artifact, predictor={"artifact": "art"}))
    estimates = router.decide(make_request("why")).steps[0].view.estimates
    assert router.parts.lam == 3.5
    assert estimates.calibrated
    assert estimates["a"].mean < estimates["b"].mean
    assert router.parts.versions.artifact != build(settings()).parts.versions.artifact


def test_the_files_lambda_wins_over_the_artifacts(artifact):
    assert build(settings(artifact, predictor={"artifact": "art"}, policy={"lambda": 9.0})).parts.lam == 9.0


def test_an_artifact_of_another_ladder_is_refused(artifact):
    stages = [{**STAGES[0], "name": "x"}, STAGES[1]]
    with pytest.raises(ArtifactError, match="x"):
        build(config.parse({"stages": stages, "predictor": {"artifact": "art"}}, folder=artifact))


def test_an_artifact_of_another_kind_is_refused(artifact):
    with pytest.raises(ArtifactError, match="predictor.name is 'mlp', but the artifact holds a 'matrix' predictor"):
        build(settings(artifact, predictor={"artifact": "art", "name": "mlp"}))


def test_an_artifact_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError):
        build(settings(tmp_path, predictor={"artifact": "nowhere"}))


@pytest.mark.parametrize("unit", ["usd", "gpu_s"])
def test_lambda_has_no_default_in_dollars_or_seconds(unit):
    with pytest.raises(ConfigError, match="policy.lambda: missing; with cost_unit"):
        build(settings(ladder={"cost_unit": unit}))


def test_stages_of_one_engine_share_it():
    ladder = build(settings()).parts
    assert ladder.engines["a"] is ladder.engines["b"]


def test_a_policy_by_name_takes_its_mode_and_leaves_the_others():
    router = build(settings(policy={"name": "fixed", "mode": "route", "options": {"first": "a", "then": "b"}}))
    assert {mode: policy.name for mode, policy in router.parts.policies.items()} == {
        "route": "fixed",
        "cascade": "greedy",
        "fixed": "single",
    }


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"policy": {"name": "gredy"}}, "did you mean 'greedy'?"),
        ({"predictor": {"name": "mpl"}}, "did you mean 'mlp'?"),
        ({"predictor": {"features": "papers"}}, "did you mean 'paper'?"),
        ({"costs": {"model": "measurd"}}, "did you mean 'measured'?"),
        ({"policy": {"options": {"cascad": True}}}, "cascad"),
        ({"policy": {"name": "single", "options": {"stage": "c"}}}, "policy.options.stage: no stage 'c'"),
        ({"policy": {"name": "random-split", "options": {"stages": ["a", "z"]}}}, "no stage 'z'"),
        ({"costs": {"model": "price-list"}}, "ladder.cost_unit is 'relative'; set it to 'usd'"),
        ({"costs": {"options": {"vectr": "paper"}}}, "vectr"),
        ({"predictor": {"name": "mlp"}}, "the MLP should have at least two layers"),
    ],
)
def test_what_cannot_be_built_is_told(tables, told):
    wrong = settings(**tables)
    with pytest.raises((PluginError, UsageError, ArtifactError), match=told):
        build(wrong)
    assert any(told in str(problem) for problem in problems(wrong))


def test_models_of_transformers_are_beside_the_ladder_or_on_the_hub(tmp_path):
    (tmp_path / "mine").mkdir()
    names = ("mine", "owner/name", "hub:owner/name/file.gguf", str(tmp_path / "mine"))
    stages = [
        {"name": str(number), "engine": "torch", "model": name, "options": {"drafter": name}}
        for number, name in enumerate(names)
    ]
    ladder = make_ladder(config.parse({"stages": stages}, folder=tmp_path), fetch=False)
    found = [stage.model for stage in ladder.stages]
    assert found == [str(tmp_path / "mine"), *names[1:]]
    assert [stage.options["drafter"] for stage in ladder.stages] == found


def test_a_stage_may_name_another_that_its_engine_serves(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")

    def told(**options) -> list[str]:
        stages = [{"name": name, "engine": "llama", "model": "m.gguf", "cost": 1.0} for name in ("small", "large")]
        stages[1] |= {"speculation": {"draft": "small"}, **options}
        return [str(each) for each in problems(config.parse({"stages": stages}, folder=tmp_path))]

    assert told() == []
    (unknown,) = told(speculation={"draft": "smal"})
    assert "stages[1].speculation: draft must be" in unknown
    assert "did you mean 'small'" in unknown
    (other,) = told(n_parallel=1000)
    assert "n_parallel" in other
    stages = [
        {"name": n, "engine": "llama", "model": "m.gguf", "cost": 1.0, "n_parallel": 1000} for n in ("small", "large")
    ]
    stages[1]["speculation"] = {"draft": "small"}
    both = [str(each) for each in problems(config.parse({"stages": stages}, folder=tmp_path))]
    assert [("n_parallel" in each, f"stages[{n}]" in each) for n, each in enumerate(both)] == [(True, True)] * 2
    with pytest.raises(ConfigError, match=r"stages\[1\].speculation"):
        told(speculation=3)
    assert told(speculation="auto") == []


def test_options_that_a_plug_in_does_not_take(monkeypatch):
    class Picky:
        name = "picky"

        def __init__(self, floor: float = 0.5) -> None:
            self.floor = floor

    monkeypatch.setattr("stepladder.plugins.load", lambda kind, name: Picky)
    with pytest.raises(UsageError, match="policy 'picky' cannot be made with flor: got an unexpected keyword"):
        plugins.make("policies", "picky", flor=1.0)
    assert plugins.make("policies", "picky", floor=0.7).floor == 0.7


def test_an_engine_that_nobody_knows():
    with pytest.raises(PluginError, match="did you mean 'openai'"):
        make_engines((Stage("x", "opnai", "m"),))


def test_load_answers_from_plain_code(tmp_path):
    path = tmp_path / "ladder.toml"
    path.write_text(
        '[[stages]]\nname = "a"\nengine = "scripted"\nmodel = "m"\ncost = 1.0\noptions = { reply = "yes" }\n', "utf-8"
    )
    with stepladder.load(path, environ={}) as ladder:
        ladder.start()
        answer = ladder.ask("really?", temperature=0)
        assert (answer.text, answer.stage, answer.cost) == ("yes", "a", 1.0)
        assert answer.trace.request.params == {"temperature": 0}
        assert ladder.route("really?").steps[0].decision.action.stage == "a"
    ladder.close()


def test_load_from_several_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "ladder.toml"
    path.write_text('[[stages]]\nname = "a"\nengine = "scripted"\nmodel = "m"\ncost = 1.0\n', "utf-8")
    with stepladder.load(path, environ={}) as ladder, ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: ladder.ask(f"question {n}").text, range(40)))
    assert [text.split()[-1] for text in texts] == [str(n) for n in range(40)]


def test_an_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        stepladder.lod  # noqa: B018 - reading it is the test
