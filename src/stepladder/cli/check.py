"""``stepladder check``: everything that is wrong with a configuration, by key and line."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from stepladder.build import problems
from stepladder.cli import options
from stepladder.config import Settings
from stepladder.errors import ConfigError

UNSET_KEY = ".api_key_env"
"""A key that is not set here is no fault of the file: `serve` refuses it, `check` only says so."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser, positional=True)


def run(args: argparse.Namespace) -> int:
    settings = options.read_settings(args)
    found = problems(settings)
    warnings = [problem for problem in found if problem.key.endswith(UNSET_KEY)]
    if len(warnings) < len(found):
        raise ConfigError(settings.source, found)
    _show(settings)
    for problem in warnings:
        sys.stderr.write(f"stepladder: warning: {settings.source}: {problem}\n")
    return 0


def _show(settings: Settings) -> None:
    table = Table(title=f"{settings.source}: nothing wrong found", title_justify="left")
    for column in ("stage", "engine", "model", "price", "context"):
        table.add_column(column)
    for stage in settings.stages:
        price = f"{stage.cost:g} a call" if stage.cost is not None else settings.costs.model
        if stage.price_in is not None or stage.price_out is not None:
            price = f"{stage.price_in or 0:g} / {stage.price_out or 0:g} usd for a million tokens in / out"
        table.add_row(stage.name, stage.engine, stage.model, price, str(stage.context or "unknown"))
    Console().print(table)
