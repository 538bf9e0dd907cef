"""Settings: what is read, what wins, and what each mistake is answered with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepladder import config
from stepladder.build import wrong_names
from stepladder.errors import ConfigError

GOOD = """\
[ladder]
name = "pair"

[[stages]]
name = "small"
model = "a"
cost = 1.0

[[stages]]
name = "large"
model = "b"
cost = 3.0

[policy]
lambda = 2.5
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "ladder.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def problems(path: Path, **more) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.read(path, **more)
    return [str(problem) for problem in caught.value.problems]


def test_reads_a_file(write):
    settings = config.read(write(GOOD))
    assert [stage.name for stage in settings.stages] == ["small", "large"]
    assert settings.policy.lam == 2.5
    assert settings.folder == write(GOOD).parent


def test_environment_wins_over_file_and_flag_over_environment(write):
    environ = {"STEPLADDER_POLICY_LAMBDA": "7", "STEPLADDER_GATEWAY_PORT": "9", "PATH": "/bin"}
    settings = config.read(write(GOOD), environ=environ, overrides=["gateway.port=10"])
    assert settings.policy.lam == 7
    assert settings.gateway.port == 10


def test_a_preset_of_lambda_on_the_command_line_replaces_the_files_lambda(write):
    settings = config.read(write(GOOD), overrides=["policy.preset=research"])
    assert settings.policy.lam is None
    assert settings.policy.preset == "research"


@pytest.mark.parametrize(
    ("bad", "good", "said"),
    [
        ("modle", "model", ["line 6: stages[0].modle: unknown key; did you mean 'model'?", "stages[0].model: missing"]),
        ('name = "large"', 'name = "small"', ["stages[1].name: 'small' names two stages"]),
    ],
)
def test_every_problem_is_told_with_key_and_line(write, bad, good, said):
    text = GOOD.replace("model", "modle", 1) if bad == "modle" else GOOD.replace(bad, good)
    told = "\n".join(problems(write(text)))
    for part in said:
        assert part in told


def test_unknown_section_names_the_nearest(write):
    assert "did you mean 'policy'?" in problems(write(GOOD.replace("[policy]", "[polcy]")))[0]


def test_lambda_that_is_no_number(write):
    (told,) = problems(write(GOOD.replace("2.5", '"high"')))
    assert told.startswith("line 15: policy.lambda:")
    assert '"high"' in told


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_lambda_out_of_range(write, value):
    assert "policy.lambda" in problems(write(GOOD.replace("2.5", value)))[0]


def test_lambda_and_preset_together(write):
    (told,) = problems(write(GOOD + 'preset = "balanced"\n'))
    assert "lambda or preset, not both" in told


def test_stage_with_the_gateways_own_name(write):
    assert "gateway's own model name" in problems(write(GOOD.replace('"small"', '"stepladder"')))[0]


def test_no_stage_at_all(write):
    assert "stages: missing" in problems(write("[ladder]\nname='x'\n"))[0]


def test_not_toml(write):
    assert "is no valid TOML" in problems(write("= ="))[0]


def test_not_utf8(tmp_path):
    path = tmp_path / "ladder.toml"
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in problems(path)[0]


def test_neither_file_nor_preset(tmp_path):
    assert "did you mean 'nano'?" in problems("nanno")[0]


def test_unknown_environment_variable_is_refused(write):
    (told,) = problems(write(GOOD), environ={"STEPLADDER_POLICY_LAMDA": "3"})
    assert "STEPLADDER_POLICY_LAMBDA" in told


@pytest.mark.parametrize("override", ["lambda=3", "policy.lambda", "nowhere.key=1"])
def test_an_override_that_is_none(write, override):
    assert "section.key=value" in problems(write(GOOD), overrides=[override])[0]


def test_a_stage_is_addressed_by_its_name(write):
    dotted = GOOD.replace('name = "large"', 'name = "large.v2"')
    overrides = ["stages.small.threads=2", "stages.large.v2.options.x=[1]", " stages.large.v2.cost = 9"]
    small, large = config.read(write(dotted), overrides=[*overrides, "policy.lambda=3"]).stages
    assert (small.threads, large.threads) == (2, None)
    assert (large.cost, large.options) == (9, {"x": [1]})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.smal.threads=2", "is not stages.NAME.key=value; did you mean 'small'?"),
        ("stages.small=2", "is not stages.NAME.key=value"),
        ("stages.small.=2", "is not stages.NAME.key=value"),
        ("stages.small.threads", "is not stages.NAME.key=value"),
        ("stages.small.model.x=2", "'model' is no table"),
        ("stages.small.treads=2", "unknown key; did you mean 'threads'?"),
    ],
)
def test_an_override_of_a_stage_that_is_none(write, override, said):
    assert said in problems(write(GOOD), overrides=[override])[0]


def test_the_version_follows_the_settings_and_not_their_place(write, tmp_path):
    first = config.read(write(GOOD))
    other = tmp_path / "elsewhere.toml"
    other.write_text(GOOD, "utf-8")
    assert config.read(other).version == first.version
    assert config.read(other, overrides=["policy.lambda=3"]).version != first.version


def test_presets_are_found_by_name():
    assert "nano" in config.presets()
    assert config.locate("nano").is_file()


def test_the_version_is_the_same_in_every_process(write):
    script = "import sys; from stepladder import config; print(config.read(sys.argv[1]).version)"
    path = write(GOOD.replace("cost = 1.0", 'cost = 1.0\ncapabilities = ["tools", "json", "logprobs", "stream"]'))
    seen = {
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(1, 5)
    }
    assert len(seen) == 1


@pytest.mark.parametrize("key", ["source", "text", "folder"])
def test_what_only_looks_like_a_setting_is_refused(write, key):
    assert f"{key}: unknown key" in problems(write(f'{key} = "x"\n' + GOOD))[0]


def test_the_name_in_code_of_lambda_is_no_key(write):
    assert "unknown key" in problems(write(GOOD.replace("lambda", "lam")))[0]


def test_stages_in_single_brackets(write):
    (told,) = problems(write(GOOD.replace("[[stages]]", "[stages]", 1).split("[[stages]]")[0]))
    assert "begin each with [[stages]], in double brackets" in told
    assert "double brackets" in problems(write(GOOD.replace("[[stages]]", "[stages]")))[0]


def test_one_wrong_stage_is_not_told_as_no_stage(write):
    (told,) = problems(write('[[stages]]\nname = "a"\nmodel = "m"\ncots = 1.0\n'))
    assert "did you mean 'cost'?" in told


def test_costs_that_fall_up_the_ladder(write):
    (told,) = problems(write(GOOD.replace("cost = 3.0", "cost = 0.5")))
    assert told.startswith("line 12: stages[1].cost: stages stand from the cheapest to the dearest")


def test_a_section_that_is_no_table_with_an_override(write):
    text = GOOD[: GOOD.index("[policy]")]
    told = problems(write("policy = 5\n" + text), overrides=["policy.lambda=5"])
    assert told[0].startswith("line 1: policy:")


def test_a_file_nested_beyond_reason(write):
    assert "nested too deeply" in problems(write("x = " + "[" * 5000 + "]" * 5000))[0]


def test_a_variable_that_holds_a_key_is_no_setting(write):
    text = GOOD.replace("cost = 1.0", 'cost = 1.0\napi_key_env = "STEPLADDER_KEY"')
    assert config.read(write(text), environ={"STEPLADDER_KEY": "secret"}).stages[0].api_key_env == "STEPLADDER_KEY"


def test_the_checks_of_the_parts_are_told_together_with_the_shapes(write):
    text = GOOD.replace("2.5", '"x"').replace("[policy]", '[policy]\nname = "gredy"')
    told = problems(write(text), check=wrong_names)
    assert any("policy.lambda" in line for line in told)
    assert any("did you mean 'greedy'?" in line for line in told)
