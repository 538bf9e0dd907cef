"""``stepladder VERB``: one file per verb. Exit codes: 0 done, 1 failed, 2 asked wrongly."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from stepladder.errors import StepladderError
from stepladder.version import __version__

VERBS = ("demo", "ask", "route", "serve", "check")


class Verb(Protocol):
    """A module of this package: HELP, its arguments, and what it does (returns the exit code)."""

    HELP: str

    def arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return cast(Verb, args.verb).run(args)
    except StepladderError as error:
        print(f"stepladder: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has left; Python would complain once more at exit
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The whole command line, from what each verb says of itself."""
    parser = argparse.ArgumentParser(
        prog="stepladder", description="Adaptive inference over a ladder of language models."
    )
    parser.add_argument("--version", action="version", version=f"stepladder {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        module = cast(Verb, importlib.import_module(f"stepladder.cli.{name}"))
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP)
        module.arguments(verb)
        verb.set_defaults(verb=module)
    return parser
