"""``stepladder calibrate``: the operating point that serving starts from, set on outcomes and kept in the artifact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from stepladder.cli import outcomes_options as options
from stepladder.cli.evaluate import models_of, policies_of, subject_of, unseen
from stepladder.cli.options import number
from stepladder.errors import UsageError
from stepladder.evaluate import calibration, compare
from stepladder.evaluate.calibration import Replay, Setting
from stepladder.evaluate.compare import Played
from stepladder.evaluate.report import BEFORE, Subject
from stepladder.predictors.artifact import Artifact, load, save

PREFIX = "calibrated."
"""What the names of the artifact's metrics that this verb writes begin with."""

CONFIGURED = {"cascade": '{ name = "greedy", cascade = true }'}
"""How ladder.toml says a policy whose name here is not its own."""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_table(parser, split="validation", stages_required=False)
    parser.add_argument(
        "--artifact", required=True, metavar="DIR", help="what 'stepladder train' wrote; changed in place"
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--target-cost", metavar="COST", help="the most quality for this mean cost of a request")
    wanted.add_argument("--target-quality", metavar="QUALITY", help="the smallest λ with this mean quality, 0 to 1")
    wanted.add_argument("--lambda", dest="lam", metavar="λ", help="this λ; what it does is told")
    wanted.add_argument(
        "--floor",
        metavar="EPS,DELTA",
        help="the smallest λ at which quality drops by more than EPS below the dearest stage's with probability DELTA "
        "at the most",
    )
    parser.add_argument(
        "--policy", default="greedy", metavar="NAME", help="the policy that will serve (default: greedy)"
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="for the intervals (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def run(args: argparse.Namespace) -> int:
    if args.resamples < 1:
        raise UsageError(f"--resamples: {args.resamples} should be at least 1")
    artifact = load(args.artifact)
    wanted = _wanted(args)
    data = options.read_table(args, models_of(args, artifact), artifact.stages)
    if data.cost_unit != artifact.cost_unit:
        told = f"the artifact counts costs in {artifact.cost_unit}, these rows are in {data.cost_unit}"
        raise UsageError(f"{told}: a λ of one is none of the other; give --costs or --prices as in training")
    data, _ = unseen(data, artifact, allow=None)
    subject, _ = subject_of(artifact, data, seed=options.seed(args))
    replay = replay_of(subject, args.policy)
    found = _found(replay, subject, wanted)
    did = measured(subject, found.played, args.resamples)
    kept = {name: value for name, value in artifact.metrics.items() if not name.startswith(PREFIX)}
    promise = {f"{PREFIX}{args.policy}.{name}": value for name, value in {**wanted, **did, **_mix(found)}.items()}
    path = save(replace(artifact, lambda_=found.lam, metrics={**kept, **promise}), args.artifact)
    _show(args.policy, artifact, found, did, replay)
    sys.stdout.write(f"written: {path}\n")
    return 0


def replay_of(subject: Subject, name: str) -> Replay:
    """The policy of this name on the subject's rows. Raises as ``evaluate.policies_of`` does."""
    policy = policies_of((name,), len(subject.data.stages))[name]
    after = None if name in BEFORE else subject.after

    def play(lam: float) -> Played:
        return compare.play(subject.bench, name, policy, subject.estimates, lam=lam, after=after)

    return Replay(play, subject.grid)


def measured(subject: Subject, played: Played, times: int) -> dict[str, float]:
    """Mean quality and cost with their 95 % intervals (``NAME_low``, ``NAME_high``), and ``n`` queries."""
    ((quality, cost),) = compare.intervals(subject.data, [played], np.random.default_rng(subject.seed), times=times)
    return {
        "quality": float(played.quality.mean()),
        "quality_low": quality[0],
        "quality_high": quality[1],
        "cost": float(played.cost.mean()),
        "cost_low": cost[0],
        "cost_high": cost[1],
        "n": float(len(subject.data)),
    }


# ── what is asked for ────────────────────────────────────────────────────────


def _wanted(args: argparse.Namespace) -> dict[str, float]:
    """What was asked for, as numbers by name. Raises UsageError naming the flag."""
    if args.floor is not None:
        parts = options.words(args.floor, "--floor")
        if len(parts) != 2:
            raise UsageError(f"--floor: '{args.floor}' should be two shares with a comma between, such as 0.1,0.05")
        return dict(zip(("epsilon", "delta"), (options.share(part, "--floor") for part in parts), strict=True))
    if args.target_quality is not None:
        return {"target_quality": options.share(args.target_quality, "--target-quality")}
    if args.target_cost is not None:
        return {"target_cost": number(args.target_cost, "--target-cost") or 0.0}
    return {"lambda": number(args.lam, "--lambda") or 0.0}


def _found(replay: Replay, subject: Subject, wanted: Mapping[str, float]) -> Setting:
    if "target_cost" in wanted:
        return calibration.at_cost(replay, wanted["target_cost"])
    if "target_quality" in wanted:
        return calibration.at_quality(replay, wanted["target_quality"])
    if "lambda" in wanted:
        return Setting(replay(wanted["lambda"]), wanted["lambda"])
    return calibration.at_floor(replay, subject.data.quality[:, -1], wanted["epsilon"], wanted["delta"])


def _mix(found: Setting) -> dict[str, float]:
    if found.mix is None:
        return {}
    return {f"mix_{name}": value for name, value in found.mix._asdict().items()}


# ── showing ──────────────────────────────────────────────────────────────────


def _show(policy: str, artifact: Artifact, found: Setting, told: Mapping[str, float], replay: Replay) -> None:
    unit, lam = artifact.cost_unit, artifact.lambda_
    say = partial(print, file=sys.stdout)
    before = "no λ" if lam is None else f"λ = {lam:.4g}: {_did(replay, lam)}"
    say(f"policy {policy} on {int(told['n'])} queries that the artifact was not trained on, costs in {unit}")
    say(f"before: {before}")
    say(
        f"after:  λ = {found.lam:.4g}: {_did(replay, found.lam)} "
        f"(95 %: quality {told['quality_low']:.4f} … {told['quality_high']:.4f}, "
        f"cost {told['cost_low']:.4g} … {told['cost_high']:.4g})"
    )
    if found.mix is not None and 0 < found.mix.share < 1:
        lower, higher, share = found.mix
        base = CONFIGURED.get(policy, f'"{policy}"')
        say(f"the budget is met exactly by λ = {higher:.6g} for {share:.2%} of the requests, in ladder.toml:")
        say('[policy]\nname = "budget"')
        say(f"options = {{ base = {base}, lambdas = [{lower!r}, {higher!r}], share = {share!r} }}")


def _did(replay: Replay, lam: float) -> str:
    return f"quality {replay.quality(lam):.4f}, cost {replay.cost(lam):.4g}"
