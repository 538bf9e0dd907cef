"""Arguments that several verbs share, and what they mean."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from stepladder import config
from stepladder.build import wrong_names
from stepladder.config import Settings
from stepladder.errors import UsageError

NANO = "nano"
"""The ladder of whoever names none."""


def add_ladder(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """--ladder, also as LADDER where it is what the verb is about, and --set; read by ``ladder`` and ``read_settings``.

    The two are kept apart: argparse sets a positional that was left out after the options, and to its default.
    """
    told = f"a preset's name or the path of a ladder.toml (default: {NANO}, the embedded ladder)"
    if positional:
        parser.add_argument("place", nargs="?", metavar="ladder", help=told)
    parser.add_argument("-l", "--ladder", help="the same" if positional else told)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting"
    )


def add_dials(parser: argparse.ArgumentParser) -> None:
    """PROMPT and the dials of one request."""
    parser.add_argument("prompt", nargs="+", help="the question; '-' reads it from standard input")
    parser.add_argument("--lambda", dest="lam", metavar="λ", help="cost units that one unit of quality is worth")
    parser.add_argument("--mode", choices=("route", "cascade", "fixed"))
    parser.add_argument("--min-stage", metavar="STAGE")
    parser.add_argument("--max-stage", metavar="STAGE")
    parser.add_argument("--max-cost", metavar="COST")
    parser.add_argument("--json", action="store_true", help="print the whole trace as JSON")


def ladder(args: argparse.Namespace) -> str:
    """The ladder that is named, else nano; raises UsageError where LADDER and --ladder name two."""
    place: str | None = getattr(args, "place", None)
    named: str | None = args.ladder
    if place is not None and named is not None and place != named:
        raise UsageError(f"two ladders are named, '{place}' and, by --ladder, '{named}'; give one of them")
    return next((each for each in (place, named) if each is not None), NANO)


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings that the arguments, the environment and the file amount to."""
    return config.read(ladder(args), environ=os.environ, overrides=args.overrides, check=wrong_names)


def number(raw: str | None, name: str) -> float | None:
    """A finite number >= 0 or None; raises UsageError naming the flag."""
    if raw is None:
        return None
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UsageError(f"{name}: '{raw}' is not a finite number of at least 0")
    return value


def dials(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for ``Stepladder.ask``."""
    return {
        "lam": number(args.lam, "--lambda"),
        "mode": args.mode,
        "min_stage": args.min_stage,
        "max_stage": args.max_stage,
        "max_cost": number(args.max_cost, "--max-cost"),
    }


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt; raises UsageError where it is empty."""
    words: list[str] = args.prompt
    prompt = sys.stdin.read() if words == ["-"] else " ".join(words)
    if not prompt.strip():
        raise UsageError("PROMPT is empty; give a question, or '-' to read it from standard input")
    return prompt
