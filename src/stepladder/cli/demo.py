"""``stepladder demo``: requests climb the embedded ladder, over HTTP, at several λ, and every answer is graded."""

from __future__ import annotations

import argparse
import asyncio
import signal
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
from stepladder.errors import UsageError
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

WIDE, ROOMY = 110, 140
"""Columns from which a table shows class and family, and all of its numbers."""

SHORT = {
    "answered by": "stage",
    "predicted": "pred.",
    "measured": "meas.",
    "largest costs": "largest",
}
"""Headings where there is little room; numbers are never cut."""

LARGEST = "always largest"
LEGEND = (
    "λ is what one unit of quality is worth, in costs of the smallest stage's mean request; the stage with the "
    "greatest λ·predicted − cost answers. Measured is the answer's grade, 0 to 1; largest is what the largest stage "
    "alone costs and gets. The models know the graded tasks and nothing else: the paper's ten prompts (no grade, '–') "
    "are noise to them."
)

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
    args.ladder, args.overrides = options.NANO, [f"gateway.port={args.port}"]
    try:
        asyncio.run(_demo(args))
    except OSError as error:
        raise UsageError(f"--port: {args.port} cannot be bound: {error.strerror or error}") from error
    return 0


async def _demo(args: argparse.Namespace) -> None:
    settings = options.read_settings(args)
    router = build(settings)
    app = create_app(router, gateway_settings(settings), manage_router=True)
    stop = stop_event()
    async with serving(app, settings.gateway.host, args.port) as url, aiohttp.ClientSession() as session:

        async def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                reply.raise_for_status()
                found: Mapping[str, Any] = await reply.json()
                return found

        shown_to_the_end = asyncio.create_task(_show(ask, console()))
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({shown_to_the_end, ended}, return_when=asyncio.FIRST_COMPLETED)
        if shown_to_the_end.done():
            await shown_to_the_end
        if not args.once and not stop.is_set():
            sys.stderr.write(f"\n{greeting(settings, url)}\nCtrl-C ends it.\n")
            await ended
        for task in (shown_to_the_end, ended):
            task.cancel()


def stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM, also where the shell that started this in the background has them ignored."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


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
    arms: dict[str, Mapping[str, Any]] = {LARGEST: {"mode": "fixed"}}
    arms |= {f"λ = {lam:g}": {"lambda": lam, "mode": "route"} for lam in LAMBDAS}
    found: dict[str, list[Result]] = {name: [] for name in arms}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("asking the ladder", total=len(asked) * len(arms))
        for prompt in asked:  # the arms take turns, so that a busy moment of the machine falls on all of them
            for name, dials in arms.items():
                found[name].append(await _answer(ask, prompt, dials))
                progress.advance(bar)
    out.print(LEGEND, highlight=False)
    for name in list(arms)[1:]:
        out.print(_table(name, found[name][:rows], found[LARGEST][:rows], narrow=out.width))
    out.print(_summary(found))


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


def _table(name: str, results: Sequence[Result], largest: Sequence[Result], narrow: int) -> Table:
    """One row for each prompt; what a narrow terminal leaves out is the class, the family and the largest's quality."""
    wide, roomy = narrow >= WIDE, narrow >= ROOMY
    columns = [*(("class", "family") if wide else ()), "prompt", "answered by", "answer"]
    numbers = ["predicted", "measured", "cost", "ms", "largest costs", *(("measured",) if roomy else ())]
    table = _new_table(name)
    for title in columns:
        table.add_column(title if roomy else SHORT.get(title, title), no_wrap=True)
    for title in numbers:
        short = SHORT.get(title, title)
        table.add_column(title if roomy else short, justify="right", no_wrap=True, min_width=len(short))
    for result, other in zip(results, largest, strict=True):
        texts = [*((result.prompt.level, result.prompt.family) if wide else ())]
        texts += [
            _short(result.prompt.text, 34 if roomy else 18),
            result.stage,
            _short(result.text, 22 if roomy else 9),
        ]
        table.add_row(*texts, *_row_figures(result, other)[: len(numbers)])
    return table


def _row_figures(result: Result, other: Result) -> tuple[str, ...]:
    return (
        f"{result.predicted:.2f}",
        _quality(result.measured),
        f"{result.cost:.2f}",
        f"{result.seconds * 1e3:.0f}",
        f"{other.cost:.2f}",
        _quality(other.measured),
    )


def _summary(found: Mapping[str, Sequence[Result]]) -> Table:
    largest = found[LARGEST]
    graded = sum(result.measured is not None for result in largest)
    table = _new_table(f"these and more: {len(largest)} prompts, quality over the {graded} that can be graded")
    table.add_column("")
    for name in ("quality", "cost", "ms", "cheaper", "faster"):
        table.add_column(name, justify="right")
    table.add_column("answered by")
    for name, results in found.items():
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
