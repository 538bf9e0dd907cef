"""What a cascade closes more of the gap to the oracle than the greedy rule, paired, with and without log probabilities.

    python benchmarks/cascade_gain.py --outcomes T.parquet --artifact DIR [--stages a,b,c] [--costs 1,2,4]
                                      [--split validation]

Prints JSON: ``gap_closed`` of both, the difference with its 95 % interval (bootstrap over groups, the same resamples
for both), and at each λ of the grid the share of queries on which the cascade called several stages. ``told`` reads the
table's log probabilities as a server would tell them, ``untold`` hides them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stepladder.cli import outcomes_options as options
from stepladder.cli.train import predictor_of
from stepladder.evaluate import compare, metrics
from stepladder.evaluate.aligned import Aligned, expected_costs
from stepladder.evaluate.compare import Bench, Family
from stepladder.evaluate.reference import from_metrics, overlap, reference_of
from stepladder.evaluate.scores import Posterior, estimate
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.predictors.artifact import Artifact, load


def untold(data: Aligned) -> Aligned:
    """The same outcomes without log probabilities."""
    return replace(data, rows=tuple(tuple(replace(row, confidence=None) for row in line) for line in data.rows))


def measure(data: Aligned, artifact: Artifact, times: int = 1000) -> dict[str, Any]:
    """The figures of one table."""
    reference = from_metrics(artifact.metrics, artifact.stages) or reference_of(data)
    costs = reference.cost if data.pricing is None else data.cost.mean(axis=0)
    grid = metrics.lambda_grid(reference.quality, costs)
    expected = expected_costs(data, reference.cost, reference.output_tokens)
    predictor, features = predictor_of(artifact), PaperFeatures()
    before = estimate(predictor, features, data.requests)
    greedy = Family("greedy", compare.curve(Bench(data, expected), "greedy", GreedyPolicy(), before, grid.tolist()))
    whole = np.full((1, len(data)), 1 / len(data))
    found: dict[str, Any] = {"n": len(data), "greedy": compare.gaps(data, greedy, grid, whole)[0]}
    for name, told in (("told", data), ("untold", untold(data))):
        after = Posterior(predictor, features, data.requests)
        played = compare.curve(
            Bench(told, expected), "cascade", GreedyPolicy(cascade=True), before, grid.tolist(), after=after
        )
        cascade = Family("cascade", played)
        found[name] = {
            "cascade": compare.gaps(data, cascade, grid, whole)[0],
            **paired(data, greedy, cascade, grid, times),
        }
        pairs = zip(greedy.played, played, strict=True)
        found[name]["climbed"] = [round(float((two.cost > one.cost + 1e-12).mean()), 3) for one, two in pairs]
    return found


def paired(data: Aligned, one: Family, two: Family, grid: metrics.Vector, times: int) -> dict[str, Sequence[float]]:
    """95 % interval of what ``two`` closes more."""

    def more(weights: metrics.Matrix) -> metrics.Matrix:
        both = (np.array(compare.gaps(data, each, grid, weights)) for each in (two, one))
        return np.subtract(*both).reshape(-1, 1)

    drawn = metrics.bootstrap(more, len(data), np.random.default_rng(0), times=times, groups=data.groups)
    return {"difference_ci": metrics.interval(drawn[:, 0])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_table(parser, split="validation", stages_required=False)
    parser.add_argument("--artifact", required=True)
    args = parser.parse_args()
    artifact = load(args.artifact)
    data = options.read_table(args, options.words(args.stages, "--stages") or artifact.stages, artifact.stages)
    found = measure(data.take(~overlap(data, artifact.arrays)), artifact)
    sys.stdout.write(json.dumps({"command": " ".join(sys.argv), **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
