"""``stepladder evaluate``: an artifact judged on outcomes that it has not seen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from stepladder import plugins
from stepladder.build import profiled
from stepladder.cli import outcomes_options as options
from stepladder.contracts import Policy
from stepladder.errors import UsageError
from stepladder.evaluate import html, markdown, operating, tables
from stepladder.evaluate.aligned import Aligned, Pricing, align
from stepladder.evaluate.outcomes import OutcomeRow, read
from stepladder.evaluate.reference import SEEN, Reference, from_metrics, overlap, reference_of, seen, suited
from stepladder.evaluate.report import POLICIES, Beside, Subject, report
from stepladder.evaluate.scores import Posterior, estimate
from stepladder.predictors.artifact import Artifact, load
from stepladder.predictors.stack import Profile

FURTHER = ("pandora", "cascade-route", "optimal")
"""Policies that are played besides POLICIES where they are installed."""

OPTIMAL_STAGES = 5
"""``optimal`` looks at all sets of answers: with more stages it is played only where it is asked for."""

OVERLAP_LIMIT = 0.1
"""Share of judged queries known from training above which the judgement is refused instead of doing without them."""

UNPRINTED = ("Baselines",)
"""Tables too long for a terminal: the files have them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_table(parser, split="validation", stages_required=False)
    parser.add_argument("--artifact", required=True, metavar="DIR", help="what 'stepladder train' wrote")
    parser.add_argument(
        "--profile",
        choices=get_args(Profile),
        help="the profile of a stack that is played (default: the artifact's; with full, fast is judged beside it)",
    )
    parser.add_argument(
        "--train-split",
        default="train",
        metavar="SPLIT",
        help="rows of the table that baselines learn from, those that the artifact was trained on (default: train)",
    )
    parser.add_argument(
        "--policies",
        metavar="A,B",
        help=f"policies to play (default: {','.join(POLICIES)} and, where installed, {','.join(FURTHER)}; "
        f"optimal up to {OPTIMAL_STAGES} stages)",
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="judge also on queries whose group was trained on; marked in the output",
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="for the intervals (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as one page of Markdown")
    parser.add_argument("--html", metavar="FILE", help="write a report of one file")


def run(args: argparse.Namespace) -> int:
    if args.resamples < 1:
        raise UsageError(f"--resamples: {args.resamples} should be at least 1")
    artifact = profiled(load(args.artifact), args.profile, "--profile")
    policies = policies_of(options.words(args.policies, "--policies"), len(artifact.stages))
    models = models_of(args, artifact)
    rows, priced = read(args.outcomes), options.pricing(args, models)
    data = align(rows, models, names=artifact.stages, split=args.split, pricing=priced)
    data, known = unseen(data, artifact, allow=args.allow_overlap)
    train, notes = _train(args, artifact, data, (rows, models, priced))
    subject, more = subject_of(artifact, data, train, options.seed(args))
    subject = replace(subject, profile=profile_of(artifact), fast=_fast(artifact, data))
    found = report(subject, policies=policies, times=args.resamples)
    found = {**_about(args, artifact, models, known), **found, "notes": [*notes, *more, *found["notes"]]}
    _write(found, args)
    _show(found)
    return 0


def models_of(args: argparse.Namespace, artifact: Artifact) -> tuple[str, ...]:
    """The table's names of the artifact's stages. Raises UsageError where --stages names more or fewer."""
    models = options.words(args.stages, "--stages") or artifact.stages
    if len(models) != len(artifact.stages):
        told = f"the artifact is of {len(artifact.stages)} stages, {' < '.join(artifact.stages)}"
        raise UsageError(f"--stages names {len(models)}; {told}")
    return models


def policies_of(asked: Sequence[str], stages: int) -> dict[str, Policy]:
    """The policies to play, by name; ``cascade`` is the greedy rule asked again after every answer.

    Without names: POLICIES, and those of FURTHER that are installed. Raises PluginError for a name that nobody
    registered, UsageError for a policy that needs options (its own are not known here).
    """
    names = asked or (*POLICIES, *(name for name in FURTHER if name in plugins.names("policies")))
    if not asked and stages > OPTIMAL_STAGES:
        names = [name for name in names if name != "optimal"]
    return {name: POLICIES.get(name) or plugins.make("policies", name) for name in names}


# ── judging ──────────────────────────────────────────────────────────────────


def unseen(data: Aligned, artifact: Artifact, *, allow: bool | None = False) -> tuple[Aligned, dict[str, Any]]:
    """The rows that the artifact was not trained on, and how many queries were known from training.

    Raises UsageError where those are many; ``allow`` keeps all instead, None says that nothing does.
    """
    known = overlap(data, artifact.arrays)
    count, share = int(known.sum()), float(known.mean())
    if share > OVERLAP_LIMIT and not allow:
        told = f"the artifact was trained on {count} of these {len(data)} queries, or on others of their groups: "
        told += "take another split" if allow is None else "judge it on another split"
        unless = "" if allow is None else ", or say --allow-overlap, which will be marked in the output"
        raise UsageError(told + unless)
    facts = {"queries": count, "share": share, "judged_nevertheless": bool(allow and count)}
    return (data if allow else data.take(~known)), facts


Asked = tuple[Sequence[OutcomeRow], Sequence[str], Pricing]
"""Rows, the models that are wanted of them, and what they cost."""


def _train(
    args: argparse.Namespace, artifact: Artifact, data: Aligned, asked: Asked
) -> tuple[Aligned | None, list[str]]:
    """The training rows in the same table, for baselines to learn from what the predictor learned from.

    None where there are none, or no more than are judged.
    """
    rows, models, priced = asked
    try:
        train = align(rows, models, names=artifact.stages, split=args.train_split, pricing=priced)
    except UsageError as error:
        return None, [f"no training rows: {error}"]
    train = train.take(~overlap(train, {SEEN: seen(data)}))
    learned = overlap(train, artifact.arrays)
    if not len(train):
        return None, [f"no training rows: all of split '{args.train_split}' are judged"]
    if learned.any():
        return train.take(learned), []
    told = (
        f"baselines learned from {len(train)} rows of split '{args.train_split}' that the artifact was not trained on"
    )
    return train, [told]


def subject_of(
    artifact: Artifact, data: Aligned, train: Aligned | None = None, seed: int = 0
) -> tuple[Subject, list[str]]:
    """The artifact's estimates of these rows, made ready to be played, and what there is to say of them."""
    reference, notes = _reference(artifact, data)
    said = _said(artifact, data)
    suits = artifact.cost_unit == data.cost_unit
    points = operating.all_of(artifact.metrics) if suits else {}
    if not points:
        notes.append("no operating points chosen on training rows stand in the artifact for these costs")
    subject = Subject(
        data,
        said.estimates,
        reference,
        after=said.after,
        train=train,
        lam=artifact.lambda_ if suits else None,
        points=points,
        seed=seed,
    )
    return subject, notes


def profile_of(artifact: Artifact) -> str | None:
    """The profile of a stack that serves; None for what has no profiles."""
    return str(artifact.params.get("profile", "full")) if artifact.kind == "stack" else None


def _fast(artifact: Artifact, data: Aligned) -> Beside | None:
    """What the profile ``fast`` says, where the artifact serves ``full`` and has both."""
    if profile_of(artifact) != "full" or "fast" not in artifact.params:
        return None
    return _said(profiled(artifact, "fast", "--profile"), data)


def _said(artifact: Artifact, data: Aligned) -> Beside:
    """Estimates before and after answers, through the parts that serve."""
    predictor = plugins.load("predictors", artifact.kind)(artifact.stages, artifact.params, artifact.arrays)
    featurizer = plugins.load("features", artifact.features)()
    return Beside(estimate(predictor, featurizer, data.requests), Posterior(predictor, featurizer, data.requests))


def _reference(artifact: Artifact, data: Aligned) -> tuple[Reference, list[str]]:
    reference = from_metrics(artifact.metrics, artifact.stages)
    if reference is None:
        told = "the artifact remembers no training means: the grid of λ is that of the judged rows themselves"
        return reference_of(data), [told]
    return suited(reference, artifact.cost_unit, data)


def _about(
    args: argparse.Namespace, artifact: Artifact, models: Sequence[str], known: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "outcomes": str(args.outcomes),
        "split": args.split,
        "models": list(models),
        "artifact": {"kind": artifact.kind, "version": artifact.version, "created": artifact.created},
        "overlap": dict(known),
        "seed": args.seed,
        "resamples": args.resamples,
    }


# ── showing ──────────────────────────────────────────────────────────────────


def _write(found: Mapping[str, Any], args: argparse.Namespace) -> None:
    if args.json is not None:
        _put(args.json, json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    if args.markdown is not None:
        _put(args.markdown, markdown.page(found))
    if args.html is not None:
        _put(args.html, html.page(found))


def _put(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _show(found: Mapping[str, Any]) -> None:
    console = options.console()
    for told in tables.facts(found):
        console.print(told, highlight=False, soft_wrap=True)
    for table in tables.tables(found):
        if table.title not in UNPRINTED:
            console.print(_printed(table))
    for note in found["notes"]:
        console.print(f"· {note}", highlight=False, soft_wrap=True)
    sys.stdout.flush()


def _printed(table: tables.Table) -> Table:
    made = Table(title=f"{table.title}: {table.told}" if table.told else table.title, title_justify="left")
    for number, name in enumerate(table.head):
        made.add_column(name, justify="right" if number else "left")
    for line in table.lines:
        made.add_row(*line)
    return made
