"""Chains against plain decoding on a CPU or a GPU: paired, interleaved, one process, the same weights.

    python benchmarks/decoding.py --ladder nano [--prompts 120] [--tokens 64] [--threads 1] [--out FILE]
    python benchmarks/decoding.py --ladder DIR --stages SmolLM2-135M...gguf,...  --prompts 8 --tokens 96

Every arm answers every prompt before the next prompt is taken, in an order that turns, so that a busy moment of the
machine hits all of them. An arm is a planner with settings of its own; it learns from its own answers only and begins
knowing the step times and nothing else, so what ``auto`` spends on finding out is in its figure. Seconds are those of a
whole answer, prompt included; ``pace`` leaves the first round out, which reads the prompt. ``--clock cpu`` counts the
process's own CPU seconds, planner's included: with one thread what an idle core would take, whatever else runs here.

Reported for each temperature and arm: speed against plain (ratio of summed seconds per token, 95 % interval from 2,000
resamples of the prompts), its pace alone, tokens per pass of the top stage, acceptance by pair and position, passes by
stage, and the planner's forecast of the pace against what was measured from then on. Then climbing: a lower stage's
answer read as a draft against starting afresh, by temperature.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stepladder.decoding.batch import Batch, Job
from stepladder.decoding.chain import GIVEN, NGRAM, Emitted, Run
from stepladder.decoding.controller import Planner
from stepladder.decoding.decode import decode
from stepladder.decoding.laws import Sampling
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.planner_settings import PlannerSettings
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.times import StepTimes
from stepladder.engines.torch_chains import Chains, Shared, Watch
from stepladder.engines.torch_models import Row, load_row, time_passes
from stepladder.engines.torch_settings import read_settings
from stepladder.evaluate.tasks.nano import generate
from stepladder.types import Stage

NANO = Path(__file__).parents[1] / "src/stepladder/presets/nano"
RESULTS = Path(__file__).parent / "results" / "decoding"
RESAMPLES = 2000
QUESTIONS = (
    "Write a Python function that returns the n-th Fibonacci number, with a docstring.",
    "Explain in a few sentences how a hash table works.",
    "Write a Python function that merges two sorted lists into one sorted list.",
    "List the planets of the solar system and one fact about each.",
    "Write a class Stack in Python with push, pop and peek, and a short example.",
    "Summarize: The cat sat on the mat. The dog came in, saw the cat and barked. The cat ran up the curtain.",
    "Rewrite this code with better names: def f(a, b): c = a * b; d = c + a; return d",
    "Write a SQL query that counts orders by customer, largest first.",
    "What is the derivative of x^3 * sin(x)? Show each step.",
    "Write a bash script that renames all .txt files in a folder to .md.",
    "Explain the difference between a process and a thread.",
    "Write a Python function that checks whether a string is a palindrome.",
)


class Positions(Watch):
    """Counts acceptance by position as well."""

    def __init__(self, shared: Shared, arm: Arm, *, greedy: bool) -> None:
        super().__init__(shared, greedy=greedy)
        self._arm = arm

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Sequence[float]) -> None:
        super().verified(drafter, target, asked, accepted, confidences)
        if drafter != GIVEN:
            for place in range(min(accepted + 1, len(confidences))):
                tried = self._arm.positions[drafter, target][place]
                tried[0] += 1
                tried[1] += place < accepted


@dataclass
class Arm:
    """One way to decode at one temperature, and what came of it."""

    name: str
    planner: Planner
    top: int
    timer: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    paces: list[tuple[float, int]] = field(default_factory=list)
    forecasts: list[float | None] = field(default_factory=list)
    passes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    positions: dict[tuple[int, int], Any] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: [0, 0]))
    )
    texts: list[list[int]] = field(default_factory=list)
    whole: list[tuple[float, float]] = field(default_factory=list)
    chains: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict(int))


def answer(
    arm: Arm, row: Row, prompt: list[int], sampling: Sampling, seed: int, most: int, given: Sequence[int] = ()
) -> list[int]:
    """One answer by an arm; its times and counts are noted."""
    shared, tokens = Shared(arm.planner), Answer(list(prompt))
    tokenizer = row.tokenizer(arm.top)
    watch = Positions(shared, arm, greedy=sampling.greedy)
    chains = Chains(
        top=arm.top,
        shared=shared,
        answer=tokens,
        greedy=sampling.greedy,
        rule="rejection",
        contexts=[each.context for each in row.models],
        vocab=row.models[arm.top].vocab,
        most=most,
        timer=arm.timer,
        ends=tokenizer.eos,
        given=given,
    )
    ends: list[tuple[float, int]] = []

    def keep(wrote: list[Emitted]) -> bool:
        chains.ended(len(wrote))
        ends.append((arm.timer(), len(wrote)))
        arm.chains[chains.plan.chain] += len(wrote)
        return False

    batch = Batch(row.models, timer=arm.timer, on_pass=arm.planner.times.observe)
    run = Run(tokens, sampling, SeededOracle(seed), tokenizer.eos, watch)
    before = [
        None if given else arm.planner.forecast(arm.top, len(prompt), size, greedy=sampling.greedy)
        for size in range(most + 1)
    ]
    arm.forecasts.append(arm.planner.seconds_per_token(arm.top, greedy=sampling.greedy))
    began = arm.timer()
    job = Job(decode(run, chains.next, most, keep), tokens, told=chains.passed)
    batch.add(job)
    while batch.jobs:
        batch.step()
    if job.error is not None:
        raise job.error
    written = tokens.tokens[tokens.prompt :]
    if (told := before[len(written)]) is not None:
        arm.whole.append((told, ends[-1][0] - began))
    arm.seconds.append(ends[-1][0] - began)
    arm.tokens.append(len(written))
    arm.paces.append((ends[-1][0] - ends[0][0], sum(count for _, count in ends[1:])))
    for stage, count in job.passes.items():
        arm.passes[stage] += count
    arm.texts.append(written)
    return written


def interval(values: Sequence[Any], statistic: Any, seed: int = 0) -> list[float]:
    """Point and 95 % interval over resampled prompts."""
    chance = random.Random(seed)
    found = sorted(statistic(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [round(v, 4) for v in (statistic(values), found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)])]


def against(arm: Arm, plain: Arm, *, pace: bool) -> list[float]:
    """Speed of an arm in plain decoding's: (plain's seconds per token) / (the arm's)."""
    own = arm.paces if pace else list(zip(arm.seconds, arm.tokens, strict=True))
    other = plain.paces if pace else list(zip(plain.seconds, plain.tokens, strict=True))

    def ratio(pairs: Sequence[Any]) -> float:
        a, n, b, m = (sum(column) for column in zip(*((*x, *y) for x, y in pairs), strict=True))
        return (b / max(m, 1)) / (a / max(n, 1)) if a and b and n and m else 1.0

    return interval(list(zip(own, other, strict=True)), ratio)


def foreseen(arm: Arm) -> float | None:
    """Forecast pace over measured pace, in the second half: each answer's forecast was made before it."""
    half = len(arm.paces) // 2
    pairs = [(f, s, n) for f, (s, n) in zip(arm.forecasts[half:], arm.paces[half:], strict=True) if f and n]
    measured = sum(s for _, s, _ in pairs)
    return round(sum(f * n for f, _, n in pairs) / measured, 4) if measured else None


def second_half(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Forecast seconds of whole answers, known before each but for its length, over those measured; second half."""
    half = pairs[len(pairs) // 2 :]
    return round(sum(f for f, _ in half) / sum(s for _, s in half), 4) if half else None


def told(arm: Arm, plain: Arm, row: Row) -> dict[str, Any]:
    def name(key: int) -> str:
        return "ngram" if key == NGRAM else row.names[key]

    total = sum(arm.tokens)
    return {
        "tokens_per_s": round(total / sum(arm.seconds), 2),
        "speed": against(arm, plain, pace=False),
        "pace_speed": against(arm, plain, pace=True),
        "worst_quarter": round(min(_quarters(arm, plain)), 4),
        "forecast_over_measured": foreseen(arm),
        "answer_forecast_over_measured": second_half(arm.whole),
        "same_text": sum(a == b for a, b in zip(arm.texts, plain.texts, strict=True)) / len(arm.texts),
        "tokens_per_top_pass": round(total / max(1, arm.passes[arm.top]), 3),
        "passes_per_token": {name(stage): round(count / total, 3) for stage, count in sorted(arm.passes.items())},
        "acceptance": {
            f"{name(a)}→{name(b)}": [round(kept / tried, 3) for tried, kept in (places[p] for p in sorted(places))]
            for (a, b), places in arm.positions.items()
        },
        "chains": {
            "→".join(map(name, chain)): count for chain, count in sorted(arm.chains.items(), key=lambda c: -c[1])
        },
    }


def _quarters(arm: Arm, plain: Arm) -> list[float]:
    """Speed against plain in each quarter of the run."""
    size = max(1, len(arm.seconds) // 4)
    spans = [slice(at, at + size) for at in range(0, size * 4, size)]
    return [(sum(plain.seconds[s]) / sum(plain.tokens[s])) / (sum(arm.seconds[s]) / sum(arm.tokens[s])) for s in spans]


def arms_for(row: Row, tops: Sequence[int], asked: Sequence[str]) -> dict[str, PlannerSettings]:
    """Plain, auto, and chains with fixed lengths and with adaptive ones."""
    low, high = tops[0], tops[-1]
    arms = {"plain": PlannerSettings(mode="off"), "auto": PlannerSettings()}
    chains = {"→".join([row.names[s], row.names[high]]): (s, high) for s in tops[:-1]}
    chains["→".join(row.names[s] for s in tops)] = tuple(tops)
    chains[f"ngram→{row.names[high]}"] = (NGRAM, high)
    chains[f"ngram→{row.names[low]}→{row.names[high]}"] = (NGRAM, low, high)
    for name, chain in chains.items():
        arms[name] = PlannerSettings(mode="chain", chain=chain)
        if len(chain) == 2:
            for length in (2, 4, 8):
                arms[f"{name} γ={length}"] = PlannerSettings(mode="chain", chain=chain, lengths=(length,))
    return {name: arms[name] for name in (asked or arms)}


def compare(row: Row, prompts: list[list[int]], temperature: float, args: argparse.Namespace) -> dict[str, Any]:
    tops = list(range(len(row.models)))
    settings = arms_for(row, tops, args.arms)
    sizes = [model.parameters for model in row.models]
    arms = []
    for name, each in settings.items():
        times = StepTimes()
        time_passes(row.models, times.observe, timer=args.timer, budget_s=args.trial_s)
        arms.append(Arm(name, Planner(len(tops), each, sizes=sizes, times=times), tops[-1], args.timer))
    for index, prompt in enumerate(prompts):
        turn = index % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            answer(arm, row, prompt, Sampling(temperature), index, args.tokens)
        sys.stderr.write(f"\rT={temperature:g} {index + 1}/{len(prompts)}")
    sys.stderr.write("\n")
    plain = next(arm for arm in arms if arm.name == "plain")
    return {arm.name: told(arm, plain, row) for arm in arms}


def climbing(row: Row, prompts: list[list[int]], temperature: float, args: argparse.Namespace) -> dict[str, Any]:
    """Each lower stage's answer as a draft of the top one's, against the top one alone; all decode plainly."""
    top, found = len(row.models) - 1, {}
    for lower in range(top):
        arms = {
            name: Arm(name, Planner(top + 1, PlannerSettings(mode="off")), at, args.timer)
            for name, at in (("lower", lower), ("fresh", top), ("climb", top))
        }
        kept: list[tuple[int, int]] = []
        for index, prompt in enumerate(prompts):
            sampling = Sampling(temperature)
            draft = answer(arms["lower"], row, prompt, sampling, index, args.tokens)
            for name in ("fresh", "climb") if index % 2 else ("climb", "fresh"):
                given = draft if name == "climb" else ()
                wrote = answer(arms[name], row, prompt, sampling, 10_000 + index, args.tokens, given)
                if name == "climb":
                    same = next((i for i, (a, b) in enumerate(zip(draft, wrote, strict=False)) if a != b), None)
                    kept.append((min(len(draft), len(wrote)) if same is None else same, len(draft)))
        pairs = list(zip(arms["climb"].seconds, arms["fresh"].seconds, strict=True))
        found[row.names[lower]] = {
            "kept_share": round(sum(k for k, _ in kept) / sum(n for _, n in kept), 3),
            "seconds": {name: round(sum(arm.seconds), 3) for name, arm in arms.items()},
            "saved_share": interval(pairs, lambda p: 1 - sum(a for a, _ in p) / sum(b for _, b in p)),
            "same_text": sum(a == b for a, b in zip(arms["climb"].texts, arms["fresh"].texts, strict=True))
            / len(prompts),
        }
    return found


def ladder(args: argparse.Namespace) -> tuple[Stage, ...]:
    folder = NANO if args.ladder == "nano" else Path(args.ladder)
    files = args.stages.split(",") if args.stages else [f"nano-{size}.gguf" for size in ("small", "medium", "large")]
    options = {"dtype": args.dtype, "device": args.device, "n_parallel": 1}
    names = [Path(file).name.removesuffix(".gguf") for file in files]
    return tuple(
        Stage(
            name,
            "torch",
            str(folder / file) if (folder / file).exists() else file,
            context=args.context,
            options=options,
        )
        for name, file in zip(names, files, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladder", default="nano", help="nano, or a folder with the models that --stages names")
    parser.add_argument("--stages", default="", help="files or folders, cheapest first")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--seed", type=int, default=2, help="of nano's prompts")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in text.split(",")], default=[0.0, 1.0])
    parser.add_argument("--arms", type=lambda text: text.split(",") if text else [], default=[])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trial-s", type=float, default=2.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what seconds are counted by")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-climb", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.timer = time.process_time if args.clock == "cpu" else time.perf_counter
    torch.set_num_threads(args.threads)
    row = load_row(read_settings(ladder(args)))
    if args.ladder == "nano":
        texts = [task.prompt for task in generate("judged", args.prompts, seed=args.seed)]
    else:
        texts = [QUESTIONS[i % len(QUESTIONS)] for i in range(args.prompts)]
    prompts = [row.tokenizer(len(row.models) - 1).chat([{"role": "user", "content": text}]) for text in texts]
    report: dict[str, Any] = {
        "command": "python benchmarks/decoding.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}",
        "models": {name: model.parameters for name, model in zip(row.names, row.models, strict=True)},
        "temperatures": {},
    }
    for temperature in args.temperatures:
        found = {"arms": compare(row, prompts, temperature, args)}
        if not args.no_climb:
            found["climbing"] = climbing(row, prompts, temperature, args)
        report["temperatures"][f"{temperature:g}"] = found
    out = args.out or RESULTS / f"{Path(args.ladder).name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for temperature, found in report["temperatures"].items():
        for name, each in found["arms"].items():
            sys.stdout.write(
                f"T={temperature} {name:28} {each['tokens_per_s']:8.1f}/s  ×{each['speed'][0]:.3f} "
                f"({each['speed'][1]:.3f} to {each['speed'][2]:.3f}) pace ×{each['pace_speed'][0]:.3f} "
                f"τ {each['tokens_per_top_pass']:.2f} forecast/measured {each['forecast_over_measured']} "
                f"of answers {each['answer_forecast_over_measured']} "
                f"same {each['same_text']:.2f}\n"
            )
        for name, each in found.get("climbing", {}).items():
            sys.stdout.write(
                f"T={temperature} climb from {name}: kept {each['kept_share']:.0%}, saved {each['saved_share']}\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
