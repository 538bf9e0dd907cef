"""Dials by name in ladder.toml, and the stage that savings are told against."""

from __future__ import annotations

from typing import Any

import pytest

from stepladder import config
from stepladder.cli.serve import gateway_settings
from stepladder.config import LAMBDA_PRESETS, named_dials
from stepladder.errors import ConfigError, RequestError
from stepladder.gateway.wire import Names, read_dials, read_model
from stepladder.held import MAX_HOLD_BACK

STAGES = [{"name": "small", "model": "a", "cost": 1.0}, {"name": "large", "model": "b", "cost": 3.0}]


def parsed(**more: Any) -> config.Settings:
    return config.parse({"stages": STAGES, **more})


def told(**more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(**more)
    return [str(problem) for problem in caught.value.problems]


def test_lambda_has_three_names_where_costs_are_relative() -> None:
    assert named_dials(parsed()) == {name: {"lambda": lam} for name, lam in LAMBDA_PRESETS.items()}
    assert named_dials(parsed(ladder={"cost_unit": "usd"}, policy={"lambda": 1})) == {}


def test_a_ladder_has_presets_of_its_own_and_may_mean_others_by_ours() -> None:
    quick = {"lambda": 0.5, "mode": "cascade", "max_stage": "small", "stream_mode": "hold-back", "hold_back": 8}
    settings = parsed(presets={"quick": quick, "balanced": {"lambda": 4}})
    dials = named_dials(settings)
    assert dials["quick"] == quick
    assert dials["balanced"] == {"lambda": 4.0}
    assert dials["production"] == {"lambda": 1.5}


def test_every_preset_can_be_read_as_a_request_reads_it() -> None:
    settings = parsed(presets={"quick": {"lambda": 0.5, "max_cost": 2, "min_stage": "small"}})
    names = Names("stepladder", ("small", "large"), ("route", "cascade", "fixed"), named_dials(settings))
    for name in (*LAMBDA_PRESETS, "quick"):
        stage, preset = read_model(f"stepladder/{name}", names)
        assert stage is None
        assert read_dials(None, preset=preset, modes=names.modes).lam == preset["lambda"]


def test_as_much_may_be_held_back_by_name_as_in_a_request() -> None:
    most = {"hold_back": MAX_HOLD_BACK}
    assert named_dials(parsed(presets={"slow": most}))["slow"] == most
    assert read_dials(most).hold_back == MAX_HOLD_BACK
    more = {"hold_back": MAX_HOLD_BACK + 1}
    assert "presets.slow.hold_back" in told(presets={"slow": more})[0]
    with pytest.raises(RequestError, match=f"from 1 to {MAX_HOLD_BACK}"):
        read_dials(more)


def test_the_gateway_gets_them() -> None:
    made = gateway_settings(parsed(gateway={"baseline": "small"}, presets={"quick": {"lambda": 1}}))
    assert made.baseline == "small"
    assert "quick" in made.presets


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gateway": {"baseline": "larg"}}, "gateway.baseline: no stage 'larg'; did you mean 'large'?"),
        ({"presets": {"x": {"max_stage": "tiny"}}}, "presets.x.max_stage: no stage 'tiny'"),
        ({"presets": {"x": {"lamda": 1}}}, "presets.x.lamda: unknown key; did you mean 'lambda'?"),
        ({"presets": {"x": {"lambda": -1}}}, "presets.x.lambda"),
        ({"presets": {"x": {"hold_back": 0}}}, "presets.x.hold_back"),
        ({"presets": {"x": {"stream_mode": "soon"}}}, "presets.x.stream_mode"),
        ({"presets": {"a b": {}}}, "presets"),
        ({"presets": [1]}, "presets"),
    ],
)
def test_what_they_may_not_hold(more: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in told(**more)), told(**more)
