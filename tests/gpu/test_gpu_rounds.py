"""What chains write on a GPU: greedy answers token by token against plain decoding, sampled ones against exact laws."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from stepladder.decoding.batch import Batch, Job
from stepladder.decoding.chain import ModelDrafter, NgramDrafter, Run, Verifier
from stepladder.decoding.decode import decode
from stepladder.decoding.laws import Sampling
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.rounds import GREEDY, Rounds, Shape, Turn
from stepladder.decoding.sequence import Sequence as Answer
from tiny_models import tiny_network

pytestmark = pytest.mark.gpu

VOCABULARY, PROMPT = 32, [3, 1, 4, 1, 5]


def family(
    device: torch.device,
    dtype: torch.dtype,
    *,
    slots: int = 8,
    context: int = 256,
    noise: float = 0.02,
    **settings: Any,
) -> list[Any]:
    """Three models that agree somewhat: the lower ones are the top one with noise on its weights."""
    found = []
    for stage, share in enumerate((1.0, 0.5, 0.0)):
        network = tiny_network(
            dtype=torch.float32, seed=5, vocab=VOCABULARY, sharpness=2.0, context=context, **settings
        )
        made = torch.Generator().manual_seed(stage)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(torch.randn(weights.shape, generator=made), alpha=noise * share)
        network = network.to(device, dtype)
        found.append(LanguageModel(network, name=f"m{stage}", context=context, slots=slots, narrow=True))
    return found


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """On a processor in float64: there the order of sums follows the width, and near ties would be told apart by it."""
    return getattr(torch, request.param) if device.type == "cuda" else torch.float64


@pytest.fixture
def models(device: torch.device, dtype: torch.dtype) -> list[Any]:
    """Larger on a GPU, where products are cut in parts and rows in chunks."""
    if device.type == "cuda":
        return family(device, dtype, hidden=512, heads=8, layers=2, noise=0.003)
    return family(device, dtype, layers=1)


def prompts(count: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 60))] for _ in range(count)]


# ── greedy ───────────────────────────────────────────────────────────────────


def turns(answers: Any, sampling: Sampling = GREEDY, chance: Any = None) -> list[Turn]:
    return [Turn(answer, sampling, chance) for answer in answers]


LENGTHS = {"two": [(), (1,), (2,), (4,), (8,)], "three": [(), (1, 2), (2, 5), (3, 8), (1, 7)]}


def chain_of(models: list[Any], way: str) -> Rounds:
    return Rounds(models if way == "three" else [models[0], models[2]])


@pytest.mark.parametrize("way", LENGTHS)
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_greedy_rounds_write_what_plain_decoding_writes(models, at_once, way):
    """Token by token, with drafts of every length, changing from round to round: no tie is excused."""
    rounds, chance = chain_of(models, way), random.Random(0)
    asked, kept, drafted = prompts(8), 0, 0
    for start in range(0, 8, at_once):
        plain = [rounds.open(prompt) for prompt in asked[start : start + at_once]]
        for answer in plain:
            while len(answer.tokens) < answer.prompt + 64:
                rounds.round(turns([answer]))
            rounds.close(answer)
        answers = [rounds.open(prompt) for prompt in asked[start : start + at_once]]
        while going := [answer for answer in answers if len(answer.tokens) < answer.prompt + 64]:
            lengths = chance.choice(LENGTHS[way])
            wrote = rounds.round(turns(going), lengths)
            kept, drafted = kept + sum(e.accepted for e in wrote), drafted + sum(len(e.confidences) for e in wrote)
        for one, other in zip(answers, plain, strict=True):
            assert one.tokens[: one.prompt + 64] == other.tokens
            rounds.close(one)
    assert 0.05 < kept / drafted < 0.95


@pytest.mark.parametrize("way", ["two", "three", "ngram"])
def test_greedy_chains_of_the_batch_write_what_plain_decoding_writes(models, way):
    """The same through the loop that serves, where rows share passes and widths differ."""
    made: dict[str, Callable[[], Verifier]] = {
        "plain": lambda: Verifier(2),
        "two": lambda: Verifier(2, ModelDrafter(0), length=4),
        "three": lambda: Verifier(2, Verifier(1, ModelDrafter(0), length=2), length=5),
        "ngram": lambda: Verifier(2, NgramDrafter(longest=2, shortest=1, extra=list(range(VOCABULARY)) * 2), length=6),
    }
    told = {name: written(models, made[name], prompts(12)) for name in ("plain", way)}
    assert told[way] == told["plain"]


def written(
    models: list[Any], chain: Callable[[], Verifier], asked: list[list[int]], most: int = 48
) -> list[list[int]]:
    """Greedy answers, six at a time."""
    batch, waiting, answers = Batch(models, timer=time.perf_counter), list(asked)[::-1], []
    while waiting or batch.jobs:
        while waiting and len(batch.jobs) < 6:
            answer, verifier = Answer(list(waiting.pop())), chain()
            answers.append(answer)
            run = Run(answer, Sampling(0.0), SeededOracle(0))
            batch.add(Job(decode(run, lambda verifier=verifier: verifier, most, lambda _: False), answer))
        for job in batch.step():
            assert job.error is None
    return [answer.tokens for answer in answers]


# ── sampled ──────────────────────────────────────────────────────────────────

MOST, ROWS, LEVEL = 4, 64, 1e-3


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=20, top_p=0.95)], ids=["whole", "cut"])
@pytest.mark.parametrize("lengths", [(), (1,), (3,), (1, 2), (2, 5)], ids=str)
def test_sampled_rounds_follow_the_law(device, sampling, lengths):
    found = p_values(device, sampling, lengths, random.Random(sum(lengths)).random, 6400)
    assert min(found.values()) > LEVEL / (6 * len(found)), found


def test_chance_that_is_used_twice_is_seen(device):
    """The negative control: verdicts that hang together with the drafts that they judge."""

    def doubled(below: int, most: int) -> Iterator[float]:
        chance = random.Random(1)
        while True:
            drawn = [chance.random() for _ in range(below)]
            yield from (*drawn, *(drawn * most)[:most], chance.random())

    for lengths in ((3,), (1, 2)):
        shape = Shape(len(lengths) + 1, lengths)
        numbers = doubled(shape.below, shape.most).__next__
        assert min(p_values(device, Sampling(1.0), lengths, numbers, 6400).values()) < LEVEL / 100


def p_values(
    device: torch.device, sampling: Sampling, lengths: tuple[int, ...], chance: Callable[[], float], count: int
) -> dict[str, float]:
    """Of each hypothesis that must hold, how likely data as far off are."""
    kind = torch.float32 if device.type == "cuda" else torch.float64
    models = family(device, kind, slots=ROWS, context=32, layers=1, hidden=16, noise=0.05)
    rounds = chain_of(models, "three" if len(lengths) == 2 else "two")
    target = models[-1]
    answers, told = [rounds.open(PROMPT) for _ in range(ROWS)], []
    kept = drafted = 0
    while len(told) < count:
        for answer in answers:
            answer.truncate(len(PROMPT))
            answer.read.update(dict.fromkeys(rounds.stages, len(PROMPT) - 1))
        while min(len(answer.tokens) for answer in answers) < len(PROMPT) + MOST:
            wrote = rounds.round(turns(answers, sampling, chance), lengths)
            kept, drafted = kept + sum(e.accepted for e in wrote), drafted + sum(len(e.confidences) for e in wrote)
        told += [answer.tokens[len(PROMPT) : len(PROMPT) + MOST] for answer in answers]
    assert not lengths or 0.05 < kept / drafted < 0.95
    wrote = np.array(told)
    network = target.model.double()
    found = {}
    for place in range(MOST):
        law = laws(network, sampling, np.hstack([np.tile(PROMPT, (len(wrote), 1)), wrote[:, :place]]), device)
        found[f"token {place} given those before"] = uniform_p(law, wrote[:, place])
        seen = np.bincount(wrote[:, place], minlength=VOCABULARY)
        found[f"token {place}"] = fit(seen, law.sum(0)) if place == 0 else 1.0
    return found


def laws(network: Any, sampling: Sampling, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """The exact laws behind rows of equal length, computed without a cache."""
    with torch.inference_mode():
        network.set_attn_implementation("eager")
        logits = network(input_ids=torch.tensor(rows, device=device), use_cache=False).logits[:, -1]
        return np.stack([law.weights.cpu().double().numpy() for law in sampling.laws(logits)])


def uniform_p(law: np.ndarray, tokens: np.ndarray, bins: int = 24) -> float:
    """Where each token lies in its own law: even over [0, 1) if exact."""
    each, ends = np.arange(len(tokens)), law.cumsum(1)
    high = ends[each, tokens]
    low = high - law[each, tokens]
    within = low + (high - low) * np.random.default_rng(0).random(len(tokens))
    counts = np.bincount(np.minimum((within * bins).astype(int), bins - 1), minlength=bins)
    return float(stats.chisquare(counts).pvalue)


def fit(seen: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square with rare cells joined."""
    rare = expected < 5
    joined = [np.append(part[~rare], part[rare].sum()) for part in (seen, expected)]
    keep = joined[1] > 0
    assert joined[0][~keep].sum() == 0, "a token of no weight was drawn"
    return float(stats.chisquare(joined[0][keep], joined[1][keep] * joined[0].sum() / joined[1].sum()).pvalue)


# ── how it runs ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", LENGTHS)
def test_a_round_is_one_launch_and_one_wait(gpu, monkeypatch, way):
    """Nothing but the wait at a round's end makes the host wait: CUDA would raise."""
    models = family(gpu, torch.bfloat16)
    rounds, chance, target = chain_of(models, way), random.Random(0).random, models[-1]
    answers = [rounds.open(PROMPT) for _ in range(3)]
    made = turns(answers, Sampling(1.0), chance)
    rounds.round(made, LENGTHS[way][-1])
    waits, wait = rounds.waits, type(target).wait

    def allowed(model):
        torch.cuda.set_sync_debug_mode("default")  # it would raise at this wait too
        wait(model)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(type(target), "wait", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            rounds.round(made, LENGTHS[way][-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rounds.waits == waits + 5
    assert rounds.reason is None


@pytest.mark.parametrize("way", LENGTHS)
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=20, top_p=0.95)], ids=["whole", "cut"])
def test_replayed_rounds_write_what_rounds_without_graphs_write(gpu, way, sampling):
    written = []
    for captures in (True, False):
        rounds, chance = chain_of(family(gpu, torch.bfloat16), way), random.Random(0).random
        rounds._graphs._captures = captures
        answers = [rounds.open(prompt) for prompt in prompts(5)]
        for at in (3, 0, 4, 3, 1, 4):
            rounds.round(turns(answers, sampling, chance), LENGTHS[way][at])
        written.append([answer.tokens for answer in answers])
    assert written[0] == written[1]


def test_looked_up_drafts_on_the_device_are_plain_decodings(models):
    """Greedy, of any number, some of them right."""
    target = models[-1]
    rounds, chance = Rounds([target]), random.Random(5)
    for prompt in prompts(4):
        plain = rounds.open(prompt)
        for _ in range(40):
            rounds.round(turns([plain]))
        rounds.close(plain)
        answer = rounds.open(prompt)
        while len(answer.tokens) < len(plain.tokens):
            right = plain.tokens[len(answer.tokens) : len(answer.tokens) + chance.randint(0, 6)]
            draft = [token if chance.random() < 0.8 else chance.randrange(VOCABULARY) for token in right]
            rounds.round([Turn(answer, given=tuple(draft))])
        assert answer.tokens[: len(plain.tokens)] == plain.tokens
        rounds.close(answer)


def test_what_a_row_missed_is_read_in_narrow_passes(gpu):
    """A few dozen tokens, by graphs that are there; what comes of it is what a packed pass leaves, but for rounding."""
    for count in (9, 30, 99):
        models = family(gpu, torch.float32)
        text = [each % VOCABULARY for each in range(20 + count)]
        found = []
        for model, cut in ((models[0], 20), (models[1], 0)):
            model.model.load_state_dict(models[2].model.state_dict())
            slot = model.open()
            if cut:
                model.forward([Feed(slot, 0, text[:cut], 0)])
            before = len(model._graphs)
            model.forward([Feed(slot, cut, text[cut:], 0)])
            assert len(model._graphs) - before == (cut > 0)  # of one width, however many tokens
            found.append(model.cache.layers[-1].keys[slot, :, : len(text)])
        torch.testing.assert_close(*found, rtol=2e-3, atol=2e-3)
