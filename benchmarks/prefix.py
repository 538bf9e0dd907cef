"""What the beginning of an answer tells of its quality: estimates after k tokens, between those before and after it.

    python benchmarks/prefix.py [--tables gsm8k,gsm8k-old,humaneval,nano] [--nano TRAIN JUDGED] [--times 1000]
                                [--choices TRAIN JUDGED]

Tables with whole answers: `gsm8k` (Mixtral and GPT-4) and `gsm8k-old` (fine-tuned GPT-3 of 6B and 175B, ToRA 70B) from
../shared/data, `humaneval` (three small models) from benchmarks/results, and `nano`, which is collected first, with
log probabilities:

    stepladder collect -l nano --task nano --split train --n 6000 --seed 7 --at-once 16 --out TRAIN
    stepladder collect -l nano --task nano --split judged --n 2500 --seed 7 --at-once 16 --out JUDGED

With --choices it is measured what further choices of the same call tell (self-consistency), of tables that are
collected so, each for a stack that learns from TRAIN and is judged on JUDGED, with and without looking at them:

    stepladder collect -l nano --task nano --split train --n 2400 --seed 8 --temperature 0.7 --choices 4 --out TRAIN
    stepladder collect -l nano --task nano --split judged --n 1200 --seed 8 --temperature 0.7 --choices 4 --out JUDGED

Ladders A to D have no texts of answers, so nothing can be cut off there. What is not there is left out, which is said.
On `nano` a stack learns from TRAIN and is judged on JUDGED; on the others the cross-fitted estimates of a stack fitted
to the whole table are judged, each by heads that saw none of its group.

An answer of stage j alone is looked at: before it, after its first k tokens, and whole. Where it has no more than k
tokens it is whole after k; `running` figures are of the answers that still run. `untold` is the whole answer, its end
not told: what the estimates of beginnings lose where there is nothing left to come. Intervals are of 95 %, by bootstrap
over groups of queries, the same resamples for both of a pair. Prints and writes benchmarks/results/prefix.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.outcomes import OutcomeRow, read
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.history import cut_to, unended
from stepladder.predictors.stack import StackPredictor
from stepladder.train.stack import Stacked, fit_stack
from stepladder.types import Attempt

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RESULT = ROOT / "benchmarks" / "results" / "prefix.json"
KS = (16, 32, 64, 128)
SHORT_KS = (1, 2, 4, 8, 16, 32)
"""Of nano, half of whose answers have 6 tokens or fewer."""

FEW = 200
"""Answers that still run, below which nothing is said of them."""

Vector = NDArray[np.float64]
Cut = Callable[[Attempt, float], Attempt]


class Table(NamedTuple):
    """Where answers are, whose they are, and which rows count."""

    path: Path
    stages: tuple[str, ...]
    ks: tuple[int, ...] = KS
    dataset: str | None = None


TABLES: Mapping[str, Table] = {
    "gsm8k": Table(
        DATA / "routellm.parquet",
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"),
        dataset="routellm_gsm8k",
    ),
    "gsm8k-old": Table(DATA / "gsm8k_ladders.parquet", ("gpt3-6b-ft", "gpt3-175b-ft", "tora-70b")),
    "humaneval": Table(
        ROOT / "benchmarks" / "results" / "humaneval" / "outcomes.parquet", ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
    ),
}
NANO = ("small", "medium", "large")

Say = Callable[[int, tuple[Attempt, ...]], Sequence[float]]
"""(number of a query, attempts) → every stage's mean."""


class Judged(NamedTuple):
    """Queries to judge on, and what is said of them."""

    data: Aligned
    say: Say
    ks: tuple[int, ...]
    stacked: Stacked
    how: str


def judged_of(name: str, nano: Sequence[str]) -> Judged | None:
    """None where the table is not there."""
    if name == "nano":
        return _nano(*map(Path, nano)) if nano else None
    table = TABLES[name]
    if not table.path.is_file():
        return None
    rows = [row for row in read(table.path, on_bad=lambda _: None) if table.dataset in (None, row.dataset)]
    data = align(rows, table.stages, pricing=[1.0] * len(table.stages))
    stacked = fit_stack(data)
    data = data.take(stacked.crossed.numbers)

    def say(number: int, attempts: tuple[Attempt, ...]) -> Sequence[float]:
        found = stacked.crossed.estimates(number, attempts)
        return [found[stage].mean for stage in data.stages]

    return Judged(data, say, table.ks, stacked, "cross-fitted")


def _nano(train: Path, judged: Path) -> Judged:
    stacked = fit_stack(align(read(train), NANO, pricing=[1.0] * 3))
    data = align(read(judged), NANO, pricing=[1.0] * 3)
    predictor, featurizer = StackPredictor(NANO, stacked.params, stacked.arrays), PaperFeatures()

    def say(number: int, attempts: tuple[Attempt, ...]) -> Sequence[float]:
        found = predictor.predict(featurizer.features(data.requests[number], attempts))
        return [found[stage].mean for stage in NANO]

    return Judged(data, say, SHORT_KS, stacked, "learned from one table, judged on another")


# ── estimates ────────────────────────────────────────────────────────────────


def estimates(judged: Judged, cut: Cut | None) -> NDArray[np.float64]:
    """(n, k) of each stage once its own answer, cut so, is there; before any answer where there is no ``cut``."""
    data = judged.data
    chars = judged.stacked.params.get("prefix_chars", (4.0,) * len(data.stages))
    found = np.zeros(data.quality.shape)
    for number, line in enumerate(data.rows):
        if cut is None:
            found[number] = judged.say(number, ())
            continue
        for place, row in enumerate(line):
            made = cut(row.attempt(data.stages[place]), chars[place])
            found[number, place] = judged.say(number, (made,))[place]
    return found


def at(tokens: int) -> Cut:
    """After so many tokens."""
    return lambda attempt, chars: cut_to(attempt, tokens, chars)


# ── figures ──────────────────────────────────────────────────────────────────


class Arm(NamedTuple):
    """Estimates and quality of some answers, one after the other, and their groups; ``stage`` is whose they are."""

    quality: Vector
    stage: NDArray[np.intp]
    groups: NDArray[np.intp]


def r2_within(arm: Arm, said: Vector, weights: Vector) -> float:
    """R² beyond each stage's own mean, pooled over stages."""
    error = float((weights * (arm.quality - said) ** 2).sum())
    spread = 0.0
    for stage in np.unique(arm.stage):
        mine = arm.stage == stage
        own = weights[mine]
        if own.sum() > 0:
            middle = float((own * arm.quality[mine]).sum() / own.sum())
            spread += float((own * (arm.quality[mine] - middle) ** 2).sum())
    return 1 - error / spread if spread else float("nan")


def auc_within(arm: Arm, said: Vector) -> float:
    """The mean of the stages' AUCs."""
    found = [metrics.auc(arm.quality[arm.stage == s], said[arm.stage == s]) for s in np.unique(arm.stage)]
    known = [each for each in found if np.isfinite(each)]
    return float(np.mean(known)) if known else float("nan")


def figures(arm: Arm, arms: Mapping[str, Vector], times: int) -> dict[str, Any]:
    """R² and AUC of every arm, and what each has more of R² than the one before any answer and less than the whole."""
    rng = np.random.default_rng(0)
    _, inverse = np.unique(arm.groups, return_inverse=True)
    many = int(inverse.max()) + 1
    drawn = [rng.multinomial(many, np.full(many, 1 / many))[inverse].astype(np.float64) for _ in range(times)]
    r2 = {name: np.array([r2_within(arm, said, weights) for weights in drawn]) for name, said in arms.items()}
    once = np.ones(len(arm.quality))
    found: dict[str, Any] = {"answers": len(arm.quality)}
    for name, said in arms.items():
        found[name] = {
            "r2": round(r2_within(arm, said, once), 4),
            "auc": round(auc_within(arm, said), 4),
            "logloss": round(metrics.log_loss(arm.quality, said), 4),
        }
        for other in ("before", "after"):
            if name != other:
                gain = r2[name] - r2[other]
                point = r2_within(arm, said, once) - r2_within(arm, arms[other], once)
                ends = np.percentile(gain, (2.5, 97.5)).round(4).tolist()
                found[name][f"r2 over {other}"] = [round(point, 4), *ends]
    return found


def measured(name: str, judged: Judged, times: int) -> dict[str, Any]:
    """All figures of a table."""
    data = judged.data
    lengths = np.array([[row.output_tokens or 0 for row in line] for line in data.rows])
    cuts: dict[str, Cut | None] = {"before": None, **{f"k={k}": at(k) for k in judged.ks}}
    cuts |= {"untold": lambda attempt, _: unended(attempt), "after": lambda attempt, _: attempt}
    said = {label: estimates(judged, cut) for label, cut in cuts.items()}
    stages = np.tile(np.arange(len(data.stages)), (len(data), 1))
    groups = np.tile(data.groups[:, None], (1, len(data.stages)))

    def some(mask: NDArray[np.bool_], labels: Sequence[str]) -> dict[str, Any]:
        arm = Arm(data.quality[mask], stages[mask], groups[mask])
        return figures(arm, {label: said[label][mask] for label in labels}, times)

    found: dict[str, Any] = {
        "stages": list(data.stages),
        "queries": len(data),
        "how": judged.how,
        "mean tokens": lengths.mean(axis=0).round(1).tolist(),
        "prefix rows": judged.stacked.metrics.get("prefix_rows", 0.0),
        "trust": judged.stacked.params.get("prefix_trust", []),
        "signals": judged.stacked.params.get("prefix_signals", []),
        "all": some(np.ones_like(lengths, dtype=bool), list(cuts)),
    }
    for k in judged.ks:
        running = lengths > k
        if running.sum() >= FEW:
            found[f"running at {k}"] = {
                "share": round(float(running.mean()), 3),
                **some(running, ["before", f"k={k}", "after"]),
            }
    _tell(name, found)
    return found


def choices(train: Path, judged: Path, times: int) -> dict[str, Any]:
    """Estimates after a stage's own answer, and after those of all stages up to it: by the first choice alone, and with
    the others beside it."""
    tables = [align(read(path), NANO) for path in (train, judged)]
    said: dict[str, NDArray[np.float64]] = {}
    for label, (learned, data) in {"one": [_first(each) for each in tables], "choices": tables}.items():
        stacked = fit_stack(learned)
        predictor, featurizer = StackPredictor(NANO, stacked.params, stacked.arrays), PaperFeatures()
        for what in ("own", "all below"):
            found = np.zeros(data.quality.shape)
            for number, line in enumerate(data.rows):
                made = [row.attempt(stage) for stage, row in zip(NANO, line, strict=True)]
                for place, stage in enumerate(NANO):
                    attempts = tuple(made[: place + 1]) if what == "all below" else (made[place],)
                    features = featurizer.features(data.requests[number], attempts)
                    found[number, place] = predictor.predict(features)[stage].mean
            said[f"{label}, {what}"] = found.reshape(-1)
    data = tables[1]
    stages = np.tile(np.arange(len(NANO)), len(data))
    arm = Arm(data.quality.reshape(-1), stages, np.repeat(data.groups, len(NANO)))
    found = {
        what: figures(arm, {"before": said[f"one, {what}"], "after": said[f"choices, {what}"]}, times)
        for what in ("own", "all below")
    }
    told = {what: {"one answer": line["before"], "choices": line["after"]} for what, line in found.items()}
    sys.stdout.write(f"choices: {json.dumps(told, indent=1)}\n")
    return {"queries": len(data), "mean cost": data.cost.mean(axis=0).round(3).tolist(), **told}


def _first(data: Aligned) -> Aligned:
    """As if the further choices were not there; the tokens of all of them are shared out, as readers of them do."""

    def alone(row: OutcomeRow) -> OutcomeRow:
        many = 1 + len(row.other_preds or ())
        return replace(row, other_preds=None, output_tokens=round((row.output_tokens or 0) / many))

    return replace(data, rows=tuple(tuple(map(alone, line)) for line in data.rows))


def _tell(name: str, found: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{name}: {found['queries']} queries, {found['how']}\n")
    for case in ("all", *(key for key in found if key.startswith("running"))):
        for label, line in found[case].items():
            if isinstance(line, dict):
                sys.stdout.write(f"  {case:15} {label:8} R² {line['r2']:.3f} AUC {line['auc']:.3f} {line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join((*TABLES, "nano")))
    parser.add_argument("--nano", nargs=2, default=(), metavar=("TRAIN", "JUDGED"))
    parser.add_argument("--choices", nargs=2, default=(), metavar=("TRAIN", "JUDGED"))
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--out", default=str(RESULT))
    args = parser.parse_args()
    found: dict[str, Any] = {}
    began = time.process_time()
    with threadpool_limits(1):
        for name in filter(None, args.tables.split(",")):
            judged = judged_of(name, args.nano)
            if judged is None:
                sys.stdout.write(f"{name}: not measured, its table is not there\n")
            else:
                found[name] = measured(name, judged, args.times)
        if args.choices:
            found["choices"] = choices(*map(Path, args.choices), args.times)
    report = {
        "command": f"python benchmarks/prefix.py --tables {args.tables} --times {args.times}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu_s": round(time.process_time() - began),
        "tables": found,
    }
    Path(args.out).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
