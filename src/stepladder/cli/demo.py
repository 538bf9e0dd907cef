"""``stepladder demo``: requests climb the embedded ladder, over HTTP, at several λ, and every answer is graded."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stepladder.build import build
from stepladder.cli import options
from stepladder.cli.serve import gateway_settings, greeting
from stepladder.evaluate.graders import grade
from stepladder.evaluate.tasks.nano import generate
from stepladder.gateway.app import create_app
from stepladder.gateway.server import serving
from stepladder.predictors.complexity import PAPER_PROMPTS

LAMBDAS = (5.0, 20.0, 100.0)
SEED = 7
SAMPLE = 240
"""Judged tasks behind the last table: one of each kind is enough to look at, and too few to compare."""

PIPED_WIDTH = 160
"""Columns where the output is no terminal: wide enough that no row is folded."""

Ask = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question of the demo; ``grader`` is None where no reference answer exists."""

    text: str
    level: str
    family: str
    answer: str = ""
    grader: str | None = None

    def quality(self, text: str) -> float | None:
        """Measured quality of an answer in [0, 1]; None where none can be measured."""
        return None if self.grader is None else grade(self.grader, text, self.answer)


@dataclass(frozen=True, slots=True)
class Result:
    """One answered question. Costs in the ladder's unit; ``seconds`` as the gateway measured them."""

    prompt: Prompt
    stage: str
    text: str
    predicted: float
    measured: float | None
    cost: float
    seconds: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print the tables and end, instead of going on serving")
    parser.add_argument("--port", type=int, default=0, help="port to bind (default: any free one)")


def run(args: argparse.Namespace) -> int:
    args.ladder, args.overrides = "nano", [f"gateway.port={args.port}"]
    asyncio.run(_demo(args))
    return 0


async def _demo(args: argparse.Namespace) -> None:
    settings = options.read_settings(args)
    router = build(settings)
    app = create_app(router, gateway_settings(settings), manage_router=True)
    async with serving(app, settings.gateway.host, args.port) as url, aiohttp.ClientSession() as session:

        async def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                reply.raise_for_status()
                found: Mapping[str, Any] = await reply.json()
                return found

        await _show(ask, console())
        if not args.once:
            sys.stderr.write(f"\n{greeting(settings, url)}\nCtrl-C ends it.\n")
            await asyncio.Event().wait()


def console() -> Console:
    """A console that is coloured and folded in a terminal, plain and wide in a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH, no_color=True)


def sample() -> tuple[Prompt, ...]:
    """Judged tasks in the mix of all levels and families."""
    tasks = generate("judged", SAMPLE, SEED)
    return tuple(Prompt(task.prompt, task.level, task.family, task.answer, task.grader) for task in tasks)


def shown(graded: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """One task of every family and level, then the paper's ten prompts as they are."""
    wanted: dict[tuple[str, str], Prompt] = {}
    for prompt in graded:
        wanted.setdefault((prompt.family, prompt.level), prompt)
    order = {"simple": 0, "medium": 1, "complex": 2}
    one_each = sorted(wanted.values(), key=lambda prompt: (order[prompt.level], prompt.family))
    return (*one_each, *(Prompt(text, level, "paper") for text, level in PAPER_PROMPTS))


async def _show(ask: Ask, out: Console) -> None:
    graded = sample()
    asked = tuple(dict.fromkeys((*shown(graded), *graded)))
    rows = len(shown(graded))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("asking the ladder", total=len(asked) * (len(LAMBDAS) + 1))

        async def each(dials: Mapping[str, Any]) -> list[Result]:
            found = []
            for prompt in asked:
                found.append(await _answer(ask, prompt, dials))
                progress.advance(bar)
            return found

        largest = await each({"mode": "fixed"})
        climbs = {lam: await each({"lambda": lam, "mode": "route"}) for lam in LAMBDAS}
    for lam, results in climbs.items():
        out.print(_table(lam, results[:rows], largest[:rows]))
    out.print(_summary(climbs, largest))


async def _answer(ask: Ask, prompt: Prompt, dials: Mapping[str, Any]) -> Result:
    body = await ask(
        {
            "model": "stepladder",
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": 64,
            "temperature": 0,
            "stepladder": dict(dials),
        }
    )
    text, told = body["choices"][0]["message"]["content"] or "", body["stepladder"]
    return Result(
        prompt, told["stage"], text, told["predicted_quality"], prompt.quality(text), told["cost"], told["seconds"]
    )


# ── showing ──────────────────────────────────────────────────────────────────


def _table(lam: float, results: Sequence[Result], largest: Sequence[Result]) -> Table:
    table = _new_table(f"λ = {lam:g}")
    for name in ("class", "family", "prompt", "answered by", "answer"):
        table.add_column(name, no_wrap=True)
    for name in ("predicted", "measured", "cost", "ms", "largest: cost", "measured"):
        table.add_column(name, justify="right")
    for result, other in zip(results, largest, strict=True):
        table.add_row(
            result.prompt.level,
            result.prompt.family,
            _short(result.prompt.text, 34),
            result.stage,
            _short(result.text, 22),
            f"{result.predicted:.2f}",
            _quality(result.measured),
            f"{result.cost:.2f}",
            f"{result.seconds * 1e3:.0f}",
            f"{other.cost:.2f}",
            _quality(other.measured),
        )
    return table


def _summary(climbs: Mapping[float, Sequence[Result]], largest: Sequence[Result]) -> Table:
    table = _new_table(f"these and more: {len(largest)} prompts (quality: of those that a grader can judge)")
    table.add_column("")
    for name in ("quality", "mean cost", "mean ms", "cheaper than largest", "faster than largest"):
        table.add_column(name, justify="right")
    table.add_column("answered by")
    rows = {"always largest": largest, **{f"λ = {lam:g}": results for lam, results in climbs.items()}}
    for name, results in rows.items():
        table.add_row(name, *_figures(results, largest), _shares(results))
    return table


def _figures(results: Sequence[Result], largest: Sequence[Result]) -> tuple[str, ...]:
    cost, time = mean(r.cost for r in results), mean(r.seconds for r in results)
    cheaper = 1 - cost / mean(r.cost for r in largest)
    faster = 1 - time / mean(r.seconds for r in largest)
    graded = mean(r.measured for r in results if r.measured is not None)
    return f"{graded:.3f}", f"{cost:.2f}", f"{time * 1e3:.0f}", f"{cheaper:+.0%}", f"{faster:+.0%}"


def _shares(results: Iterable[Result]) -> str:
    stages = [result.stage for result in results]
    return ", ".join(f"{name} {stages.count(name) / len(stages):.0%}" for name in dict.fromkeys(sorted(stages)))


def _new_table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE if sys.stdout.isatty() else None, pad_edge=False)


def _quality(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
