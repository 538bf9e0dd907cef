"""How long a stack takes to decide: features, estimates and the policy, by profile, length of the text and history.

    python benchmarks/predict_time.py [--artifact DIR] [--texts 200] [--rounds 7]

Without --artifact one is trained on the split train of ../shared/data/mmlu_pro.parquet (three minutes or so); where
that table is not there nothing is measured, which is said. Texts are prompts of its split validation, cut after 60 and
200 words. Everything runs on one thread. The cases take turns in every round, and of each figure the best round counts:
what else the machine does then is not measured. ``undisturbed`` are percentiles over texts of each text's best time.
Prints and writes benchmarks/results/predict-time.json: microseconds, and which of the AIMS are missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

from stepladder import plugins
from stepladder.build import profiled
from stepladder.cli import main as stepladder
from stepladder.contracts import Policy, Predictor
from stepladder.evaluate.outcomes import OutcomeRow, read
from stepladder.features.paper import PaperFeatures
from stepladder.policies.greedy import GreedyPolicy
from stepladder.predictors.artifact import Artifact, load
from stepladder.types import Attempt, Cost, Request, View

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "predict-time.json"
TABLE = ROOT.parent / "shared" / "data" / "mmlu_pro.parquet"
STAGES, COSTS = ("Llama-2-7b-hf", "Llama-2-13b-hf", "Llama-2-70b-hf"), (0.1, 0.186, 1.0)
LAMBDA = 5.0
LENGTHS = (60, 200)
AIMS: Mapping[tuple[str, int], float] = {
    ("fast", 60): 120.0,
    ("fast", 200): 250.0,
    ("full", 60): 600.0,
    ("full", 200): 1200.0,
}
"""Microseconds, median, before any answer."""

HISTORY, TAIL = 200.0, 3.0
"""Microseconds more once an answer is to be read, and how many medians the 99th percentile may be."""


class Case(NamedTuple):
    """What one figure is of."""

    profile: str
    words: int
    answers: int
    policy: str


Asked = Sequence[tuple[Request, tuple[Attempt, ...]]]


def trained(folder: Path) -> Artifact:
    """A stack of the table's training rows."""
    words = ["train", "--outcomes", str(TABLE), "--stages", ",".join(STAGES), "--costs", ",".join(map(str, COSTS))]
    if stepladder([*words, "--predictor", "stack", "--out", str(folder)]) != 0:
        raise SystemExit("no artifact was trained: see above")
    return load(folder)


def asked(rows: Sequence[OutcomeRow], words: int, count: int) -> Asked:
    """Prompts of so many words, each with the recorded answer of the cheapest stage."""
    found: list[tuple[Request, tuple[Attempt, ...]]] = []
    for row in rows:
        ends = [match.end() for match in re.finditer(r"\S+", row.request.text)]
        if len(ends) >= words and len(found) < count:
            found.append((Request("x", prompt=row.request.text[: ends[words - 1]]), (row.attempt(STAGES[0]),)))
    return found


def cases(
    artifact: Artifact, rows: Sequence[OutcomeRow], texts: int
) -> Iterator[tuple[Case, Callable[[], list[float]], int]]:
    """Every case, what measures it once [µs of each text], and of how many texts."""
    policies: dict[str, Policy] = {"greedy": GreedyPolicy(cascade=True), "pandora": plugins.make("policies", "pandora")}
    for profile in ("fast", "full"):
        own = profiled(artifact, profile, "profile")
        predictor: Predictor = plugins.make("predictors", own.kind, own.stages, own.params, own.arrays)
        for words in LENGTHS:
            requests = asked(rows, words, texts)
            for answers in (0, 1):
                for name, policy in policies.items():
                    case = Case(profile, words, answers, name)
                    yield (
                        case,
                        _timed(predictor, policy, [(each, made[:answers]) for each, made in requests]),
                        len(requests),
                    )


def _timed(predictor: Predictor, policy: Policy, requests: Asked) -> Callable[[], list[float]]:
    featurizer = PaperFeatures()
    costs = {stage: Cost(cost) for stage, cost in zip(STAGES, COSTS, strict=True)}

    def measure() -> list[float]:
        found = []
        for request, attempts in requests:
            began = time.perf_counter_ns()
            estimates = predictor.predict(featurizer.features(request, attempts))
            policy.decide(View(STAGES, LAMBDA, estimates, costs, attempts))
            found.append((time.perf_counter_ns() - began) / 1e3)
        return found

    return measure


def percentile(values: Sequence[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def measured(artifact: Artifact, rows: Sequence[OutcomeRow], texts: int, rounds: int) -> list[dict[str, Any]]:
    """Median and 99th percentile of every case, of the best of the rounds."""
    every = list(cases(artifact, rows, texts))
    for _, measure, _ in every:
        measure()
    taken: dict[Case, list[list[float]]] = {case: [] for case, _, _ in every}
    for _ in range(rounds):
        for case, measure, _ in every:
            taken[case].append(measure())
    return [{**case._asdict(), "texts": count, **_figures(taken[case])} for case, _, count in every]


def _figures(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of the best round; and of what each text took when it went best, in which no other program has a part."""
    best = [min(times) for times in zip(*rounds, strict=True)]
    found = {f"p{share}_us": round(min(percentile(each, share) for each in rounds), 1) for share in (50, 99)}
    return found | {f"undisturbed_p{share}_us": round(percentile(best, share), 1) for share in (50, 99)}


def missed(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The aims that were not reached, in words."""
    before = {(each["profile"], each["words"], each["policy"]): each["p50_us"] for each in found if not each["answers"]}
    told = []
    for each in found:
        case = f"{each['profile']}, {each['words']} words, {each['answers']} answers, {each['policy']}"
        aim = AIMS[each["profile"], each["words"]]
        if each["answers"]:
            aim = before[each["profile"], each["words"], each["policy"]] + HISTORY
        if each["p50_us"] > aim:
            told.append(f"{case}: median {each['p50_us']:.0f} µs, wanted {aim:.0f}")
        if each["p99_us"] > TAIL * each["p50_us"]:
            told.append(f"{case}: p99 {each['p99_us']:.0f} µs, more than {TAIL:g} medians of {each['p50_us']:.0f}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", metavar="DIR", help="a stack of that table's three Llama-2 stages")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not TABLE.is_file():
        sys.stdout.write(
            f"nothing measured: {TABLE} is not there; outcomes of real models are no part of the repository\n"
        )
        return 0
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        artifact = load(args.artifact) if args.artifact else trained(Path(folder))
        rows = [row for row in read(TABLE) if row.model == STAGES[0] and row.split == "validation"]
        found = measured(artifact, rows, args.texts, args.rounds)
    report = {
        "command": f"python benchmarks/predict_time.py --texts {args.texts} --rounds {args.rounds}",
        "what": "µs of features, estimates and policy on one thread; of each figure the best of the interleaved rounds",
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "artifact": {"version": artifact.version, "kind": artifact.kind, "queries": int(artifact.metrics["rows"]) // 3},
        "cases": found,
        "missed": missed(found),
    }
    RESULT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
