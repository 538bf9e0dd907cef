"""`stepladder train` and `evaluate` on outcomes of real models: four ladders, train → validation.

    python benchmarks/routing_first.py [--ladders A,B,C,D] [--predictors mlp,logistic] [--data ../shared/data]
                                       [--resamples 1000] [--out benchmarks/results/routing-first.json]

Writes the commands, and of each judgement the figures of the predictor before and after an answer, of the greedy policy
and the cascade along λ, and of the operating point that training calibrated.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepladder.cli import main as stepladder
from stepladder.engines.threads import available_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "routing-first.json"

SUMMARISED = ("greedy", "cascade", "oracle", "zero-router")

LADDERS: Mapping[str, tuple[str, str, str]] = {
    "A": ("mmlu_pro", "Llama-2-7b-hf,Llama-2-13b-hf,Llama-2-70b-hf", "0.1,0.186,1"),
    "B": (
        "mmlu_pro",
        "Mistral-7B-Instruct-v0.2,Mixtral-8x7B-Instruct-v0.1,Llama-3.1-70B-Instruct",
        "0.102,0.183,1",
    ),
    "C": (
        "zeroeval",
        "Meta-Llama-3.1-8B-Instruct,Meta-Llama-3.1-70B-Instruct,Llama-3.1-405B-Inst@sambanova",
        "0.02,0.174,1",
    ),
    "D": (
        "llmrouter_ulab",
        "mistral-7b-instruct-v0.3,llama-3.1-8b-instruct,llama-3.1-nemotron-51b-instruct",
        "0.141,0.157,1",
    ),
}


def commands(ladder: str, predictor: str, folder: Path, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    table, stages, costs = LADDERS[ladder]
    out = str(folder / f"{ladder}-{predictor}")
    common = ["--outcomes", str(args.data / f"{table}.parquet"), "--stages", stages, "--costs", costs]
    judged = ["--artifact", out, "--split", "validation", "--resamples", str(args.resamples)]
    return (
        ["train", *common, "--predictor", predictor, "--out", out],
        ["evaluate", *common, *judged, "--json", f"{out}.json"],
    )


def one(ladder: str, predictor: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    taken = []
    pair = commands(ladder, predictor, folder, args)
    for words in pair:
        began = time.perf_counter()
        if stepladder(words):
            sys.exit(f"failed: stepladder {' '.join(words)}")
        taken.append(round(time.perf_counter() - began, 1))
    found = json.loads((folder / f"{ladder}-{predictor}.json").read_text("utf-8"))
    lam = found["lambda_calibrated"]
    return {
        "ladder": ladder,
        "predictor": predictor,
        "commands": [f"stepladder {' '.join(words)}".replace(f"{folder}/", "") for words in pair],
        "train_s": taken[0],
        "evaluate_s": taken[1],
        "n": found["n"],
        "overlap_left_out": found["overlap"]["queries"],
        **found["predictor"],
        "fitted": found["artifact"]["kind"],
        "summary": {name: found["summary"][name] for name in SUMMARISED if name in found["summary"]},
        "calibrated": {e["name"]: e for e in found["policies"] if lam is not None and e["lambda"] == lam},
        "singles": [e for e in found["baselines"] if e["name"].startswith("single:")],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("..") / "shared" / "data")
    parser.add_argument("--ladders", default=",".join(LADDERS))
    parser.add_argument("--predictors", default="mlp,logistic")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    pairs = [(ladder, name) for ladder in args.ladders.split(",") for name in args.predictors.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        runs = [one(ladder, name, Path(folder), args) for ladder, name in pairs]
    report = {
        "command": f"python benchmarks/routing_first.py {' '.join(sys.argv[1:])}",
        "machine": f"{platform.processor() or platform.machine()}, {available_cores()} cores",
        "runs": runs,
    }
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for run in runs:
        for when in ("before", "after"):
            if when in run:
                sys.stdout.write(f"{run['ladder']} {run['fitted']:8} {when:6} {figures(run[when])}\n")
    return 0


def figures(found: Mapping[str, Any]) -> str:
    """R² and AUC, pooled and by stage."""
    lines = [found["pooled"], *found["per_stage"]]
    return " | ".join(f"{each['r2']:.3f} {each['auc']:.3f}" for each in lines)


if __name__ == "__main__":
    sys.exit(main())
