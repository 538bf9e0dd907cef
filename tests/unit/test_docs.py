"""Documents that cannot lie: what they show is read, run or compared here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stepladder import config, plugins
from stepladder.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help differently in other versions")
def test_the_reference_is_what_the_code_says():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_shown_compiles(page):
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, block {number}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_ladders_shown_are_valid(page):
    for block in blocks(page, "toml"):
        tree = tomllib.loads(block)
        if "stages" in tree:
            tree["stages"] = [{"model": "m", **stage} for stage in tree["stages"]]
            config.parse(tree, text=block)


def test_every_verb_and_every_part_is_documented():
    pages = "\n".join(page.read_text("utf-8") for page in PAGES)
    for verb in VERBS:
        assert f"stepladder {verb}" in pages
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            assert f"`{name}`" in pages, f"{kind}: {name}"


def test_the_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_the_annotated_ladder_is_valid():
    settings = config.read(ROOT / "examples" / "vllm.toml")
    assert [stage.gpus for stage in settings.stages] == [1, 2, 4]


def test_the_changelog_knows_the_version():
    from stepladder import __version__

    assert re.search(rf"\[(Unreleased|{re.escape(__version__)})\]", (ROOT / "CHANGELOG.md").read_text("utf-8"))
