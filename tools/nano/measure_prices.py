"""Fit what a call of each nano stage takes, from calls that were made one at a time on a quiet machine.

    stepladder collect -l nano --task nano --n 600 --at-once 1 --out timed.parquet
    python tools/nano/measure_prices.py timed.parquet

Writes presets/nano/costs.json and prints each stage's mean in units of the first stage's. The calls' own costs in the
table, which came from the old prices, are not read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stepladder import config
from stepladder.costs.timing import TimingRow, fit_measured, save_timings
from stepladder.errors import UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.outcomes import OutcomeRow

PRICES = config.PRESETS / "nano" / "costs.json"


def timing_rows(table: Sequence[OutcomeRow]) -> list[TimingRow]:
    """Seconds and tokens of every call. Raises UsageError for a row that lacks one of them."""
    found = []
    for row in table:
        if row.latency_s is None or row.prompt_tokens is None or row.output_tokens is None:
            raise UsageError(f"query '{row.query_id}', '{row.model}': no latency_s or no token counts")
        chars = len(row.request.text)
        found.append(TimingRow(row.model, row.prompt_tokens, row.output_tokens, row.latency_s, chars))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, default=PRICES)
    args = parser.parse_args()
    taken = fit_measured(timing_rows(outcomes.read(args.table)))
    save_timings(taken, args.out)
    unit = next(iter(taken.values())).mean_seconds
    for name, timing in taken.items():
        sys.stdout.write(f"{name}: {timing.mean_seconds * 1e3:.2f} ms, {timing.mean_seconds / unit:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
