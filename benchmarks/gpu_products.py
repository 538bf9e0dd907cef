"""How the kernels' matrix products are best laid out on a GPU, and what a pass of whole models takes with that.

    python benchmarks/gpu_products.py --out DIR [--models 1B,7B,13B] [--no-sweep]

For each shape of the models' matrices every layout is timed in a CUDA graph over more weights than the second-level
cache holds; the best are printed as lines for ``decoding.kernels.LAYOUTS``. Then passes of the models (exact shapes,
random weights, bfloat16) by rows and width, with the fused layers and with transformers' own in the same graphs, and
the kernels of a pass one by one. Bandwidth is told as bytes of weights per second, beside that of a measured copy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepladder.decoding import kernels
from stepladder.decoding.bench.shapes import SHAPES, bandwidth, random_network, seconds_of
from stepladder.decoding.graphs import reach_for
from stepladder.decoding.kernels import Kernels, Layout
from stepladder.decoding.models import LanguageModel

TILES = [
    (16, 128, 4, 2), (16, 256, 3, 4), (16, 256, 4, 4), (16, 512, 3, 4), (32, 64, 6, 4), (32, 128, 3, 4),
    (32, 128, 4, 4), (32, 128, 5, 4), (32, 128, 4, 2), (32, 256, 3, 4), (32, 256, 4, 4), (64, 64, 4, 4),
    (64, 64, 6, 4), (64, 128, 3, 4), (64, 128, 4, 4), (64, 128, 4, 8), (128, 64, 4, 4), (128, 64, 4, 8),
]  # fmt: skip
GATED_TILES = [
    (16, 128, 4, 4), (16, 256, 3, 4), (16, 128, 4, 2), (32, 64, 4, 4), (32, 64, 6, 4), (32, 128, 3, 4),
    (32, 128, 4, 4), (32, 128, 4, 8), (64, 64, 3, 4), (64, 64, 4, 4), (64, 64, 4, 8), (64, 128, 3, 8),
]  # fmt: skip
LARGER_THAN_CACHE = 256 * 2**20
LAUNCHES = 16


def timed(call: Callable[[Any], Any], weights: list[Any]) -> float:
    """Seconds of one call, in a graph of many over different weights."""
    graph = torch.cuda.CUDAGraph()
    call(weights[0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for at in range(LAUNCHES):
            call(weights[at % len(weights)])
    return seconds_of(graph.replay, 8) / LAUNCHES


def copies(outputs: int, inputs: int) -> list[Tensor]:
    count = max(2, -(-LARGER_THAN_CACHE // (outputs * inputs * 2)))
    return [torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(count)]


def shapes(names: list[str]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(outputs, inputs) of products, and of gated ones."""
    products, gated = set(), set()
    for name in names:
        s = SHAPES[name]
        width = s["hidden_size"] // s["num_attention_heads"]
        joint = (s["num_attention_heads"] + 2 * s["num_key_value_heads"]) * width
        hidden, inner = s["hidden_size"], s["intermediate_size"]
        products |= {(joint, hidden), (hidden, hidden), (hidden, inner), (s["vocab_size"], hidden)}
        gated.add((inner, hidden))
    return products, gated


def sweep(names: list[str]) -> dict[str, Any]:
    do, found = Kernels(4096), {}
    products, gates = shapes(names)
    for outputs, inputs in sorted(products):
        weights, read = copies(outputs, inputs), torch.randn(1, inputs, dtype=torch.bfloat16, device="cuda")
        size, trials = outputs * inputs * 2, {}
        for tile in TILES:
            for parts in (1, 2, 4, 8):
                programs = -(-outputs // tile[0]) * parts
                if (parts > 1 and programs > 2400) or inputs // parts < 2 * tile[1] or programs < 100:
                    continue
                layout = Layout(tile[0], tile[1], parts, tile[2], tile[3])
                kernels.LAYOUTS[outputs, inputs] = layout
                try:
                    trials[layout] = timed(lambda w, r=read: do.product(r, w), weights)
                except Exception as error:  # noqa: BLE001 - a layout that does not fit the device is no candidate
                    sys.stderr.write(f"{layout}: {type(error).__name__}\n")
        best = sorted(trials, key=trials.__getitem__)
        kernels.LAYOUTS[outputs, inputs] = best[0]
        library = {m: timed(lambda w, m=m, r=read: r.expand(m, -1).contiguous() @ w.T, weights) for m in (1, 8)}
        found[f"{outputs}x{inputs}"] = {
            "best": [[*layout, round(size / trials[layout] / 1e9)] for layout in best[:5]],
            "library": {m: round(size / seconds / 1e9) for m, seconds in library.items()},
        }
        sys.stdout.write(f"{outputs}x{inputs} {found[f'{outputs}x{inputs}']}\n")
        sys.stdout.flush()
    for outputs, inputs in sorted(gates):
        single, read = copies(outputs, inputs), torch.randn(1, inputs, dtype=torch.bfloat16, device="cuda")
        weights = list(zip(single, copies(outputs, inputs), strict=True))
        size, trials = 2 * outputs * inputs * 2, {}
        for tile in GATED_TILES:
            layout = kernels.GATED_LAYOUTS[outputs, inputs] = Layout(tile[0], tile[1], 1, tile[2], tile[3])
            try:
                trials[layout] = timed(lambda w, r=read: do.gated(r, *w), weights)
            except Exception as error:  # noqa: BLE001 - see above
                sys.stderr.write(f"gated {layout}: {type(error).__name__}\n")
        best = sorted(trials, key=trials.__getitem__)
        kernels.GATED_LAYOUTS[outputs, inputs] = best[0]
        found[f"gated {outputs}x{inputs}"] = [[*layout, round(size / trials[layout] / 1e9)] for layout in best[:5]]
        sys.stdout.write(f"gated {outputs}x{inputs} {found[f'gated {outputs}x{inputs}']}\n")
        sys.stdout.flush()
    return found


def passes(name: str, copy: float) -> dict[str, Any]:
    """Seconds of a pass by rows and width, at rows of some 500 positions."""
    model = LanguageModel(random_network(name), name=name, context=2048, slots=8)
    size = sum(p.numel() * p.element_size() for p in model.model.parameters()) - (
        model.model.get_input_embeddings().weight.numel() * 2
        if model.model.get_input_embeddings().weight is not model.model.get_output_embeddings().weight
        else 0
    )
    found: dict[str, Any] = {"bytes": size, "told": model.told}
    for kind in ("fused", "stock"):
        if kind == "stock":
            model._fused, model._graphs._made = None, {}
        for rows, width in [(1, 1), (1, 2), (1, 5), (1, 8), (1, 9), (1, 17), (4, 1), (8, 1), (8, 5)]:
            if kind == "stock" and (rows, width) not in {(1, 1), (1, 8), (8, 1)}:
                continue
            captured = model._rectangle(rows, width, reach_for(500, model.context))
            captured.fill(0, [7] * rows * width + list(range(rows)) + [500 - width] * rows + [width] * rows)
            seconds = seconds_of(captured.run, 20)
            found[f"{kind} {rows}x{width}"] = {
                "ms": round(seconds * 1e3, 3), "tb_per_s": round(size / seconds / 1e12, 3),
                "of_copy": round(size / seconds / copy, 3),
            }  # fmt: skip
            sys.stdout.write(f"{name} {kind} {rows}x{width} {found[f'{kind} {rows}x{width}']}\n")
            sys.stdout.flush()
            if kind == "fused" and (rows, width) in {(1, 1), (1, 5)}:
                found[f"kernels {rows}x{width}"] = by_kernel(captured.run)
    return found


def by_kernel(run: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of a replay by kernel."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as told:
        run()
        torch.cuda.synchronize()
    rows = {e.key[:40]: [e.count, round(e.device_time_total / 1e3, 3)] for e in told.key_averages() if e.count}
    for key, row in sorted(rows.items(), key=lambda each: -each[1][1])[:12]:
        sys.stdout.write(f"    {key:40} {row[0]:5} × {row[1]:8.3f} ms\n")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["1B", "7B", "13B"])
    parser.add_argument("--no-sweep", action="store_true")
    args = parser.parse_args()
    began, copy = time.perf_counter(), bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_tb_per_s": round(copy / 1e12, 3),
        "sweep": {} if args.no_sweep else sweep(args.models),
        "models": {},
    }
    sys.stdout.write(f"copy {copy / 1e12:.3f} TB/s; swept in {time.perf_counter() - began:.0f} s\n")
    for name in args.models:
        report["models"][name] = passes(name, copy)
        torch.cuda.empty_cache()
        (args.out / "products.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"{time.perf_counter() - began:.0f} s in all\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
