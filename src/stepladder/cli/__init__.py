"""``stepladder VERB``: one file per verb. Exit codes: 0 done, 1 failed, 2 asked wrongly."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Protocol, cast

from stepladder.errors import StepladderError
from stepladder.version import __version__

VERBS: Mapping[str, str] = {
    "demo": "watch requests climb the embedded ladder behind a real endpoint",
    "ask": "answer one question",
    "route": "decide which stage a question is worth, without asking it",
    "serve": "serve a ladder behind an OpenAI-compatible endpoint",
    "keys": "make, show and revoke the keys that callers of a gateway need",
    "check": "explain every problem of a ladder.toml",
    "collect": "ask every stage and grade its answers, for a table to train from",
    "traces": "take out or cut down what a gateway has stored",
    "import": "read outcomes that others published as a table to train from",
    "train": "fit a predictor of quality to an outcomes table",
    "evaluate": "judge a predictor and its policies on outcomes that it has not seen",
    "calibrate": "set the λ that serving starts from, for a cost, a quality or a floor",
    "bench": "measure ways to decode against each other on this machine",
    "reproduce": "run the paper's whole experiment on a real ladder, and print its tables beside what is measured",
}


class Verb(Protocol):
    """A module of this package: its arguments, and what it does (returns the exit code)."""

    def arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    # Predictors multiply short vectors: several threads wait for each other longer than that takes. Read by numpy once,
    # when a verb's module imports it; whoever sets the variable is obeyed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ on a terminal that has no such letter is no reason to stop
    logging.basicConfig(level=logging.WARNING, format="stepladder: %(message)s")
    args = make_parser(words).parse_args(words)
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
    except Exception as error:  # the last resort: a bug, ours or a plug-in's, is told in a sentence too
        if sys.flags.dev_mode:
            raise
        print(f"stepladder: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("(python -X dev -m stepladder … shows where)", file=sys.stderr)
        return 1


def make_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; only the verb that ``words`` begins with is imported, so that start-up stays quick."""
    parser = argparse.ArgumentParser(
        prog="stepladder", description="Adaptive inference over a ladder of language models."
    )
    parser.add_argument("--version", action="version", version=f"stepladder {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, told in VERBS.items():
        verb = verbs.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False)
        if name in words[:1]:
            module = cast(Verb, importlib.import_module(f"stepladder.cli.{name}{'_' * iskeyword(name)}"))
            module.arguments(verb)
            verb.set_defaults(verb=module)
    return parser
