"""``stepladder ask``: one question, answered by the stage that is worth it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from stepladder.build import build
from stepladder.cli import options
from stepladder.errors import UsageError
from stepladder.sync import Stepladder
from stepladder.traces.codec import encode
from stepladder.types import Answer, Speculation, Trace

LOADING_S = 0.1
"""Seconds beside answering that deciding may take; where there are more, a model was loaded."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser)
    options.add_dials(parser)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after this many tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the answer alone")


def run(args: argparse.Namespace) -> int:
    prompt = options.read_prompt(args)
    dials = options.dials(args)
    given = _limits(args)
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
    """One line: who answered, why, at what cost and in what time.

    Before it stands a line for each stage that failed, after it one of what was drafted, if anything was.
    """
    trace = answer.trace
    called = [step for step in trace.steps if step.attempt is not None]
    failed = [f"{a.stage} failed: {a.fault.message}" for a in trace.attempts if a.fault is not None]
    step = called[trace.answer_index or 0]
    doubt = "" if step.view.estimates.calibrated else " (uncalibrated)"
    names = " → ".join(attempt.stage for attempt in trace.attempts)
    line = (
        f"[{names}] predicted quality {step.view.estimates[answer.stage].mean:.2f}{doubt} · "
        f"cost {trace.cost:.4g} {trace.cost_unit} · {told_time(trace)} · {step.decision.reason}"
    )
    drafted = [f"{a.stage}: {speculated(a.speculation)}" for a in trace.attempts if a.speculation is not None]
    return "\n".join([*failed, line, *(["; ".join(drafted)] if drafted else [])])


def told_time(trace: Trace) -> str:
    """Seconds of answering; those before it are told apart: a model that is asked first is loaded first."""
    answering = sum(attempt.seconds for attempt in trace.attempts)
    before = trace.seconds - answering
    return f"{answering:.2f} s" if before < LOADING_S else f"{answering:.2f} s, after {before:.1f} s of loading"


def speculated(found: Speculation) -> str:
    """How speculation went: what was accepted of each drafter's tokens, and what was kept of a lower answer's."""
    parts = [
        f"{pair.target} accepted {pair.accepted}/{pair.drafted} from {pair.drafter or 'its drafter'}"
        for pair in found.pairs
        if pair.drafted
    ]
    if found.climbed:
        parts.append(f"kept {found.kept}/{found.climbed} of the lower answer")
    if found.moved is not None:
        parts.append(f"moved the law by {found.moved:.3f}")
    return ", ".join(parts) or "nothing was drafted"


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    """OpenAI's parameters that were given, after a look at their range."""
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UsageError(f"--max-tokens: {args.max_tokens} should be at least 1")
    if args.temperature is not None and not 0 <= args.temperature <= 2:
        raise UsageError(f"--temperature: {args.temperature:g} should be from 0 to 2")
    params = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    return {key: value for key, value in params.items() if value is not None}
