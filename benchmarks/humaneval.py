"""What routing and cascading save on HumanEval, where three small real models answered and the tests were run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/humaneval.py [--outcomes T.parquet] [--seeds 3]
                                 [--folds 10] [--jobs 2] [--resamples 1000] [--out benchmarks/results/humaneval]

Every problem is judged by a predictor that did not see it: the problems are cut into --folds parts, one predictor is
learned from the others, and the λ of an operating point is chosen on those others too, from estimates that are out of
fold among them. It is done --seeds times with other cuts; a problem's figures are their means, so that intervals (95 %,
bootstrap over problems) are of the problems' chance alone and not of the cuts'.

``stack`` is played by greedy (before any answer), cascade (the greedy rule asked again after each answer) and pandora;
``gbdt`` likewise but at the grid's λ alone, ``knn`` and ``mean`` by greedy alone. Which of them is the main one was
settled before any was judged: the stack, since it is what tells most of answers and has estimates out of fold at hand.
Beside them stand the stages alone, the line of mixes of them (its weights chosen on the judged problems themselves, in
its favour) and the oracle. ``gap`` is the share of the way from the best mix to the oracle, mean over the grid of λ.

Costs are the ladder's own, in relative units of one call, and no measurement; seconds are those of the recorded
answers, four at once on a machine with other work, and tell little. Writes summary.json, prints the tables.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepladder.cli.train import predictor_of
from stepladder.contracts import Policy
from stepladder.engines.threads import available_cores
from stepladder.evaluate import compare, metrics, operating
from stepladder.evaluate.aligned import Aligned, align, expected_costs
from stepladder.evaluate.compare import After, Bench, Family, Played
from stepladder.evaluate.metrics import Matrix, Vector
from stepladder.evaluate.operating import Point
from stepladder.evaluate.outcomes import read
from stepladder.evaluate.reference import reference_of
from stepladder.evaluate.report import clean
from stepladder.evaluate.scores import Posterior, estimate, means, predictor_report
from stepladder.evaluate.summaries import Judge
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.policies.pandora import PandoraPolicy
from stepladder.predictors.artifact import Artifact
from stepladder.train import plain
from stepladder.train.after import fit_gbdt_after
from stepladder.train.operating import CrossFitted, crossed_fit
from stepladder.train.rows import fit_rows, folds
from stepladder.train.stack import fit_stack
from stepladder.types import Estimates

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "results" / "humaneval"
STAGES = ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
MAIN = "stack"
KINDS = (MAIN, "gbdt", "knn", "mean")
POLICIES: Mapping[str, Policy] = {
    "greedy": GreedyPolicy(),
    "cascade": GreedyPolicy(cascade=True),
    "pandora": PandoraPolicy(),
}
PLAYED: Mapping[str, Sequence[str]] = {MAIN: tuple(POLICIES), "gbdt": tuple(POLICIES)}
"""Policies of a kind; of the others, whose estimates no answer moves, the first alone."""

LOSSES = (0.0, 0.01, 0.05)
"""Shares of the dearest stage's quality that a λ may lose on training problems."""

SWEEP = 17
PARTS = ("quality", "cost", "seconds")

Cell = dict[str, Any]


# ── one fold ─────────────────────────────────────────────────────────────────


class Task(NamedTuple):
    """The problems of one fold of one cut, to be judged by a predictor of one kind."""

    data: Aligned
    kind: str
    seed: int
    fold: int
    many: int
    lambdas: Sequence[float]


class Part(NamedTuple):
    """What came of a task's m problems: their ``numbers``; estimates ``before`` (m, k) and, of stage i once the stages
    0 to i answered, ``after`` (m, k); each policy's ``curves`` (λ, PARTS, m); and by policy and loss the ``points``: a
    λ chosen on the other problems, and what it gave here (PARTS, m)."""

    kind: str
    seed: int
    numbers: Vector
    before: Matrix
    after: Matrix
    curves: Mapping[str, Matrix]
    points: Mapping[tuple[str, float], tuple[Point, Matrix]]


def judged(task: Task) -> Part:
    """Learn from the other folds, choose λ there, and play this one."""
    data = task.data
    held = folds(data, task.many, np.random.default_rng(task.seed)) == task.fold
    train, mine = data.take(~held), data.take(held)
    artifact, own = learned(task.kind, train, task.seed)
    predictor, features = predictor_of(artifact), PaperFeatures()
    fitted = CrossFitted(estimate(predictor, features, mine.requests), Posterior(predictor, features, mine.requests))
    bench, policies = bench_of(mine, train), PLAYED.get(task.kind, tuple(POLICIES)[:1])
    curves = {name: np.array([at(bench, name, lam, fitted) for lam in task.lambdas]) for name in policies}
    points = {
        (name, loss): (point, at(bench, name, point.lam, fitted))
        for name in policies
        for loss, point in (chosen(name, own, train).items() if own is not None else ())
    }
    before = means(fitted.before, data.stages)
    after = climbed(bench, fitted.after)
    return Part(task.kind, task.seed, np.flatnonzero(held), before, after, curves, points)


def learned(kind: str, train: Aligned, seed: int) -> tuple[Artifact, CrossFitted | None]:
    """An artifact, and what its kind says of the problems it learned from, out of fold, where that is at hand."""
    if kind == MAIN:
        stacked = fit_stack(train, seed)
        return stacked.artifact(train.stages), crossed_fit(stacked.crossed, np.arange(len(train)))
    if kind == "gbdt":
        return fit_gbdt_after(fit_rows(train), train.stages, seed), None
    return {"knn": plain.fit_knn, "mean": plain.fit_mean}[kind](train, seed), None


def bench_of(data: Aligned, train: Aligned) -> Bench:
    reference = reference_of(train)
    return Bench(data, expected_costs(data, reference.cost, reference.output_tokens))


def at(bench: Bench, name: str, lam: float | None, fitted: CrossFitted) -> Matrix:
    """(PARTS, n) of a policy at λ; of the dearest stage where there is none."""
    if lam is None:
        data = bench.data
        return np.array([data.quality[:, -1], data.cost[:, -1], bench.seconds[:, -1]])
    after: After | None = None if name == "greedy" else fitted.after
    played = compare.play(bench, name, POLICIES[name], fitted.before, lam=lam, after=after)
    return np.array([getattr(played, part) for part in PARTS])


def chosen(name: str, own: CrossFitted, train: Aligned) -> dict[float, Point]:
    """For every loss the λ of least cost on the training problems; the dearest stage where none is cheaper."""
    reference = reference_of(train)
    lambdas = np.array(compare.sweep(metrics.lambda_grid(reference.quality, reference.cost), points=SWEEP))
    bench = bench_of(train, train)
    quality, cost, _ = np.array([at(bench, name, lam, own).mean(axis=1) for lam in lambdas.tolist()]).T
    dearest, full = float(reference.quality[-1]), float(reference.cost[-1])
    found = {}
    for loss in LOSSES:
        good = np.flatnonzero((quality >= (1 - loss) * dearest - 1e-12) & (cost < full))
        best = good[np.lexsort((lambdas[good], cost[good]))][:1]
        found[loss] = (
            Point(float(lambdas[best[0]]), float(quality[best[0]]), float(cost[best[0]]))
            if len(best)
            else Point(None, dearest, full)
        )
    return found


def climbed(bench: Bench, after: After) -> Matrix:
    """(n, k) of stage i once the stages 0 to i answered."""
    stages = bench.data.stages
    return np.array(
        [
            [after(number, line[: i + 1])[stage].mean for i, stage in enumerate(stages)]
            for number, line in enumerate(bench.attempts)
        ]
    )


# ── all folds ────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Whole:
    """All problems, judged by one kind of predictor, and its parts put together."""

    data: Aligned
    lambdas: Sequence[float]
    parts: Sequence[Part]

    @cached_property
    def seeds(self) -> int:
        return len({part.seed for part in self.parts})

    def mean(self, of: Callable[[Part], Matrix]) -> Matrix:
        """What every part holds of its problems along its last axis, put in their places; mean over the seeds."""
        found = np.zeros((*of(self.parts[0]).shape[:-1], len(self.data)))
        for part in self.parts:
            found[..., part.numbers] += of(part) / self.seeds
        return found

    def family(self, policy: str) -> Family:
        curves = self.mean(lambda part: part.curves[policy])
        return Family(policy, [self.played(policy, lam, line) for lam, line in zip(self.lambdas, curves, strict=True)])

    def played(self, name: str, lam: float | None, line: Matrix) -> Played:
        return Played(name, lam, *line, np.zeros_like(self.data.quality))

    def estimates(self, when: str) -> Matrix:
        """(seeds · n, k): every cut's estimates of every problem, not their mean, which nobody would be served."""
        seeds = sorted({part.seed for part in self.parts})
        found = np.zeros((len(seeds), *self.data.quality.shape))
        for part in self.parts:
            found[seeds.index(part.seed), part.numbers] = getattr(part, when)
        return found.reshape(-1, found.shape[-1])


def figures(whole: Whole, judge: Judge) -> Cell:
    """A kind's estimates, policies and operating points."""
    data, kind = whole.data, whole.parts[0].kind
    quality = np.tile(data.quality, (whole.seeds, 1))
    told: Cell = {}
    for when in ("before", "after") if kind in PLAYED else ("before",):
        report = predictor_report(quality, whole.estimates(when), data.stages, np.random.default_rng(judge.seed))
        told[when] = {
            line.get("stage", "pooled"): {name: line[name] for name in ("r2", "auc", "logloss", "ece")}
            for line in (report["pooled"], *report["per_stage"])
        }
    families = {name: whole.family(name) for name in whole.parts[0].curves}
    return {
        "predictor": told,
        "policies": {name: policy_figures(data, family, judge) for name, family in families.items()},
        "lead": {
            f"{two} over {one}": lead(data, families[one], families[two], judge) for one, two in pairwise(families)
        },
        "points": {
            f"{name}, {loss:.0%}": point_figures(whole, (name, loss), judge) for name, loss in whole.parts[0].points
        },
    }


def policy_figures(data: Aligned, family: Family, judge: Judge) -> Cell:
    """Along λ; ``cost_save`` and ``perf_gain`` are at the best point in hindsight."""
    wanted = ("gap_closed", "cost_save", "perf_gain", "aiq")
    said = compare.summarise(data, family, judge.grid, np.random.default_rng(judge.seed), times=judge.times)
    found = {f"{name}{end}": said[f"{name}{end}"] for name in wanted for end in ("", "_ci")}
    curve = [
        {"lambda": each.lam, **{part: float(getattr(each, part).mean()) for part in PARTS}} for each in family.played
    ]
    return {**found, "curve": curve}


def lead(data: Aligned, one: Family, two: Family, judge: Judge) -> Cell:
    """What ``two`` closes more of the gap; paired."""

    def more(weights: Matrix) -> Matrix:
        both = (np.array(compare.gaps(data, each, judge.grid, weights)) for each in (two, one))
        return np.subtract(*both).reshape(-1, 1)

    said = float(more(np.full((1, len(data)), 1 / len(data)))[0, 0])
    drawn = metrics.bootstrap(more, len(data), np.random.default_rng(judge.seed), times=judge.times, groups=data.groups)
    return {"gap_closed": said, "gap_closed_ci": metrics.interval(drawn[:, 0])}


def point_figures(whole: Whole, key: tuple[str, float], judge: Judge) -> Cell:
    """An operating point as the folds chose it, each for itself."""
    points = [part.points[key][0] for part in whole.parts]
    played = whole.played(key[0], None, whole.mean(lambda part: part.points[key][1]))
    out_of_fold = Point(None, *(float(np.mean([getattr(each, of) for each in points])) for of in ("quality", "cost")))
    found = operating.applied(whole.data, out_of_fold, played, judge.bootstrap)
    lambdas = [each.lam for each in points if each.lam is not None]
    found["lambda"] = [min(lambdas), float(np.median(lambdas)), max(lambdas)] if lambdas else None
    found["folds_without_lambda"] = sum(each.lam is None for each in points)
    found["seconds"] = float(played.seconds.mean())
    return found | beside_line(whole.data, played, judge)


def beside_line(data: Aligned, played: Played, judge: Judge) -> Cell:
    """``above_mix``: quality more than the best mix of stages has at the same cost; ``below_mix``: the share of the
    cost less than the best mix takes for the same quality."""
    values = np.column_stack([played.quality, played.cost, data.quality, data.cost])

    def against(line: Vector) -> tuple[float, float]:
        quality, cost, stage_quality, stage_cost = line[0], line[1], *np.split(line[2:], 2)
        corners = metrics.hull(stage_quality, stage_cost)
        x, y = stage_cost[corners], stage_quality[corners]
        return float(quality - np.interp(cost, x, y)), float(1 - cost / np.interp(quality, y, x))

    said = against(values.mean(axis=0))
    drawn = np.array([against(line) for line in judge.bootstrap(values)])
    found: Cell = {}
    for number, name in enumerate(("above_mix", "below_mix")):
        found |= {name: said[number], f"{name}_ci": metrics.interval(drawn[:, number])}
    return found


# ── what stands beside ───────────────────────────────────────────────────────


def stages_of(data: Aligned, judge: Judge) -> list[Cell]:
    """Each stage alone."""
    drawn = judge.bootstrap(data.quality)
    seconds = Bench(data, data.cost).seconds
    return [
        {
            "stage": name,
            "pass@1": float(data.quality[:, j].mean()),
            "pass@1_ci": metrics.interval(drawn[:, j]),
            "cost": float(data.cost[:, j].mean()),
            "seconds": float(seconds[:, j].mean()),
            "output_tokens": float(np.mean([line[j].output_tokens or 0 for line in data.rows])),
            "log_probabilities": sum(line[j].token_logprobs is not None for line in data.rows),
        }
        for j, name in enumerate(data.stages)
    ]


def patterns(data: Aligned) -> dict[str, int]:
    """How many problems which stages solve, cheapest first: '011' is all but the first."""
    lines = ["".join("1" if value >= metrics.RIGHT else "0" for value in line) for line in data.quality.tolist()]
    return {name: lines.count(name) for name in map("".join, product("01", repeat=len(data.stages)))}


def fixed(data: Aligned, judge: Judge) -> Cell:
    """The stages, the line of mixes, and who knows every outcome."""
    bench = Bench(data, data.cost)
    nothing: list[Estimates] = compare.as_estimates(data.quality * 0, data.stages)
    found = {each.name: Family(each.name, [each]) for each in compare.singles(bench, nothing)}
    found["line of mixes"] = Family("line of mixes", compare.zero_router(bench))
    found["oracle"] = Family("oracle", compare.oracle(bench, compare.sweep(judge.grid, points=SWEEP)))
    return {name: policy_figures(data, family, judge) for name, family in found.items()}


# ── the command ──────────────────────────────────────────────────────────────


def measured(data: Aligned, args: argparse.Namespace) -> Cell:
    reference = reference_of(data)  # for the axis of λ alone; what is decided rests on the folds' own
    judge = Judge(data, metrics.lambda_grid(reference.quality, reference.cost), 0, args.resamples)
    lambdas = compare.sweep(judge.grid, points=SWEEP)
    tasks = [
        Task(data, kind, seed, fold, args.folds, lambdas)
        for kind, seed, fold in product(KINDS, range(args.seeds), range(args.folds))
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        parts = list(pool.map(judged, tasks))
    return {
        "n": len(data),
        "dropped": data.dropped,
        "cost_unit": data.cost_unit,
        "stages": stages_of(data, judge),
        "solved_by": patterns(data),
        "lambda_grid": judge.grid.tolist(),
        "beside": fixed(data, judge),
        **{kind: figures(Whole(data, lambdas, [part for part in parts if part.kind == kind]), judge) for kind in KINDS},
    }


def page(found: Cell) -> str:
    """The tables as Markdown."""
    out = ["| stage | pass@1 | cost | seconds | tokens | answers with log probabilities |", "|---|---|---|---|---|---|"]
    for line in found["stages"]:
        told = ranged(line, "pass@1")
        more = f"{line['seconds']:.1f} | {line['output_tokens']:.0f} | {line['log_probabilities']}"
        out.append(f"| {line['stage']} | {told} | {line['cost']:g} | {more} |")
    out += ["", f"Solved by (cheapest first): {found['solved_by']}", ""]
    out += ["| estimates | before: R² / AUC, pooled; by stage | after: the same |", "|---|---|---|"]
    for kind in KINDS:
        cells = [scored(found[kind]["predictor"].get(when)) for when in ("before", "after")]
        out.append(f"| {kind} | {' | '.join(cells)} |")
    out += ["", "| along λ | gap closed | CostSave, hindsight | PerfGain, hindsight | AIQ |", "|---|---|---|---|---|"]
    lines = dict(found["beside"])
    lines |= {f"{kind}, {name}": one for kind in KINDS for name, one in found[kind]["policies"].items()}
    for name, one in lines.items():
        cells = [ranged(one, figure) for figure in ("gap_closed", "cost_save", "perf_gain", "aiq")]
        out.append(f"| {name} | {' | '.join(cells)} |")
    for kind in KINDS:
        for name, one in found[kind]["lead"].items():
            out.append(f"| {kind}, {name} | {ranged(one, 'gap_closed')} | | | |")
    wanted = ("quality_ratio", "cost_save", "below_mix", "above_mix")
    out += ["", "| λ chosen in training, loss | quality | cost | seconds | of the dearest's quality | cost saved |"]
    out[-1] += " less than the mix of equal quality | above the mix of equal cost |"
    out.append("|---|---|---|---|---|---|---|---|")
    for name, one in found[MAIN]["points"].items():
        cells = [f"{one['quality']:.3f}", f"{one['cost']:.2f}", f"{one['seconds']:.1f}"]
        out.append(f"| {name} | {' | '.join([*cells, *(ranged(one, figure) for figure in wanted)])} |")
    return "\n".join(out) + "\n"


def scored(report: Mapping[str, Mapping[str, float]] | None) -> str:
    if report is None:
        return "–"
    told = [f"{line['r2']:.3f} / {line['auc']:.3f}" for line in report.values()]
    return f"{told[0]}; {' · '.join(told[1:])}"


def ranged(one: Cell, name: str) -> str:
    value, (low, high) = one[name], one[f"{name}_ci"]
    return "–" if value is None or not np.isfinite(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def rounded(value: Any) -> Any:
    """JSON values with five digits after the point."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outcomes", type=Path, default=HERE / "outcomes.parquet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    head = {
        "command": f"python benchmarks/humaneval.py {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{platform.processor() or platform.machine()}, {available_cores()} cores",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "folds": args.folds,
        "seeds": args.seeds,
    }
    found = rounded(clean({**head, **measured(align(read(args.outcomes), STAGES), args)}))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
