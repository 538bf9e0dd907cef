"""What passes of well-known models' shapes take on a GPU, as a table of costs; and what a second start takes.

    python benchmarks/gpu_shapes.py --out DIR [--models 1B,7B,13B,34B,70B] [--name h200] [--start 13B]

Exact shapes, random weights, bfloat16, rows of 500 positions: what a pass takes does not hang on what weights are, and
those of these sizes are not at hand. Each pass is a CUDA graph, timed by the device's clock, the median of 20 replays;
shares are of the bandwidth of a copy measured in the same run. ``--name`` writes NAME.toml beside the raw figures.
``--start`` begins a model in two processes, one behind the other, and tells what the second needs beyond its weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stepladder.decoding.bench.shapes import bandwidth, random_network, seconds_of
from stepladder.decoding.graphs import reach_for
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.rounds import Rounds, Turn

PASSES = ((1, 1), (1, 2), (1, 4), (1, 5), (1, 8), (1, 17), (2, 1), (4, 1), (8, 1), (8, 5))
"""(rows, width)."""

PLACES, PROMPT = 500, 512


def table_of(name: str, copy: float) -> dict[str, Any]:
    """Milliseconds of a model's passes, and of reading a prompt."""
    began = time.perf_counter()
    model = LanguageModel(random_network(name), name=name, context=1024, slots=8)
    weights = [each for each in model.model.parameters() if each is not model.model.get_input_embeddings().weight]
    head = model.model.get_output_embeddings().weight
    size = sum(each.numel() * each.element_size() for each in weights)
    size += head.numel() * head.element_size() if head is model.model.get_input_embeddings().weight else 0
    found: dict[str, Any] = {"parameters": model.parameters, "bytes_read": size, "told": model.told, "ms": {}}
    for rows, width in PASSES:
        captured = model._rectangle(rows, width, reach_for(PLACES, model.context))
        captured.fill(0, [7] * rows * width + list(range(rows)) + [PLACES - width] * rows + [width] * rows)
        found["ms"][f"{rows}x{width}"] = round(seconds_of(captured.run, 20) * 1e3, 3)
    slot = model.open()
    spans = []
    for _ in range(4):
        started = time.perf_counter()
        model.forward([Feed(slot, 0, [7] * PROMPT, 0)])
        spans.append(time.perf_counter() - started)
    found["prompt_of_512_ms"] = round(statistics.median(spans[1:]) * 1e3, 2)
    found["share_of_copy"] = round(size / (found["ms"]["1x1"] / 1e3) / copy, 3)
    found["eight_over_one"] = round(found["ms"]["1x8"] / found["ms"]["1x1"], 3)
    found["took_s"] = round(time.perf_counter() - began, 1)
    return found


def toml_of(name: str, report: dict[str, Any]) -> str:
    """The table as a price file."""
    models = report["models"]
    base = next(iter(models.values()))["ms"]["1x1"]
    lines = [
        f"# What a token of well-known models' shapes takes on one {report['device']}: measured, not set by hand.",
        f"# {report['command']}, {report['date']}; copy {report['copy_tb_per_s']} TB/s. {report['how']}",
        "",
        'unit = "gpu_s"',
        f'device = "{report["device"]}"',
    ]
    for shape, each in models.items():
        ms = each["ms"]
        lines += [
            "",
            f'[shapes."{shape}"]',
            f"parameters = {each['parameters']}",
            f"relative = {ms['1x1'] / base:.2f} # a token alone, the first shape's being 1",
            f"token_s = {ms['1x1'] / 1e3:.6f} # one answer, one token",
            f"eight_tokens_s = {ms['1x8'] / 1e3:.6f} # one answer, eight tokens verified in a pass",
            f"seventeen_tokens_s = {ms['1x17'] / 1e3:.6f}",
            f"answers_s = [{', '.join(format(ms[f'{n}x1'] / 1e3, '.6f') for n in (1, 2, 4, 8))}] # 1, 2, 4, 8 answers",
            f"prompt_of_512_s = {each['prompt_of_512_ms'] / 1e3:.5f}",
            f"share_of_copy = {each['share_of_copy']}",
        ]
    return "\n".join(lines) + "\n"


def start(name: str) -> dict[str, float]:
    """Seconds of a start in this process, by part: this module's imports stand before it."""
    marks = [("began", time.perf_counter())]
    network = random_network(name)
    torch.cuda.synchronize()
    marks.append(("weights", time.perf_counter()))
    model = LanguageModel(network, name=name, context=1024, slots=8)
    marks.append(("fused", time.perf_counter()))
    rounds = Rounds([model])
    rounds.warm([()], kinds=("greedy", "whole"), reach=PROMPT)
    for width in (1, 2, 3, 4, 6, 8, 12, 16):
        model.narrow_seconds(width, 0)
    marks.append(("graphs", time.perf_counter()))
    answer = rounds.open([7] * 128)
    for _ in range(8):
        rounds.round([Turn(answer)])
    marks.append(("first answer of 8 tokens", time.perf_counter()))
    return {told: round(at - marks[place][1], 2) for place, (told, at) in enumerate(marks[1:])}


def second_start(name: str) -> list[Any]:
    """Two processes, one behind the other: what each told, and how long it was there."""
    found = []
    for _ in range(2):
        began = time.perf_counter()
        command = [sys.executable, __file__, "--started", name, "--out", "."]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        whole = time.perf_counter() - began
        parts = json.loads(told.strip().splitlines()[-1])
        found.append({"whole_s": round(whole, 2), "beyond_weights_s": round(whole - parts["weights"], 2), **parts})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["1B", "7B", "13B", "34B", "70B"])
    parser.add_argument("--name", default="")
    parser.add_argument("--start", default="")
    parser.add_argument("--started", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.started:
        sys.stdout.write(json.dumps(start(args.started)) + "\n")
        return 0
    report: dict[str, Any] = {
        "command": "python benchmarks/gpu_shapes.py --out DIR " + " ".join(sys.argv[3:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "how": f"bfloat16, random weights, rows of {PLACES} positions, passes out of CUDA graphs.",
        "models": {},
    }
    if args.start:  # first: it needs the memory for itself
        report["starts"] = {args.start: second_start(args.start)}
        sys.stdout.write(f"{report['starts']}\n")
    copy = bandwidth()
    report["copy_tb_per_s"] = round(copy / 1e12, 3)
    for name in args.models:
        report["models"][name] = table_of(name, copy)
        sys.stdout.write(f"{name} {report['models'][name]}\n")
        sys.stdout.flush()
        gc.collect()  # graphs and models hold each other; the next model may need all the memory
        torch.cuda.empty_cache()
        (args.out / "shapes.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        if args.name:
            (args.out / f"{args.name}.toml").write_text(toml_of(args.name, report), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
