"""Arms side by side: every arm answers every prompt before the next is taken, in an order that turns.

So a busy moment of the machine hits all of them, and ratios are of the same prompts. All seconds are those of whole
answers, prompt included.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stepladder.decoding.bench.arms import Arm, Bench, Planned, own, own_arms, stock_arms
from stepladder.decoding.bench.families import CONTEXT, Family, dialled, kept_share
from stepladder.decoding.bench.forecast import Rates, best_lengths
from stepladder.decoding.bench.shapes import bandwidth
from stepladder.decoding.laws import Sampling
from stepladder.decoding.rounds import Turn
from stepladder.decoding.times import StepTimes

RESAMPLES = 2000

WARMING = 32
"""Tokens of an answer in warming; layers that are compiled are compiled for the length that comes."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to compare. ``alphas``: acceptances that are dialled, one for each pair of neighbours; prompts take turns
    among several such settings. ``peers``: have transformers answer too. ``lengths`` and ``assisted``: set draft
    lengths of own arms and of transformers'."""

    prompts: Sequence[list[int]]
    tokens: int
    lengths: tuple[int, ...] = (2, 4, 8)
    assisted: tuple[int, ...] = (4, 8)
    temperature: float = 0.0
    alphas: tuple[tuple[float, ...], ...] = ()
    peers: bool = True
    longest: int = 8


@dataclass(slots=True)
class Dials:
    """Settings of the dials that prompts take turns among: the shares, and what acceptance came to."""

    shares: list[list[float]] = field(default_factory=list)
    found: list[list[float]] = field(default_factory=list)


def machine(family: Family, longest: int) -> tuple[StepTimes, dict[str, Any]]:
    """Times of passes, for planners and for the report, and what of the device's bandwidth they reach."""
    times, told = StepTimes(), dict[str, float]()
    for stage, model in enumerate(family.models):
        for width in range(1, longest * 2 + 2):
            seconds = _pass_seconds(model, width)
            for _ in range(4):
                times.observe(stage, width, 1, seconds)
            told[f"{model.name} 1x{width}"] = round(seconds * 1e3, 4)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if family.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": {model.name: model.parameters for model in family.models},
        "told": family.target.told,
        "pass_ms": told,
    }
    if family.device.type == "cuda":
        copy, target = bandwidth(), family.target
        read = target.model.get_input_embeddings().weight.numel()
        size = (target.parameters - read) * target.dtype.itemsize
        share = size / (times.seconds(len(family.models) - 1, 1) or 1.0) / copy
        report |= {"copy_tb_per_s": round(copy / 1e12, 3), "plain_share_of_copy": round(share, 4)}
    return times, report


def _pass_seconds(model: Any, width: int) -> float:
    """Of a pass that is captured by the device's clock, else of whole passes by the host's."""
    slot = model.open()
    try:
        found = model.narrow_seconds(width, slot)
        if found is not None:
            return float(found)
        spans = []
        for _ in range(4):
            began = time.perf_counter()
            model.masked(
                torch.zeros((1, width), dtype=torch.int64, device=model.device),
                *(torch.tensor([number], device=model.device) for number in (slot, 0, width)),
                reach=CONTEXT // 2,
            )
            spans.append(time.perf_counter() - began)
        return statistics.median(spans[1:])
    finally:
        model.close(slot)


def compare(family: Family, times: StepTimes, asked: Asked, trials: Sequence[list[int]], say: Say) -> dict[str, Any]:
    """All arms on all prompts. ``trials``: prompts to dial and to foresee on. ``say`` is told how far it is."""
    sampling = Sampling(asked.temperature)
    dials = set_dials(family, asked, sampling, trials)
    turn_to(family, dials, 0)
    bench = Bench(family, sampling, times)
    rates = bench.acceptance(trials)
    arms = own_arms(bench, asked.lengths, rates)
    planned = Planned(bench, asked.longest)
    adaptive = Arm("own adaptive", own(bench, planned, 99))
    if len(family.models) > 1:
        arms.append(adaptive)
    arms += stock_arms(bench, asked.assisted) if asked.peers else []
    failed = warm(arms, trials, asked.tokens, say)
    if len(family.models) > 1:
        planned.__init__(bench, asked.longest)  # type: ignore[misc]  # what it heard in warming is forgotten
    for index, prompt in enumerate(asked.prompts):
        turn_to(family, dials, index)
        turn = index % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            began = time.perf_counter()
            wrote = arm.answer(prompt, asked.tokens, arm.counts)
            arm.seconds.append(time.perf_counter() - began)
            arm.texts.append(wrote)
        say(f"prompt {index + 1} of {len(asked.prompts)}")
    found: dict[str, Any] = {
        "temperature": asked.temperature,
        "dial": {"asked": asked.alphas, "found": dials.found},
        "acceptance_on_trials": {_pair(family, pair): _rounded(each) for pair, each in rates.items()},
        "failed": failed,
        "arms": {arm.name: told_of(arm, arms, family) for arm in arms},
    }
    return found | verdicts(bench, arms, planned, rates, asked)


def set_dials(family: Family, asked: Asked, sampling: Sampling, trials: Sequence[list[int]]) -> Dials:
    """Find the share of each setting; dials are set from the bottom up, since a lower one moves those above it."""
    dials = Dials()
    for alphas in asked.alphas:
        shares = [
            dialled(family, level, alpha, sampling, trials)
            for level, alpha in zip(range(len(family.dials)), alphas, strict=True)
        ]
        dials.shares.append(shares)
        found = [kept_share(family, level, sampling, trials) for level in range(len(family.dials))]
        dials.found.append(_rounded(found))
    return dials


def turn_to(family: Family, dials: Dials, index: int) -> None:
    """Set the dials for a prompt."""
    if dials.shares:
        for dial, share in zip(family.dials, dials.shares[index % len(dials.shares)], strict=True):
            dial.turn(share)


def warm(arms: list[Arm], trials: Sequence[list[int]], tokens: int, say: Say) -> dict[str, str]:
    """Have each arm answer twice: kernels are chosen, layers compiled, graphs captured. Drops those that cannot."""
    failed: dict[str, str] = {}
    for arm in list(arms):
        say(f"warming {arm.name}")
        try:
            for prompt in trials[:2]:
                arm.answer(prompt, tokens if arm.name == "hf compiled" else min(tokens, WARMING), arm.counts)
        except Exception as error:
            if arm.name.startswith("own"):
                raise
            # An arm of somebody else's that does not run here is told as such.
            failed[arm.name] = f"{type(error).__name__}: {str(error)[:200]}"
            arms.remove(arm)
        arm.forget()
    return failed


# ── what came of it ──────────────────────────────────────────────────────────


def interval(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Ratio of sums (first over second), with the 95 % interval of resampled prompts."""
    chance = random.Random(0)  # noqa: S311 - resampling, no secret

    def ratio(some: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in some) / sum(b for _, b in some)

    found = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return _rounded([ratio(pairs), found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]])


def against(arm: Arm, other: Arm) -> list[float]:
    """How much faster an arm is than another, per token, on the same prompts."""
    pairs = zip(other.seconds, other.tokens, arm.seconds, arm.tokens, strict=True)
    return interval([(slow / many, fast / few) for slow, many, fast, few in pairs])


def told_of(arm: Arm, arms: Sequence[Arm], family: Family) -> dict[str, Any]:
    """One arm's figures: speed, against others, acceptance by pair and position, passes, share of its bound."""
    by_name = {each.name: each for each in arms}
    tokens, counts = sum(arm.tokens), arm.counts
    found: dict[str, Any] = {"tokens_per_s": round(tokens / sum(arm.seconds), 2)}
    for other in ("own plain", "hf eager", "hf compiled"):
        if other in by_name and other != arm.name:
            found[f"against {other}"] = against(arm, by_name[other])
    plain = by_name["own plain"]
    found["same_text_as_plain"] = round(
        statistics.mean(one == other for one, other in zip(arm.texts, plain.texts, strict=True)), 3
    )
    found["passes_per_token"] = {name: round(count / tokens, 4) for name, count in counts.passes.items()}
    if not counts.rounds:
        return found
    found["acceptance"] = {
        _pair(family, pair): {
            "rate": round(sum(counts.kept[pair]) / sum(judged), 4),
            "by_position": _rounded([k / j for k, j in zip(counts.kept[pair], judged, strict=True)]),
        }
        for pair, judged in counts.judged.items()
    }
    found["tokens_per_round"] = round(tokens / counts.rounds, 3)
    found["waits_per_round"] = round(counts.waits / counts.rounds, 3)
    decoding_s = counts.decoding_s - counts.caught_up_s
    found["ms_per_round"] = round(decoding_s / counts.rounds * 1e3, 4)
    found["outside_passes"] = round(1 - counts.foreseen_s / decoding_s, 4)
    found["drafters_reading_s"] = round(counts.caught_up_s, 4)
    if arm.foreseen is not None:
        measured = plain.counts.foreseen_s / sum(plain.tokens) * tokens / decoding_s
        found["foreseen_speed"], found["measured_over_foreseen"] = _rounded([arm.foreseen, measured / arm.foreseen])
    return found


def verdicts(bench: Bench, arms: Sequence[Arm], planned: Planned, rates: Rates, asked: Asked) -> dict[str, Any]:
    """The adaptive arm and the chain against the best set length, own against the best of transformers' assisted."""
    by_name = {arm.name: arm for arm in arms}
    static = [arm for arm in arms if arm.lengths and len(arm.chain) == 2]
    found: dict[str, Any] = {}
    if not static:
        return found
    best = min(static, key=_pace)
    half = len(best.seconds) // 2
    found["best_static"] = best.name
    adaptive = by_name["own adaptive"]
    found["adaptive_against_best_static"] = against(adaptive, best)
    found["adaptive_against_best_static_second_half"] = against(_later(adaptive, half), _later(best, half))
    found["adaptive_rounds"] = planned.used
    helped = [arm for arm in arms if arm.name.startswith("hf assisted")]
    if helped:
        other = min(helped, key=_pace)
        found["best_static_against_best_assisted"] = [other.name, *against(best, other)]
    chain = next((arm for arm in arms if len(arm.chain) == 3), None)
    if chain is not None and chain.foreseen is not None:
        two = max(best_lengths(arm.chain, rates, bench.times, asked.longest)[1] for arm in static)
        found["chain_against_best_static"] = against(chain, best)
        found["chain_foreseen_against_best_pair"] = round(chain.foreseen / two, 4)
    return found


def _pace(arm: Arm) -> float:
    return sum(arm.seconds) / sum(arm.tokens)


def _later(arm: Arm, start: int) -> Arm:
    return Arm(arm.name, arm.answer, arm.seconds[start:], arm.texts[start:])


def _pair(family: Family, pair: tuple[int, int]) -> str:
    names = ["n-grams" if stage < 0 else family.models[stage].name for stage in pair]
    return " → ".join(names)


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(number, 4) for number in numbers]


def outside_of_graphs(bench: Bench, lengths: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, Any]:
    """Of a round's seconds: those of its graph, and the share that is beside it. Nothing where there are no graphs."""
    found: dict[str, Any] = {}
    for chain, each in lengths:
        rounds = bench.rounds(chain)
        if rounds.reason is not None:
            return {}
        answer = rounds.open([1] * 128)
        spans = []
        for _ in range(30):
            began = time.perf_counter()
            rounds.round([Turn(answer)], each)
            spans.append(time.perf_counter() - began)
        graph, wall = rounds.seconds([Turn(answer)], each) or 0.0, statistics.median(spans)
        rounds.close(answer)
        found[f"{' → '.join(map(str, chain))} {list(each)}"] = {
            "round_ms": round(wall * 1e3, 4),
            "graph_ms": round(graph * 1e3, 4),
            "outside": round(1 - graph / wall, 4),
        }
    return found
