"""``stepladder ask``: one question, answered by the stage that is worth it."""

from __future__ import annotations

import argparse
import json
import sys

from stepladder.build import build
from stepladder.cli import options
from stepladder.sync import Stepladder
from stepladder.traces.codec import encode
from stepladder.types import Answer


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser)
    options.add_dials(parser)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after this many tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the answer alone")


def run(args: argparse.Namespace) -> int:
    prompt = options.read_prompt(args)
    dials = options.dials(args)
    params = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    given = {key: value for key, value in params.items() if value is not None}
    with Stepladder(build(options.read_settings(args))) as ladder:
        answer = ladder.ask(prompt, **dials, **given)
    _show(answer, args)
    return 0


def _show(answer: Answer, args: argparse.Namespace) -> None:
    if args.json:
        sys.stdout.write(json.dumps(encode(answer.trace), ensure_ascii=False, indent=2) + "\n")
        return
    sys.stdout.write(answer.text.rstrip("\n") + "\n")
    if not args.quiet:
        sys.stdout.flush()
        sys.stderr.write(summary(answer) + "\n")


def summary(answer: Answer) -> str:
    """One line: who answered, why, at what cost and in what time."""
    trace = answer.trace
    estimates = trace.steps[0].view.estimates
    doubt = "" if estimates.calibrated else " (uncalibrated)"
    called = " → ".join(attempt.stage for attempt in trace.attempts)
    return (
        f"[{called}] predicted quality {estimates[answer.stage].mean:.2f}{doubt} · "
        f"cost {trace.cost:.4g} {trace.cost_unit} · {trace.seconds:.2f} s · {trace.steps[0].decision.reason}"
    )
