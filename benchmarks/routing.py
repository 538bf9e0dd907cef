"""Prediction and stopping on real models' outcomes, beside the first trial and the aims: five ladders, one command.

    python benchmarks/routing.py [--ladders A,B,C,D,E] [--predictor auto] [--artifacts DIR] [--opponent run|DIR]
                                 [--out benchmarks/results/routing]

Of every ladder: trains on the split train, judges on the split validation through ``stepladder train`` and
``stepladder evaluate``, and sets beside them the estimates of ``first_trial.py`` (c1 TF-IDF regression, c2 LightGBM, c3
LightGBM after the answer) on the same queries, paired. ``after`` is stage i's estimate once the stages 0 to i answered,
as in c3. --artifacts reuses what lies in DIR as LADDER-PREDICTOR, and puts there what it has to make. --opponent run
makes that script's estimates in an environment of its own under build/; DIR holds them as ft_LADDER.npz (see
opponent.py); without it nothing is compared. Where the tables are not there nothing is measured, which is said.

Queries that share a group with training are left out of all figures, the first trial's too: its own print-outs have
them. Intervals are of 95 %, by bootstrap over groups of queries, and the same resamples for both of a pair. Writes
LADDER.json, summary.json and SUMMARY.md. --summarise writes the last two anew from the first, for ladders that were
measured one by one.

What an oracle of the same information would close is not known. Beside the policies stands the greedy rule on the
task's mean, and on what nobody knows beforehand, how the table's other models did on the very question: their mean
("shared difficulty"), or each one's outcome, through logistic curves that are cross-fitted on the judged rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepladder import build
from stepladder.cli import main as stepladder
from stepladder.cli.evaluate import profile_of, subject_of, unseen
from stepladder.engines.threads import available_cores
from stepladder.evaluate import baselines, compare, metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.clusters import Clusters, cluster_report
from stepladder.evaluate.compare import Family
from stepladder.evaluate.likeness import Likeness
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.outcomes import read
from stepladder.evaluate.reference import SEEN, overlap, seen
from stepladder.evaluate.report import Subject, clean
from stepladder.evaluate.scores import means, predictor_report
from stepladder.policies.greedy import GreedyPolicy
from stepladder.predictors.artifact import Artifact, load
from stepladder.types import Estimates

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(build.__file__).parent
SHARED = ROOT.parent / "shared"
BUILD = ROOT / "build" / "opponent"
PACKAGES = ("pandas", "lightgbm", "wordllama", "pyarrow", "scikit-learn")
POLICIES = "greedy,cascade,pandora,cascade-route,optimal"
BASELINES = ("task-mean", "neighbours", "prompt-length", "random-mix", "perfect-verifier", "oracle")
FOLDS = 5
"""Of the judged rows, for the curves over the other models' outcomes."""

FREE, MANY = 100.0, 0.1
"""scikit-learn's C of the curves over one number, and over each other model's outcome."""

CLIP = 1e-3
"""Estimates are kept this far from 0 and 1 where their log odds are taken."""

FLAT = 1e-12
FITTING = 0.7
"""The aim of R² by cluster. Where random groups reach it too, the figure says nothing and has no mark."""

FOOT = (
    "✓ met, ✗ not met; without a mark: no aim there, or random groups (the control) reach the figure too. c1 to c3 are "
    "the first trial's, on the same queries. A control without a figure (–) is as it should be: random groups have no "
    "quality of their own to foresee. RouteLLM's yardstick is measured by benchmarks/routellm.py, decision time by "
    "benchmarks/predict_time.py."
)
UNTOLD = "the table tells nothing of answers"
CEILINGS = {
    "difficulty": "the other models' mean on the very question",
    "models": "each other model's outcome on the very question",
    "both": "the predictor's estimates and each other model's outcome on the very question",
}

Cell = dict[str, Any]


class Ladder(NamedTuple):
    """A table's models, cheapest first, and what one request costs on each."""

    table: str
    stages: str
    costs: str
    note: str = ""


LADDERS: Mapping[str, Ladder] = {
    "A": Ladder("mmlu_pro", "Llama-2-7b-hf,Llama-2-13b-hf,Llama-2-70b-hf", "0.1,0.186,1"),
    "B": Ladder(
        "mmlu_pro",
        "Mistral-7B-Instruct-v0.2,Mixtral-8x7B-Instruct-v0.1,Llama-3.1-70B-Instruct",
        "0.102,0.183,1",
    ),
    "C": Ladder(
        "zeroeval",
        "Meta-Llama-3.1-8B-Instruct,Meta-Llama-3.1-70B-Instruct,Llama-3.1-405B-Inst@sambanova",
        "0.02,0.174,1",
    ),
    "D": Ladder(
        "llmrouter_ulab",
        "mistral-7b-instruct-v0.3,llama-3.1-8b-instruct,llama-3.1-nemotron-51b-instruct",
        "0.141,0.157,1",
    ),
    "E": Ladder(
        "mmlu_pro",
        "Llama-2-7b-hf,Llama-2-13b-hf,Yi-34B,Llama-3.1-70B-Instruct,gemini-1.5-pro-002",
        "0.04,0.074,0.194,0.4,1",
        "the paper's next step, 8-13-34-70-175B; gemini's size is not published, its cost is set as if it had 175B",
    ),
}


# ── training and judging ─────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Run:
    """One ladder, trained and judged: ``folder`` is the artifact's, ``found`` what ``evaluate`` said of it."""

    name: str
    folder: Path
    found: Mapping[str, Any]
    commands: Sequence[str]
    facts: Mapping[str, Any]
    data_folder: Path

    @property
    def ladder(self) -> Ladder:
        return LADDERS[self.name]

    @cached_property
    def artifact(self) -> Artifact:
        return load(self.folder)

    @cached_property
    def subject(self) -> Subject:
        """The judged rows, those of groups that were trained on left out, with the training rows at hand."""
        rows = read(self.data_folder / f"{self.ladder.table}.parquet")
        models, costs = self.ladder.stages.split(","), [float(cost) for cost in self.ladder.costs.split(",")]
        data, train = (align(rows, models, split=split, pricing=costs) for split in ("validation", "train"))
        data, _ = unseen(data, self.artifact)
        return subject_of(self.artifact, data, train.take(~overlap(train, {SEEN: seen(data)})))[0]


def run_of(name: str, folder: Path, args: argparse.Namespace) -> Run:
    """Train and evaluate what does not lie in ``folder`` yet, or was evaluated of another artifact."""
    ladder, out = LADDERS[name], folder / f"{name}-{args.predictor}"
    judged, timed = Path(f"{out}.json"), Path(f"{out}.time.json")
    common = ["--outcomes", str(args.data / f"{ladder.table}.parquet")]
    common += ["--stages", ladder.stages, "--costs", ladder.costs]
    training = ["train", *common, "--predictor", args.predictor, "--out", str(out)]
    judging = ["evaluate", *common, "--artifact", str(out), "--split", "validation", "--policies", args.policies]
    judging += ["--resamples", str(args.resamples), "--json", str(judged)]
    if not (out / "artifact.json").exists() or remade(name, timed):
        timed.write_text(json.dumps({**timings(training), "sources": sources()}), "utf-8")
    found = json.loads(judged.read_text("utf-8")) if judged.exists() else {}
    if found.get("artifact", {}).get("version") != load(out).version or unplayed(found, args.policies):
        timings(judging)
        found = json.loads(judged.read_text("utf-8"))
    told = [
        f"stepladder {' '.join(words)}".replace(f"{folder}/", "").replace(f"{ROOT.parent}/", "../")
        for words in (training, judging)
    ]
    return Run(name, out, found, told, facts_of(timed), args.data)


def unplayed(found: Mapping[str, Any], policies: str) -> bool:
    """Whether ``evaluate`` was not asked for some of these policies; it leaves out those that look at answers itself,
    where answers tell nothing."""
    missing = {*policies.split(",")} - found["summary"].keys()
    return "greedy" in missing or ("after" in found["predictor"] and bool(missing))


def facts_of(timed: Path) -> dict[str, Any]:
    """What was noted when the artifact was made; empty where somebody else made it."""
    found: dict[str, Any] = json.loads(timed.read_text("utf-8")) if timed.exists() else {}
    return found


def remade(name: str, timed: Path) -> bool:
    """Whether an artifact was made by other sources than these, which may read it otherwise; said, if so."""
    made_by = facts_of(timed).get("sources")
    if made_by in (None, sources()):
        return False
    sys.stderr.write(f"ladder {name}: the sources have changed since its artifact was made: trained again\n")
    return True


@cache
def sources() -> str:
    """A digest of what trains and predicts."""
    digest = blake2b(digest_size=8)
    for part in ("features", "predictors", "train"):
        for path in sorted((PACKAGE / part).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def timings(words: Sequence[str]) -> dict[str, float]:
    """Seconds that a command took, by the clock and of the processor; a failure ends the benchmark."""
    began, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):  # the page at the end is what this command prints
        failed = stepladder([*words])
    if failed:
        sys.exit(f"failed: stepladder {' '.join(words)}")
    return {"train_s": time.perf_counter() - began, "train_cpu_s": time.process_time() - busy}


# ── estimates ────────────────────────────────────────────────────────────────


class Said(NamedTuple):
    """Estimates (n, k) ``before`` any answer and ``after`` (see above); None where answers tell nothing."""

    before: Matrix
    after: Matrix | None = None


def ours(run: Run) -> dict[str, Said]:
    """The profiles' estimates; the one that serves under its name, or ``ours`` where a predictor has no profiles."""
    found = {profile_of(run.artifact) or "ours": said_by(run.subject, run.subject)}
    if run.artifact.kind == "stack" and "fast" in run.artifact.params:
        found["fast"] = said_by(beside(run, "fast"), run.subject)
    return found


def beside(run: Run, profile: str) -> Subject:
    """The same rows as another profile of the artifact sees them."""
    return subject_of(build.profiled(run.artifact, profile, "profile"), run.subject.data, run.subject.train)[0]


def said_by(told: Subject, rows: Subject) -> Said:
    stages, after = rows.data.stages, told.after
    assert after is not None
    before = means(told.estimates, stages)
    own = [
        [after(number, recorded[: i + 1])[stage].mean for i, stage in enumerate(stages)]
        for number, recorded in enumerate(rows.bench.attempts)
    ]
    return Said(before, None if np.array_equal(own, before) else np.array(own))


def opponents(path: Path | None, data: Aligned) -> dict[str, Said]:
    """The first trial's estimates of these queries; empty where there are none."""
    if path is None or not path.exists():
        return {}
    table = np.load(path)
    place = {str(query): number for number, query in enumerate(table["ids"])}
    numbers = [place[line[0].query_id] for line in data.rows]
    found = {name: Said(table[name][numbers]) for name in ("c1", "c2")}
    if "c3" in table:
        found["c3"] = Said(found["c2"].before, table["c3"][numbers])
    return found


# ── figures of the estimates ─────────────────────────────────────────────────


def figures(subject: Subject, told: Mapping[str, Said]) -> dict[str, Cell]:
    """R², AUC, Brier, log-loss, ECE and its floor, pooled and by stage, of everybody's estimates."""
    data = subject.data
    found: dict[str, Cell] = {}
    for name, when, estimated in each(told):
        report = predictor_report(data.quality, estimated, data.stages, subject.chance)
        for line in (report["pooled"], *report["per_stage"]):
            line.pop("reliability")
        found.setdefault(name, {})[when] = report
    return found


def each(told: Mapping[str, Said]) -> Iterator[tuple[str, str, Matrix]]:
    """(who, when, estimates); c3 stands for what comes after an answer only."""
    for name, said in told.items():
        if name != "c3":
            yield name, "before", said.before
        if said.after is not None:
            yield name, "after", said.after


def compared(subject: Subject, mine: Said, theirs: Mapping[str, Said], times: int) -> dict[str, Cell]:
    """How far ``mine`` is above each of the others, pooled and by stage: before an answer c1 and c2, after it c3, or c2
    where there is no c3."""
    found: dict[str, Cell] = {"before": {}, "after": {}}
    for name, said in theirs.items():
        if name != "c3":
            found["before"][name] = lead(subject, mine.before, said.before, times)
    if mine.after is not None and theirs:
        told = theirs["c3"].after if "c3" in theirs else theirs["c2"].before
        assert told is not None
        found["after"]["c3" if "c3" in theirs else "c2"] = lead(subject, mine.after, told, times)
    return found


def lead(subject: Subject, mine: Matrix, theirs: Matrix, times: int) -> Cell:
    """``r2`` and ``auc`` of ``mine`` less those of ``theirs``, with paired intervals."""
    data = subject.data
    parts = [slice(None), *(slice(i, i + 1) for i in range(len(data.stages)))]
    lines = []
    for columns in parts:
        quality, pair = data.quality[:, columns], (mine[:, columns], theirs[:, columns])
        lines.append(difference(quality, pair, data.groups, subject.chance, times))
    stages = [{"stage": stage, **line} for stage, line in zip(data.stages, lines[1:], strict=True)]
    return {"pooled": lines[0], "per_stage": stages}


def difference(
    quality: Matrix, pair: tuple[Matrix, Matrix], groups: NDArray[np.intp], rng: np.random.Generator, times: int
) -> Cell:
    """R² and AUC of the first of the pair less those of the second; all are (n, k)."""

    def gaps(weights: Matrix) -> Matrix:
        one, other = (np.column_stack([r2_lines(quality, p, weights), auc_lines(quality, p, weights)]) for p in pair)
        gap: Matrix = one - other
        return gap

    n = len(quality)
    said = gaps(np.full((1, n), 1 / n))[0].tolist()
    drawn = metrics.bootstrap(gaps, n, rng, times=times, groups=groups)
    ranges = [metrics.interval(drawn[:, i]) for i in range(2)]
    return {"r2": said[0], "r2_ci": ranges[0], "auc": said[1], "auc_ci": ranges[1]}


def r2_lines(quality: Matrix, estimated: Matrix, weights: Matrix) -> Vector:
    """``metrics.r2`` for each line of weights (b, n) of the queries; NaN where the quality does not vary."""
    missed = weights @ ((quality - estimated) ** 2).sum(axis=1)
    middle = weights @ quality.mean(axis=1)
    spread = weights @ (quality**2).sum(axis=1) - quality.shape[1] * middle**2
    varies = spread > FLAT
    found: Vector = np.where(varies, 1 - missed / np.where(varies, spread, 1.0), np.nan)
    return found


def auc_lines(quality: Matrix, estimated: Matrix, weights: Matrix) -> Vector:
    """``metrics.auc`` for each line of weights (b, n) of the queries; NaN where all that weigh are of one kind."""
    flat = estimated.reshape(-1)
    order = np.argsort(flat, kind="stable")
    right = (quality.reshape(-1) >= metrics.RIGHT)[order]
    spread = np.repeat(weights, quality.shape[1], axis=1)[:, order]
    starts = np.r_[0, np.flatnonzero(np.diff(flat[order])) + 1]
    good, bad = (np.add.reduceat(spread * part, starts, axis=1) for part in (right, ~right))
    above = (good * (np.cumsum(bad, axis=1) - bad / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Vector = above / (good.sum(axis=1) * bad.sum(axis=1))
    return found


def clusters(subject: Subject, told: Mapping[str, Said]) -> dict[str, Any]:
    """R² of expected quality by cluster within each stage; everybody on the same clusters, drawn in training."""
    data, train = subject.data, subject.train
    assert train is not None
    labels = Clusters(Likeness(baselines.texts_of(train)), subject.seed).labels(baselines.texts_of(data))
    found: dict[str, Any] = {}
    for name, when, estimated in each(told):
        report = cluster_report(data.quality, estimated, data.stages, labels, subject.chance)
        found.setdefault(name, {})[when] = report
    return found


# ── policies ─────────────────────────────────────────────────────────────────


def shares(subject: Subject, families: Sequence[Family], times: int) -> dict[str, Cell]:
    """``gap_closed`` of each family; with two also ``lead``, what the second closes more than the first."""
    data, grid = subject.data, subject.grid

    def of_all(weights: Matrix) -> Matrix:
        lines = [compare.gaps(data, family, grid, weights) for family in families]
        return np.column_stack([*lines, np.subtract(lines[-1], lines[0])])

    n = len(data)
    said = of_all(np.full((1, n), 1 / n))[0].tolist()
    drawn = metrics.bootstrap(of_all, n, subject.chance, times=times, groups=data.groups)
    names = [*(family.name for family in families), "lead"]
    return {
        name: {"gap_closed": said[i], "gap_closed_ci": metrics.interval(drawn[:, i])} for i, name in enumerate(names)
    }


def two_rules(told: Subject, rows: Subject, times: int) -> dict[str, Cell]:
    """The greedy rule before and along the answers on these estimates, and the second's ``lead``."""
    lambdas = rows.grid.tolist()
    greedy = compare.curve(rows.bench, "greedy", GreedyPolicy(), told.estimates, lambdas)
    climbing = GreedyPolicy(cascade=True)
    cascade = compare.curve(rows.bench, "cascade", climbing, told.estimates, lambdas, after=told.after)
    return shares(rows, [Family("greedy", greedy), Family("cascade", cascade)], times)


def rivals(subject: Subject, against: Mapping[str, Said], times: int) -> dict[str, Cell]:
    """``gap_closed`` of the greedy rule on the first trial's estimates, and how far it is behind this predictor's."""
    data, lambdas = subject.data, subject.grid.tolist()
    found: dict[str, Cell] = {}
    for name, said in against.items():
        if name != "c3":
            theirs = compare.as_estimates(said.before, data.stages)
            pair = [
                Family(who, compare.curve(subject.bench, who, GreedyPolicy(), told, lambdas))
                for who, told in ((name, theirs), ("greedy", subject.estimates))
            ]
            found[name] = shares(subject, pair, times)
    return found


def policies(run: Run) -> dict[str, Cell]:
    """What ``evaluate`` says of the policies and of the trivial baselines."""
    summary = run.found["summary"]
    kept = ("gap_closed", "apgr", "cost_save", "perf_gain", "vs_best_baseline", "operating")
    return {
        name: {key: value for key, value in figures.items() if key.removesuffix("_ci") in kept}
        for name, figures in summary.items()
        if name in BASELINES or "vs_best_baseline" in figures
    }


def ceilings(subject: Subject, times: int) -> dict[str, Cell]:
    """What the greedy rule closes that knows the table's other models on the same question, with R² and AUC of that:
    ``difficulty`` their mean alone, ``models`` each one's outcome, ``both`` that and what the predictor says."""
    data = subject.data
    if data.others is None or not data.others.shape[1]:
        return {}
    known = np.isfinite(data.others)
    odds = (np.where(known, data.others, 0.0).sum(axis=1) + 0.5) / (known.sum(axis=1) + 1)
    log_odds = np.log(odds / (1 - odds)).reshape(-1, 1)
    apart = np.where(known, data.others - odds.reshape(-1, 1), 0.0)
    said = np.clip(means(subject.estimates, data.stages), CLIP, 1 - CLIP)
    each_one = np.hstack([log_odds, apart])
    told = {
        "difficulty": (log_odds, FREE),
        "models": (each_one, MANY),
        "both": (np.hstack([np.log(said / (1 - said)), each_one]), MANY),
    }
    return {
        name: ceiling_of(subject, name, crossed(data, numbers, penalty, subject.chance), times)
        for name, (numbers, penalty) in told.items()
    }


def ceiling_of(subject: Subject, name: str, foreseen: Matrix, times: int) -> Cell:
    data = subject.data
    estimates: list[Estimates] = compare.as_estimates(foreseen, data.stages)
    played = compare.curve(subject.bench, name, GreedyPolicy(), estimates, subject.grid.tolist())
    report = predictor_report(data.quality, foreseen, data.stages, subject.chance)
    lines = [{key: line[key] for key in ("stage", "r2", "auc")} for line in report["per_stage"]]
    pooled = {key: report["pooled"][key] for key in ("r2", "auc")}
    said = shares(subject, [Family(name, played)], times)[name]
    return {"others": 0 if data.others is None else data.others.shape[1], "pooled": pooled, "per_stage": lines, **said}


def crossed(data: Aligned, numbers: Matrix, penalty: float, rng: np.random.Generator) -> Matrix:
    """(n, k) each stage's quality by a logistic curve over ``numbers`` (n, m).

    A query's curve was fitted to the other folds, which share no group with it.
    """
    fold_of = (rng.permutation(int(data.groups.max()) + 1) % FOLDS)[data.groups]
    found = np.zeros_like(data.quality)
    for fold in range(FOLDS):
        held = fold_of == fold
        for stage, quality in enumerate(data.quality.T):
            found[held, stage] = logistic(numbers[~held], quality[~held], numbers[held], penalty)
    return found


def logistic(numbers: Matrix, quality: Vector, asked: Matrix, penalty: float) -> Vector:
    """The curve fitted to ``numbers`` (n, m) and ``quality`` (n,), at ``asked``; ``penalty`` is scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression

    if quality.min() == quality.max():
        return np.full(len(asked), quality[0])
    twice, weight = np.concatenate([numbers, numbers]), np.r_[quality, 1 - quality]
    some, kinds = weight > 0, np.repeat([1, 0], len(quality))
    model = LogisticRegression(C=penalty, max_iter=500).fit(twice[some], kinds[some], sample_weight=weight[some])
    found: Vector = model.predict_proba(asked)[:, 1]
    return found


# ── one ladder ───────────────────────────────────────────────────────────────


def judged(run: Run, theirs: Path | None, times: int) -> Cell:
    """Everything about one ladder."""
    subject, mine = run.subject, ours(run)
    against = opponents(theirs, subject.data)
    everybody = {**mine, **against}
    rules = {name: two_rules(beside(run, name) if name == "fast" else subject, subject, times) for name in mine}
    return {
        "ladder": run.name,
        **run.ladder._asdict(),
        "commands": list(run.commands),
        "training": dict(run.facts),
        "fitted": run.artifact.kind,
        "profile": profile_of(run.artifact),
        "n": len(subject.data),
        "left_out": run.found["overlap"]["queries"],
        "lambda_grid": subject.grid.tolist(),
        "figures": figures(subject, everybody),
        "lead": {name: compared(subject, said, against, times) for name, said in mine.items()},
        "clusters": clusters(subject, everybody),
        "policies": policies(run),
        "rules": rules,
        "rivals": rivals(subject, against, times),
        "operating": run.found["operating"],
        "ceilings": ceilings(subject, times),
        "notes": run.found["notes"],
    }


# ── the first trial ──────────────────────────────────────────────────────────


def first_trial(name: str, args: argparse.Namespace) -> Path | None:
    """Where its estimates are, or None, having said why."""
    if args.opponent is None:
        return None
    if args.opponent != "run":
        path = Path(args.opponent) / f"ft_{name}.npz"
        if not path.exists():
            sys.stderr.write(f"ladder {name}: nothing to compare with: {path} is not there\n")
        return path if path.exists() else None
    if not args.first_trial.exists():
        sys.stderr.write(f"ladder {name}: nothing to compare with: {args.first_trial} is not there\n")
        return None
    path = BUILD / f"ft_{name}.npz"
    if not path.exists():
        words = [str(environment()), str(ROOT / "benchmarks" / "opponent.py"), str(args.first_trial), name, str(path)]
        ladder = LADDERS[name]
        more = [ladder.table, ladder.stages, ladder.costs] if name not in "ABCD" else []
        subprocess.run([*words, *more], check=True, cwd=ROOT)
    return path


def environment() -> Path:
    """A Python with the packages of the first trial, which are not Stepladder's, under build/."""
    python = BUILD / "venv" / "bin" / "python"
    if not python.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(BUILD / "venv")], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True)
    return python


# ── the summary ──────────────────────────────────────────────────────────────


class Line(NamedTuple):
    """One row of the summary: a figure, its aim, what each ladder has, and on which ladders the aim is met (None: it
    has none there)."""

    what: str
    aim: str
    cells: Mapping[str, str]
    met: Mapping[str, bool | None]


def lines_of(found: Sequence[Cell]) -> list[Line]:
    """The aims, figure beside figure."""
    lines = [led(found, when, figure) for when in ("before", "after") for figure in ("r2", "auc")]
    lines += [fit(found, "before", 100), fit(found, "before", 30), fit(found, "after", 100)]
    lines += [gap(found, name) for name in played(found)]
    lines += [climb(found, name) for name in ("full", "fast", "ours") if any(name in one["rules"] for one in found)]
    lines += [point(found, kind) for kind in ("cost_save", "perf_gain")]
    lines += [calibrated(found, when) for when in ("before", "after")]
    lines += [trained(found), rival(found, "c2"), by_task(found), *(ceiling(found, name) for name in CEILINGS)]
    return lines


def main_of(one: Cell) -> str:
    """The profile that serves."""
    return one["profile"] or "ours"


def led(found: Sequence[Cell], when: str, figure: str) -> Line:
    cells: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    for one in found:
        if when not in one["figures"][main_of(one)]:
            cells[one["ladder"]], met[one["ladder"]] = UNTOLD, None
            continue
        mine = one["figures"][main_of(one)][when]["pooled"][figure]
        told, beaten = [f"{mine:.3f}"], []
        for name, gaps in one["lead"][main_of(one)][when].items():
            above = [line[f"{figure}_ci"][0] > 0 for line in (gaps["pooled"], *gaps["per_stage"])]
            stages = f"{sum(above[1:])}/{len(above) - 1} stages"
            told.append(f"{name} {signed(gaps['pooled'][figure], gaps['pooled'][f'{figure}_ci'])}, {stages}")
            beaten += above
        cells[one["ladder"]], met[one["ladder"]] = "; ".join(told), all(beaten) if beaten else None
    named = {"r2": "R²", "auc": "AUC"}[figure]
    return Line(f"{named} {when} an answer", "above the first trial, pooled and each stage", cells, met)


def fit(found: Sequence[Cell], when: str, k: int) -> Line:
    cells: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    for one in found:
        reports = one["clusters"][main_of(one)].get(when, [])
        report = next((entry for entry in reports if entry["k"] == k), None)
        if report is None:
            cells[one["ladder"]], met[one["ladder"]] = "–", None
            continue
        pairs = list(zip(report["per_stage"], report["control"], strict=True))
        parts = [
            f"{known(line['r2'])}, {known(line['r2_strict'])} ({known(line['r2_raw'])}; {known(chance['r2'])})"
            for line, chance in pairs
        ]
        cells[one["ladder"]] = "<br>".join(parts)
        doubtful = any((chance["r2"] or 0) >= FITTING for _, chance in pairs)
        met[one["ladder"]] = None if doubtful else all((line["r2"] or 0) >= FITTING for line, _ in pairs)
    told = f"R² of expected quality by cluster, K={k}, {when}: each stage, corrected, strictly (raw; control corrected)"
    return Line(told, f"≥ {FITTING:g} on each stage", cells, met)


def played(found: Sequence[Cell]) -> list[str]:
    """Every policy that was played on some ladder."""
    names = [name for one in found for name, at in one["policies"].items() if "vs_best_baseline" in at]
    return list(dict.fromkeys(names))


def gap(found: Sequence[Cell], policy: str) -> Line:
    cells: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    for one in found:
        figures = one["policies"].get(policy)
        if figures is None:
            continue
        share, (low, high) = figures["gap_closed"], figures["gap_closed_ci"]
        rival = figures["vs_best_baseline"]
        cells[one["ladder"]] = (
            f"{share:+.3f} [{low:+.3f}, {high:+.3f}]<br>value over {rival['name']} "
            f"{signed(rival['value_diff'], rival['ci'])}"
        )
        met[one["ladder"]] = low > 0 and (share >= 0.25 or one["ladder"] not in "CD")
    return Line(f"gap closed, {policy}", "> 0, interval too; ≥ .25 on C and D", cells, met)


def climb(found: Sequence[Cell], profile: str) -> Line:
    of = {one["ladder"]: one["rules"][profile] for one in found if profile in one["rules"]}
    cells = {
        ladder: f"{at['greedy']['gap_closed']:+.3f}; {at['cascade']['gap_closed']:+.3f}; "
        f"{signed(at['lead']['gap_closed'], at['lead']['gap_closed_ci'])}"
        for ladder, at in of.items()
    }
    return Line(f"beside: gap closed, profile {profile}: greedy; cascade; cascade's more", "–", cells, {})


def point(found: Sequence[Cell], kind: str) -> Line:
    cells: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    least = {"cost_save": 0.28, "perf_gain": 0.023}[kind]
    for one in found:
        at = one["operating"].get(kind)
        if at is None:
            cells[one["ladder"]], met[one["ladder"]] = "no point in the artifact", None
            continue
        told = f"{at[kind]:.3f} [{at[f'{kind}_ci'][0]:.3f}, {at[f'{kind}_ci'][1]:.3f}]"
        kept = (
            f"quality {at['quality_ratio']:.3f} of the dearest's" if kind == "cost_save" else f"cost {at['cost']:.2f}"
        )
        cells[one["ladder"]] = f"{told}, {kept}<br>{at['policy_used']}"
        good = at[kind] >= least and (kind == "perf_gain" or at["quality_ratio"] >= 1)
        met[one["ladder"]] = good if one["ladder"] in "CD" else None
    named = {"cost_save": "CostSave", "perf_gain": "PerfGain"}[kind]
    return Line(f"{named}, λ chosen in training", f"≥ {least:g} on C and D", cells, met)


def calibrated(found: Sequence[Cell], when: str) -> Line:
    cells: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    for one in found:
        parts, kept = [], True
        for name in one["lead"]:
            if when not in one["figures"][name]:
                continue
            lines = one["figures"][name][when]["per_stage"]
            kept = kept and all(line["ece"] <= line["ece_floor"] for line in lines)
            told = " ".join(f"{line['ece']:.4f}/{line['ece_floor']:.4f}" for line in lines)
            parts.append(f"{name} {told}")
        cells[one["ladder"]], met[one["ladder"]] = "<br>".join(parts) or "–", kept if parts else None
    return Line(f"ECE/floor by stage, {when}", "not above its floor", cells, met)


def trained(found: Sequence[Cell]) -> Line:
    told = {one["ladder"]: one["training"] for one in found}
    cells = {name: f"{t['train_s']:.0f} s ({t['train_cpu_s']:.0f} s CPU)" if t else "–" for name, t in told.items()}
    return Line("training", "≤ 300 s for 10,000 queries × 3 stages on 2 quiet cores", cells, {})


def rival(found: Sequence[Cell], name: str) -> Line:
    of = {one["ladder"]: one["rivals"][name] for one in found if name in one["rivals"]}
    cells = {
        ladder: f"{signed(at[name]['gap_closed'], at[name]['gap_closed_ci'])}<br>this predictor's more "
        f"{signed(at['lead']['gap_closed'], at['lead']['gap_closed_ci'])}"
        for ladder, at in of.items()
    }
    return Line(f"beside: gap closed by greedy on {name}", "–", cells, {})


def by_task(found: Sequence[Cell]) -> Line:
    of = {one["ladder"]: one["policies"].get("task-mean") for one in found}
    cells = {name: signed(at["gap_closed"], at["gap_closed_ci"]) for name, at in of.items() if at}
    return Line("beside: gap closed by greedy on the task's mean", "–", cells, {})


def ceiling(found: Sequence[Cell], name: str) -> Line:
    of = {one["ladder"]: one["ceilings"][name] for one in found if one["ceilings"]}
    cells = {
        ladder: f"{signed(at['gap_closed'], at['gap_closed_ci'])}; R² {at['pooled']['r2']:.3f}"
        for ladder, at in of.items()
    }
    return Line(f"beside: gap closed by greedy on {CEILINGS[name]}", "–", cells, {})


def signed(value: float, ends: Sequence[float]) -> str:
    return f"{value:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"


def known(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"


def page(head: Cell, lines: Sequence[Line], found: Sequence[Cell]) -> str:
    """The summary as Markdown."""
    names = [one["ladder"] for one in found]
    told = (
        f"`{head['command']}`, {head['date']}, {head['machine']}. Trained on train, judged on validation; queries "
        "whose group was trained on are left out. Brackets are 95 % intervals, paired for differences. Ladders that an "
        "aim does not name show their figures without a mark, or as if it did."
    )
    out = ["# Routing on real models' outcomes", "", told, ""]
    for one in found:
        told = f"; {one['note']}" if one["note"] else ""
        if one["command"] != head["command"]:
            told += f"; `{one['command']}`, {one['date']}"
        out.append(
            f"- **{one['ladder']}** {one['table']}: {one['stages'].replace(',', ' → ')} at {one['costs']}; "
            f"{one['n']} queries, {one['left_out']} left out; fitted: {one['fitted']}{told}"
        )
    out += ["", f"| figure | aim | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for line in lines:
        cells = [f"{line.cells.get(name, '–')}{mark(line.met.get(name))}" for name in names]
        out.append(f"| {line.what} | {line.aim} | {' | '.join(cells)} |")
    out += ["", FOOT, "", *stage_table(found)]
    return "\n".join(out) + "\n"


def mark(met: bool | None) -> str:
    return {True: " ✓", False: " ✗", None: ""}[met]


def stage_table(found: Sequence[Cell]) -> list[str]:
    """R² and AUC of everybody, stage by stage."""
    out = ["## R² / AUC by stage", "", "| ladder | when | who | pooled | stages |", "|---|---|---|---|---|"]
    for one in found:
        for when in ("before", "after"):
            for name, reports in one["figures"].items():
                if when in reports:
                    lines = [reports[when]["pooled"], *reports[when]["per_stage"]]
                    told = [f"{line['r2']:.3f} / {line['auc']:.3f}" for line in lines]
                    out.append(f"| {one['ladder']} | {when} | {name} | {told[0]} | {' · '.join(told[1:])} |")
    return out


def summary(head: Cell, lines: Sequence[Line]) -> Cell:
    return {**head, "lines": [line._asdict() for line in lines]}


def rounded(value: Any) -> Any:
    """JSON values with five digits after the point."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def written(path: Path, value: Any) -> None:
    path.write_text(json.dumps(clean(value), indent=1, ensure_ascii=False) + "\n", "utf-8")


# ── the command ──────────────────────────────────────────────────────────────


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", default=",".join(LADDERS))
    parser.add_argument("--predictor", default="auto")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--opponent")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--first-trial", type=Path, default=SHARED / "tools" / "first_trial.py")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "routing")
    parser.add_argument("--summarise", action="store_true", help="measure nothing: put the files in --out together")
    args = parser.parse_args()
    for name in args.ladders.split(","):
        if name not in LADDERS:
            parser.error(f"--ladders: '{name}' is none of {', '.join(LADDERS)}")
    return args


def measured(name: str, folder: Path, head: Cell, args: argparse.Namespace) -> Cell:
    """A ladder's figures, written to its file."""
    run = run_of(name, folder, args)
    one: Cell = rounded(clean({**head, **judged(run, first_trial(name, args), args.resamples)}))
    written(args.out / f"{name}.json", one)
    return one


def kept(name: str, out: Path) -> Cell:
    """A ladder's figures, as they were written; a missing file ends the command."""
    path = out / f"{name}.json"
    if not path.exists():
        sys.exit(f"--summarise: {path} is not there: measure ladder {name} first, or leave it out of --ladders")
    found: Cell = json.loads(path.read_text("utf-8"))
    return found


def main() -> int:
    args = arguments()
    names = args.ladders.split(",")
    head = {
        "command": f"python benchmarks/routing.py {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{platform.processor() or platform.machine()}, {available_cores()} cores",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if args.summarise:
        found = [kept(name, args.out) for name in names]
    elif not args.data.is_dir():
        sys.stdout.write(f"nothing measured: the outcomes tables are not at {args.data}\n")
        return 0
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.artifacts or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            found = [measured(name, folder, head, args) for name in names]
    lines = lines_of(found)
    written(args.out / "summary.json", summary(head, lines))
    told = page(head, lines, found)
    (args.out / "SUMMARY.md").write_text(told, "utf-8")
    sys.stdout.write(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
