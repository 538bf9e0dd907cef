"""Options of a ``torch`` stage: what is read, and what is refused by key."""

from __future__ import annotations

from typing import Any

import pytest

from stepladder.engines.torch import CAN, TorchEngine
from stepladder.engines.torch_settings import LONGEST_DRAFT, Settings, read_settings
from stepladder.errors import ConfigError
from stepladder.types import Stage


def stage(name: str, *, cost: float | None = None, **options: Any) -> Stage:
    return Stage(name, "torch", name, cost=cost, options=options)


def one(*, cost: float | None = None, **options: Any) -> Settings:
    """The uppermost of three stages, with these options."""
    return read_settings((stage("low"), stage("mid"), stage("top", cost=cost, **options)))[-1]


def test_what_is_not_said() -> None:
    found = one()
    assert (found.device, found.dtype, found.slots, found.chunk) == ("auto", "auto", 8, 512)
    assert (found.chain, found.length, found.rule, found.deferral, found.slack) == (None, None, "rejection", None, None)
    assert (found.sha256, found.drafter, found.threads, found.total_s) == (None, None, None, 600.0)


def test_what_is_said() -> None:
    found = one(
        cost=1.0,
        device="cpu",
        dtype="bfloat16",
        n_parallel=3,
        prefill_chunk=64,
        drafter="small",
        speculation=["ngram", "top-drafter", "low", "mid"],
        draft_length=6,
        verification="block",
        deferral="opt",
        total_timeout_s=5,
        threads=2,
    )
    assert found.chain == ("ngram", "top-drafter", "low", "mid")
    assert (found.length, found.rule, found.deferral, found.slack) == (6, "block", "opt", None)
    assert (found.slots, found.chunk, found.total_s, found.threads) == (3, 64, 5.0, 2)
    assert one(speculation="off").chain == ()
    assert one(speculation="auto", draft_length="auto").length is None
    assert one(speculation=("low",), deferral="chow", deferral_slack=0).slack == 0.0


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        ({"device": "gpu"}, "device", "did you mean 'cpu'"),
        ({"dtype": "float8"}, "dtype", "did you mean 'float"),
        ({"n_parallel": 0}, "n_parallel", "from 1 to 64, not 0"),
        ({"n_parallel": 65}, "n_parallel", "from 1 to 64"),
        ({"prefill_chunk": 1.5}, "prefill_chunk", "whole number"),
        ({"speculation": "on"}, "speculation", '"auto", "off" or a list of drafters'),
        ({"speculation": []}, "speculation", "not \\[\\]"),
        ({"speculation": [1]}, "speculation", "not \\[1\\]"),
        ({"speculation": True}, "speculation", "not True"),
        ({"speculation": ["lwo"]}, "speculation", "'lwo' cannot draft for 'top'; did you mean 'low'"),
        ({"speculation": ["top"]}, "speculation", "'top' cannot draft for 'top'"),
        ({"speculation": ["low", "low"]}, "speculation", "'low' stands in it twice"),
        ({"speculation": ["mid", "low"]}, "speculation", "from the cheapest to the dearest: low, mid"),
        ({"speculation": ["low", "ngram"]}, "speculation", "'ngram' asks no model .* can only stand first"),
        ({"speculation": ["top-drafter"]}, "speculation", "'top-drafter' cannot draft"),
        (
            {"drafter": "x", "speculation": ["low", "top-drafter"]},
            "speculation",
            "from the cheapest to the dearest: top-drafter, low, mid",
        ),
        ({"draft_length": 0}, "draft_length", f"from 1 to {LONGEST_DRAFT}, not 0"),
        ({"draft_length": "long"}, "draft_length", "not 'long'"),
        ({"drafter": ""}, "drafter", "not empty"),
        ({"verification": "typical"}, "verification", "valid: rejection, block"),
        ({"deferral": "always", "speculation": ["low"]}, "deferral", "valid: chow, diff, opt, token"),
        ({"deferral": "opt"}, "deferral", r"needs speculation = \[...\] with a model"),
        ({"deferral": "opt", "speculation": ["ngram"]}, "deferral", "with a model as the last drafter"),
        ({"deferral": "opt", "speculation": ["low"]}, "deferral", "set cost, or deferral_slack"),
        ({"deferral_slack": 0.1}, "deferral_slack", "no meaning without deferral"),
        ({"deferral": "opt", "speculation": ["low"], "deferral_slack": -1}, "deferral_slack", "from 0 up, not -1"),
        (
            {"deferral": "opt", "speculation": ["low"], "deferral_slack": float("nan")},
            "deferral_slack",
            "from 0 up, not nan",
        ),
        ({"total_timeout_s": 0}, "total_timeout_s", "positive number of seconds"),
        ({"threads": 0}, "threads", "whole number from 1"),
        ({"sha256": 5}, "sha256", "must be a string"),
        ({"speculatoin": "off"}, "speculatoin", "did you mean 'speculation'"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], key: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        one(**options)
    assert key in [problem.key for problem in raised.value.problems]
    assert raised.value.source == "stage 'top'"


def test_everything_wrong_with_a_stage_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        TorchEngine((stage("top", device="x", n_parallel=0, dtype="y"),))
    assert {problem.key for problem in raised.value.problems} == {"device", "n_parallel", "dtype"}


def test_names_that_would_be_taken_twice() -> None:
    with pytest.raises(ConfigError, match="would be called 'top-drafter', as a stage is"):
        read_settings((stage("top-drafter"), stage("top", drafter="x")))
    with pytest.raises(ConfigError, match="give the stage another name"):
        read_settings((stage("ngram"), stage("top")))


def test_threads_are_one_number() -> None:
    assert read_settings((stage("low", threads=2), stage("top", threads=2), stage("more")))[0].threads == 2
    with pytest.raises(ConfigError, match="the same in all stages .* 1 in 'low', 2 in 'top'"):
        read_settings((stage("low", threads=1), stage("top", threads=2)))


def test_capabilities_are_those_that_it_has() -> None:
    many = Stage("top", "torch", "m", capabilities=frozenset({"stream", "tools", "images"}))
    engine = TorchEngine((many,))
    assert engine.capabilities(many) == {"stream"}
    assert frozenset({"stream", "logprobs"}) == CAN
