"""What ``stepladder check`` finds without asking anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_maker import write_gguf
from stepladder import build as build_module
from stepladder.build import build, problems
from stepladder.cli import main
from stepladder.cli.check import never_worth
from stepladder.config import Settings, parse
from stepladder.engines.probe import Finding, Listing, Shown, read_listing
from stepladder.types import Stage

Check = Callable[[str], tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    def run(text: str) -> tuple[int, str]:
        path = tmp_path / "ladder.toml"
        path.write_text(text, "utf-8")
        code = main(["check", str(path)])
        return code, capsys.readouterr().err

    return run


def torch_stage(name: str, more: str = "", model: str = "OWNER/NAME", cost: float = 1.0) -> str:
    return f'[[stages]]\nname = "{name}"\nengine = "torch"\nmodel = "{model}"\ncost = {cost}\n{more}\n'


# ── what is refused ──────────────────────────────────────────────────────────


def test_torch_stages_that_disagree_on_threads(check: Check) -> None:
    code, err = check(torch_stage("a", "threads = 2") + torch_stage("b", "threads = 3"))
    assert code == 2
    assert "line 12: stages[1].threads: must be the same in all stages of the engine 'torch'; there are 2 in 'a'" in err
    assert check(torch_stage("a", "threads = 2") + torch_stage("b"))[0] == 0


@pytest.mark.parametrize("drafter", ["none.gguf", "./nowhere", "/no/such/folder", "a/b/c"])
def test_a_drafter_that_is_not_there(check: Check, drafter: str) -> None:
    code, err = check(torch_stage("a", f'drafter = "{drafter}"'))
    assert code == 2
    assert "line 6: stages[0].drafter: " in err
    assert Path(drafter).name in err


def test_a_folder_that_is_not_there(check: Check) -> None:
    code, err = check(torch_stage("a", model="./nowhere"))
    assert code == 2
    assert "line 4: stages[0].model: there is no file and no folder" in err


@pytest.mark.parametrize("named", ["OWNER/NAME", "OWNER/NAME@refs/pr/1", "hub:OWNER/NAME/m.gguf"])
def test_what_is_on_a_hub_is_not_looked_for(check: Check, named: str) -> None:
    assert check(torch_stage("a", f'drafter = "{named}"')) == (0, "")


def test_a_drafter_that_is_there(check: Check, tmp_path: Path) -> None:
    write_gguf(tmp_path / "d.gguf")
    assert check(torch_stage("a", 'drafter = "d.gguf"')) == (0, "")


@pytest.mark.parametrize(("there_is", "code"), [(False, 2), (True, 0), (None, 0)])
def test_a_gpu_that_is_not_there(
    check: Check, monkeypatch: pytest.MonkeyPatch, there_is: bool | None, code: int
) -> None:
    monkeypatch.setattr(build_module, "has_cuda", lambda: there_is)
    found, err = check(torch_stage("a", 'device = "cuda"') + torch_stage("b", 'device = "auto"', cost=2.0))
    assert found == code
    assert ("stages[0].device: there is no CUDA device here" in err) == (code == 2)
    assert "stages[1]" not in err


def test_torch_is_not_imported_to_check_a_cpu(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "has_cuda", lambda: pytest.fail("it was asked"))
    assert check(torch_stage("a", 'device = "cpu"'))[0] == 0


@pytest.mark.parametrize("engine", ["llama", "torch"])
def test_a_context_beyond_the_models_own(check: Check, tmp_path: Path, engine: str) -> None:
    write_gguf(tmp_path / "m.gguf", context=256)
    text = f'[[stages]]\nname = "a"\nengine = "{engine}"\nmodel = "m.gguf"\ncost = 1.0\ncontext = '
    code, err = check(f"{text}257\n")
    assert code == 2
    assert "line 6: stages[0].context: 257 tokens are more than the 256 that the model was made for" in err
    assert check(f"{text}256\n") == (0, "")


@pytest.mark.parametrize("module", ["torch", "transformers", "xllamacpp"])
def test_an_engine_without_its_extra(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    write_gguf(tmp_path / "m.gguf")
    real = build_module.find_spec
    monkeypatch.setattr(build_module, "find_spec", lambda name: None if name == module else real(name))
    engine = "llama" if module == "xllamacpp" else "torch"
    code, err = check(f'[[stages]]\nname = "a"\nengine = "{engine}"\nmodel = "m.gguf"\ncost = 1.0\n')
    assert code == 2
    assert f"needs the extra [{engine}]" in err


def test_the_presets_have_none_of_these() -> None:
    from stepladder.config import presets, read

    for name in presets():
        assert problems(read(name)) == ()


# ── stages that nobody would choose ──────────────────────────────────────────


def priced(*costs: float, matrix: dict[str, list[float]] | None = None) -> Settings:
    """Stages that cost this much, in this order."""
    names = "abcdef"[: len(costs)]
    stages = [
        {"name": name, "engine": "scripted", "model": "m", "cost": cost}
        for name, cost in zip(names, costs, strict=True)
    ]
    return parse({"stages": stages})


def losers(settings: Settings) -> list[str]:
    return [told.split("'")[1] for told in never_worth(build(settings))]


def test_dearer_and_better_is_worth_it_at_some_lambda() -> None:
    assert losers(priced(1.0, 2.0, 3.0)) == []


def test_what_costs_the_same_and_is_worse_is_never_chosen() -> None:
    """The prior takes dearer stages to be better, and of stages of one price the later one."""
    told = list(never_worth(build(priced(1.0, 1.0, 3.0))))
    assert len(told) == 1
    assert told[0].startswith("stage 'a' was never worth its price on 15 sample prompts, at any λ: 'b' costs no more")


def qualities(monkeypatch: pytest.MonkeyPatch, **means: float) -> None:
    from stepladder.predictors.prior import PriorPredictor
    from stepladder.types import Estimate, Estimates

    made = Estimates({name: Estimate(mean) for name, mean in means.items()})
    monkeypatch.setattr(PriorPredictor, "predict", lambda self, features: made)


def test_dearer_and_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    qualities(monkeypatch, a=0.5, b=0.9, c=0.8)
    assert losers(priced(1.0, 2.0, 3.0)) == ["c"]


def test_of_two_that_are_the_same_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    qualities(monkeypatch, a=0.5, b=0.5)
    assert losers(priced(1.0, 1.0)) == ["b"]


def test_nothing_is_told_where_nothing_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepladder.predictors.prior import PriorPredictor

    monkeypatch.setattr(PriorPredictor, "predict", lambda self, features: 1 / 0)
    assert losers(priced(1.0, 1.0)) == []


def test_the_verb_warns_and_is_content(check: Check) -> None:
    stages = "".join(
        f'[[stages]]\nname = "{name}"\nengine = "scripted"\nmodel = "m"\ncost = 1.0\n' for name in ("a", "b")
    )
    code, err = check(stages)
    assert code == 0
    assert "stepladder: warning: " in err
    assert "stage 'a' was never worth its price" in err


# ── what a finding says ──────────────────────────────────────────────────────


def finding(declared: frozenset[Any], shown: dict[Any, Shown], **more: Any) -> Finding:
    return Finding(Stage("s", "openai", "m", capabilities=declared), shown=shown, **more)


def test_a_declaration_is_wrong_only_where_it_was_seen_to_be() -> None:
    made = finding(
        frozenset({"tools", "json", "logprobs"}),
        {
            "tools": Shown(False, "refuses it"),
            "json": Shown(None, "it was busy"),
            "logprobs": Shown(True),
            "images": Shown(True),
            "stream": Shown(None, "it was busy"),
        },
    )
    assert list(made.wrong) == [
        "declares 'tools', but refuses it",
        "can do 'images' and does not declare it: requests that need it are not sent there",
    ]
    assert list(made.notes) == ["declares 'json', which could not be seen: it was busy"]


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 8}, 8),
        ({"meta": {"n_ctx": 6, "n_ctx_train": 9}}, 6),
        ({"context_length": "9"}, None),
        ({"context_length": True}, None),
        ({"context_length": -1, "context_window": 5}, 5),
        ({"meta": 3}, None),
    ],
)
def test_what_servers_call_a_context(entry: dict[str, Any], context: int | None) -> None:
    assert read_listing({"data": [{"id": "m", **entry}]}, "m").context == context


def test_what_vllm_tells() -> None:
    """As vLLM 0.26 replied to GET /v1/models; its list of permissions is left out."""
    entry = {"id": "tiny", "object": "model", "created": 1795427402, "owned_by": "vllm", "root": "/models/tiny"}
    body = {"object": "list", "data": [{**entry, "parent": None, "max_model_len": 1024}]}
    assert read_listing(body, "tiny") == Listing(None, ("tiny",), 1024)
