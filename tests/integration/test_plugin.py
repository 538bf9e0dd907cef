"""The example plug-in, installed as pip would install it: its parts are found by name and keep the contracts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
LADDER = """\
[[stages]]
name = "low"
engine = "parrot"
model = "Polly:"
cost = 1.0

[[stages]]
name = "high"
engine = "parrot"
model = "Professor Polly:"
cost = 2.0

[predictor]
name = "by-length"

[policy]
name = "thrifty"

[policy.options]
floor = 0.7
"""
SCRIPT = """
import asyncio, sys
import parrot, stepladder
from stepladder import plugins
from stepladder.testing import check_engine, check_policy, check_predictor, make_request
from stepladder.types import Stage

with stepladder.load(sys.argv[1]) as ladder:
    print(ladder.ask("why?").text)
    print(ladder.ask("why " * 60).stage)
    print(ladder.ask("why?").trace.policy)

stage = Stage("low", "parrot", "Polly:", capabilities=frozenset({"stream"}))
asyncio.run(check_engine(plugins.load("engines", "parrot")((stage,)), stage, make_request("why?")))
check_predictor(plugins.load("predictors", "by-length")(("a", "b"), {}, {}), ("a", "b"))
check_policy(plugins.load("policies", "thrifty")(), ("a", "b", "c"))
print("kept")
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as ``pip install --target`` leaves it: the module, and the names that its pyproject gives."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    (tmp_path / "parrot.py").write_text((EXAMPLE / "parrot.py").read_text("utf-8"), "utf-8")
    info = tmp_path / "stepladder_parrot-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n", "utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


def test_one_of_each_by_name(installed: Path) -> None:
    (installed / "ladder.toml").write_text(LADDER, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(installed / "ladder.toml")],
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["Polly: why?", "high", "thrifty", "kept", ""]
