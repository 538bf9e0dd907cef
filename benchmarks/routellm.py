"""RouteLLM's yardstick: GPT-4 or Mixtral-8x7B on MMLU and GSM8K, from the outcomes that RouteLLM published.

    python benchmarks/routellm.py [--out FILE] [--seeds 3] [--parts gsm8k,mmlu1500,mmlu] [--jobs 2]

APGR, CPT(50) and CPT(80) rank the queries by the predicted gain of GPT-4 over Mixtral (RouteLLM, arXiv 2406.18665; an
exact integral over all thresholds). Contaminated queries are left out, as RouteLLM does. Every estimate is of a query
whose group was not learned from. Every figure is told twice: ``others``
false learns from these two models' outcomes alone; true also from what the models of the other tables made of the same
stems, for the queries that are learned from (no labels of these two models, but no data of RouteLLM's either). Needs
../shared/data. The share of queries that go to GPT-4 stands in cpt50 and cpt80.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.evaluate.outcomes import OutcomeRow, read
from stepladder.features.paper import PaperFeatures
from stepladder.predictors.stack import StackPredictor
from stepladder.train.rows import folds
from stepladder.train.stack import fit_stack

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
OTHERS = {"routellm_gsm8k": ("zeroeval", "gsm8k_ladders"), "routellm_mmlu": ("mmlu_pro",)}
AIMS = {
    "gsm8k before": {"apgr": 0.65},
    "gsm8k after the weak answer": {"apgr": 0.72},
    "mmlu 1500 labels": {"apgr": 0.68, "cpt50": 0.28, "cpt80": 0.60},
    "mmlu cross-fitted": {"apgr": 0.72},
}
DATASET = {"gsm8k": "routellm_gsm8k", "mmlu1500": "routellm_mmlu", "mmlu": "routellm_mmlu"}
TABLES: dict[tuple[str, bool], Aligned] = {}
"""What jobs look at: filled before they are forked off."""

FOLDS = 5
LABELS = 1500
TIMES = 1000


class Job(NamedTuple):
    """One fit: which queries it learns from and which it is judged on."""

    part: str
    others: bool
    seed: int
    learn: np.ndarray
    held: np.ndarray


def main() -> None:
    args = _arguments()
    if not (DATA / "routellm.parquet").exists():
        print(f"skipped: {DATA} is not there")
        return
    started, rows, parts = time.time(), _rows(), args.parts.split(",")
    for others in (False, True):
        for dataset in sorted({DATASET[part] for part in parts}):
            TABLES[dataset, others] = _data(rows, dataset, others)
    jobs = [job for part in parts for others in (False, True) for job in _jobs(part, others, args.seeds)]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as pool:
        told = list(pool.map(_gains, jobs))
    found = []
    for part in parts:
        for others in (False, True):
            mine = [(job, gains) for job, gains in zip(jobs, told, strict=True) if job[:2] == (part, others)]
            found += _figures(part, others, mine)
    for line in found:
        print(json.dumps(line), flush=True)
    result = {"command": "python " + " ".join(sys.argv), "machine": f"{platform.machine()}, {args.jobs} processes"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    told_all = {**result, "seconds": time.time() - started, "aims": AIMS, "figures": found}
    args.out.write_text(json.dumps(told_all, indent=1) + "\n")


def _jobs(part: str, others: bool, seeds: int) -> list[Job]:
    data = TABLES[DATASET[part], others]
    found = []
    for seed in range(seeds if part != "mmlu" else 1):
        if part == "mmlu1500":
            order = np.random.default_rng(seed).permutation(len(data))
            learn, held = np.sort(order[:LABELS]), np.sort(order[LABELS:])
            groups = set(data.groups[learn].tolist())
            held = np.array([number for number in held.tolist() if data.groups[number] not in groups])
            found.append(Job(part, others, seed, learn, held))
        else:
            fold_of = folds(data, FOLDS, np.random.default_rng(seed))
            found += [
                Job(part, others, seed, np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold))
                for fold in range(FOLDS)
            ]
    return found


def _figures(part: str, others: bool, mine: list[tuple[Job, np.ndarray]]) -> list[dict[str, object]]:
    data = TABLES[DATASET[part], others]
    if part == "mmlu1500":
        lines = [_told(f"mmlu {LABELS} labels", data.take(job.held), gains[0], others) for job, gains in mine]
        mean = {name: float(np.mean([float(line[name]) for line in lines])) for name in ("apgr", "cpt50", "cpt80")}  # type: ignore[arg-type]
        return [{"name": f"mmlu {LABELS} labels", "others": others, "seeds": len(lines), **mean, "by_seed": lines}]
    total, times = np.zeros((2, len(data))), np.zeros(len(data))
    for job, gains in mine:
        total[:, job.held] += gains
        times[job.held] += 1
    before, after = total / times
    if part == "mmlu":
        return [_told("mmlu cross-fitted", data, before, others)]
    return [
        _told("gsm8k before", data, before, others),
        _told("gsm8k after the weak answer", data, after, others),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/routing/routellm.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--parts", default="gsm8k,mmlu1500,mmlu")
    return parser.parse_args()


def _rows() -> list[OutcomeRow]:
    bad = set((DATA / "routellm_contaminated_ids.csv").read_text().split())
    return [row for row in read(DATA / "routellm.parquet", on_bad=lambda told: None) if row.query_id not in bad]


def _data(rows: list[OutcomeRow], dataset: str, others: bool) -> Aligned:
    mine = [row for row in rows if row.dataset == dataset]
    if others:
        of_stem: dict[str, list[OutcomeRow]] = {}
        for table in OTHERS[dataset]:
            for row in read(DATA / f"{table}.parquet"):
                of_stem.setdefault(row.group_id or "", []).append(row)
        known = {row.query_id: row for row in mine}
        mine += [
            replace(row, model=f"{other.dataset} {other.model}", quality=other.quality)
            for row in known.values()
            for other in of_stem.get(row.group_id or "-", ())
        ]
    return align(mine, (WEAK, STRONG), pricing=(0.1, 1.0))


def _gains(job: Job) -> np.ndarray:
    """(2, held) predicted gain of GPT-4 before any answer, and with Mixtral's answer at hand."""
    data = TABLES[DATASET[job.part], job.others]
    stack = fit_stack(data.take(job.learn), job.seed)
    predictor, features = StackPredictor((WEAK, STRONG), stack.params, stack.arrays), PaperFeatures()
    found = np.zeros((2, len(job.held)))
    for place, number in enumerate(job.held.tolist()):
        request, weak = data.requests[number], data.rows[number][0].attempt(WEAK)
        for turn, attempts in enumerate(((), (weak,)) if job.part == "gsm8k" else ((),)):
            told = predictor.predict(features.features(request, attempts))
            found[turn, place] = told[STRONG].mean - told[WEAK].mean
    return found


def _told(name: str, data: Aligned, gains: np.ndarray, others: bool) -> dict[str, object]:
    weak, strong = data.quality.T

    def figures(weights: np.ndarray) -> tuple[float, float, float]:
        curve = metrics.gap_recovered(weak, strong, gains, weights)
        return metrics.apgr(curve), metrics.cpt(curve, 0.5), metrics.cpt(curve, 0.8)

    whole = figures(np.full(len(data), 1 / len(data)))
    drawn = metrics.bootstrap(
        lambda weights: np.array([figures(line) for line in weights]),
        len(data),
        np.random.default_rng(0),
        times=TIMES,
        groups=data.groups,
    )
    found: dict[str, object] = {"name": name, "others": others, "n": len(data)}
    for place, key in enumerate(("apgr", "cpt50", "cpt80")):
        found[key] = whole[place]
        found[f"{key}_ci"] = metrics.interval(drawn[:, place])
    return found


if __name__ == "__main__":
    main()
