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
from typing import Any

from stepladder.decoding.acceptance import NGRAM
from stepladder.decoding.controller import Planner
from stepladder.decoding.course import Round
from stepladder.decoding.planner_settings import PlannerSettings
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
    """One answer on its way: how long it is and what each stage has read of it.

    ``size``: tokens after which it ends, 0 for one without end. A draft that comes to the end is short, and no token is
    drawn behind an end that was kept. Of a round, ``spent`` is all it took, ``clean`` is that without noise and without
    the answering stage's reading of the prompt, which costs every plan the same.
    """

    def __init__(
        self, world: World, planner: Planner | None = None, prompt: int = 0, *, greedy: bool = True, size: int = 0
    ) -> None:
        self.world, self.planner, self.greedy = world, planner, greedy
        self.length = prompt
        self.origin = -prompt
        self.end = prompt + size if size else 10**9
        self.read = dict.fromkeys(range(world.stages), 0)
        self.spent = self.clean = self.reading = self.prompt = 0.0
        self.passes = 0
        self.written = 0
        self.start = prompt
        self.rounds: dict[tuple[int, ...], int] = {}

    def unread(self) -> dict[int, int]:
        return {stage: self.length - read for stage, read in self.read.items() if self.length - read > 4}

    @property
    def is_over(self) -> bool:
        return self.length >= self.end

    def took(self, tokens: int) -> Round:
        """The last round, as a planner is told of it."""
        passes = (self.spent - self.world.overhead, float(self.passes))
        one = self.is_over and len(self.rounds) == 1
        whole = (self.length - self.start, sum(self.rounds.values())) if one else (0, 0)
        return Round(tokens, self.spent, passes, self.reading, self.prompt, self.is_over, whole)

    def round(self, plan: Plan, lengths: Sequence[int], stopping: Stopping | None = None) -> int:
        """Tokens that a round of the answering stage wrote."""
        self.spent = self.clean = self.world.overhead
        self.reading = self.prompt = 0.0
        self.passes = 0
        top = len(plan.chain) - 1
        wrote = self._round(plan.chain, lengths, top, 10**9, stopping)
        self.written += wrote
        self.rounds[plan.chain] = self.rounds.get(plan.chain, 0) + 1
        return wrote

    def _pass(self, stage: int, want: int) -> None:
        width = max(want, self.length - self.read[stage])
        seconds, beyond = self.world.took(stage, width), 0.0
        if width > want + 4:
            beyond = seconds - self.world.seconds(stage, want)
        if stage == self.world.stages - 1:
            self.prompt += beyond
            self.clean += self.world.seconds(stage, want if beyond else width)
        else:
            self.reading += beyond
            self.clean += self.world.seconds(stage, width)
        self.spent += seconds
        self.passes += 1
        self.read[stage] = self.length
        if self.planner is not None:
            self.planner.times.observe(stage, width, 1, seconds)

    def _round(
        self, chain: Sequence[int], lengths: Sequence[int], at: int, most: int, stopping: Stopping | None
    ) -> int:
        start, asked, told = self.length, 0, list[float]()
        if at:
            asked = min(lengths[at - 1], most - 1)
        if asked:
            told = self._emit(chain, lengths, at - 1, min(asked, self.end - start), stopping)
        drafted, ended = self.length - start, self.is_over
        self._pass(chain[at], drafted + 1)
        kept = 0
        while kept < drafted and self.world.chance.random() < self._kept(chain[at - 1], chain[at], kept, start + kept):
            kept += 1
        self.length = min(start + kept + 1, self.end)
        for stage, read in self.read.items():
            self.read[stage] = min(read, start + kept)
        if asked and self.planner is not None:
            drafter, target = chain[at - 1], chain[at]
            offered = drafted if ended and drafter != NGRAM else asked
            self.planner.acceptance(greedy=self.greedy).observe(drafter, target, drafted, kept, told, asked=offered)
        return self.length - start

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
            while wrote < most and not self.is_over:
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
    """One plan, round after round of one endless answer."""
    text, run = Text(world), Run()
    for _ in range(rounds):
        run.add(plan, text.round(plan, plan.lengths), text)
    return run


def run_planned(
    world: World, planner: Planner, rounds: int, *, answer: int = 0, prompt: int = 64, greedy: bool = True
) -> Run:
    """What the planner makes of it. ``answer``: tokens of an answer, after which another begins, all on new prompts."""
    run, top = Run(), world.stages - 1
    text, before = Text(world, planner, prompt, greedy=greedy, size=answer), 0
    for _ in range(rounds):
        if text.is_over:
            before += answer
            text = Text(world, planner, prompt, greedy=greedy, size=answer)
            text.written, text.origin = before, before - prompt
        left = text.end - text.length if answer else None
        plan = planner.plan(top, greedy=greedy, unread=text.unread(), remaining=left)
        tokens = text.round(plan, plan.asks, planner.stopping(plan, greedy=greedy))
        planner.observe_round(plan, text.took(tokens), greedy=greedy)
        run.add(plan, tokens, text)
    return run


@dataclass(slots=True)
class Device:
    """Rounds of a drafter and a target in graphs: no pass is timed, a round takes ``rounds[γ]`` seconds.

    ``passes``: seconds of a pass of the drafter, and of the target by width (from index 1), told to the planner
    beforehand. ``reading``: seconds in which the drafter reads what was written without it, which a round begins with
    that follows others without drafts; ``told``: whether a round says so; ``once``: seconds more for the first one.
    ``rates``: acceptance of one answer after another, over and over.
    """

    passes: tuple[float, Sequence[float]]
    rounds: Sequence[float]
    rates: Sequence[float]
    reading: float = 0.0
    once: float = 0.0
    told: bool = True
    noise: float = 0.01
    longest: int = 8
    answer: int = 128
    seed: int = 0

    def planner(self, **settings: Any) -> Planner:
        """One that knows the step times and nothing else."""
        asked = PlannerSettings(ngram=False, stopping="fixed", longest=self.longest, **settings)
        planner = Planner(2, asked, sizes=(self.passes[0], self.passes[1][1]))
        for _ in range(4):
            for width in (1, self.longest):
                planner.times.observe(0, width, 1, self.passes[0])
            for width in range(1, len(self.passes[1])):
                planner.times.observe(1, width, 1, self.passes[1][width])
        return planner

    def best_static(self) -> float:
        """Tokens per second of the best set length, none included, over answers of all rates."""
        return max(self.static(length) for length in range(self.longest + 1))

    def static(self, length: int) -> float:
        """Tokens per second of a set length, in answers without end."""
        taken = self.rounds[length] * sum(1 / sum(rate**k for k in range(length + 1)) for rate in self.rates)
        return len(self.rates) / taken


@dataclass(slots=True)
class DeviceRun:
    """Tokens and seconds of each answer, and how often each length was drafted."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)

    def rate(self, start: int = 0) -> float:
        """Tokens per second from an answer on."""
        return sum(self.tokens[start:]) / sum(self.seconds[start:])


def run_device(device: Device, answers: int, *, follow: bool = True) -> DeviceRun:
    """What the planner makes of a device; with ``follow``, lengths follow each answer."""
    planner, chance, run, once = device.planner(), random.Random(device.seed), DeviceRun(), device.once
    for turn in range(answers):
        rate, own = device.rates[turn % len(device.rates)], planner.own() if follow else None
        wrote, unread, spent = 0, 0, 0.0
        while wrote < device.answer:
            left = device.answer - wrote
            told = {"unread": {0: unread}} if device.told else {}
            plan = planner.plan(1, remaining=left, own=own, **told)
            asked = min(sum(plan.lengths), left - 1)
            took, read = device.rounds[asked] * exp(chance.gauss(0.0, device.noise)), 0.0
            if asked and unread > 2:
                read, once = device.reading + once, 0.0
                if device.told:
                    planner.times.observe(0, unread, 1, read)
            unread, kept = 0 if asked else unread + 1, 0
            while kept < asked and chance.random() < rate:
                kept += 1
            if asked:
                planner.acceptance().observe(0, 1, asked, kept, [0.9] * asked)
                if own is not None:
                    own.observe(0, 1, asked, kept)
            if asked == sum(plan.lengths):
                passes = asked * device.passes[0] + device.passes[1][asked + 1]
                reading = read if device.told else 0.0
                planner.observe_round(plan, Round(kept + 1, took + read, (passes, asked + 1.0), reading))
            run.lengths[asked] = run.lengths.get(asked, 0) + 1
            wrote, spent = wrote + kept + 1, spent + took + read
        run.tokens.append(wrote)
        run.seconds.append(spent)
    return run
