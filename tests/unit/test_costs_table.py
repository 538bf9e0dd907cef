"""The table of what passes of well-known shapes take on an H200, which comes with Stepladder."""

from __future__ import annotations

import tomllib
from importlib.resources import files

TABLE = tomllib.loads(files("stepladder.costs").joinpath("h200.toml").read_text("utf-8"))


def test_larger_models_cost_more_in_every_way():
    shapes = list(TABLE["shapes"].values())
    for key in ("parameters", "relative", "token_s", "eight_tokens_s", "seventeen_tokens_s", "prompt_of_512_s"):
        assert [each[key] for each in shapes] == sorted({each[key] for each in shapes})
    assert list(TABLE["shapes"]) == ["1B", "7B", "13B", "34B", "70B"]


def test_more_tokens_and_more_answers_cost_more_and_less_than_each_by_itself():
    for each in TABLE["shapes"].values():
        assert each["token_s"] <= each["eight_tokens_s"] <= each["seventeen_tokens_s"] < 2 * each["token_s"]
        assert each["answers_s"] == sorted(each["answers_s"])
        assert each["answers_s"][0] == each["token_s"]
        assert each["answers_s"][-1] < 8 * each["token_s"]
        assert 0 < each["share_of_copy"] < 1


def test_relative_costs_are_those_of_tokens():
    cheapest = TABLE["shapes"]["1B"]["token_s"]
    for each in TABLE["shapes"].values():
        assert abs(each["token_s"] / cheapest - each["relative"]) < 0.01
    assert TABLE["unit"] == "gpu_s"
