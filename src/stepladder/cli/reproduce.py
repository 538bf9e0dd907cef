"""``stepladder reproduce``: the paper's whole experiment on a real ladder, its tables beside what is measured."""

from __future__ import annotations

import argparse
import asyncio
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stepladder import config, plugins
from stepladder.cli import options
from stepladder.cli import outcomes_options as table_options
from stepladder.cli.collect import Display, engines_of, kept_in, priced_ladder
from stepladder.cli.options import NANO
from stepladder.cli.train import predictor_of
from stepladder.contracts import CostModel
from stepladder.engines.threads import available_cores
from stepladder.errors import MissingExtraError, StepladderError, UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.aligned import ALL, Aligned, align
from stepladder.evaluate.collect import Collected
from stepladder.evaluate.collect import Plan as Asked
from stepladder.evaluate.judging import check_gradable
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.evaluate.prompts import Prompt, from_tasks, read_prompts
from stepladder.evaluate.tasks import PARAMS
from stepladder.evaluate.tasks.nano import generate
from stepladder.files import replace_file
from stepladder.predictors.artifact import save
from stepladder.reproduce import asking, plots, report
from stepladder.reproduce import experiment as core
from stepladder.reproduce.experiment import Plan
from stepladder.reproduce.fits import Fitted, Makers
from stepladder.types import Ladder
from stepladder.version import __version__

SHIPPED = config.PRESETS / NANO / "outcomes.parquet"
SHIPPED_PROMPTS = 33_334
JOURNAL = "answers.journal.jsonl"
TABLES = ("judged.parquet", "train.parquet")

JUDGED, MOST_JUDGED = 2000, 20_000


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_ladder(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report and all that belongs to it")
    parser.add_argument("--outcomes", metavar="TABLE", help="outcomes to train on (default for nano: those shipped)")
    parser.add_argument(
        "--prompts", metavar="FILE.jsonl", help="your own prompts, as for collect, each with a reference"
    )
    parser.add_argument("--judged", type=int, metavar="N", help=f"of nano: judged prompts (default: {JUDGED})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of prompts, fits and intervals (default: 1)")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="for the intervals (default: 1000)")
    parser.add_argument(
        "--quality-loss",
        default="0.01",
        metavar="SHARE",
        help="λ is calibrated to lose at most this share of the dearest stage's quality (default: 0.01)",
    )
    parser.add_argument("--max-cost", metavar="COST", help="refuse to ask above this, and stop once it is spent")
    parser.add_argument("--no-plots", action="store_true", help="write no pictures; then matplotlib is not needed")


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    plan = _check(args)
    job = _job(args)
    out = _folder(args.out)
    try:
        collected = _ask(args, job, out)
        if collected.hit_cap:
            sys.stderr.write(f"stopped: --max-cost {args.max_cost} is spent. {kept_in(out / JOURNAL)}\n")
            return 1
        answers = _sorted(job, collected)
        fitted, found = _experiment(job, answers, plan)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted. {kept_in(out / JOURNAL)}\n")
        return 130
    found = {**found, "versions": _versions(job, fitted), "run": _about(time.monotonic() - began)}
    _write(found, fitted, answers, out, with_plots=not args.no_plots)
    sys.stdout.write(f"{report.summary(found)}\nwritten: {out / 'report.md'}\n")
    return 0


# ── what is asked of the command ─────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Job:
    """``training`` are the outcomes to train on, None where they come from ``trained_on``, the first of ``prompts``."""

    ladder: Ladder
    costs: CostModel
    version: str
    training: Aligned | None
    trained_on: Sequence[Prompt]
    judged: Sequence[Prompt]
    params: Mapping[str, Any]
    max_cost: float | None


def _check(args: argparse.Namespace) -> Plan:
    """What the flags amount to; raises UsageError and MissingExtraError before anything is read."""
    if args.judged is not None and args.prompts:
        raise UsageError("--judged is of nano's prompts; of your own, those are judged that are not trained on")
    if args.judged is not None and not 1 <= args.judged <= MOST_JUDGED:
        raise UsageError(f"--judged: {args.judged} does not lie between 1 and {MOST_JUDGED}")
    if args.resamples < 1:
        raise UsageError(f"--resamples: {args.resamples} should be at least 1")
    loss = table_options.share(args.quality_loss, "--quality-loss")
    if find_spec("sklearn") is None:
        raise MissingExtraError("training", "train")
    if not args.no_plots and find_spec("matplotlib") is None:
        raise MissingExtraError("the report's plots (--no-plots does without them)", "report")
    outcomes.check_path(TABLES[0])
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"--out: {args.out} is a file; name a folder, which is made where it is not there")
    return Plan(quality_loss=loss, resamples=args.resamples, seed=table_options.seed(args))


def _job(args: argparse.Namespace) -> _Job:
    """Ladder, training outcomes and prompts, with everything refused that can be before the first call."""
    max_cost = options.number(args.max_cost, "--max-cost")
    named = options.ladder(args)
    if args.prompts is None and named != NANO:
        raise UsageError(f"--prompts: the ladder '{named}' has no prompts of its own; name a file of yours")
    trained_on, judged = _own_prompts(args) if args.prompts else ([], _nano_prompts(args))
    ladder, costs = priced_ladder(args)
    if len(ladder.stages) < 2:
        raise UsageError(
            f"the ladder '{ladder.name}' has one stage, {ladder.names[0]}: there is nothing to choose from"
        )
    training = None if trained_on else _training(args, ladder)
    known = core.asked(trained_on) if training is None else training
    core.refuse_few(known)
    core.refuse_overlap(known, core.asked(judged))
    params = {"temperature": 0.0} if args.prompts else dict(PARAMS)
    version = options.read_settings(args).version
    return _Job(ladder, costs, version, training, trained_on, judged, params, max_cost)


def _nano_prompts(args: argparse.Namespace) -> list[Prompt]:
    try:
        return from_tasks(generate("judged", args.judged or JUDGED, args.seed), NANO)
    except ValueError as error:
        raise UsageError(f"--judged: {error}") from error


def _own_prompts(args: argparse.Namespace) -> tuple[list[Prompt], list[Prompt]]:
    """One's own prompts to train on and to judge on; none of the first where there is a table to train on."""
    prompts = read_prompts(args.prompts)
    for prompt in prompts:
        missing = "reference" if prompt.reference is None else "grader" if prompt.grader is None else None
        if missing is not None:
            raise UsageError(
                f"{prompt.where}: the query '{prompt.query_id}' has no {missing}: measured quality needs a 'reference' "
                "and a 'grader' with every prompt"
            )
        if prompt.query_id.startswith(asking.TEN):
            raise UsageError(f"{prompt.where}: query_id: names that begin with '{asking.TEN}' are taken")
    check_gradable(prompts, None)
    if args.outcomes is not None:
        named = any(prompt.split is not None for prompt in prompts)
        judged = [prompt for prompt in prompts if not named or prompt.split != "train"]
        if not judged:
            raise UsageError(f"{args.prompts}: all prompts are of split 'train': none is left to judge on")
        return [], judged
    training = core.is_training(prompts)
    pairs = list(zip(prompts, training, strict=True))
    return [prompt for prompt, first in pairs if first], [prompt for prompt, first in pairs if not first]


def _training(args: argparse.Namespace, ladder: Ladder) -> Aligned:
    """The table to train on: its split "train", or all of it where it names no splits."""
    path = Path(args.outcomes or SHIPPED)
    if not path.is_file():
        told = "is no file" if args.outcomes else "does not come with this copy of Stepladder"
        raise UsageError(
            f"--outcomes: {path} {told}; the training outcomes are made by: stepladder collect "
            f"-l {options.ladder(args)} --task nano --split train --n {SHIPPED_PROMPTS} --out outcomes.parquet"
        )
    rows = outcomes.read(path)
    named = any(row.split is not None for row in rows)
    return align(rows, ladder.names, split="train" if named else ALL)


def _folder(name: str) -> Path:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {name} cannot be made: {error.strerror or error}") from error
    return Path(name)


# ── running ──────────────────────────────────────────────────────────────────


def _ask(args: argparse.Namespace, job: _Job, out: Path) -> Collected:
    """Live answers to all prompts, kept in a journal as they come."""
    stages = job.ladder.stages
    plan = Asked(
        prompts=[*job.trained_on, *job.judged, *asking.paper_prompts()],
        stages=stages,
        params=job.params,
        at_once=1,
        max_cost=job.max_cost,
        cost_unit=job.ladder.cost_unit,
    )
    display = Display(sys.stderr.isatty(), job.ladder.cost_unit)
    engines = engines_of(job.ladder, stages, plan.at_once)
    try:
        with display:
            return asyncio.run(asking.ask_in_turn(plan, engines, job.costs, out / JOURNAL, display.tell))
    except StepladderError:
        if display.done:
            sys.stderr.write(kept_in(out / JOURNAL) + "\n")
        raise


class _Answers(NamedTuple):
    """Rows by what they are for; ``training`` is empty where a table is trained on."""

    training: Sequence[OutcomeRow]
    judged: Sequence[OutcomeRow]
    ten: Sequence[OutcomeRow]


def _sorted(job: _Job, collected: Collected) -> _Answers:
    """Raises UsageError where a stage answered none of the prompts to train on, or none of those to judge on."""
    first = {prompt.query_id for prompt in job.trained_on}
    own = [row for row in collected.rows if not asking.is_paper(row)]
    found = _Answers(
        [row for row in own if row.query_id in first],
        [row for row in own if row.query_id not in first],
        [row for row in collected.rows if asking.is_paper(row)],
    )
    _refuse_silence("judged", found.judged, job.ladder, collected)
    if job.training is None:
        _refuse_silence("training", found.training, job.ladder, collected)
    return found


def _refuse_silence(what: str, rows: Sequence[OutcomeRow], ladder: Ladder, collected: Collected) -> None:
    heard = {row.model for row in rows}
    silent = [name for name in ladder.names if name not in heard]
    if silent:
        who = f"by {', '.join(silent)}" if heard else "by any stage"
        faults = ", ".join(f"{count} {why}" for why, count in sorted(collected.left_out.items()))
        raise UsageError(f"no {what} prompt was answered {who}: is the ladder at work? (left out in all: {faults})")


def _experiment(job: _Job, answers: _Answers, plan: Plan) -> tuple[tuple[Fitted, Fitted], dict[str, Any]]:
    names, judged = job.ladder.names, align(answers.judged, job.ladder.names)
    training = align(answers.training, names) if job.training is None else job.training
    data = core.prepared(training, judged, core.ten_aligned(answers.ten, names, judged))
    makers = Makers(predictor_of, lambda name: plugins.load("features", name)())
    fitted = core.fit_both(data.train, makers, plan, _tell)
    return fitted, core.experiment(data, fitted, makers, plan, clock=time.perf_counter, tick=_tell)


def _tell(told: str) -> None:
    sys.stderr.write(f"{told} …\n")
    sys.stderr.flush()


# ── writing ──────────────────────────────────────────────────────────────────


def _versions(job: _Job, fitted: Sequence[Fitted]) -> dict[str, Any]:
    return {
        "code": __version__,
        "config": job.version,
        "costs": job.costs.version,
        "artifacts": {each.name: each.artifact.version for each in fitted},
    }


def _about(seconds: float) -> dict[str, Any]:
    return {
        "command": shlex.join(["stepladder", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(seconds, 1),
        "machine": {"platform": platform.platform(), "cores": available_cores(), "python": platform.python_version()},
    }


def _write(
    found: Mapping[str, Any], fitted: Sequence[Fitted], answers: _Answers, out: Path, *, with_plots: bool
) -> None:
    """Everything that the report consists of, once all of it is made; the page itself last."""
    pictures = plots.draw(found) if with_plots else {}
    page = report.page(found, with_plots=with_plots)
    for name, rows in zip(TABLES, (answers.judged, answers.training), strict=True):
        if rows:
            outcomes.write(rows, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # an earlier run's, of other data
    created = found["run"]["date"]
    for each, name in zip(fitted, ("artifact-paper", "artifact"), strict=True):
        note = f"{each.name} of stepladder reproduce, {len(each.artifact.stages)} stages"
        save(replace(each.artifact, created=created, note=note), out / name)
    _put(out / "ten-prompts.jsonl", asking.ten_table(answers.ten))
    _put(out / "report.json", orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    for name in plots.FILES:
        if name in pictures:
            _put(out / name, pictures[name])
        else:
            (out / name).unlink(missing_ok=True)
    _put(out / "report.md", page.encode())


def _put(path: Path, data: bytes) -> None:
    """The old file or the whole new one."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
