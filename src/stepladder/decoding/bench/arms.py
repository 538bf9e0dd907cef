"""Ways to answer: own rounds with set lengths, planned ones, looked-up drafts, and transformers' generate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stepladder.decoding.acceptance import NGRAM
from stepladder.decoding.bench.families import CONTEXT, Family
from stepladder.decoding.bench.forecast import Rates, best_lengths, seconds_of_round, speed_of
from stepladder.decoding.chain import NgramDrafter
from stepladder.decoding.controller import Planner
from stepladder.decoding.course import Round
from stepladder.decoding.laws import Sampling
from stepladder.decoding.planner_settings import PlannerSettings
from stepladder.decoding.planning import Plan
from stepladder.decoding.rounds import Rounds, Shape, Turn, Wrote
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.times import StepTimes

LOOKED_UP = 8
"""Drafts that n-grams are asked for."""


@dataclass
class Counts:
    """What came of an arm's rounds: by (drafter, target) the drafts judged and kept at each position; passes by model,
    rounds, waits; seconds behind the prompt, those of them in which drafters read what they had not, prompts included,
    and those that the rounds' passes alone should take."""

    judged: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    kept: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    waits: int = 0
    decoding_s: float = 0.0
    caught_up_s: float = 0.0
    foreseen_s: float = 0.0

    def verified(self, pair: tuple[int, int], drafted: int, accepted: int) -> None:
        """Count one verification."""
        for place in range(min(drafted, accepted + 1)):
            for counts, amount in ((self.judged, 1), (self.kept, int(place < accepted))):
                found = counts.setdefault(pair, [])
                found += [0] * (place + 1 - len(found))
                found[place] += amount


@dataclass
class Arm:
    """One way to answer, and what came of it: for each prompt seconds and tokens."""

    name: str
    answer: Callable[[list[int], int, Counts], list[int]]
    seconds: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    lengths: tuple[int, ...] | None = None
    chain: tuple[int, ...] = ()
    foreseen: float | None = None
    """Speed beside plain decoding that the cost model said beforehand."""

    @property
    def tokens(self) -> list[int]:
        """Tokens of each answer."""
        return [len(text) for text in self.texts]

    def forget(self) -> None:
        """Begin to count anew."""
        self.seconds, self.texts, self.counts = [], [], Counts()


@dataclass
class Bench:
    """What own arms share: a family, how tokens are drawn, times of passes, and rounds of each chain."""

    family: Family
    sampling: Sampling
    times: StepTimes
    made: dict[tuple[int, ...], Rounds] = field(default_factory=dict)
    _known: dict[tuple[Shape, tuple[int, ...]], tuple[float, list[tuple[int, int, int]]]] = field(default_factory=dict)

    def passes(self, shape: Shape, chain: tuple[int, ...]) -> tuple[float, list[tuple[int, int, int]]]:
        """Seconds of a round's passes, and those passes; computed once, since it is asked for within what is timed."""
        found = self._known.get((shape, chain))
        if found is None:
            found = self._known[shape, chain] = (seconds_of_round(shape, chain, self.times), shape.passes(chain))
        return found

    @property
    def top(self) -> int:
        """The answering model's index."""
        return len(self.family.models) - 1

    def rounds(self, chain: Sequence[int]) -> Rounds:
        """Rounds of a chain of the family's models."""
        key = tuple(chain)
        if key not in self.made:
            self.made[key] = Rounds([self.family.models[stage] for stage in key], stages=key)
        return self.made[key]

    def warm(self, chain: Sequence[int], lengths: Sequence[Sequence[int]]) -> None:
        """Capture rounds of a chain for any text of the context."""
        self.rounds(chain).warm(lengths, kinds=(self.sampling.kind,), reach=CONTEXT // 2)

    def acceptance(self, prompts: Sequence[list[int]], length: int = 8) -> Rates:
        """Conditional acceptance by position of every pair of models, from trials before anything is timed."""
        counts = Counts()
        for pair in [(low, high) for high in range(self.top + 1) for low in range(high)]:
            rounds = self.rounds(pair)
            for index, prompt in enumerate(prompts):
                answer, chance = rounds.open(prompt), random.Random(index).random  # noqa: S311 - sampling, no secret
                for _ in range(16):
                    wrote = rounds.round([Turn(answer, self.sampling, chance)], (length,))[0]
                    counts.verified(pair, length, wrote.accepted)
                    if not self.family.ends.isdisjoint(wrote.tokens):
                        break
                rounds.close(answer)
        return {pair: pooled(counts, pair) for pair in counts.judged}


def pooled(counts: Counts, pair: tuple[int, int], weight: float = 16.0) -> list[float]:
    """Rates by position, those of few verdicts drawn to the mean of all."""
    judged, kept = counts.judged[pair], counts.kept[pair]
    mean = sum(kept) / sum(judged)
    return [(k + weight * mean) / (j + weight) for j, k in zip(judged, kept, strict=True)]


class Way:
    """How an own arm chooses its next round, and what it hears of it. This one has a set chain and lengths."""

    def __init__(self, chain: Sequence[int], lengths: Sequence[int] = ()) -> None:
        self.chain, self.lengths = tuple(chain), tuple(lengths)

    def begin(self, answer: Answer) -> None:
        """An answer begins."""

    def next(self, answer: Answer, left: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chain, lengths and looked-up drafts of the next round, which may write ``left`` tokens."""
        if not self.lengths or left < 2:
            return self.chain[-1:], (), ()
        if len(self.lengths) == 1:
            return self.chain, (min(self.lengths[0], left - 1),), ()
        if left < 3:
            return self.chain[-1:], (), ()
        return self.chain, (self.lengths[0], min(self.lengths[1], left - 1)), ()

    def heard(self, wrote: Wrote, seconds: float, caught_up: float, foreseen: tuple[float, float]) -> None:
        """A round was made: its seconds, those of them in which drafters caught up, and its passes' as foreseen."""


class LookedUp(Way):
    """Drafts by n-grams of the text itself."""

    def begin(self, answer: Answer) -> None:
        self._drafter = NgramDrafter()

    def next(self, answer: Answer, left: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        self._drafter.learn(answer.tokens, len(answer.tokens))
        return self.chain[-1:], (), tuple(self._drafter.found(answer.tokens, min(LOOKED_UP, left - 1)))


class Planned(Way):
    """Chains and lengths by the planner, which begins knowing step times and nothing else."""

    def __init__(self, bench: Bench, longest: int) -> None:
        super().__init__((bench.top,))
        self._bench, self._greedy = bench, bench.sampling.greedy
        settings = PlannerSettings(longest=longest, ngram=False, stopping="fixed")
        sizes = [float(model.parameters) for model in bench.family.models]
        self._planner = Planner(len(sizes), settings, sizes=sizes, times=bench.times)
        self._plan = Plan((bench.top,))
        self._asked: tuple[int, ...] = ()
        self.used: dict[str, int] = {}

    def begin(self, answer: Answer) -> None:
        self._own = self._planner.own(greedy=self._greedy)

    def next(self, answer: Answer, left: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        length = len(answer.tokens)
        unread = {stage: length - answer.read.get(stage, 0) for stage in range(self._bench.top)}
        self._plan = self._planner.plan(
            self._bench.top, greedy=self._greedy, unread=unread, remaining=left, own=self._own
        )
        self.chain, self.lengths = self._plan.chain, self._plan.lengths
        if len(self.lengths) == 2:
            self.lengths = (self.lengths[0], max(2, self.lengths[1]))
        chain, lengths, given = super().next(answer, left)
        self._asked = lengths
        told = " → ".join(map(str, chain)) + f" {list(lengths)}"
        self.used[told] = self.used.get(told, 0) + 1
        return chain, lengths, given

    def heard(self, wrote: Wrote, seconds: float, caught_up: float, foreseen: tuple[float, float]) -> None:
        acceptance = self._planner.acceptance(greedy=self._greedy)
        for each in wrote.verified:
            pair = self._plan.chain[each.place], self._plan.chain[each.place + 1]
            acceptance.observe(*pair, len(each.confidences), each.accepted, each.confidences)
            self._own.observe(*pair, len(each.confidences), each.accepted)
        if bool(self._asked) == bool(self._plan.lengths):
            took = Round(len(wrote.tokens), seconds, foreseen, caught_up)
            self._planner.observe_round(self._plan, took, greedy=self._greedy)


def own(bench: Bench, way: Way, seed: int) -> Callable[[list[int], int, Counts], list[int]]:
    """Answers by rounds."""

    def answer(prompt: list[int], most: int, counts: Counts) -> list[int]:
        chance = random.Random(f"{seed}/{prompt}").random  # noqa: S311 - sampling of text, no secret
        text = bench.rounds((bench.top,)).open(prompt)
        way.begin(text)
        began = time.perf_counter()
        try:
            while not _is_over(text, most, bench.family.ends):
                _one_round(bench, way, text, most, counts, chance)
        finally:
            counts.decoding_s += time.perf_counter() - began
            for stage, slot in text.slots.items():
                bench.family.models[stage].close(slot)
        return _cut(text.tokens[text.prompt :], most, bench.family.ends)

    return answer


def _one_round(  # noqa: PLR0917 - what a round of an answer takes
    bench: Bench, way: Way, text: Answer, most: int, counts: Counts, chance: Callable[[], float]
) -> None:
    chain, lengths, given = way.next(text, most - (len(text.tokens) - text.prompt))
    _hold(bench, text, chain)
    missed = {stage: len(text.tokens) - 1 - text.read[stage] for stage in chain[:-1]}
    rounds = bench.rounds(chain)
    waits, began = rounds.waits, time.perf_counter()
    wrote = rounds.round([Turn(text, bench.sampling, chance, given)], lengths)[0]
    seconds = time.perf_counter() - began
    foreseen, passes = bench.passes(Shape(len(chain), lengths, len(given)), chain)
    if rounds.waits - waits > 1:  # told, or the planner would think that catching up costs nothing
        counts.caught_up_s += rounds.caught_up_s
        late = {stage: count for stage, count in missed.items() if count > 1}
        for stage, count in late.items():
            bench.times.observe(stage, count, 1, rounds.caught_up_s / len(late))
    way.heard(wrote, seconds, rounds.caught_up_s, (foreseen, float(sum(many for _, _, many in passes))))
    counts.rounds, counts.waits = counts.rounds + 1, counts.waits + rounds.waits - waits
    counts.foreseen_s += foreseen
    for stage, _, many in passes:
        name = bench.family.models[stage].name
        counts.passes[name] = counts.passes.get(name, 0) + many
    for each in wrote.verified:
        pair = (NGRAM, chain[-1]) if each.place == NGRAM else (chain[each.place], chain[each.place + 1])
        counts.verified(pair, len(each.confidences), each.accepted)


def _hold(bench: Bench, text: Answer, chain: Sequence[int]) -> None:
    for stage in chain:
        if stage not in text.slots:
            text.slots[stage], text.read[stage] = bench.family.models[stage].open(), 0


def _is_over(text: Answer, most: int, ends: frozenset[int]) -> bool:
    wrote = text.tokens[text.prompt :]
    return len(wrote) >= most or not ends.isdisjoint(wrote)


def _cut(tokens: list[int], most: int, ends: frozenset[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in ends), most)
    return tokens[: min(most, end + 1)]


# ── transformers ─────────────────────────────────────────────────────────────


def stock(family: Family, sampling: Sampling, **settings: Any) -> Callable[[list[int], int, Counts], list[int]]:
    """Answers by transformers' generate; forward passes of its models are counted."""
    drawn = {"do_sample": True, "top_k": 0, "temperature": sampling.temperature}
    chosen: dict[str, Any] = {"do_sample": False} if sampling.greedy else drawn
    ends = sorted(family.ends) or None

    def answer(prompt: list[int], most: int, counts: Counts) -> list[int]:
        row = torch.tensor([prompt], device=family.device)
        passes, hooks = [0] * len(family.stock), []
        for place, model in enumerate(family.stock):
            if not settings.get("cache_implementation"):  # a hook would have its layers compiled anew
                hooks.append(model.register_forward_pre_hook(_counting(passes, place)))
        try:
            wrote = family.stock[-1].generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=most, pad_token_id=0, eos_token_id=ends,
                **chosen, **settings,
            )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        for model, count in zip(family.models, passes, strict=True):
            if hooks:
                counts.passes[model.name] = counts.passes.get(model.name, 0) + count
        return [int(token) for token in wrote[0, len(prompt) :].tolist()]

    return answer


def _counting(passes: list[int], place: int) -> Callable[..., None]:
    def count(*_: Any) -> None:
        passes[place] += 1

    return count


def with_drafts(
    family: Family, count: int, answer: Callable[[list[int], int, Counts], list[int]]
) -> Callable[[list[int], int, Counts], list[int]]:
    """transformers' assisted generation with a set number of drafts, never ended early by confidence."""

    def asked(prompt: list[int], most: int, counts: Counts) -> list[int]:
        settings = family.stock[-2].generation_config
        names = ("num_assistant_tokens", "assistant_confidence_threshold", "num_assistant_tokens_schedule")
        before = [getattr(settings, name) for name in names]
        for name, value in zip(names, (count, 0.0, "constant"), strict=True):
            setattr(settings, name, value)
        try:
            return answer(prompt, most, counts)
        finally:
            for name, value in zip(names, before, strict=True):
                setattr(settings, name, value)

    return asked


# ── all of them ──────────────────────────────────────────────────────────────


def own_arms(bench: Bench, lengths: Sequence[int], rates: Rates) -> list[Arm]:
    """Own arms. The chain of all models is set to the lengths that the cost model finds best for it."""
    top, models = bench.top, bench.family.models
    found = [Arm("own plain", own(bench, Way((top,)), 0), chain=(top,), lengths=())]
    longest = max(lengths, default=8)
    bench.warm((top,), [()])
    for drafter in range(top):
        pair = (drafter, top)
        bench.warm(pair, [(length,) for length in range(1, longest + 1)])
        told = f" of {models[drafter].name}" if top > 1 else ""
        found += [
            Arm(f"own γ={length}{told}", own(bench, Way(pair, (length,)), length), chain=pair, lengths=(length,))
            for length in lengths
        ]
    if top == 2:
        chain = (0, 1, 2)
        best, _ = best_lengths(chain, rates, bench.times, longest)
        bench.warm(chain, [(best[0], most) for most in range(2, best[1] + 1)])
        made = own(bench, Way(chain, best), 31)
        found.append(Arm(f"own chain {list(best)}", made, chain=chain, lengths=best))
    if bench.sampling.greedy:
        found.append(Arm("own n-grams", own(bench, LookedUp((top,)), 41)))
    for arm in found:
        if arm.lengths:
            arm.foreseen = speed_of(arm.chain, arm.lengths, rates, bench.times)
    return found


def stock_arms(bench: Bench, assisted: Sequence[int]) -> list[Arm]:
    """transformers: eager, static cache and compiled layers, assisted as it comes and with set numbers of drafts."""
    family, sampling = bench.family, bench.sampling
    found = [Arm("hf eager", stock(family, sampling, disable_compile=True))]
    if family.device.type == "cuda":
        found.append(Arm("hf compiled", stock(family, sampling, cache_implementation="static")))
    if len(family.stock) > 1:
        helped = stock(family, sampling, assistant_model=family.stock[-2])
        found.append(Arm("hf assisted", helped))
        found += [Arm(f"hf assisted γ={count}", with_drafts(family, count, helped)) for count in assisted]
    return found
