"""What chains write follows the top model's law: sampled answers of real tensors against laws computed without a cache.

Greedy texts are compared token by token in float32, over nano's weights, with plain decoding and with transformers' own
``generate``.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from stepladder.decoding.batch import Batch, Job
from stepladder.decoding.chain import Emitted, GivenDraft, Level, ModelDrafter, NgramDrafter, Run, Verifier
from stepladder.decoding.decode import decode
from stepladder.decoding.gguf_file import GGUFFile
from stepladder.decoding.laws import Law, Oracle, Sampling
from stepladder.decoding.loading import Loaded, Wanted, load
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.tally import Tally
from stepladder.decoding.times import StepTimes
from stepladder.decoding.verify import RULES, Rule, Verdict
from stepladder.engines.torch_chains import Chains, Shared, planner_for
from stepladder.engines.torch_models import Row
from stepladder.engines.torch_settings import read_settings
from stepladder.evaluate.tasks.nano import generate
from tiny_models import tiny_model, tiny_network
from torch_fakes import nano

# ── sampled: chi-square and total variation ──────────────────────────────────

VOCABULARY, PROMPT, MOST = 32, (3, 1, 4, 1, 5), 4
SLOTS = 64
SAMPLES, MANY = 4200, 30_000
"""Answers of each chain: more than 30,000 of all chains together, and where time is not short of each."""

LEVEL = 1e-3
"""Chance that any of the tests fails though all chains are right."""

LEAST = 5.0
"""Expected count below which cells are joined."""

SAMPLING = Sampling(0.9)


@cache
def tiny(stage: int) -> LanguageModel:
    """Three models that agree somewhat: the lower ones are the top one with noise on its weights."""
    model = tiny_model(
        dtype=torch.float32, seed=5, vocab=VOCABULARY, layers=1, hidden=16, context=32, slots=SLOTS, sharpness=2.0
    )
    if stage < 2:
        noise = torch.Generator().manual_seed(stage)
        with torch.no_grad():
            for weights in model.model.parameters():
                weights.add_(torch.randn(weights.shape, generator=noise), alpha=(0.45, 0.2)[stage])
    return model


@cache
def network() -> Any:
    """The top model as transformers runs it, without the cache under test."""
    return tiny_network(dtype=torch.float32, seed=5, vocab=VOCABULARY, layers=1, hidden=16, context=32, sharpness=2.0)


def laws(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """The exact laws behind the last tokens of rows of equal length: (rows, vocabulary)."""
    with torch.inference_mode():
        logits = network()(input_ids=torch.tensor(rows), use_cache=False).logits[:, -1].double()
    return torch.softmax(logits / SAMPLING.temperature, -1).numpy()


@cache
def joint() -> np.ndarray:
    """The exact law of an answer's first three tokens, (vocabulary,) * 3."""
    every = range(VOCABULARY)
    first = laws([PROMPT])[0]
    second = laws([(*PROMPT, a) for a in every])
    third = laws([(*PROMPT, a, b) for a in every for b in every]).reshape(VOCABULARY, VOCABULARY, VOCABULARY)
    law: np.ndarray = first[:, None, None] * second[:, :, None] * third
    return law


def sampled(
    chain: Callable[[], Verifier], answers: int, *, rows: int = SLOTS, seed: int = 0
) -> tuple[np.ndarray, Tally]:
    """Answers of MOST tokens, (answers, MOST), as the real batch writes them."""
    batch = Batch([tiny(stage) for stage in range(3)], timer=time.perf_counter)
    told: list[list[int]] = []
    tally, started = Tally(), 0
    while len(told) < answers:
        while started < answers and len(batch.jobs) < rows:
            batch.add(_job(chain(), random.Random(f"{seed}/{started}").getrandbits(63), tally))
            started += 1
        for job in batch.step():
            assert (job.error, job.result) == (None, "length")
            told.append(job.answer.tokens[len(PROMPT) :])
    assert all(tiny(stage)._lengths == [None] * SLOTS for stage in range(3))
    return np.array(told), tally


def _job(chain: Verifier, seed: int, tally: Tally) -> Job:
    answer = Answer(list(PROMPT))
    _learn(chain, answer)
    return Job(
        decode(Run(answer, SAMPLING, SeededOracle(seed), frozenset(), tally), lambda: chain, MOST, _no_stop), answer
    )


def _learn(level: Any, answer: Answer) -> None:
    while level is not None:
        if isinstance(level, NgramDrafter):
            level.learn(answer.tokens, len(answer.tokens))
        level = getattr(level, "below", None)


def _no_stop(wrote: list[Emitted]) -> bool:
    return False


def p_values(told: np.ndarray) -> dict[str, float]:
    """Of each hypothesis that must hold, how likely data as far off are."""
    law, count = joint(), len(told)
    found = {
        "token 1": fit(np.bincount(told[:, 1], minlength=VOCABULARY), law.sum((0, 2)) * count),
        "token 2": fit(np.bincount(told[:, 2], minlength=VOCABULARY), law.sum((0, 1)) * count),
    }
    pairs = np.bincount(told[:, 1] * VOCABULARY + told[:, 2], minlength=VOCABULARY**2)
    found["tokens 1 and 2"] = fit(pairs, law.sum(0).ravel() * count)
    for place in range(1, MOST):
        found[f"token {place} given those before"] = fit(*conditional(told, place))
    for place in (1, 2):
        found[f"distance at {place}"] = distance_p(told[:, place], law.sum((0, 3 - place)), count)
    return found


def conditional(told: np.ndarray, place: int, bins: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Where each token lies in its own exact law, given what was written before: even over [0, 1) if exact."""
    prefixes = np.hstack([np.tile(PROMPT, (len(told), 1)), told[:, :place]])
    ends = laws(prefixes.tolist()).cumsum(1)
    each = np.arange(len(told))
    high, low = ends[each, told[:, place]], ends[each, told[:, place]]
    low = np.where(told[:, place] > 0, ends[each, told[:, place] - 1], 0.0)
    within = low + (high - low) * np.random.default_rng(place).random(len(told))
    seen = np.bincount(np.minimum((within / ends[:, -1] * bins).astype(int), bins - 1), minlength=bins)
    return seen, np.full(bins, len(told) / bins)


def fit(seen: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square with cells of small expectation joined."""
    order = np.argsort(expected)
    small = int(np.searchsorted(expected[order].cumsum(), LEAST)) + 1
    small = max(small, int((expected < LEAST).sum()))
    cells = [(expected[order[:small]].sum(), seen[order[:small]].sum())]
    cells += [(expected[at], seen[at]) for at in order[small:]]
    statistic = sum((had - due) ** 2 / due for due, had in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))


def distance_p(told: np.ndarray, law: np.ndarray, count: int) -> float:
    """Bound on the chance of a total variation so large: its mean is at most half the sum of standard errors, and it
    hardly leaves its mean (McDiarmid 1989: one answer moves it by at most 1/n)."""
    seen = np.bincount(told, minlength=VOCABULARY) / count
    above = np.abs(seen - law).sum() / 2 - np.sqrt(law * (1 - law) / count).sum() / 2
    return math.exp(-2 * count * max(0.0, above) ** 2)


def two(rule: Rule = RULES["rejection"], *, below: Level | None = None, length: int = 3) -> Verifier:
    return Verifier(2, below or ModelDrafter(0), length=length, rule=rule)


def three(rule: str, bottom: Level | None = None) -> Verifier:
    middle = Verifier(1, bottom or ModelDrafter(0), length=2, rule=RULES[rule])
    return Verifier(2, middle, length=3, rule=RULES[rule])


@cache
def likely() -> list[int]:
    """A draft that is kept for some of its tokens."""
    written: list[int] = []
    for _ in range(MOST):
        written.append(int(laws([[*PROMPT, *written]])[0].argmax()))
    return written


def lookup() -> NgramDrafter:
    return NgramDrafter(longest=2, shortest=1, extra=[*PROMPT, *likely(), *range(VOCABULARY), *likely()])


CHAINS: dict[str, tuple[Callable[[], Verifier], int]] = {
    "plain": (lambda: Verifier(2), SLOTS),
    "two": (two, SLOTS),
    "two, one answer at a time": (two, 1),
    "two, block": (lambda: two(RULES["block"]), 20),
    "three": (lambda: three("rejection"), SLOTS),
    "three, block": (lambda: three("block"), SLOTS),
    "n-grams at the bottom": (lambda: three("rejection", lookup()), SLOTS),
    "a climbed draft": (lambda: two(below=GivenDraft(likely())), SLOTS),
}
TESTS = len(CHAINS) * (3 + MOST - 1 + 2)


@pytest.mark.parametrize("answers", [SAMPLES, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHAINS)
def test_sampled_answers_follow_the_law(name: str, answers: int) -> None:
    chain, rows = CHAINS[name]
    told, tally = sampled(chain, answers if rows > 1 else answers // 6, rows=rows, seed=list(CHAINS).index(name))
    for sums in tally.counts.values():
        assert 0 < sums[1] < sums[0], "drafts are to be kept and refused, both"
    found = p_values(told)
    assert min(found.values()) > LEVEL / TESTS, found


def full_resample(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Replaces a refused draft by one from the whole law instead of the residual."""
    for place, (p, q, token) in enumerate(zip(own, drafted, tokens, strict=False)):
        if not oracle.accept(min(1.0, p.prob(token) / q.prob(token))):
            return Verdict(place, oracle.draw(p))
    return Verdict(len(tokens), oracle.draw(own[len(tokens)]))


def bonus_from_draft(own: Sequence[Law], drafted: Sequence[Law], tokens: Sequence[int], oracle: Oracle) -> Verdict:
    """Draws the token behind the drafts from the drafter's last law."""
    verdict = RULES["rejection"](own[: len(tokens)], drafted, tokens, oracle)
    law = drafted[-1] if drafted else own[0]
    return verdict if verdict.token is not None else Verdict(len(tokens), oracle.draw(law))


@pytest.mark.parametrize("rule", [full_resample, bonus_from_draft])
def test_a_wrong_rule_is_seen(rule: Rule) -> None:
    told, _ = sampled(lambda: two(rule, length=1), SAMPLES)
    assert min(p_values(told).values()) < LEVEL / TESTS


# ── greedy: token by token ───────────────────────────────────────────────────

NAMES = ("small", "medium", "large")
ROWS = 64


COMPARED = 128
"""Prompts on which transformers' own loop is asked as well: it takes longer than all others together."""

Way = tuple[Callable[[], Verifier], Callable[[list[Emitted]], bool]]
"""The chain for an answer's next round, and who is told what a round wrote."""


class Kept:
    """A model whose rows have read the prompts and stay open, so that every way to decode begins behind them."""

    def __init__(self, model: LanguageModel, stage: int, clock: list[float]) -> None:
        self._model, self._stage, self._clock = model, stage, clock

    def open(self) -> int:
        raise AssertionError("every answer has its row")

    def close(self, slot: int) -> None:
        """The row stays, with what the last answer left in it: that is forgotten by position."""

    def forward(self, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        self._clock[0] += seconds(self._stage, max(len(feed.tokens) for feed in feeds))
        return self._model.forward(feeds)


def seconds(stage: int, width: int) -> float:
    """What a pass is taken to need."""
    return (1.0, 3.0, 12.0)[stage] * (1 + width / 50)


@pytest.fixture(scope="module")
def ladder() -> list[Loaded]:
    """The embedded ladder in float32."""
    found = [
        load(Wanted(source=nano(name).model, name=name, dtype="float32", device="cpu", context=128, slots=ROWS))
        for name in NAMES
    ]
    for each in found:
        for _ in range(ROWS):
            each.model.open()
    return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Asked:
    """Up to ROWS prompts that all models have read."""

    def __init__(self, ladder: Sequence[Loaded], prompts: Sequence[list[int]], most: int) -> None:
        self.ladder, self.prompts, self.most = ladder, prompts, most
        self.ends = ladder[-1].tokenizer.eos
        self.ran: set[tuple[int, ...]] = set()
        self.clock = [0.0]
        for each in ladder:
            each.model.forward([Feed(slot, 0, prompt, 0) for slot, prompt in enumerate(prompts)])

    def written(self, chains: Callable[[Answer], Way], rows: int = ROWS) -> list[list[int]]:
        """The greedy answer to each prompt, ``rows`` at a time."""
        batch = Batch(
            [Kept(each.model, stage, self.clock) for stage, each in enumerate(self.ladder)], timer=time.perf_counter
        )
        waiting = list(enumerate(self.prompts))[::-1]
        answers = [Answer([]) for _ in self.prompts]
        while waiting or batch.jobs:
            while waiting and len(batch.jobs) < rows:
                slot, prompt = waiting.pop()
                stages = range(len(self.ladder))
                answer = Answer(
                    list(prompt), read=dict.fromkeys(stages, len(prompt)), slots=dict.fromkeys(stages, slot)
                )
                answers[slot] = answer
                run = Run(answer, Sampling(0.0), SeededOracle(0), self.ends)
                next_chain, keep = chains(answer)
                batch.add(Job(decode(run, next_chain, self.most, keep), answer))
            for job in batch.step():
                assert job.error is None
        return [answer.tokens[answer.prompt :] for answer in answers]

    def planned(self, **options: Any) -> Callable[[Answer], Way]:
        """Chains as the engine makes them, from a stage's options."""
        stages = tuple(replace(nano(name), options=options if name == NAMES[-1] else {}) for name in NAMES)
        row = Row(NAMES, tuple(self.ladder), ((), (0,), (0, 1)))
        times = StepTimes()
        for stage in range(3):
            for width in (1, 4, 16):
                times.observe(stage, width, 1, seconds(stage, width))
        shared = Shared(planner_for(read_settings(stages)[-1], row, times))

        def chains(answer: Answer) -> Way:
            made = Chains(
                top=2,
                shared=shared,
                answer=answer,
                greedy=True,
                rule=str(options.get("verification", "rejection")),
                contexts=[128] * 3,
                vocab=self.ladder[-1].model.vocab,
                most=self.most,
                timer=lambda: self.clock[0],
            )

            def next_chain() -> Verifier:
                verifier = made.next()
                self.ran.add(made.plan.chain)
                return verifier

            def keep(wrote: list[Emitted]) -> bool:
                made.ended(len(wrote))
                return False

            return next_chain, keep

        return chains


WAYS: dict[str, dict[str, Any]] = {
    "small": {"speculation": ["small"], "draft_length": 4},
    "small, medium": {"speculation": ["small", "medium"], "draft_length": 3},
    "n-grams": {"speculation": ["ngram"], "draft_length": 4},
    "n-grams, small": {"speculation": ["ngram", "small"], "draft_length": 3},
    "small, block": {"speculation": ["small"], "draft_length": 4, "verification": "block"},
    "small, any length": {"speculation": ["small"]},
}


@lru_cache(maxsize=2)
def tasks(count: int) -> tuple[str, ...]:
    return tuple(task.prompt for task in generate("judged", count, seed=11))


def same(asked: Asked, own: list[list[int]], other: list[list[int]], way: str) -> None:
    """Fail with how near the two best tokens were where the answers part."""
    for prompt, one, two in zip(asked.prompts, own, other, strict=True):
        if one != two:
            place = next(at for at, pair in enumerate(zip_longest(one, two)) if pair[0] != pair[1])
            with torch.inference_mode():
                rows = torch.tensor([[*prompt, *one[:place]]])
                best = network_of(NAMES[-1])(input_ids=rows, use_cache=False).logits[0, -1].topk(2)
            gap = float(best.values[0] - best.values[1])
            pytest.fail(
                f"{way}: {one} is not {two}, where the best two logits lie {gap:.2g} apart: {best.indices.tolist()}"
            )


@cache
def network_of(name: str) -> Any:
    """A model as transformers runs it."""
    return GGUFFile(Path(nano(name).model)).network(torch.float32).eval()


def generated(asked: Asked) -> list[list[int]]:
    """What transformers' own ``generate`` writes, prompts of one length together, so that nothing is padded."""
    found: dict[int, list[int]] = {}
    end = asked.ladder[-1].tokenizer.end
    for length in sorted({len(prompt) for prompt in asked.prompts}):
        places = [place for place, prompt in enumerate(asked.prompts) if len(prompt) == length]
        rows = torch.tensor([asked.prompts[place] for place in places])
        wrote = network_of(NAMES[-1]).generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            max_new_tokens=asked.most,
            eos_token_id=sorted(asked.ends),
            pad_token_id=end,
        )
        for place, tokens in zip(places, wrote[:, length:].tolist(), strict=True):
            last = next((at for at, token in enumerate(tokens) if token in asked.ends), len(tokens) - 1)
            found[place] = tokens[: last + 1]
    return [found[place] for place in range(len(asked.prompts))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("prompts", "most"), [(8 * ROWS, 5), pytest.param(8 * ROWS, 24, marks=pytest.mark.slow)], ids=["short", "whole"]
)
def test_greedy_answers_are_the_same_by_every_way(ladder: list[Loaded], prompts: int, most: int) -> None:
    told = [ladder[-1].tokenizer.chat([{"role": "user", "content": text}]) for text in tasks(prompts)]
    learns, ended = Asked(ladder, [], most), 0
    auto = learns.planned()
    for start in range(0, prompts, ROWS):
        asked = Asked(ladder, told[start : start + ROWS], most)
        plain = asked.written(asked.planned(speculation="off"))
        ended += sum(answer[-1] in asked.ends for answer in plain)
        for way, options in WAYS.items():
            same(asked, plain, asked.written(asked.planned(**options)), way)
        asked.clock = learns.clock
        same(asked, plain, asked.written(auto), "auto")
        if start == 0:
            eight = asked.written(asked.planned(speculation=["small"], draft_length=5), rows=8)
            same(asked, plain, eight, "8 at once")
            few = Asked(ladder, asked.prompts[:8], most)
            same(few, plain[:8], few.written(few.planned(speculation=["small"], draft_length=4), rows=1), "1 at once")
        if start < COMPARED or most > 5:
            same(asked, plain, generated(asked), "transformers' generate")
    assert ended > 0
    assert any(len(chain) > 1 for chain in learns.ran), "auto never chose a chain"
