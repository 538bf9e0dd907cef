"""A world without models: what chains of drafters would do and take, with acceptance and pass times that are given.

It goes by the rules of ``stepladder.decoding.chain``: a verifier writes the exact count that it was asked for, in
rounds that leave room for its own token; a stage that was not asked for a while reads what it missed first; what a
target did not keep is forgotten by every stage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log

from stepladder.decoding.acceptance import NGRAM
from stepladder.decoding.controller import Planner
from stepladder.decoding.planning import Ground, Law, Plan
from stepladder.decoding.stopping import Stopping

Alpha = Callable[[int, int, int, int], float]
"""Chance that a token is kept: (drafter, target, position in the draft from 0, tokens written so far)."""


def steady(*rates: tuple[int, int, float]) -> Alpha:
    """The same chance at every position."""
    table = {(drafter, target): rate for drafter, target, rate in rates}
    return lambda drafter, target, position, written: table[drafter, target]


def decaying(first: float, factor: float) -> Alpha:
    """Each position is kept less often than the one before."""
    return lambda drafter, target, position, written: first * factor**position


def phases(every: int, *alphas: Alpha) -> Alpha:
    """One after another, ``every`` tokens each, over and over."""
    return lambda drafter, target, position, written: alphas[written // every % len(alphas)](
        drafter, target, position, written
    )


def flat(*seconds: float) -> Callable[[int, int], float]:
    """A pass takes the same time however wide it is."""
    return lambda stage, width: seconds[stage]


def linear(slope: float, *seconds: float) -> Callable[[int, int], float]:
    """Each further token costs ``slope`` of the pass of one."""
    return lambda stage, width: seconds[stage] * (1.0 + slope * (width - 1))


def stepped(bucket: int, rise: float, *seconds: float) -> Callable[[int, int], float]:
    """Flat within a bucket of widths, ``rise`` more from each to the next."""
    return lambda stage, width: seconds[stage] * (1.0 + rise * ((width - 1) // bucket))


@dataclass(slots=True)
class World:
    """``noise``: standard deviation of the logarithm of a pass's time; ``spikes``: share of passes that take 6 times as
    long. ``match``: chance that n-grams find something. ``informed``: confidence tells the chance of each token, which
    then comes from the text: its log-odds walk around those of ``alpha``, with this standard deviation.
    """

    alpha: Alpha
    seconds: Callable[[int, int], float]
    stages: int = 2
    noise: float = 0.0
    spikes: float = 0.0
    match: float = 0.5
    informed: float = 0.0
    memory: float = 0.7
    overhead: float = 0.0
    seed: int = 0
    chance: random.Random = field(init=False)
    nature: random.Random = field(init=False)
    _drift: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance, self.nature = random.Random(self.seed), random.Random(self.seed)

    def took(self, stage: int, width: int) -> float:
        """Seconds of a pass, as measured."""
        seconds = self.seconds(stage, width)
        if self.noise:
            seconds *= exp(self.chance.gauss(0.0, self.noise))
        if self.spikes and self.chance.random() < self.spikes:
            seconds *= 6.0
        return seconds

    def confidence(self, drafter: int, target: int, position: int, place: int, written: int) -> float:
        """Chance that the token at a place of the text is kept."""
        rate = self.alpha(drafter, target, position, written)
        if not self.informed or not 0.0 < rate < 1.0:
            return rate
        while len(self._drift) <= place:
            before = self._drift[-1] if self._drift else 0.0
            fresh = self.nature.gauss(0.0, self.informed * (1.0 - self.memory**2) ** 0.5)
            self._drift.append(self.memory * before + fresh)
        return 1.0 / (1.0 + exp(-(log(rate / (1.0 - rate)) + self._drift[place])))

    def ground(self, longest: int = 16, written: int = 0) -> Ground:
        """The truth, to plan from."""
        stages = range(self.stages)
        steps = {stage: [0.0, *(self.seconds(stage, width) for width in range(1, longest + 3))] for stage in stages}
        laws: dict[tuple[int, int], Law] = {}
        for drafter in (NGRAM, *stages):
            for target in range(max(0, drafter + 1), self.stages):
                try:
                    rates = [self.alpha(drafter, target, position, written) for position in range(longest)]
                except KeyError:
                    continue
                laws[drafter, target] = Law(rates, [self.match] * longest if drafter == NGRAM else ())
        return Ground(steps, laws, 0.0, longest, self.overhead)


@dataclass(slots=True)
class Run:
    """What came of a simulation: for each round seconds, seconds without noise, tokens, and the plan it ran with."""

    seconds: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    def rate(self, start: int = 0, end: int | None = None) -> float:
        """Tokens per second over rounds, without noise."""
        return sum(self.tokens[start:end]) / sum(self.clean[start:end])

    def add(self, plan: Plan, tokens: int, text: Text) -> None:
        """One round more."""
        self.plans.append(plan)
        self.tokens.append(tokens)
        self.seconds.append(text.spent)
        self.clean.append(text.clean)

    @property
    def switches(self) -> int:
        """Changes of the chain that runs, trials left out."""
        chains = [plan.chain for plan in self.plans if not plan.probe]
        return sum(before != after for before, after in pairwise(chains))


class Text:
    """One answer on its way: how long it is and what each stage has read of it."""

    def __init__(self, world: World, planner: Planner | None = None, prompt: int = 0, *, greedy: bool = True) -> None:
        self.world, self.planner, self.greedy = world, planner, greedy
        self.length = prompt
        self.origin = -prompt
        self.read = dict.fromkeys(range(world.stages), 0 if prompt else self.length)
        self.spent = self.clean = self.reading = 0.0
        self.written = 0

    def start(self, top: int) -> None:
        """The answering stage has read the prompt: that costs every plan the same, and is not counted."""
        self.read[top] = max(0, self.length - 1)
        if self.planner is not None and self.length > 1:
            self.planner.observe_pass(top, self.length - 1, 1, self.world.took(top, self.length - 1))

    def unread(self) -> dict[int, int]:
        return {stage: self.length - read for stage, read in self.read.items() if self.length - read > 4}

    def round(self, plan: Plan, lengths: Sequence[int], stopping: Stopping | None = None) -> tuple[int, float]:
        """Tokens and seconds of a round of the answering stage."""
        self.spent = self.clean = self.world.overhead
        self.reading = 0.0
        wrote = self._round(plan.chain, lengths, len(plan.chain) - 1, 10**9, stopping)
        self.written += wrote
        return wrote, self.spent

    def _pass(self, stage: int, want: int) -> None:
        width = max(want, self.length - self.read[stage])
        seconds = self.world.took(stage, width)
        self.spent += seconds
        self.clean += self.world.seconds(stage, width)
        if width > want + 4:
            self.reading += seconds - self.world.seconds(stage, want)
        self.read[stage] = self.length
        if self.planner is not None:
            self.planner.observe_pass(stage, width, 1, seconds)

    def _round(
        self, chain: Sequence[int], lengths: Sequence[int], at: int, most: int, stopping: Stopping | None
    ) -> int:
        start, asked, told = self.length, 0, list[float]()
        if at:
            asked = min(lengths[at - 1], most - 1)
        if asked:
            told = self._emit(chain, lengths, at - 1, asked, stopping)
        drafted = self.length - start
        self._pass(chain[at], drafted + 1)
        kept = 0
        while kept < drafted and self.world.chance.random() < self._kept(chain[at - 1], chain[at], kept, start + kept):
            kept += 1
        self.length = start + kept + 1
        for stage, read in self.read.items():
            self.read[stage] = min(read, start + kept)
        if asked and self.planner is not None:
            drafter, target = chain[at - 1], chain[at]
            self.planner.observe_verified(drafter, target, drafted, kept, told, asked=asked, greedy=self.greedy)
        return kept + 1

    def _kept(self, drafter: int, target: int, position: int, place: int) -> float:
        return self.world.confidence(drafter, target, position, self.origin + place, self.written)

    def _emit(
        self, chain: Sequence[int], lengths: Sequence[int], at: int, most: int, stopping: Stopping | None
    ) -> list[float]:
        if chain[at] == NGRAM:
            found = self.world.chance.random() < self.world.match
            self.length += most if found else 0
            return []
        if at:
            wrote = 0
            while wrote < most:
                wrote += self._round(chain, lengths, at, most - wrote, stopping)
            return []
        return self._draft(chain, most, stopping)

    def _draft(self, chain: Sequence[int], most: int, stopping: Stopping | None) -> list[float]:
        told: list[float] = []
        while len(told) < most:
            self._pass(chain[0], 1)
            confidence = self._kept(chain[0], chain[1], len(told), self.length)
            if told and stopping is not None and stopping.before(len(told), confidence):
                break
            told.append(confidence)
            self.length += 1
            if stopping is not None and stopping.after(len(told), confidence):
                break
        return told


def run_static(world: World, plan: Plan, rounds: int) -> Run:
    """One plan, round after round of one endless answer that every stage has read."""
    text, run = Text(world), Run()
    for _ in range(rounds):
        tokens, _ = text.round(plan, plan.lengths)
        run.add(plan, tokens, text)
    return run


def run_planned(
    world: World, planner: Planner, rounds: int, *, answer: int = 0, prompt: int = 64, greedy: bool = True
) -> Run:
    """What the planner makes of it. ``answer``: tokens after which a new answer begins, on ``prompt`` unread tokens."""
    run, top = Run(), world.stages - 1
    text = Text(world, planner, prompt, greedy=greedy)
    text.start(top)
    written = 0
    for _ in range(rounds):
        if answer and text.written - written >= answer:
            fresh = Text(world, planner, prompt, greedy=greedy)
            fresh.written = written = text.written
            fresh.origin += written
            text = fresh
            text.start(top)
        left = answer - (text.written - written) if answer else None
        plan = planner.plan(top, greedy=greedy, unread=text.unread(), remaining=left)
        tokens, seconds = text.round(plan, plan.asks, planner.stopping(plan, greedy=greedy))
        planner.observe_round(plan, tokens, seconds, greedy=greedy, reading=text.reading)
        run.add(plan, tokens, text)
    return run
