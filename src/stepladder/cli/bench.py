"""``stepladder bench decode``: plain decoding, chains and transformers' generate side by side on this machine."""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from stepladder import config
from stepladder.errors import MissingExtraError, UsageError
from stepladder.evaluate.tasks.nano import generate
from stepladder.files import replace_file

if TYPE_CHECKING:
    from stepladder.decoding.bench.families import Family

STAGES = ("small", "medium", "large")
TRIALS = 4
ABOUT = (
    "Every way to decode answers every prompt before the next one is taken, in one process and on the same weights; "
    "ratios are of the same prompts, with 95 % intervals of resampled ones. Without --shape the embedded models answer "
    "their own tasks. With it, the target has a well-known model's exact shape and random weights, its first layers "
    "are its drafters, and how often their tokens are kept is dialled: seconds are right, texts mean nothing."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ABOUT
    parser.add_argument("what", choices=["decode"], help="what to measure")
    parser.add_argument("--shape", metavar="NAME", help="1B, 7B, 13B, 34B, 70B or toy, instead of the embedded models")
    parser.add_argument("--stages", default="small,large", metavar="NAMES", help="embedded models, cheapest first")
    parser.add_argument("--layers", default="3", metavar="N,…", help="of each drafter of a shape (default: 3)")
    parser.add_argument(
        "--alphas",
        default="0.8",
        metavar="A,…",
        help="acceptances to dial, each a run; 0.8+0.3: prompts take turns; 0.9/0.8: of each pair in a chain of three",
    )
    parser.add_argument(
        "--peers-at", metavar="A,…", help="those of --alphas at which transformers runs too (the first)"
    )
    parser.add_argument("--temperatures", default="0", metavar="T,…", help="each a run of its own (default: 0)")
    parser.add_argument("--lengths", default="2,4,8", metavar="N,…", help="set draft lengths (default: 2,4,8)")
    parser.add_argument("--assisted", default="4,8", metavar="N,…", help="transformers' set lengths (default: 4,8)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts (default: 8)")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="of a shape's prompts")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="most tokens of an answer (default: 128)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where (default: auto)")
    parser.add_argument("--dtype", default="auto", help="of the embedded models (default: auto)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of the prompts (default: 7)")
    parser.add_argument("--no-peers", action="store_true", help="own arms alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures there, as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise MissingExtraError("stepladder bench decode", "torch")
    from stepladder.decoding.bench.arms import Bench
    from stepladder.decoding.bench.compare import Asked, compare, machine, outside_of_graphs
    from stepladder.decoding.laws import Sampling

    lengths = _whole("lengths", args.lengths)
    runs, temperatures = _runs(args), _numbers("temperatures", args.temperatures)
    if args.prompts < 1 or args.tokens < 2 or args.prompt_tokens < 1:
        raise UsageError("--prompts and --prompt-tokens should be at least 1, --tokens at least 2")
    family, prompts, trials = _models(args)
    times, found = machine(family, max(lengths))
    report: dict[str, Any] = {
        "command": f"stepladder {shlex.join(sys.argv[1:])}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **found,
    }
    rounds = [
        ((len(family.models) - 1,), ()),
        *(((len(family.models) - 2, len(family.models) - 1), (g,)) for g in lengths),
    ]
    report["rounds"] = outside_of_graphs(Bench(family, Sampling(0.0), times), rounds)
    report["compared"] = {}
    for temperature in temperatures:
        for place, (title, alphas) in enumerate(runs):
            asked = Asked(
                prompts=prompts,
                tokens=args.tokens,
                lengths=lengths,
                assisted=_whole("assisted", args.assisted),
                temperature=temperature,
                alphas=alphas,
                peers=not args.no_peers and _has_peers(args, title, place),
                longest=max(lengths),
            )
            name = f"T = {temperature:g}" + (f", α = {title}" if alphas else "")
            report["compared"][name] = compare(family, times, asked, trials, _progress)
            show(name, report["compared"][name])
            if args.out is not None:
                replace_file(args.out, orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _progress(told: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{told}")
        sys.stderr.flush()


def show(title: str, found: dict[str, Any]) -> None:
    """Print a run's arms, and its verdicts."""
    _progress("")
    lines = ["", f"{title}: acceptance {found['dial']['found'] or found['acceptance_on_trials']}"]
    for name, each in found["arms"].items():
        ratios = "  ".join(
            f"{key[8:]} ×{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
            for key, value in each.items()
            if key.startswith("against")
        )
        foreseen = f"  measured/foreseen {each['measured_over_foreseen']:.3f}" if "foreseen_speed" in each else ""
        tokens = f"  τ {each['tokens_per_round']:.2f}" if "tokens_per_round" in each else ""
        lines.append(f"  {name:24} {each['tokens_per_s']:8.1f}/s{tokens}  {ratios}{foreseen}")
    lines += [
        f"  {key}: {found[key]}" for key in list(found) if key not in {"arms", "dial", "temperature"} and found[key]
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _models(args: argparse.Namespace) -> tuple[Family, list[list[int]], list[list[int]]]:
    """The family, prompts to answer, and others to dial on."""
    from stepladder.decoding.bench.families import CONTEXT, random_family
    from stepladder.engines.torch_settings import has_cuda

    device = args.device if args.device != "auto" else ("cuda" if has_cuda() else "cpu")
    if args.shape is None:
        return _embedded(args, device)
    if args.prompt_tokens + args.tokens + 32 > CONTEXT:
        raise UsageError(f"--prompt-tokens and --tokens: together at most {CONTEXT - 32}")
    chance = random.Random(args.seed)  # noqa: S311 - texts that mean nothing, no secret
    family = random_family(args.shape, _whole("layers", args.layers), device=device, sharpness=4.0, rows=2)
    texts = [
        [chance.randrange(family.target.vocab) for _ in range(args.prompt_tokens)] for _ in range(args.prompts + TRIALS)
    ]
    return family, texts[TRIALS:], texts[:TRIALS]


def _embedded(args: argparse.Namespace, device: str) -> tuple[Family, list[list[int]], list[list[int]]]:
    from stepladder.decoding.bench.families import trained_family
    from stepladder.decoding.loading import Wanted, look

    names = args.stages.split(",")
    if not set(names) <= set(STAGES) or not 1 <= len(set(names)) == len(names):
        raise UsageError(f"--stages {args.stages}: should name some of {', '.join(STAGES)}, each once")
    loaded = [
        look(
            Wanted(
                source=str(config.PRESETS / "nano" / f"nano-{name}.gguf"),
                name=name,
                dtype=args.dtype,
                device=device,
                slots=2,
            )
        ).load()
        for name in sorted(names, key=STAGES.index)
    ]
    tokenizer = loaded[-1].tokenizer
    tasks = generate("judged", args.prompts + TRIALS, args.seed)
    texts = [tokenizer.chat([{"role": "user", "content": task.prompt}]) for task in tasks]
    family = trained_family([each.model for each in loaded], tokenizer.eos)
    return family, texts[TRIALS:], texts[:TRIALS]


def _runs(args: argparse.Namespace) -> list[tuple[str, tuple[tuple[float, ...], ...]]]:
    """(title, settings of the dials that prompts take turns among) of each run; trained models have one without."""
    if args.shape is None:
        return [("", ())]
    drafters = len(_whole("layers", args.layers))
    found = []
    for title in args.alphas.split(","):
        each = tuple(tuple(_numbers("alphas", part, "/")) for part in title.split("+"))
        if any(len(part) != drafters or not all(0 <= alpha <= 1 for alpha in part) for part in each):
            raise UsageError(f"--alphas {title}: should have a number from 0 to 1 for each of {drafters} drafters")
        found.append((title, each))
    return found


def _has_peers(args: argparse.Namespace, title: str, place: int) -> bool:
    return place == 0 if args.peers_at is None else title in args.peers_at.split(",")


def _whole(name: str, text: str) -> tuple[int, ...]:
    found = _numbers(name, text)
    if any(number != int(number) or number < 1 for number in found):
        raise UsageError(f"--{name} {text}: should be whole numbers from 1 up, with commas between")
    return tuple(int(number) for number in found)


def _numbers(name: str, text: str, between: str = ",") -> Sequence[float]:
    try:
        return [float(part) for part in text.split(between)]
    except ValueError:
        raise UsageError(f"--{name} {text}: should be numbers with '{between}' between") from None
