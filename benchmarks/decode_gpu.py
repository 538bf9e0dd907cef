"""Decoding on a GPU against what a PyTorch user has: paired, interleaved, one process, the same weights.

    python benchmarks/decode_gpu.py --model 7B --layers 3 --alphas 0.8,0.0,0.8+0.0 --out DIR
    python benchmarks/decode_gpu.py --model toy --device cpu --tokens 16 --prompts 2 --without hf-compiled --out DIR

The target has a model's exact shape and random weights, and is its drafter and further layers whose output projections
are scaled down until the drafter's tokens are kept as often as asked: acceptance is dialled, and measured again in each
arm; 0.8+0.0 are prompts that take turns. It says little about temperatures above 0, whose laws are nearly flat here.
Every arm answers every prompt before the next is taken, in an order that turns. All write the same number of tokens
behind prompts of one length, and all seconds are those of whole answers, prompt included.

Arms: own plain; own with drafts of each length (the best of them is chosen with hindsight); own adaptive, whose planner
begins knowing the step times and nothing else; transformers' generate: eager, static cache with compiled layers,
assisted by the drafter as it comes and with a constant number of drafts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_shapes import SHAPES, bandwidth, random_network, seconds_of
from stepladder.decoding.controller import Planner, PlannerSettings
from stepladder.decoding.course import Round
from stepladder.decoding.laws import Sampling
from stepladder.decoding.models import LanguageModel
from stepladder.decoding.rounds import DRAFTER, TARGET, Rounds
from stepladder.decoding.times import StepTimes

RESAMPLES = 2000
CONTEXT = 1024


@dataclass
class Pair:
    """A target, its drafter, and transformers' own models over the same weights."""

    target: LanguageModel
    drafter: LanguageModel
    stock: Any
    stock_drafter: Any
    base: list[tuple[torch.nn.Parameter, torch.Tensor]]

    def dial(self, share: float) -> None:
        """Scale what the further layers add by a share of what they would."""
        with torch.no_grad():
            for weight, original in self.base:
                torch.mul(original, share, out=weight.data)


def pair_of(name: str, layers: int, device: str, sharpness: float, rows: int) -> Pair:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    network = random_network(name, device=device, dtype=dtype)
    with torch.no_grad():
        network.lm_head.weight.mul_(sharpness)
    drafter = _shortened(network, layers)
    base = [
        (weight, weight.detach().clone())
        for layer in network.model.layers[layers:]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
    ]
    target, small = (
        LanguageModel(each, name=told, context=CONTEXT, slots=rows, narrow=True)
        for each, told in ((network, name), (drafter, f"{name}/{layers} layers"))
    )
    stock = _twin(network, device)  # last, so that it shares the matrices that were joined
    return Pair(target, small, stock, _shortened(stock, layers), base)


def _twin(network: Any, device: str) -> Any:
    """Another module over the same weights, with transformers' own attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(network.config.to_dict())
    with torch.device("meta"):
        twin = LlamaForCausalLM(config)
    twin.load_state_dict(network.state_dict(), assign=True)
    twin.tie_weights()
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config).to(device)
    twin.set_attn_implementation("sdpa")
    return twin.eval().requires_grad_(False)


def _shortened(network: Any, layers: int) -> Any:
    """The first layers of a network, with its embedding, norm and head: the same objects."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(network.config.to_dict() | {"num_hidden_layers": layers})
    with torch.device("meta"):
        short = LlamaForCausalLM(config)
    short.model.embed_tokens, short.model.norm = network.model.embed_tokens, network.model.norm
    short.model.rotary_emb, short.lm_head = network.model.rotary_emb, network.lm_head
    short.model.layers = torch.nn.ModuleList(network.model.layers[:layers])
    short.set_attn_implementation("sdpa")
    return short.eval()


# ── arms ─────────────────────────────────────────────────────────────────────


@dataclass
class Arm:
    """One way to answer, and what came of it: for each prompt seconds, tokens, drafts judged and kept, rounds."""

    name: str
    answer: Callable[[list[int], int], tuple[list[int], dict[str, float]]]
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    notes: list[dict[str, float]] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)


def own(rounds: Rounds, length: Callable[[int], int], heard: Callable[..., None], seed: int) -> Callable[..., Any]:
    """Answers by rounds; ``length`` gives the drafts of the next one, ``heard`` is told of each that was made."""

    def answer(prompt: list[int], most: int) -> tuple[list[int], dict[str, float]]:
        chance = random.Random(f"{seed}/{prompt}").random
        answer, notes = rounds.open(prompt), {"judged": 0.0, "kept": 0.0, "rounds": 0.0, "decode_s": 0.0}
        waits, began = rounds.waits, time.perf_counter()
        while (left := most - (len(answer.tokens) - answer.prompt)) > 0:
            asked = min(length(left), left - 1)
            started = time.perf_counter()
            wrote = rounds.round([answer], asked, chance)[0]
            heard(asked, wrote, time.perf_counter() - started)
            notes["rounds"] += 1
            notes["judged"] += min(asked, wrote.accepted + 1)
            notes["kept"] += wrote.accepted
        notes["decode_s"] = time.perf_counter() - began
        notes["waits"] = float(rounds.waits - waits)
        rounds.close(answer)
        return answer.tokens[answer.prompt :], notes

    return answer


class Adaptive:
    """Lengths by the planner, from measured times and what was kept."""

    def __init__(self, times: StepTimes, sizes: Sequence[int], longest: int, *, greedy: bool) -> None:
        settings = PlannerSettings(longest=longest, ngram=False, stopping="fixed")
        self.planner = Planner(2, settings, sizes=sizes, times=times)
        self._times, self._greedy = times, greedy
        self._plan = self.planner.plan(TARGET, greedy=greedy)
        self.lengths: dict[int, int] = {}

    def length(self, left: int) -> int:
        self._plan = self.planner.plan(TARGET, greedy=self._greedy, remaining=left)
        return 0 if self._plan.plain else self._plan.lengths[0]

    def heard(self, asked: int, wrote: Any, seconds: float) -> None:
        self.lengths[asked] = self.lengths.get(asked, 0) + 1
        if asked:
            self.planner.acceptance(greedy=self._greedy).observe(
                DRAFTER, TARGET, asked, wrote.accepted, wrote.confidences
            )
        passes = (self._times.seconds(DRAFTER, 1) or 0.0) * asked + (self._times.seconds(TARGET, asked + 1) or 0.0)
        plan = self._plan if asked == (0 if self._plan.plain else self._plan.lengths[0]) else None
        if plan is not None:
            self.planner.observe_round(
                plan, Round(len(wrote.tokens), seconds, (passes, asked + 1.0)), greedy=self._greedy
            )


def stock(model: Any, device: str, sampling: Sampling, **settings: Any) -> Callable[..., Any]:
    """Answers by transformers' generate."""
    drawn = {"do_sample": True, "top_k": 0, "temperature": sampling.temperature}
    chosen = {"do_sample": False} if sampling.greedy else drawn

    def answer(prompt: list[int], most: int) -> tuple[list[int], dict[str, float]]:
        row = torch.tensor([prompt], device=device)
        wrote = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=most, pad_token_id=0, **chosen, **settings
        )
        return wrote[0, len(prompt) :].tolist(), {}

    return answer


def arms_of(
    pair: Pair, args: argparse.Namespace, times: StepTimes, sampling: Sampling, alphas: Sequence[float]
) -> tuple[list[Arm], Adaptive]:
    rounds = Rounds(pair.target, pair.drafter, sampling=sampling)
    rounds.warm(range(max(args.lengths) + 1), reach=CONTEXT)
    quiet = lambda *_: None  # noqa: E731 - nobody listens
    sizes = [pair.drafter.parameters, pair.target.parameters]
    adaptive = Adaptive(times, sizes, max(args.lengths), greedy=sampling.greedy)
    made = [Arm("own plain", own(rounds, lambda _: 0, quiet, 0))]
    made += [Arm(f"own γ={g}", own(rounds, lambda _, g=g: g, quiet, g)) for g in args.lengths]
    made.append(Arm("own adaptive", own(rounds, adaptive.length, adaptive.heard, 99)))
    ask = {"assistant_model": pair.stock_drafter}
    made += [
        Arm("hf eager", stock(pair.stock, args.device, sampling, disable_compile=True)),
        Arm("hf compiled", stock(pair.stock, args.device, sampling, cache_implementation="static")),
        Arm("hf assisted", stock(pair.stock, args.device, sampling, **ask)),
    ]
    made += [
        Arm(f"hf assisted γ={g}", _constant(pair, g, stock(pair.stock, args.device, sampling, **ask)))
        for g in args.assisted
    ]
    skipped = {name.replace("-", " ") for name in args.without} | (
        {"hf"} if not set(alphas) <= set(args.peers_at) else set()
    )
    return [arm for arm in made if not any(arm.name.startswith(name) for name in skipped)], adaptive


def _constant(pair: Pair, count: int, answer: Callable[..., Any]) -> Callable[..., Any]:
    """With a set number of drafts, never ended early by confidence."""

    def asked(prompt: list[int], most: int) -> tuple[list[int], dict[str, float]]:
        settings = pair.stock_drafter.generation_config
        before = (settings.num_assistant_tokens, settings.assistant_confidence_threshold)
        settings.num_assistant_tokens, settings.assistant_confidence_threshold = count, 0.0
        settings.num_assistant_tokens_schedule = "constant"
        try:
            made: tuple[list[int], dict[str, float]] = answer(prompt, most)
        finally:
            settings.num_assistant_tokens, settings.assistant_confidence_threshold = before
        return made

    return asked


# ── measurement ──────────────────────────────────────────────────────────────


def step_times(pair: Pair, longest: int, device: str) -> tuple[StepTimes, dict[str, Any]]:
    """Seconds of passes out of graphs, to the planner and to the report."""
    times, told = StepTimes(), {}
    for stage, model in ((DRAFTER, pair.drafter), (TARGET, pair.target)):
        for rows, width in [(1, w) for w in range(1, longest + 2)] + [(r, 1) for r in (2, 4, 8) if r <= model.slots]:
            captured = model._rectangle(rows, width, model.context)
            captured.fill(0, [1] * rows * width + list(range(rows)) + [128] * rows + [width] * rows)
            seconds = timed(captured.run, device)
            for _ in range(4):
                times.observe(stage, width, rows, seconds)
            told[f"{('drafter', 'target')[stage]} {rows}x{width}"] = round(seconds * 1e3, 4)
    return times, told


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        return seconds_of(run, 20)
    spans = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        spans.append(time.perf_counter() - began)
    return statistics.median(spans)


def acceptance(pair: Pair, sampling: Sampling, prompts: Sequence[list[int]], length: int = 4) -> float:
    """Share of judged drafts that are kept."""
    rounds, kept, judged = Rounds(pair.target, pair.drafter, sampling=sampling), 0, 0
    for index, prompt in enumerate(prompts):
        answer, chance = rounds.open(prompt), random.Random(index).random
        for _ in range(12):
            wrote = rounds.round([answer], length, chance)[0]
            kept += wrote.accepted
            judged += min(length, wrote.accepted + 1)
        rounds.close(answer)
    return kept / judged


def dialled(pair: Pair, alpha: float, sampling: Sampling, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Set the share of the further layers so that acceptance comes near to what is asked; what it came to."""
    low, high = 1e-3, 4.0
    share, found = 0.0 if alpha >= 1 else high, 0.0
    for _ in range(12):
        pair.dial(share)
        found = acceptance(pair, sampling, prompts)
        if abs(found - alpha) < 0.02 or alpha >= 1:
            break
        low, high = (low, share) if found < alpha else (share, high)
        share = (low * high) ** 0.5
    return {"asked": alpha, "share": share, "found": round(found, 4)}


def interval(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Ratio of sums (first over second), with the 95 % interval of resampled prompts."""
    chance = random.Random(0)

    def ratio(some: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in some) / sum(b for _, b in some)

    found = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return [round(v, 4) for v in (ratio(pairs), found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)])]


def told(arm: Arm, by_name: dict[str, Arm], times: StepTimes) -> dict[str, Any]:
    """One arm's figures: tokens per second, speed against others, what it kept, how much of its time passes took."""
    found: dict[str, Any] = {"tokens_per_s": round(sum(arm.tokens) / sum(arm.seconds), 2)}
    for other in ("own plain", "hf eager", "hf compiled"):
        if other in by_name and other != arm.name:
            found[f"against {other}"] = interval(list(zip(by_name[other].seconds, arm.seconds, strict=True)))
    best = max((a for n, a in by_name.items() if n.startswith("hf assisted")),
               key=lambda a: sum(a.tokens) / sum(a.seconds), default=None)  # fmt: skip
    if best is not None and arm.name.startswith("own"):
        found["against best hf assisted"] = [best.name, *interval(list(zip(best.seconds, arm.seconds, strict=True)))]
    if plain := by_name.get("own plain"):
        found["same_text_as_plain"] = round(
            statistics.mean(a == b for a, b in zip(arm.texts, plain.texts, strict=True)), 3
        )
    if arm.notes and arm.notes[0]:
        sums = {key: sum(note[key] for note in arm.notes) for key in arm.notes[0]}
        found["acceptance"] = round(sums["kept"] / sums["judged"], 4) if sums["judged"] else None
        found["tokens_per_round"] = round(sum(arm.tokens) / sums["rounds"], 3)
        found["waits_per_round"] = round(sums["waits"] / sums["rounds"], 3)
        found["decode_tokens_per_s"] = round(sum(arm.tokens) / sums["decode_s"], 2)
        found["ms_per_round"] = round(sums["decode_s"] / sums["rounds"] * 1e3, 4)
    return found


def outside(pair: Pair, lengths: Sequence[int], device: str) -> dict[str, Any]:
    """Of a round's seconds: those of its graph, those of its passes alone, and what is beside either."""
    rounds, found = Rounds(pair.target, pair.drafter, sampling=Sampling(0.0)), {}
    for length in lengths:
        answer = rounds.open([1] * 128)
        for _ in range(3):
            rounds.round([answer], length)
        spans = []
        for _ in range(30):
            began = time.perf_counter()
            rounds.round([answer], length)
            spans.append(time.perf_counter() - began)
        captured = next(each for key, each in rounds._graphs._made.items() if key[1] == length)
        graph, wall = timed(captured.run, device), statistics.median(spans)
        found[str(length)] = {"round_ms": round(wall * 1e3, 4), "graph_ms": round(graph * 1e3, 4),
                              "outside": round(1 - graph / wall, 4)}  # fmt: skip
        rounds.close(answer)
    return found


def compare(
    pair: Pair, args: argparse.Namespace, temperature: float, alphas: Sequence[float], times: StepTimes
) -> dict[str, Any]:
    """All arms on prompts whose acceptance takes turns."""
    sampling, chance = Sampling(temperature), random.Random(7)
    vocab = pair.target.vocab
    prompts = [[chance.randrange(vocab) for _ in range(args.prompt)] for _ in range(args.prompts)]
    extra = [[chance.randrange(vocab) for _ in range(args.prompt)] for _ in range(6)]
    dials = [dialled(pair, alpha, sampling, extra) for alpha in alphas]
    arms, adaptive = arms_of(pair, args, times, sampling, alphas)
    failed: dict[str, str] = {}
    for arm in list(arms):  # kernels are chosen, layers compiled and graphs captured outside of what is timed
        try:
            for _ in range(2):
                arm.answer(extra[0], 32 if arm.name != "hf compiled" else args.tokens)
        except Exception as error:  # noqa: BLE001 - an arm of somebody else's that does not run here is told as such
            failed[arm.name] = f"{type(error).__name__}: {str(error)[:200]}"
            arms.remove(arm)
    late = Rounds(pair.target, pair.drafter, sampling=sampling)
    for missed in (3, 6, 12, 24, 48, 96):  # a drafter that is taken up late reads what was written without it
        answer = late.open(extra[1])
        for length in (*[0] * missed, min(args.lengths)):
            late.round([answer], length, chance.random)
        late.close(answer)
    adaptive.__init__(times, [pair.drafter.parameters, pair.target.parameters], max(args.lengths),  # type: ignore[misc]
                      greedy=sampling.greedy)  # fmt: skip
    for index, prompt in enumerate(prompts):
        pair.dial(dials[index % len(dials)]["share"])
        turn = index % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            began = time.perf_counter()
            wrote, notes = arm.answer(prompt, args.tokens)
            arm.seconds.append(time.perf_counter() - began)
            arm.tokens.append(len(wrote))
            arm.notes.append(notes)
            arm.texts.append(wrote)
    by_name = {arm.name: arm for arm in arms}
    found: dict[str, Any] = {"dial": dials, "failed": failed, "arms": {a.name: told(a, by_name, times) for a in arms}}
    static = [arm for arm in arms if arm.name.startswith("own γ")]
    if static:
        best = min(static, key=lambda arm: sum(arm.seconds))
        found["best_static"] = best.name
        found["adaptive_against_best_static"] = interval(
            list(zip(best.seconds, by_name["own adaptive"].seconds, strict=True))
        )
        half = len(best.seconds) // 2
        found["adaptive_against_best_static_second_half"] = interval(
            list(zip(best.seconds[half:], by_name["own adaptive"].seconds[half:], strict=True))
        )
        found["adaptive_lengths"] = {str(k): v for k, v in sorted(adaptive.lengths.items())}
        found["bound"] = bound(best, times)
    return found


def bound(arm: Arm, times: StepTimes) -> dict[str, float]:
    """The cost model's bound for a set length at the arm's own tokens per round, and what was measured of it."""
    length = int(arm.name.partition("=")[2])
    notes = {key: sum(note[key] for note in arm.notes) for key in arm.notes[0]}
    tokens = sum(arm.tokens) / notes["rounds"]
    steps = [times.seconds(DRAFTER, 1), times.seconds(TARGET, length + 1), times.seconds(TARGET, 1)]
    draft, verify, plain = (step or 0.0 for step in steps)
    speed = tokens * plain / (length * draft + verify)
    measured = plain * sum(arm.tokens) / notes["decode_s"]
    return {"bound": round(speed, 4), "measured": round(measured, 4), "share": round(measured / speed, 4)}


def show(title: str, found: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{title}: dial {found['dial']}\n")
    for name, each in found["arms"].items():
        ratios = "  ".join(f"{k[8:]} ×{v[-3]:.3f} ({v[-2]:.3f} to {v[-1]:.3f})" for k, v in each.items()
                           if k.startswith("against"))  # fmt: skip
        counts = f"α {each.get('acceptance')}  τ {each.get('tokens_per_round')}  same {each.get('same_text_as_plain')}"
        sys.stdout.write(f"  {name:18} {each['tokens_per_s']:8.1f}/s  {counts}  {ratios}\n")
    for key, value in found.items():
        if key not in {"dial", "arms"} and value:
            sys.stdout.write(f"  {key}: {value}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    floats = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    whole = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--model", choices=sorted(SHAPES), default="7B")
    parser.add_argument("--layers", type=int, default=3, help="of the drafter")
    parser.add_argument("--alphas", type=lambda text: text.split(","), default=["0.8", "0.0"])
    parser.add_argument("--peers-at", type=floats, default=[0.8], help="acceptances at which transformers runs as well")
    parser.add_argument("--temperatures", type=floats, default=[0.0])
    parser.add_argument("--lengths", type=whole, default=[2, 4, 6, 8])
    parser.add_argument("--assisted", type=whole, default=[4, 8])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--sharpness", type=float, default=4.0)
    parser.add_argument("--without", type=lambda text: text.split(","), default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    began = time.perf_counter()
    pair = pair_of(args.model, args.layers, args.device, args.sharpness, args.rows)
    copy = bandwidth() if args.device == "cuda" else None
    began_warm = time.perf_counter()
    Rounds(pair.target, pair.drafter, sampling=Sampling(0.0)).warm([0, *args.lengths], reach=CONTEXT)
    warm_s = round(time.perf_counter() - began_warm, 2)
    times, steps = step_times(pair, max(args.lengths), args.device)
    report: dict[str, Any] = {
        "command": "python benchmarks/decode_gpu.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": {"target": pair.target.parameters, "drafter": pair.drafter.parameters},
        "told": pair.target.told,
        "warm_s": warm_s,
        "step_ms": steps,
    }
    if copy is not None:
        read = 2 * (pair.target.parameters - pair.target.model.get_input_embeddings().weight.numel())
        share = read / (steps["target 1x1"] / 1e3) / copy
        report |= {"copy_tb_per_s": round(copy / 1e12, 3), "plain_share_of_copy": round(share, 4)}
    report["rounds"] = outside(pair, [0, *args.lengths], args.device)
    sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    report["compared"] = {}
    for temperature in args.temperatures:
        for asked in args.alphas:
            title = f"T={temperature:g} α={asked}"
            alphas = [float(part) for part in asked.split("+")]
            report["compared"][title] = compare(pair, args, temperature, alphas, times)
            show(f"{args.model} {title}", report["compared"][title])
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"decode_{args.model}.json").write_text(
                json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )
    sys.stdout.write(f"{time.perf_counter() - began:.0f} s in all\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
