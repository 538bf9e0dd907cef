"""``stepladder import``: outcomes that others measured and published, as a table to train from and judge on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stepladder.errors import UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.grouping import BY_GROUP
from stepladder.evaluate.importers import mt_bench, routellm, routerbench
from stepladder.evaluate.importers.common import Imported, read_dropped

SOURCES = {
    "routellm": "RouteLLM's CSV files: mmlu/responses/*.csv, gsm8k_responses.csv",
    "routerbench": "RouterBench's table as CSV or Parquet",
    "mt-bench": "MT-Bench judgements as JSON lines, with --questions",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    told = "; ".join(f"{name}: {told}" for name, told in SOURCES.items())
    parser.add_argument("source", choices=SOURCES, metavar="SOURCE", help=told)
    parser.add_argument("files", nargs="+", metavar="FILE", help="the files, or folders of them")
    parser.add_argument("--out", required=True, metavar="TABLE", help="the table to write, .parquet or .jsonl")
    parser.add_argument(
        "--split",
        default=BY_GROUP,
        help=f"what the rows' split is called; '{BY_GROUP}' cuts the questions 60/20/20 into train, validation and "
        f"test (default: {BY_GROUP})",
    )
    parser.add_argument(
        "--drop", metavar="FILE", help="questions to leave out, such as contaminated ones: ids or prompts, one a line"
    )
    parser.add_argument("--questions", metavar="FILE", help="of mt-bench: its question.jsonl")


def run(args: argparse.Namespace) -> int:
    outcomes.check_path(args.out)
    if Path(args.out).exists():
        raise UsageError(f"{args.out}: is there already; name another --out or remove it")
    if (args.source == "mt-bench") != (args.questions is not None):
        raise UsageError("mt-bench needs --questions" if args.questions is None else "--questions goes with mt-bench")
    imported = _imported(args)
    outcomes.write(imported.rows, args.out)
    sys.stdout.write("\n".join(_summary(args.out, imported)) + "\n")
    return 0


def _imported(args: argparse.Namespace) -> Imported:
    drop = frozenset[str]() if args.drop is None else read_dropped(args.drop)
    if args.source == "mt-bench":
        return mt_bench.read(args.files, args.questions, drop, args.split)
    if args.source == "routellm":
        return routellm.read(args.files, drop, args.split)
    return routerbench.read(args.files, drop, args.split)


def _summary(out: str, imported: Imported) -> list[str]:
    rows = imported.rows
    lines = [f"{len(rows)} rows of {len({row.query_id for row in rows})} queries in {out}"]
    if imported.left_out:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(imported.left_out.items()))
        lines.append(f"left out {sum(imported.left_out.values())}: {reasons}")
    return [*lines, *_by_model(rows)]


def _by_model(rows: Sequence[outcomes.OutcomeRow]) -> list[str]:
    quality: dict[str, list[float]] = {}
    for row in rows:
        quality.setdefault(row.model, []).append(row.quality)
    return [f"{model}: mean quality {sum(found) / len(found):.4f} of {len(found)}" for model, found in quality.items()]
