"""Estimates of ``first_trial.py`` (TF-IDF regression, LightGBM, LightGBM after the answer) on validation rows.

    python benchmarks/opponent.py ../shared/tools/first_trial.py A OUT.npz [TABLE STAGES COSTS]

The script knows the ladders A to D by name; any other is named with its table (as ``mmlu_pro``), its models and their
costs, with commas between. Runs where that script runs: its packages (pandas, lightgbm, wordllama …) are not
Stepladder's. Writes ``ids`` (n,), and ``c1``, ``c2``, ``c3`` (n, k), ``seed`` (n, k), ``subset`` (n, k).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"(b)": "seed", "(c1)": "c1", "(c2)": "c2", "(c3)": "c3", "subset x": "subset"}


def main() -> None:
    path, ladder, out, *named = sys.argv[1:]
    sys.argv = [path, ladder]
    code, _, runs = Path(path).read_text().partition('if __name__=="__main__":')
    found: dict[str, Any] = {}
    space: dict[str, Any] = {"__file__": path, "__name__": "first_trial"}
    exec(compile(code, path, "exec"), space)  # noqa: S102 - the script that was named
    original, wide = space["report"], space["wide"]

    def report(name: str, truth: Any, told: Any) -> Any:
        for head, key in NAMES.items():
            if name.startswith(head):
                found[key] = np.asarray(told)
        return original(name, truth, told)

    def widened(*args: Any, **options: Any) -> Any:
        tables = wide(*args, **options)
        found["ids"] = tables[0].index[(tables[0].split == "validation").values].to_numpy().astype(str)
        return tables

    space["report"], space["wide"] = report, widened
    space["clusters"] = lambda *args: None
    if named:
        table, stages, costs = named
        space["ladder"](ladder, table, stages.split(","), [float(cost) for cost in costs.split(",")])
    else:
        exec(compile("if True:" + runs, path, "exec"), space)  # noqa: S102
    np.savez_compressed(out, **found)


if __name__ == "__main__":
    main()
