"""Which chain a round runs with, and what a planner hears of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.decoding.batch import Took
from stepladder.decoding.chain import GIVEN, NGRAM, GivenDraft, ModelDrafter, NgramDrafter, Run, Verifier, WouldBe
from stepladder.decoding.controller import DEFAULT_LENGTH
from stepladder.decoding.laws import Sampling
from stepladder.decoding.loading import Loaded
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.planning import LONGEST
from stepladder.decoding.sequence import Sequence
from stepladder.decoding.tally import Observer
from stepladder.decoding.times import StepTimes
from stepladder.engines.torch_chains import Chains, Shared, Watch, planner_for
from stepladder.engines.torch_models import Row
from stepladder.engines.torch_settings import LONGEST_DRAFT, read_settings
from stepladder.types import Stage
from torch_fakes import LETTERS, FakeModel

NAMES = ("low", "mid", "top")


def shared_of(**options: Any) -> Shared:
    stages = tuple(Stage(name, "torch", name, options=options if name == "top" else {}) for name in NAMES)
    models = [FakeModel("", parameters=10**place) for place in range(3)]
    row = Row(NAMES, tuple(Loaded(model, LETTERS) for model in models), ((), (0,), (0, 1)))  # type: ignore[arg-type]
    times = StepTimes()
    for place in range(3):
        for width in (1, 2, 4, 8, 16):
            times.observe(place, width, 1, 10.0**place * (1 + 0.05 * width))
    return Shared(planner_for(read_settings(stages)[-1], row, times))


def chains_of(shared: Shared, answer: Sequence | None = None, **settings: Any) -> Chains:
    ticks = iter(range(10**6))
    said = {
        "greedy": True,
        "rule": "rejection",
        "contexts": [100] * 3,
        "vocab": 260,
        "most": 50,
        "timer": lambda: float(next(ticks)),
        **settings,
    }
    return Chains(top=2, shared=shared, answer=answer or Sequence([1, 2, 3]), **said)


def links(top: Verifier) -> list[tuple[type, int, int]]:
    """(kind, key, length asked of the one below), from the bottom up."""
    found: list[tuple[type, int, int]] = []
    level: Any = top
    while level is not None:
        found.append((type(level), level.key, getattr(level, "length", 0)))
        level = getattr(level, "below", None)
    return found[::-1]


def test_what_is_set_is_what_runs() -> None:
    chains = chains_of(shared_of(speculation=["ngram", "low", "mid"], draft_length=3))
    assert links(chains.next()) == [(NgramDrafter, NGRAM, 0), (Verifier, 0, 3), (Verifier, 1, 3), (Verifier, 2, 3)]
    chains = chains_of(shared_of(speculation=["low"], draft_length=LONGEST_DRAFT))
    assert links(chains.next()) == [(ModelDrafter, 0, 0), (Verifier, 2, LONGEST_DRAFT)]
    assert links(chains_of(shared_of(speculation="off")).next()) == [(Verifier, 2, 0)]
    assert LONGEST_DRAFT <= LONGEST


def test_a_chain_is_made_once_for_a_plan() -> None:
    chains = chains_of(shared_of(speculation=["low"], draft_length=3))
    first = chains.next()
    chains.ended(2)
    assert chains.next() is first


def test_auto_begins_plainly_and_may_ask_only_who_can_draft() -> None:
    shared = shared_of()
    chains = chains_of(shared)
    assert chains.next().below is None
    assert shared.planner._eligible(shared.planner._course(2, True, 1)) == [NGRAM, 0, 1]


@pytest.mark.parametrize(
    ("options", "chain", "lengths"),
    [
        ({}, (2,), ()),
        ({"speculation": "off"}, (2,), ()),
        ({"speculation": ["low", "mid"]}, (0, 1, 2), (DEFAULT_LENGTH,) * 2),
        ({"speculation": ["ngram"], "draft_length": 7}, (NGRAM, 2), (7,)),
    ],
)
def test_a_settled_chain_follows_nothing_measured(options: Any, chain: Any, lengths: Any) -> None:
    shared = shared_of(**options)
    chains = chains_of(shared, settled=True)
    for _ in range(30):
        chains.next()
        assert (chains.plan.chain, chains.plan.lengths) == (chain, lengths)
        chains.ended(1)
    assert not shared.planner._courses or all(course.rounds == 0 for course in shared.planner._courses.values())


def test_a_climbed_draft_goes_first_for_as_long_as_the_answer_agrees() -> None:
    answer = Sequence([1, 2, 3])
    chains = chains_of(shared_of(speculation=["low"], draft_length=2), answer, given=[5, 6, 7])
    for token in (5, 6):
        assert isinstance(chains.next().below, GivenDraft)
        assert chains.climbing
        chains.ended(1)
        answer.append(token)
    answer.append(9)
    assert isinstance(chains.next().below, ModelDrafter)
    assert not chains.climbing
    whole = chains_of(shared_of(), Sequence([1, 5, 6], prompt=1), given=[5, 6])
    assert whole.next().below is None


def test_rounds_over_a_climbed_draft_are_not_told_to_the_planner() -> None:
    shared = shared_of(speculation=["low"])
    chains = chains_of(shared, given=[5])
    chains.next()
    chains.ended(1)
    watch = Watch(shared, greedy=True)
    watch.verified(GIVEN, 2, 3, 2, [1.0] * 3)
    assert watch.counts == {}
    assert all(course.rounds == 0 for course in shared.planner._courses.values())
    watch.verified(0, 2, 3, 2, [0.5] * 3)
    assert watch.counts == {(0, 2): [3, 2]}


@pytest.mark.parametrize(("written", "runs"), [(90, True), (96, True), (97, False), (150, False)])
def test_a_drafter_without_room_is_left_out(written: int, runs: bool) -> None:
    answer = Sequence([1] * written)
    chains = chains_of(shared_of(speculation=["low"], draft_length=3), answer, contexts=[100, 1000, 1000])
    assert (chains.next().below is not None) == runs


def test_what_a_climb_saved_is_never_below_zero() -> None:
    shared = shared_of(speculation="off")
    chains = chains_of(shared)
    assert chains.saved(10, 8, 8) > chains.saved(10, 8, 4) > 0
    assert chains.saved(10, 8, 0) == 0
    nothing = Shared(planner_for(read_settings((Stage("top", "torch", "m"),))[0], _alone(), StepTimes()))
    unknown = Chains(
        top=0,
        shared=nothing,
        answer=Sequence([1]),
        greedy=True,
        rule="block",
        contexts=[9],
        vocab=9,
        most=3,
        timer=lambda: 0.0,
    )
    assert unknown.saved(10, 8, 8) == 0


def _alone() -> Row:
    return Row(("top",), (Loaded(FakeModel(""), LETTERS),), ((),))  # type: ignore[arg-type]


def test_the_usual_chain_is_that_of_most_rounds() -> None:
    answer = Sequence([1] * 10)
    chains = chains_of(shared_of(speculation=["low"], draft_length=3), answer, given=[5, 6])
    assert chains.usual == (2,)
    for room, token in ((100, 5), (100, 7), (100, 8), (100, 9), (13, 9)):
        chains.contexts = [room, 100, 100]
        chains.next()
        answer.append(token)
        chains.ended(1)
    assert chains.rounds == {(0, 2): 2, (2,): 1}  # the first two were over the climbed draft
    assert chains.usual == (0, 2)


# ── what n-grams would have drafted ──────────────────────────────────────────


class Verdicts(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Any) -> None:
        assert asked == 8
        self.seen.append((len(confidences), accepted))


def drafted_in_earnest(prompt: list[int], text: list[int]) -> list[tuple[int, int]]:
    """Verdicts where n-grams draft 8 tokens in every round of a greedy answer that is ``text``."""
    whole, vocab, verdicts = [*prompt, *text], 10, Verdicts()
    answer, drafter = Sequence(list(prompt)), NgramDrafter()
    run = Run(answer, Sampling(0.0), SeededOracle(0), frozenset({text[-1]}), verdicts)
    while len(answer.tokens) < len(whole):
        drafter.learn(answer.tokens, len(answer.tokens))
        asking = Verifier(0, drafter, length=8).round(run, 1000)
        ask = next(asking)
        logits = torch.zeros(ask.want, vocab)
        for row, end in enumerate(range(len(answer.tokens) - ask.want + 1, len(answer.tokens) + 1)):
            logits[row, whole[end] if end < len(whole) else 0] = 9.0
        with suppress(StopIteration):
            asking.send(logits)
    return verdicts.seen


@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    words=st.lists(st.integers(0, 2), max_size=30),
    cuts=st.lists(st.integers(1, 6), min_size=40, max_size=40),
)
@settings(deadline=None)
def test_what_would_have_been_drafted_is_what_is_drafted(prompt: list[int], words: list[int], cuts: list[int]) -> None:
    """Whatever rounds the answer comes in."""
    text = [*words, 9]
    would_be, tokens, found = WouldBe(NgramDrafter(), len(prompt), 8), list(prompt), list[tuple[int, int]]()
    for cut in cuts:
        fresh = text[len(tokens) - len(prompt) :][:cut]
        tokens += fresh
        found += would_be.judged(tokens, over=tokens[-1] == 9)
        if tokens[-1] == 9:
            break
    assert found == drafted_in_earnest(prompt, text)


def test_ngrams_are_judged_while_they_are_not_in_use_and_take_over() -> None:
    shared, tokens = shared_of(), [1, 2, 3, 4, 5] * 3
    for _ in range(12):
        answer = Sequence(list(tokens))
        chains = chains_of(shared, answer, timer=lambda: 0.0)
        for token in [1, 2, 3, 4, 5] * 4:
            chains.next()
            if chains.plan.chain[0] == NGRAM:
                assert not chains.plan.probe, "nothing was left to try out"
                return
            answer.append(token)
            chains.passed(Took(2, 1, 1, 1, 105.0))
            chains._began = -105.0
            chains.ended(1)
        assert shared.planner.acceptance(greedy=True).rate(NGRAM, 2) > 0.7
    raise AssertionError("n-grams that are always right were never taken up")


@pytest.mark.parametrize("options", [{"speculation": "off"}, {"speculation": ["low"]}])
def test_ngrams_that_may_not_draft_are_not_judged(options: Any) -> None:
    shared, answer = shared_of(**options), Sequence([1, 2] * 8)
    chains = chains_of(shared, answer)
    for token in [1, 2] * 8:
        chains.next()
        answer.append(token)
        chains.ended(1)
    assert shared.planner.acceptance(greedy=True).tried(NGRAM, 2) == 0
