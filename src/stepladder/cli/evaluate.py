"""``stepladder evaluate``: an artifact judged on outcomes that it has not seen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from stepladder import plugins
from stepladder.cli import outcomes_options as options
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned
from stepladder.evaluate.html import WHEN, page
from stepladder.evaluate.reference import Reference, from_metrics, overlap, reference_of, suited
from stepladder.evaluate.report import report
from stepladder.evaluate.scores import Posterior, estimate
from stepladder.predictors.artifact import Artifact, load

OVERLAP_LIMIT = 0.1
"""Share of judged queries known from training above which the judgement is refused instead of doing without them."""

SCORES = ("r2", "auc", "brier", "logloss", "ece", "ece_floor", "n")


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_table(parser, split="validation", stages_required=False)
    parser.add_argument("--artifact", required=True, metavar="DIR", help="what 'stepladder train' wrote")
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="judge also on queries whose group was trained on; marked in the output",
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="for the intervals (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a report of one file")


def run(args: argparse.Namespace) -> int:
    if args.resamples < 1:
        raise UsageError(f"--resamples: {args.resamples} should be at least 1")
    artifact = load(args.artifact)
    models = options.words(args.stages, "--stages") or artifact.stages
    if len(models) != len(artifact.stages):
        told = f"the artifact is of {len(artifact.stages)} stages, {' < '.join(artifact.stages)}"
        raise UsageError(f"--stages names {len(models)}; {told}")
    data = options.read_table(args, models, artifact.stages)
    data, known = _unseen(data, artifact, allow=args.allow_overlap)
    found = {**_about(args, artifact, models, known), **_judged(args, artifact, data)}
    _write(found, args)
    _show(found)
    return 0


# ── judging ──────────────────────────────────────────────────────────────────


def _unseen(data: Aligned, artifact: Artifact, *, allow: bool) -> tuple[Aligned, dict[str, Any]]:
    """The rows to judge on, and how many queries were known from training. Raises UsageError where those are many."""
    known = overlap(data, artifact.arrays)
    count, share = int(known.sum()), float(known.mean())
    if share > OVERLAP_LIMIT and not allow:
        raise UsageError(
            f"the artifact was trained on {count} of these {len(data)} queries, or on others of their groups: judge it "
            "on another split, or say --allow-overlap, which will be marked in the output"
        )
    facts = {"queries": count, "share": share, "judged_nevertheless": bool(allow and count)}
    return (data if allow else data.take(~known)), facts


def _judged(args: argparse.Namespace, artifact: Artifact, data: Aligned) -> dict[str, Any]:
    reference, notes = _reference(artifact, data)
    lam = artifact.lambda_ if artifact.cost_unit == data.cost_unit else None
    predictor = plugins.load("predictors", artifact.kind)(artifact.stages, artifact.params, artifact.arrays)
    featurizer = plugins.load("features", artifact.features)()
    estimates = estimate(predictor, featurizer, data.requests)
    after = Posterior(predictor, featurizer, data.requests)
    found = report(data, estimates, reference, after=after, lam=lam, seed=options.seed(args), times=args.resamples)
    return {**found, "notes": [*notes, *found["notes"]]}


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
    if args.html is not None:
        _put(args.html, page(found))


def _put(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _show(found: Mapping[str, Any]) -> None:
    console = options.console()
    unseen = [name for name, facts in found["datasets"].items() if not facts["seen_in_training"]]
    console.print(
        f"{found['n']} queries of split '{found['split']}'; left out: {found['dropped']} for want of a stage"
        f"; datasets not seen in training: {', '.join(unseen) or 'none'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_overlap_told(found["overlap"]), highlight=False, soft_wrap=True)
    for when, figures in found["predictor"].items():
        console.print(_predictor_table(WHEN[when], figures))
    console.print(_policy_table(found))
    console.print(_summary_table(found["summary"]))
    for note in found["notes"]:
        console.print(f"· {note}", highlight=False, soft_wrap=True)
    sys.stdout.flush()


def _overlap_told(facts: Mapping[str, Any]) -> str:
    if facts["judged_nevertheless"]:
        return f"OVERLAP: {facts['queries']} of these queries were known from training; the figures are too good"
    return f"known from training and left out: {facts['queries']} queries"


def _predictor_table(when: str, figures: Mapping[str, Any]) -> Table:
    pooled = figures["pooled"]
    within = f"R² within stage {_figure(pooled['r2_within_stage'])}"
    if "r2_within_class" in pooled:
        within += f", within class and stage {_figure(pooled['r2_within_class'])}"
    table = _table(
        f"predicted quality, {when}; {within}",
        "stage",
        "R²",
        "AUC",
        "Brier",
        "log-loss",
        "ECE",
        "its floor",
        "n",
    )
    for line in ({"stage": "all, pooled", **pooled}, *figures["per_stage"]):
        table.add_row(line["stage"], *(_figure(line[name]) for name in SCORES[:-1]), str(line["n"]))
    return table


def _policy_table(found: Mapping[str, Any]) -> Table:
    shown = {*found["lambda_grid"], found["lambda_calibrated"]}
    lines = [line for line in found["policies"] if line["lambda"] in shown]
    lines += [line for line in found["baselines"] if line["name"].startswith(("single:", "fixed:"))]
    lines += [line for line in found["baselines"] if line["name"] == "oracle"][-1:]
    table = _table(
        f"policies, costs in {found['cost_unit']}", "policy", "λ", "quality", "95 %", "cost", "95 %", "answers by stage"
    )
    for line in lines:
        lam = "" if line["lambda"] is None or line["name"] == "oracle" else f"{line['lambda']:.3g}"
        mark = " ◀" if line["name"] == "greedy" and line["lambda"] == found["lambda_calibrated"] else ""
        shares = " / ".join(f"{share:.0%}" for share in line["shares"].values())
        figures = (_figure(line["quality"]), _range(line["quality_ci"]), _figure(line["cost"]), _range(line["cost_ci"]))
        table.add_row(line["name"] + mark, lam, *figures, shares)
    return table


def _summary_table(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    names = ("cost_save", "perf_gain", "apgr", "cpt50", "cpt80", "cost_auc", "gap_closed")
    table = _table("along λ (best points in hindsight)", "policy", *names)
    for name, figures in summary.items():
        if not name.startswith(("single:", "fixed:")):
            table.add_row(name, *(f"{_figure(figures[key])}\n{_range(figures[f'{key}_ci'])}" for key in names))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{round(value, 3) + 0.0:.3f}"


def _range(pair: Sequence[float | None]) -> str:
    return "" if None in pair else f"{_figure(pair[0])} … {_figure(pair[1])}"
