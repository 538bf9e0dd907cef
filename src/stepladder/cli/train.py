"""``stepladder train``: an outcomes table → a predictor's artifact."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rich.table import Table

from stepladder import plugins
from stepladder.build import profiled
from stepladder.cli import outcomes_options as options
from stepladder.cli.evaluate import policies_of
from stepladder.contracts import Policy, Predictor
from stepladder.errors import UsageError
from stepladder.evaluate.aligned import Aligned
from stepladder.predictors.artifact import Artifact, save
from stepladder.predictors.stack import Profile
from stepladder.train.choose import KINDS, Trained
from stepladder.train.choose import train as fit

PREDICTORS = ("auto", *KINDS)
PROFILES = get_args(Profile)
ALONG = ("cascade", "pandora")
"""Policies that look at answers, for which operating points are chosen where they are installed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_table(parser, split="train", stages_required=True)
    parser.add_argument("--names", metavar="A,B,C", help="the ladder's names for these stages (default: the models')")
    parser.add_argument("--predictor", choices=PREDICTORS, default="auto", help="what to fit (default: auto)")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="which profile of a stack serves where ladder.toml names none (default: full, which λ is calibrated for)",
    )
    parser.add_argument(
        "--quality-loss",
        default="0.01",
        metavar="SHARE",
        help="λ is calibrated to lose at most this share of the dearest stage's quality (default: 0.01)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the artifact")
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def run(args: argparse.Namespace) -> int:
    loss = options.share(args.quality_loss, "--quality-loss")
    if args.profile is not None and args.predictor not in ("auto", "stack"):
        raise UsageError(f"--profile: only a stack has profiles, not '{args.predictor}': leave it out")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"--out: {args.out} is a file; name a folder, which is made where it is not there")
    data = options.read_table(args, options.words(args.stages, "--stages"), options.words(args.names, "--names"))
    featurizer = plugins.load("features", "paper")()
    trained = fit(
        data,
        args.predictor,
        predictor_of,
        featurizer,
        quality_loss=loss,
        policies=_along(len(data.stages)),
        seed=options.seed(args),
        tick=lambda told: _tell(f"fitting {told} …"),
    )
    note = f"{args.outcomes}, split {args.split}: {args.stages}"
    created = time.strftime("%Y-%m-%d", time.gmtime())
    artifact = trained.artifact
    if artifact.kind == "stack":
        artifact = profiled(artifact, args.profile, "--profile")
    path = save(replace(artifact, created=created, note=note), args.out)
    _show(trained, data, loss)
    if args.profile is not None and artifact.kind != "stack":
        sys.stdout.write(f"--profile {args.profile}: what was chosen is no stack and has no profiles\n")
    sys.stdout.write(f"written: {path}\n")
    return 0


def _along(stages: int) -> dict[str, Policy]:
    installed = ("cascade", *plugins.names("policies"))
    return policies_of([name for name in ALONG if name in installed], stages)


def predictor_of(artifact: Artifact) -> Predictor:
    """The predictor as serving would make it. Raises PluginError and ArtifactError."""
    made: Predictor = plugins.load("predictors", artifact.kind)(artifact.stages, artifact.params, artifact.arrays)
    return made


def _tell(told: str) -> None:
    sys.stderr.write(f"{told}\n")
    sys.stderr.flush()


def _show(trained: Trained, data: Aligned, loss: float) -> None:
    console = options.console()
    table = Table(title=f"out of fold, {trained.compared} queries", title_justify="left")
    for column in ("predictor", "log-loss", "Brier", "R²", "AUC", ""):
        table.add_column(column, justify="left" if column in ("predictor", "") else "right")
    for trial in trained.trials:
        figures = [f"{trial.scores[name]:.4f}" for name in ("logloss", "brier", "r2", "auc")]
        chosen = trial.name == trained.chosen
        table.add_row(trial.name, *figures, "◀ fitted" if chosen else "", style="bold" if chosen else None)
    console.print(table)
    for note in trained.notes:
        console.print(f"· {note}", highlight=False, soft_wrap=True)
    console.print(f"{len(data)} queries, {data.dropped} left out for want of a stage", highlight=False, soft_wrap=True)
    console.print(_operating_point(trained, data, loss), highlight=False, soft_wrap=True)


def _operating_point(trained: Trained, data: Aligned, loss: float) -> str:
    found, dearest = trained.calibrated, float(data.cost[:, -1].mean())
    if found.lam is None:
        return (
            f"no λ keeps the loss within {loss:.1%} of the dearest stage's quality: the best reaches "
            f"{found.quality:.4f}, the dearest stage {float(data.quality[:, -1].mean()):.4f}; the artifact has no λ "
            "of its own"
        )
    saved = 1 - found.cost / dearest if dearest > 0 else 0.0
    return (
        f"λ = {found.lam:.4g} {data.cost_unit} for one unit of quality: quality {found.quality:.4f}, "
        f"cost {found.cost:.4g}, {saved:.1%} below the dearest stage's (out of fold)"
    )
