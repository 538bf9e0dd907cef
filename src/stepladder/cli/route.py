"""``stepladder route``: which stage would be asked, and why. No model is loaded."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from stepladder.build import build
from stepladder.cli import options
from stepladder.sync import question
from stepladder.traces.codec import encode
from stepladder.traces.memory import MemoryTraceStore
from stepladder.types import Call, Dials, Trace


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser)
    options.add_dials(parser)


def run(args: argparse.Namespace) -> int:
    prompt = options.read_prompt(args)
    request = question(prompt, Dials(**options.dials(args)))
    trace = build(options.read_settings(args), store=MemoryTraceStore(), fetch=False).decide(request)
    if args.json:
        sys.stdout.write(json.dumps(encode(trace), ensure_ascii=False, indent=2) + "\n")
    else:
        _show(trace)
    return 0


def _show(trace: Trace) -> None:
    step = trace.steps[0]
    view, action = step.view, step.decision.action
    chosen = action.stage if isinstance(action, Call) else None
    table = Table(title=f"λ = {view.lam:g}, {trace.mode}", title_justify="left")
    for column in ("stage", "predicted quality", f"cost [{trace.cost_unit}]", "value λ·Q − C", ""):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for name in trace.stages:
        estimate, cost = view.estimates[name], view.costs[name]
        mark = "◀ chosen" if name == chosen else "" if name in view.stages else "not allowed"
        row = (name, f"{estimate.mean:.3f} ± {estimate.sd:.3f}", f"{cost.total:.4g}", f"{view.value(name):.3f}", mark)
        table.add_row(*row, style="bold" if name == chosen else None)
    console = Console()
    console.print(table)
    if not view.estimates.calibrated:
        console.print("uncalibrated: no measured outcome stands behind these qualities")
    console.print(f"{step.decision.reason} · decided in {step.decide_s * 1e3:.2f} ms", markup=False, highlight=False)
