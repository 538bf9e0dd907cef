"""``stepladder collect``: ask every stage, grade the answers, keep them as an outcomes table to train from."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stepladder.build import build, make_engines
from stepladder.cli import options
from stepladder.config import PolicySettings, PredictorSettings
from stepladder.contracts import CostModel, Engine
from stepladder.engines.threads import available_cores
from stepladder.errors import StepladderError, UsageError, nearest
from stepladder.evaluate import collect as core
from stepladder.evaluate import outcomes
from stepladder.evaluate.collect import LOCAL_ENGINE, Collected, Means, Plan
from stepladder.evaluate.graders import GRADERS
from stepladder.evaluate.grouping import BY_GROUP
from stepladder.evaluate.harvest import Harvest, harvest
from stepladder.evaluate.journal import Journal
from stepladder.evaluate.judging import check_gradable
from stepladder.evaluate.loaders import BENCHMARKS, load
from stepladder.evaluate.pass_at_k import mean_pass_at_k
from stepladder.evaluate.prompts import Prompt, from_tasks, read_prompts
from stepladder.evaluate.sandbox import allow_unconfined
from stepladder.evaluate.tasks import PARAMS
from stepladder.evaluate.tasks.nano import SPLITS, generate
from stepladder.hub import HubFile, fetch
from stepladder.traces.memory import MemoryTraceStore
from stepladder.traces.sqlite import SqliteTraceStore
from stepladder.types import Ladder, Stage

MOST_AT_ONCE = 256
"""As many answers as a local stage can write at once."""

USUAL_SLOTS = 4
"""``n_parallel`` of a local stage that sets none."""

TELL_EVERY_S = 2.0
NANO_TASKS = 1000


_SPLIT_TOLD = (
    f"of --task nano: {', '.join(SPLITS)} (default: train); of a benchmark: the split to fetch, or what the rows of "
    f"--file are called; '{BY_GROUP}' cuts them 60/20/20 into train, validation and test"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", choices=("nano", *BENCHMARKS), help="ask nano's tasks, or a benchmark's")
    source.add_argument("--prompts", metavar="FILE.jsonl", help="ask your own prompts, one JSON object a line")
    source.add_argument("--from", dest="traces", metavar="TRACES.sqlite3", help="take answers from traces, ask none")
    parser.add_argument(
        "--file", metavar="PATH", help="of a benchmark: its file, or a folder of them (default: from the hub)"
    )
    parser.add_argument("--split", help=_SPLIT_TOLD)
    parser.add_argument("--n", type=int, help="of --task: how many tasks (default: 1000 of nano, all of a benchmark)")
    parser.add_argument("--seed", type=int, help="of --task nano: which tasks (default: 1)")
    parser.add_argument("--out", required=True, metavar="TABLE", help="the table to write, .parquet or .jsonl")
    parser.add_argument("--stages", metavar="A,B", help="ask these stages alone (default: all of the ladder)")
    grading = parser.add_mutually_exclusive_group()
    grading.add_argument("--grader", choices=sorted(GRADERS), help="compare all answers with their references so")
    grading.add_argument("--judge", metavar="STAGE", help="let this stage grade every answer")
    grading.add_argument("--agreement", action="store_true", help="quality is the share of other stages that agree")
    parser.add_argument(
        "--unconfined", action="store_true", help="where code cannot be shut in to be graded, run it with your rights"
    )
    parser.add_argument("--at-once", type=int, default=8, metavar="N", help="calls at once to a stage (default: 8)")
    parser.add_argument("--max-cost", metavar="COST", help="refuse to start above this, and stop once it is spent")
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"longest answer (default: {PARAMS['max_tokens']} of nano, of a benchmark what its answers need)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    parser.add_argument(
        "--samples", type=int, default=1, metavar="K", help="answers of each stage to each prompt (default: 1)"
    )
    parser.add_argument(
        "--choices",
        type=int,
        default=1,
        metavar="K",
        help="one answer of each stage, K - 1 more that tell how sure it is of it, and the cost of all (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    with allow_unconfined() if args.unconfined else nullcontext():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    _check(args)
    job = _from_traces(args) if args.traces else _from_prompts(args)
    journal_path = _journal_path(args.out)
    display = Display(sys.stderr.isatty(), job.plan.cost_unit)
    try:
        with Journal(journal_path) as journal, display:
            means = Means(engines=job.engines, costs=job.costs, journal=journal, tell=display.tell)
            collected = asyncio.run(core.collect(job.plan, means))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted. {kept_in(journal_path)}\n")
        return 130
    except StepladderError:
        if display.done:
            sys.stderr.write(kept_in(journal_path) + "\n")
        raise
    return _finish(args, job.plan, collected, display)


def kept_in(journal: Path) -> str:
    if not journal.exists():
        return "Nothing was answered yet."
    return f"What was answered is kept in {journal}; the same command goes on from there."


def _journal_path(out: str) -> Path:
    return Path(f"{out}.journal.jsonl")


def _finish(args: argparse.Namespace, plan: Plan, collected: Collected, display: Display) -> int:
    if collected.rows:
        outcomes.write(collected.rows, args.out)
    sys.stdout.write("\n".join(_summary(args.out, plan, collected, display.seconds)) + "\n")
    if collected.hit_cap:
        told = f"stopped: {collected.spent:.4g} was spent, --max-cost is {plan.max_cost:g}; raise it to go on"
        sys.stderr.write(f"{told}. {kept_in(_journal_path(args.out))}\n")
    return 1 if collected.hit_cap or not collected.rows else 0


# ── what to collect ──────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Job:
    plan: Plan
    engines: Mapping[str, Engine]
    costs: CostModel


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for flags that make no sense, before anything is loaded."""
    outcomes.check_path(args.out)
    if not 1 <= args.at_once <= MOST_AT_ONCE:
        raise UsageError(f"--at-once: {args.at_once} does not lie between 1 and {MOST_AT_ONCE}")
    _check_task(args)
    if args.n is not None and args.n < 1:
        raise UsageError(f"--n: {args.n} is less than 1")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UsageError(f"--max-tokens: {args.max_tokens} is less than 1")
    _check_again(args, "--samples", args.samples)
    _check_again(args, "--choices", args.choices)
    if args.samples > 1 and args.choices > 1:
        raise UsageError("--choices: --samples makes a row of every answer, --choices one of all: give one of the two")
    if args.traces and args.grader:
        raise UsageError("--grader: traces hold no reference answers; give --judge or --agreement, or neither")
    if Path(args.out).exists() and not _journal_path(args.out).exists():
        raise UsageError(f"{args.out}: is there already, and no journal to go on from; name another --out or remove it")


def _check_again(args: argparse.Namespace, flag: str, times: int) -> None:
    if times < 1:
        raise UsageError(f"{flag}: {times} is less than 1")
    if times > 1 and args.traces:
        raise UsageError(f"{flag}: traces hold the answers that there are; nothing is asked again")
    if times > 1 and args.temperature == 0:
        raise UsageError(f"{flag}: at temperature 0 they are all the same; give --temperature too, such as 0.7")


def _check_task(args: argparse.Namespace) -> None:
    benchmarks = ", ".join(BENCHMARKS)
    if args.task not in BENCHMARKS and args.file is not None:
        raise UsageError(f"--file goes with --task {benchmarks}")
    if args.task is None and args.split is not None:
        raise UsageError("--split goes with --task; prompts name their own")
    if args.task == "nano" and args.split not in {None, *SPLITS}:
        raise UsageError(f"--split: nano has no split '{args.split}'; it has {', '.join(SPLITS)}")
    if args.task in BENCHMARKS and args.seed is not None:
        raise UsageError(f"--seed goes with --task nano; {args.task} is asked in the file's order")


def _from_prompts(args: argparse.Namespace) -> _Job:
    prompts = _prompts(args)
    if args.judge is None and not args.agreement:
        check_gradable(prompts, args.grader)
    ladder, costs = priced_ladder(args)
    stages = _chosen(args.stages, ladder)
    judge = None if args.judge is None else _judge(args, ladder)
    plan = Plan(
        prompts=prompts,
        stages=stages,
        method="judge" if judge else "agreement" if args.agreement else "reference",
        params=_params(args),
        grader=args.grader,
        judge=judge,
        samples=max(args.samples, args.choices),
        as_choices=args.choices > 1,
        at_once=args.at_once,
        max_cost=options.number(args.max_cost, "--max-cost"),
        cost_unit=ladder.cost_unit,
    )
    if args.agreement and len(stages) < 2:
        raise UsageError("--agreement needs two stages at the least")
    return _Job(plan, engines_of(ladder, (*stages, *([judge] if judge else [])), args.at_once), costs)


def _from_traces(args: argparse.Namespace) -> _Job:
    found = _harvest(args)
    ladder, costs = priced_ladder(args)
    judge = None if args.judge is None else _judge(args, ladder)
    if judge is not None and ladder.cost_unit != found.cost_unit:
        units = f"the traces' costs are in {found.cost_unit}, those of the judge's ladder in {ladder.cost_unit}"
        raise UsageError(f"--judge: {units}; name a ladder of the same unit with -l")
    plan = Plan(
        prompts=found.prompts,
        stages=(),
        method="judge" if judge else "agreement" if args.agreement else "recorded",
        judge=judge,
        at_once=args.at_once,
        max_cost=options.number(args.max_cost, "--max-cost"),
        cost_unit=found.cost_unit,
        recorded=found.answers,
        scores=found.scores,
    )
    return _Job(plan, engines_of(ladder, (judge,) if judge else (), args.at_once), costs)


def _harvest(args: argparse.Namespace) -> Harvest:
    if not Path(args.traces).is_file():
        raise UsageError(f"--from: {args.traces} is no file")
    with closing(SqliteTraceStore(args.traces)) as store:
        found = harvest(store.read(), store.outcomes, None if args.stages is None else _names(args.stages))
    if not found.answers:
        private = f"; {found.private} traces are private and hold no texts" if found.private else ""
        raise UsageError(f"--from: {args.traces} holds no answer of these stages{private}")
    if args.judge is None and not args.agreement and not found.scores:
        raise UsageError(f"--from: {args.traces} holds no outcomes; give --judge STAGE or --agreement")
    return found


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    if args.prompts:
        return read_prompts(args.prompts)
    if args.task in BENCHMARKS:
        return load(args.task, args.file or _fetched(args), args.split)[: args.n]
    try:
        number, seed = NANO_TASKS if args.n is None else args.n, 1 if args.seed is None else args.seed
        return from_tasks(generate(args.split or "train", number, seed), args.task)
    except ValueError as error:
        raise UsageError(f"--n: {error}") from error


def _fetched(args: argparse.Namespace) -> Path:
    """The benchmark's file in the hub's cache; with "by-group" that of its usual split."""
    benchmark = BENCHMARKS[args.task]
    file = benchmark.hub_file(None if args.split == BY_GROUP else args.split)
    return fetch(HubFile(benchmark.repo, file, None), kind="dataset")


def _params(args: argparse.Namespace) -> dict[str, Any]:
    usual = {"nano": PARAMS["max_tokens"], **{name: benchmark.tokens for name, benchmark in BENCHMARKS.items()}}
    longest = args.max_tokens or usual.get(args.task)
    limit = {} if longest is None else {"max_tokens": longest}
    return {"temperature": args.temperature, **limit}


def priced_ladder(args: argparse.Namespace) -> tuple[Ladder, CostModel]:
    """The ladder and its prices; nothing is predicted or decided here, so neither predictor nor λ is asked for."""
    settings = options.read_settings(args)
    policy = PolicySettings.model_validate({"lambda": 0.0})
    bare = settings.model_copy(update={"policy": policy, "predictor": PredictorSettings()})
    parts = build(bare, store=MemoryTraceStore()).parts
    return parts.ladder, parts.costs


def _chosen(names: str | None, ladder: Ladder) -> tuple[Stage, ...]:
    """The named stages in the ladder's order."""
    if names is None:
        return ladder.stages
    wanted = _names(names)
    for name in wanted:
        if name not in ladder.names:
            raise UsageError(f"--stages: no stage '{name}'; {nearest(name, ladder.names)}")
    return tuple(stage for stage in ladder.stages if stage.name in wanted)


def _names(names: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in names.split(",") if name.strip())
    if not found:
        raise UsageError("--stages names none")
    return found


def _judge(args: argparse.Namespace, ladder: Ladder) -> Stage:
    if args.judge not in ladder.names:
        raise UsageError(f"--judge: no stage '{args.judge}'; {nearest(args.judge, ladder.names)}")
    return ladder[args.judge]


def engines_of(ladder: Ladder, stages: Iterable[Stage], at_once: int) -> dict[str, Engine]:
    """An engine for each stage alone, so that a local model is loaded for its turn and leaves after it."""
    local = sum(stage.engine == LOCAL_ENGINE for stage in ladder.stages)
    ready = (fitted(stage, at_once, local) if stage.engine == LOCAL_ENGINE else stage for stage in stages)
    return {stage.name: make_engines((stage,))[stage.name] for stage in ready}


def fitted(stage: Stage, at_once: int, local: int) -> Stage:
    """A local stage that can write so many answers at once, on as many threads as it has when it serves."""
    slots = max(at_once, stage.options.get("n_parallel", USUAL_SLOTS))
    threads = stage.options.get("threads", max(1, available_cores() // local))
    return replace(stage, options={**stage.options, "n_parallel": slots, "threads": threads})


# ── showing ──────────────────────────────────────────────────────────────────


class Display:
    """Progress on stderr: a bar in a terminal, else a line every two seconds."""

    def __init__(self, is_terminal: bool, unit: str | None) -> None:
        self.done = 0
        self.seconds = 0.0
        self._unit = unit or ""
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("loading")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        if self._bar is not None:
            self._bar.stop()

    def tell(self, progress: core.Progress) -> None:
        """Show how far it is."""
        self.done = progress.done
        now = time.monotonic()
        told = told_progress(progress, now - self._began, self._unit)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, description=told)
        elif now - self._told >= TELL_EVERY_S or progress.done == progress.total:
            self._told = now
            sys.stderr.write(told + "\n")
            sys.stderr.flush()


def told_progress(progress: core.Progress, seconds: float, unit: str) -> str:
    """One line: how many, how fast, how long still, at what cost."""
    rate = progress.done / seconds if seconds > 0 else 0.0
    left = f"{(progress.total - progress.done) / rate:.0f} s left" if rate else "? s left"
    cost = f"cost {progress.spent:.4g} {unit}".rstrip()
    return f"{progress.done}/{progress.total} · {rate:.1f} requests/s · {left} · {cost}"


def _summary(out: str, plan: Plan, collected: Collected, seconds: float) -> list[str]:
    """What came of it, in a few lines."""
    rate = collected.calls / seconds if seconds > 0 else 0.0
    made = f"{collected.calls} calls in {seconds:.1f} s ({rate:.1f} requests/s)"
    lines = [
        f"{len(collected.rows)} rows of {len(plan.prompts)} prompts{f' in {out}' if collected.rows else ''}",
        f"{made}; cost {collected.spent:.4g} {plan.cost_unit or ''}".rstrip(),
    ]
    if collected.left_out:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(collected.left_out.items()))
        lines.append(f"left out {sum(collected.left_out.values())}: {reasons}")
    return [*lines, *_by_stage(collected.rows), *told_passes(collected.rows)]


def _by_stage(rows: Sequence[outcomes.OutcomeRow]) -> list[str]:
    quality: dict[str, list[float]] = {}
    for row in rows:
        quality.setdefault(row.model, []).append(row.quality)
    return [f"{stage}: mean quality {fmean(found):.3f} of {len(found)}" for stage, found in quality.items()]


def told_passes(rows: Sequence[outcomes.OutcomeRow]) -> list[str]:
    """pass@k of every stage, k being the answers that each prompt has; none where that is 1 or a grade is partial."""
    counts = Counter((row.query_id, row.model) for row in rows)
    k = min(counts.values(), default=0)
    if k < 2 or any(row.quality not in {0.0, 1.0} for row in rows):
        return []
    return [f"{stage}: pass@{k} {share:.3f}" for stage, share in mean_pass_at_k(rows, k).items()]
