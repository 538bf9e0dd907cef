"""Rounds on a device write what the chain that is enumerated writes, number of chance by number of chance."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepladder.decoding.chain import Emitted, ModelDrafter, Run, Verifier
from stepladder.decoding.laws import Law, Point, Sampling
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.rounds import DRAFTER, TARGET, Rounds
from stepladder.decoding.sequence import Ask
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.errors import EngineError
from tiny_models import tiny_network

VOCABULARY, CONTEXT = 24, 48


@cache
def models(*, narrow: bool) -> tuple[LanguageModel, LanguageModel]:
    """A drafter that agrees somewhat with its target; with fused layers, or with transformers' own."""
    found = []
    for noise in (0.04, 0.0):
        network = tiny_network(seed=5, vocab=VOCABULARY, sharpness=2.0, layers=1, hidden=16, context=CONTEXT)
        made = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(torch.randn(weights.shape, generator=made, dtype=weights.dtype), alpha=noise)
        found.append(LanguageModel(network, name=f"m{noise}", context=CONTEXT, slots=8, narrow=narrow))
    return found[0], found[1]


class Told:
    """An oracle that is told its numbers as a round is: one for each draft, one for each verdict, one for the rest."""

    def __init__(self, numbers: Sequence[float], length: int) -> None:
        self._draws = iter([*numbers[:length], numbers[-1]])
        self._verdicts = iter(numbers[length:-1])

    def accept(self, probability: float) -> bool:
        return next(self._verdicts) < probability

    def draw(self, law: Law) -> int:
        if isinstance(law, Point):
            return law.token
        cumulative = law.weights.double().cumsum(0)
        return int(torch.searchsorted(cumulative, next(self._draws) * cumulative[-1], right=True))


def by_chain(answer: Answer, length: int, sampling: Sampling, numbers: Sequence[float]) -> list[int]:
    """What a round of the chain writes."""
    chain = Verifier(TARGET, ModelDrafter(DRAFTER) if length else None, length=length)
    run = Run(answer, sampling, Told(numbers, length))
    asking: Generator[Ask, Tensor, list[Emitted]] = chain.round(run, 1000)
    ask = next(asking)
    while True:
        model, start = models(narrow=False)[ask.stage], ask.start
        answer.read[ask.stage] = len(answer.tokens)
        logits = model.forward([Feed(answer.slots[ask.stage], start, answer.tokens[start:], ask.want)])[0]
        try:
            ask = asking.send(logits)
        except StopIteration as stopped:
            return [each.token for each in stopped.value]


SAMPLINGS = [Sampling(0.0), Sampling(1.0), Sampling(0.6), Sampling(1.0, top_k=5), Sampling(1.3, 12, 0.8)]


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=3),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, 10_000),
)
def test_a_round_writes_what_the_chain_writes(prompts, lengths, sampling, seed):
    """Rows of any lengths side by side, drafts that come and go, and what the caches hold afterwards."""
    drafter, target = models(narrow=True)
    rounds, chance = Rounds(target, drafter, sampling=sampling), random.Random(seed)
    answers = [rounds.open(prompt) for prompt in prompts]
    twins = [Answer(list(p), slots={s: m.open() for s, m in enumerate(models(narrow=False))}) for p in prompts]
    for length in lengths:
        numbers = [chance.random() for _ in range((2 * length + 1) * len(prompts))]
        wrote = rounds.round(answers, length, iter(numbers).__next__)
        for row, (twin, told) in enumerate(zip(twins, wrote, strict=True)):
            own = numbers[row * (2 * length + 1) : (row + 1) * (2 * length + 1)]
            assert list(told.tokens) == by_chain(twin, length, sampling, own)
            assert told.accepted == len(told.tokens) - 1
            assert len(told.confidences) == length
    for answer, twin in zip(answers, twins, strict=True):
        assert answer.tokens == twin.tokens
        assert answer.read[TARGET] == len(answer.tokens) - 1
        for stage, model in enumerate((drafter, target)):
            assert answer.read[stage] <= model.length(answer.slots[stage])
        rounds.close(answer)
        for stage, slot in twin.slots.items():
            models(narrow=False)[stage].close(slot)


def test_a_model_drafts_for_itself_without_a_refusal():
    _, target = models(narrow=True)
    rounds, chance = Rounds(target, models(narrow=False)[1], sampling=Sampling(1.0)), random.Random(0).random
    answer = rounds.open([1, 2, 3])
    for _ in range(5):
        assert rounds.round([answer], 4, chance)[0].accepted == 4
    rounds.close(answer)


def test_confidences_are_those_of_the_drafters_laws():
    drafter, target = models(narrow=True)
    rounds = Rounds(target, drafter, sampling=Sampling(0.0))
    answer = rounds.open([1, 2, 3])
    told = rounds.round([answer], 3)[0]
    rounds.close(answer)
    with torch.inference_mode():
        slot = drafter.open()
        logits = drafter.forward([Feed(slot, 0, [1, 2, 3], 1)])[0]
        drafter.close(slot)
    assert told.confidences[0] == pytest.approx(float(torch.softmax(logits[0], -1).max()))


def test_waits_are_counted_one_for_each_round():
    drafter, target = models(narrow=True)
    rounds = Rounds(target, drafter, sampling=Sampling(0.0))
    rounds.warm([0, 2])
    answer = rounds.open([1, 2, 3, 4])
    before = rounds.waits
    for length in (2, 2, 2):
        rounds.round([answer], length)
    assert rounds.waits == before + 3
    for length in (0, 0, 0, 2):  # the drafter reads what was written without it
        rounds.round([answer], length)
    assert rounds.waits == before + 3 + 4 + 1
    rounds.close(answer)
    assert rounds.reason == "cpu has no CUDA graphs"


@pytest.mark.parametrize(
    ("length", "chance", "said"),
    [
        (2, None, "temperature 1 needs chance"),
        (-1, random.random, "nobody drafts -1 tokens for it"),
        (45, random.random, r"cache row \d: 49 positions needed, and its context has 48"),
    ],
)
def test_a_round_that_cannot_be_is_refused(length, chance, said):
    drafter, target = models(narrow=True)
    rounds = Rounds(target, drafter, sampling=Sampling(1.0))
    answer = rounds.open([1, 2, 3, 4])
    with pytest.raises(EngineError, match=said):
        rounds.round([answer], length, chance)
    rounds.close(answer)


def test_without_a_drafter_there_are_no_drafts():
    _, target = models(narrow=True)
    rounds = Rounds(target, sampling=Sampling(0.0))
    answer = rounds.open([1])
    assert rounds.round([answer], 0)[0].accepted == 0
    with pytest.raises(EngineError, match="nobody drafts 1 tokens for it"):
        rounds.round([answer], 1)
    rounds.close(answer)
    with pytest.raises(EngineError, match="an answer needs a prompt of at least one token"):
        rounds.open([])


def test_models_of_different_vocabularies_are_refused():
    _, target = models(narrow=True)
    other = LanguageModel(tiny_network(vocab=VOCABULARY + 1, layers=1, hidden=16), name="other")
    with pytest.raises(EngineError, match=r"model 'other' \(25 tokens, cpu\) cannot draft for 'm0.0' \(24 tokens, cpu"):
        Rounds(target, other, sampling=Sampling(0.0))


@pytest.mark.parametrize("broken", ["drafter", "target"])
def test_a_model_that_gives_no_numbers_is_told_of(broken):
    networks = [tiny_network(vocab=VOCABULARY, layers=1, hidden=16, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        networks[broken == "target"].get_output_embeddings().weight.fill_(torch.nan)
    drafter, target = (LanguageModel(each, name="broken", slots=1, narrow=True) for each in networks)
    rounds = Rounds(target, drafter, sampling=Sampling(1.0))
    answer = rounds.open([1, 2])
    with pytest.raises(EngineError, match="the model gave no numbers"):
        rounds.round([answer], 2, random.Random(0).random)
