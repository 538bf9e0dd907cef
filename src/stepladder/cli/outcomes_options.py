"""Arguments of the verbs that read an outcomes table, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from stepladder.cli.options import number
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import ALL, Aligned, Pricing, align, read_prices
from stepladder.evaluate.outcomes import read

PRINTED_WIDTH = 160


def add_table(parser: argparse.ArgumentParser, *, split: str, stages_required: bool) -> None:
    """--outcomes, --stages, --costs or --prices, --split."""
    parser.add_argument("--outcomes", required=True, metavar="TABLE", help="the outcomes table, .parquet or .jsonl")
    told = "models of the table, cheapest first" + ("" if stages_required else " (default: the artifact's)")
    parser.add_argument("--stages", required=stages_required, metavar="A,B,C", help=told)
    prices = parser.add_mutually_exclusive_group()
    prices.add_argument("--costs", metavar="1,2,3", help="what one request costs on each stage")
    prices.add_argument(
        "--prices", metavar="FILE", help="TOML or JSON: price_in and price_out of each model, usd for a million tokens"
    )
    parser.add_argument("--split", default=split, help=f"rows to take; '{ALL}' takes every row (default: {split})")


def read_table(args: argparse.Namespace, models: Sequence[str], names: Sequence[str]) -> Aligned:
    """The aligned rows that the arguments ask for; no ``names`` keeps the models'. Raises UsageError."""
    priced = pricing(args, models)
    return align(read(args.outcomes), models, names=names or None, split=args.split, pricing=priced)


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough for names where there is none."""
    found = Console()
    return found if found.is_terminal else Console(width=PRINTED_WIDTH)


def words(raw: str | None, flag: str) -> tuple[str, ...]:
    """A list with commas between; empty where nothing was given. Raises UsageError naming the flag."""
    if raw is None:
        return ()
    found = tuple(word.strip() for word in raw.split(","))
    if not all(found):
        raise UsageError(f"{flag}: '{raw}' should be names with commas between them")
    return found


def share(raw: str, flag: str) -> float:
    """A number in [0, 1]; raises UsageError naming the flag."""
    value = number(raw, flag) or 0.0
    if value > 1:
        raise UsageError(f"{flag}: '{raw}' is a share: a number from 0 to 1")
    return value


def seed(args: argparse.Namespace) -> int:
    """--seed; raises UsageError where it is negative."""
    if args.seed < 0:
        raise UsageError(f"--seed: {args.seed} should not be negative")
    return int(args.seed)


def pricing(args: argparse.Namespace, models: Sequence[str]) -> Pricing:
    """What --costs or --prices say; raises UsageError."""
    if args.prices is not None:
        return read_prices(args.prices, models)
    if args.costs is None:
        return None
    return tuple(number(word, "--costs") or 0.0 for word in words(args.costs, "--costs"))
