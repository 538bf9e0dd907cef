"""The exact law of what decoding writes: every outcome of chance is put in its place, one after the other.

The code that is enumerated is the code that runs. Its oracle is replaced by one that follows a script of outcomes and
multiplies their probabilities; its models by tables of laws that depend on every token before.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from stepladder.decoding.chain import Emitted, Run, Verifier
from stepladder.decoding.laws import Law, Point, Sampling
from stepladder.decoding.sequence import Ask, Sequence

Prefix = tuple[int, ...]
PROMPT = (0,)


class BranchingOracle:
    """Follows ``script``; where it ends, takes the first outcome that is possible and notes the others."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self._script = script
        self.path: list[int] = []
        self.open: list[tuple[int, ...]] = []
        self.weight = 1.0

    def accept(self, probability: float) -> bool:
        assert -1e-12 <= probability <= 1 + 1e-12, probability
        return bool(self._choose([1 - probability, probability]))

    def draw(self, law: Law) -> int:
        if isinstance(law, Point):
            return law.token
        weights = law.weights / law.weights.sum()
        return self._choose(weights.tolist())

    def _choose(self, weights: list[float]) -> int:
        possible = [outcome for outcome, weight in enumerate(weights) if weight > 0]
        step = len(self.path)
        if step < len(self._script):
            outcome = self._script[step]
        else:
            outcome = possible[0]
            self.open += [(*self.path, other) for other in possible[1:]]
        self.path.append(outcome)
        self.weight *= weights[outcome]
        return outcome


class Tables:
    """Stages whose laws are drawn anew for every prefix, from a seed. Some tokens have no mass where ``sparse``."""

    def __init__(self, stages: int, vocabulary: int, seed: int, *, sparse: bool = False) -> None:
        self.stages, self.vocabulary, self._seed, self._sparse = stages, vocabulary, seed, sparse
        self._made: dict[tuple[int, Prefix], Tensor] = {}

    def logits(self, stage: int, prefix: Prefix) -> Tensor:
        key = (stage, prefix)
        if key not in self._made:
            chance = random.Random(f"{self._seed}:{stage}:{prefix}")
            weights = [chance.random() ** 2 + 0.02 for _ in range(self.vocabulary)]
            if self._sparse and chance.random() < 0.5:
                weights[chance.randrange(self.vocabulary)] = 0.0
            self._made[key] = torch.tensor(weights, dtype=torch.float64).log()
        return self._made[key]

    def answer(self, ask: Ask) -> Tensor:
        tokens = ask.sequence.tokens
        ends = range(len(tokens) - ask.want + 1, len(tokens) + 1)
        assert ends.start > 0, "a stage is asked for a law behind nothing"
        return torch.stack([self.logits(ask.stage, tuple(tokens[:end])) for end in ends])

    def law(self, stage: int, sampling: Sampling, prefix: Prefix) -> list[float]:
        law = sampling.laws(self.logits(stage, prefix)[None])[0]
        return [law.prob(token) for token in range(self.vocabulary)]


Step = Callable[[Run, int], Generator[Ask, Tensor, list[Emitted]]]


def outcomes(
    tables: Tables, step: Step, prefix: Prefix, most: int, sampling: Sampling, ends: frozenset[int]
) -> Iterator[tuple[list[int], float]]:
    """Every (tokens written, probability) of one step from ``prefix``."""
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        oracle = BranchingOracle(scripts.pop())
        run = Run(Sequence(list(prefix), prompt=len(PROMPT)), sampling, oracle, ends)
        wrote = _finish(step(run, most), tables)
        assert 1 <= len(wrote) <= most
        assert run.answer.tokens == [*prefix, *(each.token for each in wrote)]
        scripts += oracle.open
        yield [each.token for each in wrote], oracle.weight


def written_law(
    tables: Tables,
    step: Step,
    length: int,
    *,
    sampling: Sampling | None = None,
    ends: frozenset[int] = frozenset(),
    prompt: Prefix = PROMPT,
) -> dict[Prefix, float]:
    """Law of the whole answer of at most ``length`` tokens, round behind round, ended by a token of ``ends``.

    What follows a round depends on the tokens alone, so rounds are enumerated once for each prefix.
    """
    sampling = sampling or Sampling()
    waiting: dict[Prefix, float] = {prompt: 1.0}
    done: dict[Prefix, float] = defaultdict(float)
    while waiting:
        prefix = min(waiting, key=len)
        mass = waiting.pop(prefix)
        left = length - (len(prefix) - len(prompt))
        for wrote, weight in outcomes(tables, step, prefix, left, sampling, ends):
            after = (*prefix, *wrote)
            over = len(wrote) == left or wrote[-1] in ends
            place = done if over else waiting
            place[after] = place.get(after, 0.0) + mass * weight
    return dict(done)


def own_law(
    law: Callable[[Prefix], list[float]], length: int, ends: frozenset[int] = frozenset(), prompt: Prefix = PROMPT
) -> dict[Prefix, float]:
    """The law that plain sampling from ``law`` writes."""
    found: dict[Prefix, float] = {}
    waiting = [(prompt, 1.0)]
    while waiting:
        prefix, mass = waiting.pop()
        if len(prefix) - len(prompt) == length or (len(prefix) > len(prompt) and prefix[-1] in ends):
            found[prefix] = mass
            continue
        waiting += [((*prefix, token), mass * p) for token, p in enumerate(law(prefix)) if p > 0]
    return found


def furthest(one: dict[Prefix, float], other: dict[Prefix, float]) -> float:
    """Greatest difference of two laws in one answer's probability."""
    return max(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})


def chain_error(
    tables: Tables, top: Verifier, length: int, *, sampling: Sampling | None = None, ends: frozenset[int] = frozenset()
) -> float:
    """How far what a chain writes is from its top stage's own law."""
    sampling = sampling or Sampling()
    wrote = written_law(tables, top.round, length, sampling=sampling, ends=ends)
    return furthest(wrote, own_law(lambda prefix: tables.law(top.key, sampling, prefix), length, ends))


def _finish(asking: Generator[Ask, Tensor, list[Emitted]], tables: Tables) -> list[Emitted]:
    try:
        ask = next(asking)
        while True:
            ask = asking.send(tables.answer(ask))
    except StopIteration as stopped:
        result: list[Emitted] = stopped.value
        return result
