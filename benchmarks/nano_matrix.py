"""The embedded ladder's quality by level and family, from answers to judged tasks.

    stepladder collect -l nano --task nano --split judged --n 3000 --seed 1 --out judged.parquet
    python benchmarks/nano_matrix.py judged.parquet

Writes benchmarks/results/nano-matrix.json. Decoding is greedy; every stage answers the same tasks, which are used here
and nowhere in training.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from stepladder.evaluate import outcomes
from stepladder.evaluate.outcomes import OutcomeRow

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/nano-matrix.json"
SUMS = ROOT / "src/stepladder/presets/nano/SHA256SUMS"
LEVELS = ("simple", "medium", "complex")


def by(rows: Sequence[OutcomeRow], *fields: str) -> dict[str, dict[str, float | int]]:
    """Mean quality and number of tasks for each value of one or more columns."""

    def key(row: OutcomeRow) -> str:
        return "/".join(str(getattr(row, field)) for field in fields)

    groups = groupby(sorted(rows, key=key), key)
    found = ((name, [row.quality for row in items]) for name, items in groups)
    return {name: {"quality": round(fmean(values), 4), "n": len(values)} for name, values in found}


def figures(rows: Sequence[OutcomeRow]) -> Mapping[str, Any]:
    """All figures of one stage."""
    return {
        "quality": round(fmean(row.quality for row in rows), 4),
        "by_level": by(rows, "level"),
        "by_family": by(rows, "family"),
        "by_family_and_level": by(rows, "family", "level"),
        "mean_answer_tokens": round(fmean(row.output_tokens or 0 for row in rows), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = outcomes.read(args.table)
    names = list(dict.fromkeys(row.model for row in rows))
    stages = {name: figures([row for row in rows if row.model == name]) for name in names}
    found = {
        "machine": platform.processor() or platform.machine(),
        "xllamacpp": version("xllamacpp"),
        "weights": SUMS.read_text("utf-8").split("\n")[:-1],
        "split": sorted({row.split or "" for row in rows}),
        "graders": sorted({row.metric or "" for row in rows}),
        "stages": stages,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for name, told in stages.items():
        levels = "  ".join(f"{level} {told['by_level'][level]['quality']:.3f}" for level in LEVELS)
        sys.stdout.write(f"{name:7s} {levels}  all {told['quality']:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
