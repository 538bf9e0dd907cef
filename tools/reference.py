"""Write docs/reference/config.md and docs/reference/cli.md from the code, so that they cannot lie.

reference.py --check     fail where they differ from the code
reference.py --write     rewrite them
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stepladder import cli, config, plugins

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- written by tools/reference.py (make docs); do not edit -->\n"


def config_page() -> str:
    """Every key of ladder.toml with its type and default."""
    lines = [NOTE, "# ladder.toml\n"]
    lines.append(
        "A key that is not listed here is refused, with the nearest valid one named. The environment "
        "(`STEPLADDER_POLICY_LAMBDA=5`) wins over the file, `--set policy.lambda=5` over both. Paths are taken from "
        "the file's own folder.\n"
    )
    tables: dict[str, type[BaseModel]] = {"[[stages]]": config.StageSettings}
    tables |= {f"[{name}]": model for name, model in config._sections().items()}
    tables["[presets.NAME]"] = config.PresetSettings
    for title, model in sorted(tables.items(), key=lambda item: item[0] != "[ladder]"):
        lines += [
            f"## `{title}`\n",
            about(model),
            "| key | type | default | meaning |",
            "|---|---|---|---|",
            *rows(model),
            "",
        ]
    lines.append("## Parts by name\n")
    lines.append("| setting | names that come with Stepladder |\n|---|---|")
    keys = {"engines": "stages.engine", "features": "predictor.features", "predictors": "predictor.name"}
    keys |= {"policies": "policy.name", "costs": "costs.model"}
    for kind in plugins.KINDS:
        built_in = [name for name, point in plugins.entry_points(kind).items() if point.value.startswith("stepladder.")]
        lines.append(f"| `{keys[kind]}` | {', '.join(f'`{name}`' for name in sorted(built_in))} |")
    return "\n".join(lines) + "\n"


def about(model: type[BaseModel]) -> str:
    """The words of a table's docstring behind its name."""
    words = " ".join((model.__doc__ or "").split())
    _, _, rest = words.partition("]")
    rest = rest.lstrip("];, ")
    return rest[:1].upper() + rest[1:] + "\n" if rest else ""


def rows(model: type[BaseModel]) -> Iterator[str]:
    """One row for each key."""
    shapes = model.model_json_schema(by_alias=True).get("properties", {})
    for name, field in model.model_fields.items():
        key = field.alias or name
        default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        yield f"| `{key}` | {kind(shapes[key])} | {default} | {field.description or ''} |"


def shown(value: Any) -> str:
    """A default as one would write it in TOML."""
    if value is None:
        return "–"
    if isinstance(value, frozenset):
        return f"`{sorted(value)}`".replace("'", '"')
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}`"


def kind(shape: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "anyOf" in shape:
        return " or ".join(kind(each) for each in shape["anyOf"] if each.get("type") != "null")
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"])
    told = {"array": "list", "object": "table", "integer": "whole number"}.get(shape.get("type", ""), shape.get("type"))
    if shape.get("type") == "array" and "enum" in shape.get("items", {}):
        return "list of " + kind(shape["items"])
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "maximum": "≤"}
    limits = [f"{sign} {shape[key]:g}" for key, sign in bounds.items() if key in shape]
    return f"{told} {', '.join(limits)}".strip()


def cli_page() -> str:
    """``--help`` of every verb."""
    os.environ["COLUMNS"] = "100"
    lines = [NOTE, "# Command line\n", "Exit codes: 0 done, 1 failed, 2 asked wrongly.\n"]
    lines += ["```text", cli.make_parser().format_help().rstrip(), "```\n"]
    for verb in cli.VERBS:
        parser = below(cli.make_parser([verb]))[verb]
        lines += [f"## {verb}\n", "```text", parser.format_help().rstrip(), "```\n"]
        for action in below(parser).values():
            lines += ["```text", action.format_help().rstrip(), "```\n"]
    return "\n".join(lines)


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    args = parser.parse_args()
    stale = []
    for name, text in {"config.md": config_page(), "cli.md": cli_page()}.items():
        path = FOLDER / name
        if args.write:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
    for name in stale:
        sys.stdout.write(f"docs/reference/{name} is not what the code says; run make docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
