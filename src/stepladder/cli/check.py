"""``stepladder check``: what is wrong with a configuration, by key and line; with ``--live`` also with its stages."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack

from rich.console import Console
from rich.table import Table

from stepladder.build import build, problems
from stepladder.cli import options
from stepladder.cli.serve import make_gate
from stepladder.config import Settings
from stepladder.engines.openai import OpenAIEngine
from stepladder.engines.probe import Finding, probe
from stepladder.errors import ConfigError, StepladderError, UsageError
from stepladder.predictors.complexity import PAPER_PROMPTS
from stepladder.router import Router
from stepladder.traces.memory import MemoryTraceStore
from stepladder.types import Fault, Request, View

UNSET_KEY = ".api_key_env"
"""A key that is not set here is no fault of the file: `serve` refuses it, `check` only says so."""

AT_ONCE = 4
"""Stages that are asked at once by ``--live``."""

SAMPLE = (
    *(prompt for prompt, _ in PAPER_PROMPTS),
    "Hi",
    "Translate 'good morning' into Japanese.",
    "A train leaves at 14:05 and takes 2 h 50 min. When does it arrive? Show each step.",
    "Write a Python function that merges two sorted lists, with tests, and say what it costs.",
    "Summarise this in one sentence: " + "The committee met again and could not agree on the budget. " * 40,
)
"""Prompts of all lengths on which stages are compared; enough to see one that is never worth its price, no more."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser, positional=True)
    parser.add_argument(
        "--live",
        action="store_true",
        help="also ask every stage (it costs a few tokens): how fast it answers, and what it can really do",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="for each question of --live (default: 30)"
    )


def run(args: argparse.Namespace) -> int:
    if not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout: {args.timeout:g} is no positive number of seconds")
    settings = options.read_settings(args)
    found = problems(settings)
    warnings = [problem for problem in found if problem.key.endswith(UNSET_KEY)]
    if len(warnings) < len(found) or (args.live and found):
        raise ConfigError(settings.source, found)
    if settings.gateway.keys is not None:
        make_gate(settings, settings.gateway.host)
    _show(settings)
    told = [str(problem) for problem in warnings]
    if warnings:
        _warn(settings, told)
        return 0
    router = build(settings, store=MemoryTraceStore(), fetch=args.live)
    _warn(settings, never_worth(router))
    return asyncio.run(_live(settings, router, args.timeout)) if args.live else 0


def _warn(settings: Settings, warnings: Iterable[str]) -> None:
    for warning in warnings:
        sys.stderr.write(f"stepladder: warning: {settings.source}: {warning}\n")


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


# ── stages that nobody would choose ──────────────────────────────────────────


def never_worth(router: Router, sample: Sequence[str] = SAMPLE) -> Iterator[str]:
    """Of each stage that was worth less than another one on every sample prompt, at every λ, a sentence.

    V = λ·Q − C is never the greater where C is never lower and Q never higher; of two that are equal, the cheaper on
    the ladder is taken. Where nothing can be predicted or priced, nothing is told.
    """
    views = [_first_view(router, prompt) for prompt in sample]
    if any(view.fallback is not None for view in views):
        return
    names = router.parts.ladder.names
    for place, name in enumerate(names):
        better = [other for other in names[:place] if _is_no_better(name, other, views)]
        better += [other for other in names[place + 1 :] if _is_worse(name, other, views)]
        if better:
            yield (
                f"stage '{name}' was never worth its price on {len(sample)} sample prompts, at any λ: '{better[0]}' "
                f"costs no more and is predicted to be as good; it will be called only where that one fails or cannot"
            )


def _first_view(router: Router, prompt: str) -> View:
    request = Request("check", messages=({"role": "user", "content": prompt},))
    return router.decide(request).steps[0].view


def _is_no_better(name: str, other: str, views: Sequence[View]) -> bool:
    return all(
        view.costs[name].total >= view.costs[other].total and view.estimates[name].mean <= view.estimates[other].mean
        for view in views
    )


def _is_worse(name: str, other: str, views: Sequence[View]) -> bool:
    """Also not the same throughout: then the lower of the two is the one that is taken."""
    return _is_no_better(name, other, views) and not _is_no_better(other, name, views)


# ── live ─────────────────────────────────────────────────────────────────────


async def _live(settings: Settings, router: Router, timeout_s: float) -> int:
    findings = await look(router, timeout_s)
    Console().print(_table(findings))
    for finding in findings:
        for told in finding.wrong:
            sys.stderr.write(f"stepladder: warning: {settings.source}: stage '{finding.stage.name}' {told}\n")
        for told in finding.notes:
            sys.stderr.write(f"stepladder: note: stage '{finding.stage.name}' {told}\n")
    lost = [(finding.stage.name, finding.fault.message) for finding in findings if finding.fault is not None]
    for name, why in lost:
        sys.stderr.write(f"stepladder: stage '{name}': {why}\n")
    return 1 if lost else 0


async def look(router: Router, timeout_s: float) -> list[Finding]:
    """Start every engine and probe every stage, a few at once. What cannot be started is a finding too."""
    parts, free = router.parts, asyncio.Semaphore(AT_ONCE)
    faults: dict[int, Fault] = {}
    async with AsyncExitStack() as started:
        for engine in router.engines():
            started.push_async_callback(engine.close)
            try:
                await engine.start()
            except StepladderError as error:
                faults[id(engine)] = Fault("crash", str(error))

        async def one(name: str) -> Finding:
            stage, engine = parts.ladder[name], parts.engines[name]
            if id(engine) in faults:
                return Finding(stage, faults[id(engine)])
            target = engine.target(stage) if isinstance(engine, OpenAIEngine) else None
            async with free:
                return await probe(engine, stage, timeout_s=timeout_s, target=target)

        return list(await asyncio.gather(*(one(name) for name in parts.ladder.names)))


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(title="asked just now", title_justify="left")
    for column in ("stage", "answers", "connect", "first piece", "one token", "can", "cannot", "context"):
        table.add_column(column, overflow="fold")
    for each in findings:
        can = ", ".join(name for name, shown in each.shown.items() if shown.able)
        cannot = ", ".join(name for name, shown in each.shown.items() if shown.able is False)
        context = each.listing.context
        table.add_row(
            each.stage.name,
            "yes" if each.fault is None else f"no: {each.fault.kind}",
            *(_ms(seconds) for seconds in (each.listing.connect_s, each.first_s, each.total_s)),
            can or "–",
            cannot or "–",
            "not told" if context is None else str(context),
        )
    return table


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3g} ms"
