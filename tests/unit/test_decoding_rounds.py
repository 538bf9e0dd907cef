"""Rounds on a device write what the chain that is enumerated writes, number of chance by number of chance."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding_enumeration import Tables, chain_error
from stepladder.decoding.batch import Batch, Job
from stepladder.decoding.chain import NGRAM, Asking, Emitted, Level, ModelDrafter, Run, Verifier
from stepladder.decoding.decode import decode
from stepladder.decoding.laws import Law, Point, Sampling
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.round_graph import pieces
from stepladder.decoding.rounds import GREEDY, AllRounds, DeviceRound, Rounds, Shape, Turn, Verified, Wrote
from stepladder.decoding.sequence import Ask
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.tally import Tally
from stepladder.errors import EngineError
from tiny_models import tiny_network

VOCABULARY, CONTEXT = 24, 48


@cache
def models(*, narrow: bool) -> tuple[LanguageModel, ...]:
    """Drafters that agree somewhat with their target; with fused layers, or with transformers' own."""
    found = []
    for noise in (0.06, 0.03, 0.0):
        network = tiny_network(seed=5, vocab=VOCABULARY, sharpness=2.0, layers=1, hidden=16, context=CONTEXT)
        made = torch.Generator().manual_seed(int(100 * noise))
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(torch.randn(weights.shape, generator=made, dtype=weights.dtype), alpha=noise)
        found.append(LanguageModel(network, name=f"m{noise}", context=CONTEXT, slots=8, narrow=narrow))
    return tuple(found)


def rounds_of(*stages: int) -> Rounds:
    return Rounds([models(narrow=True)[stage] for stage in stages], stages=stages)


def turns(answers: Sequence[Answer], sampling: Sampling = GREEDY, chance: Any = None) -> list[Turn]:
    return [Turn(answer, sampling, chance) for answer in answers]


class FewRounds(Verifier):
    """A middle model that writes in a number of rounds fixed beforehand, and as many tokens as come of them."""

    def __init__(self, stage: int, below: Level, lengths: Sequence[int]) -> None:
        super().__init__(stage, below)
        self._lengths = lengths

    def emit(self, run: Run, most: int) -> Asking:
        out: list[Emitted] = []
        for length in pieces(self._lengths):
            if out and out[-1].token in run.ends:
                break
            self.length = length
            out += yield from self.round(run, 1000)
        return out


class Cut:
    """At most so many of what a level writes: the number is known beforehand."""

    def __init__(self, level: Level) -> None:
        self._level, self.key = level, level.key

    def emit(self, run: Run, most: int) -> Asking:
        start = len(run.answer.tokens)
        out = (yield from self._level.emit(run, most))[:most]
        run.answer.truncate(start + len(out))
        return out


def chain_of(lengths: Sequence[int], stages: Sequence[int]) -> Verifier:
    """The chain that a round stands for."""
    if not lengths:
        return Verifier(stages[-1])
    level: Level = ModelDrafter(stages[0])
    if len(lengths) == 2:
        level = FewRounds(stages[1], level, lengths)
    return Verifier(stages[-1], level, length=lengths[-1])


# ── a level of few rounds is exact ───────────────────────────────────────────


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(0.8, top_k=2)], ids=str)
@pytest.mark.parametrize("ends", [frozenset(), frozenset({2})], ids=str)
@pytest.mark.parametrize("lengths", [(1, 2), (1, 4), (2, 3)], ids=str)
def test_a_level_may_end_after_a_number_of_rounds(lengths, ends, sampling):
    """By enumeration of every outcome of chance: an end that hangs on verdicts before it leaves the law."""
    top = Verifier(2, Cut(FewRounds(1, ModelDrafter(0), lengths)), length=lengths[1])
    assert chain_error(Tables(3, 3, seed=sum(lengths)), top, 4, ends=ends, sampling=sampling) < 1e-12


class Greedier(FewRounds):
    """Goes on only where its last token is a certain one: that is known when it is kept, so it is exact as well …"""

    def emit(self, run: Run, most: int) -> Asking:
        out = yield from self.round(run, 1000)
        if out[-1].token == 0:
            out += yield from self.round(run, 1000)
        return out


class Peeking(FewRounds):
    """… and this one drops its last token where it does not like it: the control that must fail."""

    def emit(self, run: Run, most: int) -> Asking:
        out = yield from super().emit(run, most)
        if len(out) > 1 and out[-1].token == 0:
            run.answer.truncate(len(run.answer.tokens) - 1)
            out.pop()
        return out


def test_a_level_that_drops_what_it_has_seen_is_found_out():
    exact, wrong = (Verifier(2, Cut(kind(1, ModelDrafter(0), (1, 2))), length=2) for kind in (Greedier, Peeking))
    assert chain_error(Tables(3, 2, seed=5), exact, 3) < 1e-12
    assert chain_error(Tables(3, 2, seed=5), wrong, 3) > 1e-3


@given(st.integers(1, 16), st.integers(2, 16))
def test_a_middle_model_writes_what_it_was_asked_for_or_one_token_less(each, most):
    found = pieces((each, most))
    assert most - 1 <= sum(length + 1 for length in found) <= most
    assert all(1 <= length <= each for length in found)


# ── rounds write what chains write ───────────────────────────────────────────


class Told:
    """An oracle that is told its numbers as a round is: for each verification its drafts', its verdicts', the rest."""

    def __init__(self, numbers: Sequence[float], shape: Shape) -> None:
        self._numbers = list(numbers)
        self.levels = list(shape.pieces) or ([shape.most] if shape.lengths else [])
        self._shape = shape
        self._draws: list[float] = []
        self._verdicts: list[float] = []
        self.begin()

    def begin(self) -> None:
        """The numbers of the next verification with its drafts."""
        numbers, many = self._numbers, self.levels.pop(0) if self.levels else 0
        self._draws = [numbers.pop(0) for _ in range(many)]
        self._verdicts = [numbers.pop(0) for _ in range(many)]
        self._draws.append(numbers.pop(0))

    def finish(self) -> None:
        """The numbers of the target's verification of what a middle model wrote."""
        self._verdicts, self._draws = self._numbers[:-1], self._numbers[-1:]

    def accept(self, probability: float) -> bool:
        return self._verdicts.pop(0) < probability

    def draw(self, law: Law) -> int:
        if isinstance(law, Point):
            return law.token
        cumulative = law.weights.double().cumsum(0)
        return int(torch.searchsorted(cumulative, self._draws.pop(0) * cumulative[-1], right=True))


class Leftover(Told):
    """What is drawn behind a refusal is drawn with the last number of its verification."""

    def accept(self, probability: float) -> bool:
        kept = super().accept(probability)
        if not kept:
            self._draws = self._draws[-1:]
        return kept


def by_chain(answer: Answer, lengths: Sequence[int], stages: Sequence[int], sampling: Sampling, numbers: Any) -> Any:
    """What a round of the chain writes, and what it tells of its verifications."""
    shape = Shape(len(stages), tuple(lengths))
    oracle, tally = Leftover(numbers, shape), Heard()
    run = Run(answer, sampling, oracle, observer=tally)
    chain = chain_of(lengths, stages)
    if shape.pieces:
        assert isinstance(chain.below, FewRounds)
        inner = chain.below.round

        def begun(run: Run, most: int) -> Asking:
            if tally.told:
                oracle.begin()
            out = yield from inner(run, most)
            if len(tally.told) == len(shape.pieces):
                oracle.finish()
            return out

        chain.below.round = begun  # type: ignore[method-assign]
    asking: Generator[Ask, Tensor, list[Emitted]] = chain.round(run, 1000)
    ask = next(asking)
    while True:
        model, start = models(narrow=False)[ask.stage], ask.start
        answer.read[ask.stage] = len(answer.tokens)
        logits = model.forward([Feed(answer.slots[ask.stage], start, answer.tokens[start:], ask.want)])[0]
        try:
            ask = asking.send(logits)
        except StopIteration as stopped:
            return [each.token for each in stopped.value], tally.told


class Heard(Tally):
    """Every verification, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int, int, tuple[float, ...]]] = []

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Sequence[float]) -> None:
        self.told.append((drafter, target, accepted, tuple(confidences)))


SAMPLINGS = [Sampling(0.0), Sampling(1.0), Sampling(0.6), Sampling(1.0, top_k=5), Sampling(1.3, 12, 0.8)]
PAIRS = st.integers(0, 5).map(lambda length: (length,) if length else ())
TRIPLES = st.one_of(st.just(()), st.tuples(st.integers(1, 3), st.integers(2, 7)))
PROMPTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    prompts=PROMPTS,
    way=st.one_of(
        st.tuples(st.just((0, 2)), st.lists(PAIRS, min_size=1, max_size=4)),
        st.tuples(st.just((0, 1, 2)), st.lists(TRIPLES, min_size=1, max_size=4)),
    ),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, 10_000),
)
def test_a_round_writes_what_the_chain_writes(prompts, way, sampling, seed):
    """Rows of any lengths side by side, drafts that come and go, and what the caches hold afterwards."""
    stages, asked = way
    rounds, chance = rounds_of(*stages), random.Random(seed)
    answers = [rounds.open(prompt) for prompt in prompts]
    twins = [Answer(list(p), slots={s: models(narrow=False)[s].open() for s in stages}) for p in prompts]
    for lengths in asked:
        count = Shape(len(stages), lengths).numbers
        if max(len(answer.tokens) for answer in answers) + sum(lengths) + 1 > CONTEXT:
            break
        numbers = [chance.random() for _ in range(count * len(prompts))]
        wrote = rounds.round(turns(answers, sampling, iter(numbers).__next__), lengths)
        for row, (twin, told) in enumerate(zip(twins, wrote, strict=True)):
            own = numbers[row * count : (row + 1) * count]
            tokens, verified = by_chain(twin, lengths, stages, sampling, own)
            assert list(told.tokens) == tokens
            assert told.accepted == len(told.tokens) - 1
            found = [(stages[each.place], each.accepted, each.confidences) for each in told.verified]
            wanted = [(drafter, kept, sure) for drafter, _, kept, sure in verified]
            assert [each[:2] for each in found] == [each[:2] for each in wanted]
            if len(stages) == 2:  # what a middle model's tokens were drawn from is no drafter's law to the chain
                for one, other in zip(found, wanted, strict=True):
                    assert one[2] == pytest.approx(other[2])
    for answer, twin in zip(answers, twins, strict=True):
        assert answer.tokens == twin.tokens
        assert answer.read[stages[-1]] == len(answer.tokens) - 1
        for stage in stages:
            assert answer.read[stage] <= models(narrow=True)[stage].length(answer.slots[stage])
            assert held_is_right(answer, stage)
        rounds.close(answer)
        for stage, slot in twin.slots.items():
            models(narrow=False)[stage].close(slot)


def held_is_right(answer: Answer, stage: int) -> bool:
    """True where a model goes on from what its cache row is said to hold as it does without a cache."""
    model, end = models(narrow=True)[stage], answer.read[stage]
    tokens = answer.tokens[: end + 1]
    logits = model.forward([Feed(answer.slots[stage], end, tokens[end:], 1)])[0]
    with torch.inference_mode():
        other = models(narrow=False)[stage]
        slot = other.open()
        whole = other.forward([Feed(slot, 0, tokens, 1)])[0]
        other.close(slot)
    return torch.allclose(logits, whole, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(prompts=PROMPTS, sampling=st.sampled_from(SAMPLINGS), seed=st.integers(0, 10_000))
def test_looked_up_drafts_are_judged_as_points(prompts, sampling, seed):
    """Kept where the target would have drawn the same: number by number, from none to several in a row."""
    rounds, chance = rounds_of(2), random.Random(seed)
    answers = [rounds.open(prompt) for prompt in prompts]
    for _ in range(3):
        drafts = [tuple(chance.randrange(VOCABULARY) for _ in range(chance.choice([0, 1, 2, 5]))) for _ in answers]
        numbers = [[chance.random() for _ in range(len(draft) + 1)] for draft in drafts]
        twins = [Answer(list(a.tokens), slots={2: models(narrow=False)[2].open()}) for a in answers]
        wanted = []
        for twin, draft, own in zip(twins, drafts, numbers, strict=True):
            oracle = Leftover([0.0] * 9, Shape(1))
            oracle._verdicts, oracle._draws = own[:-1], own[-1:]
            wanted.append(looked_up(twin, draft, sampling, oracle))
            models(narrow=False)[2].close(twin.slots[2])
        given_ = [Turn(a, sampling, iter(own).__next__, d) for a, own, d in zip(answers, numbers, drafts, strict=True)]
        for told, tokens, draft in zip(rounds.round(given_), wanted, drafts, strict=True):
            assert list(told.tokens) == tokens
            assert [each.place for each in told.verified] == ([NGRAM] if draft else [])
    for answer in answers:
        rounds.close(answer)


def looked_up(answer: Answer, draft: Sequence[int], sampling: Sampling, oracle: Any) -> list[int]:
    class Given:
        key = NGRAM

        def emit(self, run: Run, most: int) -> Asking:
            run.answer.tokens += draft
            return [Emitted(token, Point(token)) for token in draft]
            yield

    asking = Verifier(2, Given() if draft else None, length=len(draft)).round(Run(answer, sampling, oracle), 1000)
    next(asking)
    want = len(draft) + 1
    logits = models(narrow=False)[2].forward([Feed(answer.slots[2], 0, answer.tokens, want)])[0]
    with pytest.raises(StopIteration) as stopped:
        asking.send(logits)
    return [each.token for each in stopped.value.value]


def test_rows_of_a_round_may_be_sampled_in_their_own_ways():
    """Those of one kind share a graph: each row has its own temperature and cuts."""
    rounds = rounds_of(0, 2)
    for ways in ([Sampling(0.4), Sampling(1.5)], [Sampling(1.0, top_k=2), Sampling(0.7, top_p=0.6)]):
        together, apart = [], []
        for many in (True, False):
            answers = [rounds.open(prompt) for prompt in ([1, 2, 3], [4, 5])]
            chances = [random.Random(seed).random for seed in (1, 2)]
            made = [Turn(a, way, chance) for a, way, chance in zip(answers, ways, chances, strict=True)]
            for _ in range(4):
                for some in [made] if many else [[each] for each in made]:
                    rounds.round(some, (3,))
            (together if many else apart).extend(answer.tokens for answer in answers)
            for answer in answers:
                rounds.close(answer)
        assert together == apart


def test_a_model_drafts_for_itself_without_a_refusal():
    top, other = models(narrow=True)[2], models(narrow=False)[2]
    twin = LanguageModel(other.model, name="twin", context=CONTEXT, slots=8)
    for chain, lengths in (([other, top], (4,)), ([other, twin, top], (2, 6))):
        rounds, chance = Rounds(chain), random.Random(0).random
        answer = rounds.open([1, 2, 3])
        for _ in range(4):
            wrote = rounds.round(turns([answer], Sampling(1.0), chance), lengths)[0]
            assert all(each.accepted == len(each.confidences) for each in wrote.verified)
            assert len(wrote.tokens) == lengths[-1] + 1
        rounds.close(answer)


def test_waits_are_counted_one_for_each_round():
    rounds = rounds_of(0, 2)
    rounds.warm([(), (2,)])
    answer = rounds.open([1, 2, 3, 4])
    before = rounds.waits
    assert not rounds.ready(turns([answer]), (2,))
    for _ in range(3):
        rounds.round(turns([answer]), (2,))
    assert rounds.waits == before + 3
    for lengths in ((), (), (), (2,)):  # the drafter reads what was written without it
        rounds.round(turns([answer]), lengths)
    assert rounds.waits == before + 3 + 4 + 1
    assert rounds.ready(turns([answer]), (3,))
    rounds.close(answer)
    assert rounds.reason == "cpu has no CUDA graphs"


@pytest.mark.parametrize(
    ("lengths", "chance", "said"),
    [
        ((2,), None, "temperature 1 needs chance"),
        ((-1,), random.random, r"1 drafters cannot be asked for \[-1\] tokens"),
        ((2, 2), random.random, r"1 drafters cannot be asked for \[2, 2\] tokens"),
        ((45,), random.random, r"cache row \d: 49 positions needed, and its context has 48"),
    ],
)
def test_a_round_that_cannot_be_is_refused(lengths, chance, said):
    rounds = rounds_of(0, 2)
    answer = rounds.open([1, 2, 3, 4])
    with pytest.raises(EngineError, match=said):
        rounds.round(turns([answer], Sampling(1.0), chance), lengths)
    with pytest.raises(EngineError, match="looked-up drafts are verified by one model, not by 2"):
        rounds.round([Turn(answer, given=(1, 2))])
    rounds.close(answer)


def test_without_a_drafter_there_are_no_drafts():
    rounds = rounds_of(2)
    answer = rounds.open([1])
    assert rounds.round(turns([answer]))[0].accepted == 0
    with pytest.raises(EngineError, match=r"0 drafters cannot be asked for \[1\] tokens"):
        rounds.round(turns([answer]), (1,))
    rounds.close(answer)
    with pytest.raises(EngineError, match="an answer needs a prompt of at least one token"):
        rounds.open([])
    with pytest.raises(EngineError, match="1 to 3 models, not 4"):
        Rounds([models(narrow=True)[2]] * 4)


def test_a_middle_model_is_asked_for_two_tokens_at_least():
    rounds = rounds_of(0, 1, 2)
    answer = rounds.open([1])
    with pytest.raises(EngineError, match=r"2 drafters cannot be asked for \[2, 1\] tokens; least \(1, 2\)"):
        rounds.round(turns([answer]), (2, 1))
    rounds.close(answer)


def test_models_of_different_vocabularies_are_refused():
    other = LanguageModel(tiny_network(vocab=VOCABULARY + 1, layers=1, hidden=16), name="other")
    with pytest.raises(EngineError, match=r"model 'other' \(25 tokens, cpu\) cannot draft for 'm0.0' \(24 tokens, cpu"):
        Rounds([other, models(narrow=True)[2]])


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_model_that_gives_no_numbers_is_told_of(broken):
    networks = [tiny_network(vocab=VOCABULARY, layers=1, hidden=16, seed=seed) for seed in range(3)]
    with torch.no_grad():
        networks[broken].get_output_embeddings().weight.fill_(torch.nan)
    chain = [LanguageModel(each, name="broken", slots=1, narrow=True) for each in networks]
    rounds = Rounds(chain)
    answer = rounds.open([1, 2])
    with pytest.raises(EngineError, match="the model gave no numbers"):
        rounds.round(turns([answer], Sampling(1.0), random.Random(0).random), (2, 3))


# ── in a batch ───────────────────────────────────────────────────────────────


def in_batch(
    chain: Sequence[int],
    lengths: Sequence[int],
    asked: Sequence[list[int]],
    most: int,
    *,
    ends: frozenset[int],
    **how: Any,
) -> tuple[list[list[int]], Tally]:
    """What answers of a chain come to, three at a time, each with its own stream of chance."""
    row, tally = models(narrow=True), Tally()
    runner = AllRounds(row, timer=lambda: 0.0, uncaptured=True)
    ticks = iter(range(10**6))
    batch = Batch(row, timer=lambda: float(next(ticks)), rounds=runner, chunk=4)
    waiting, told = list(enumerate(asked))[::-1], {}
    while waiting or batch.jobs:
        while waiting and len(batch.jobs) < how.get("rows", 3):
            place, prompt = waiting.pop()
            answer, oracle = Answer(list(prompt)), SeededOracle(place)
            told[place] = answer
            made = DeviceRound(chain, lengths, context=CONTEXT, chance=oracle.number, look_up=how.get("look_up"))
            run = Run(answer, how.get("sampling", Sampling(0.0)), oracle, ends, tally)
            batch.add(Job(decode(run, lambda made=made: made, most, lambda _: False), answer))
        for job in batch.step():
            assert job.error is None
    assert all(model._lengths == [None] * 8 for model in row)
    return [told[place].tokens[told[place].prompt :] for place in sorted(told)], tally


ASKED = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [2, 2], [9, 1, 1, 3]]


@pytest.mark.parametrize(
    ("chain", "lengths"), [((2,), ()), ((0, 2), (4,)), ((0, 1, 2), (2, 5)), ((NGRAM, 2), (3,))], ids=str
)
@pytest.mark.parametrize("most", [1, 2, 7, 39])
@pytest.mark.parametrize("ends", [frozenset(), frozenset({7, 19})], ids=str)
def test_greedy_answers_of_a_batch_are_plain_decodings(chain, lengths, most, ends):
    """Cut by an end, by the most tokens and by the context; prompts read in chunks."""

    def look_up(tokens: Sequence[int], count: int) -> list[int]:
        return [(tokens[-1] * 7 + at) % VOCABULARY for at in range(count)]

    wrote, _ = in_batch(chain, lengths, ASKED, most, ends=ends, look_up=look_up)
    assert wrote == [plainly(prompt, min(most, CONTEXT - len(prompt)), ends) for prompt in ASKED]


def plainly(prompt: Sequence[int], most: int, ends: frozenset[int]) -> list[int]:
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + most and not (len(tokens) > len(prompt) and tokens[-1] in ends):
            model = models(narrow=False)[2]
            slot = model.open()
            tokens.append(int(model.forward([Feed(slot, 0, tokens, 1)])[0].argmax()))
            model.close(slot)
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("chain", "lengths"), [((2,), ()), ((0, 2), (3,)), ((0, 1, 2), (1, 4))], ids=str)
def test_what_is_drawn_does_not_hang_on_who_is_beside(chain, lengths):
    sampling = Sampling(1.0, top_p=0.9)
    alone, _ = in_batch(chain, lengths, ASKED, 20, ends=frozenset(), sampling=sampling, rows=1)
    beside, tally = in_batch(chain, lengths, ASKED, 20, ends=frozenset(), sampling=sampling, rows=4)
    assert alone == beside
    assert all(0 < kept < drafted for drafted, kept in tally.counts.values())
    assert set(tally.counts) == set(pairwise(chain))


def test_drafts_behind_an_end_say_nothing():
    tally = Heard()
    chain = DeviceRound((0, 2), (4,), context=CONTEXT, chance=random.random)
    answer = Answer([1, 2, 3], read={0: 2, 2: 2})
    asking = chain.round(Run(answer, Sampling(0.0), SeededOracle(0), frozenset({9}), tally), 10)
    ask: Any = next(asking)
    assert (ask.chain, ask.lengths, ask.stage) == ((0, 2), (4,), 2)
    answer.tokens += [5, 9, 4, 4, 6]
    with pytest.raises(StopIteration) as stopped:
        asking.send(Wrote((5, 9, 4, 4, 6), (Verified(0, 4, (0.9, 0.8, 0.7, 0.6)),), (0,)))
    assert [each.token for each in stopped.value.value] == [5, 9]
    assert tally.told == [(0, 2, 2, (0.9, 0.8))]
    assert answer.tokens == [1, 2, 3, 5, 9]


def test_chains_that_rounds_cannot_run_are_told_of(caplog):
    caplog.set_level("INFO")
    runner = AllRounds(models(narrow=True), timer=lambda: 0.0)
    assert runner.why_not((2,)) == "cpu has no CUDA graphs"
    assert runner.why_not((NGRAM, 0, 2)) == "rounds have 3 models at most, and one below looked-up drafts"
    assert runner.why_not((2,)) == "cpu has no CUDA graphs"
    assert caplog.text.count("chain m0.0 runs pass by pass: cpu has no CUDA graphs") == 1
    assert "chain ngram → m0.06 → m0.0 runs pass by pass" in caplog.text
    other = LanguageModel(tiny_network(vocab=VOCABULARY + 1, layers=1, hidden=16), name="other")
    runner = AllRounds([other, models(narrow=True)[2]], timer=lambda: 0.0, uncaptured=True)
    assert "cannot draft for 'm0.0'" in str(runner.why_not((0, 1)))
    assert runner.why_not((1,)) is None
