"""What one answer shows of a drafter, and what is learned of the kinds of answers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.decoding.kinds import LONGEST, RATES, Kinds, Own


def answers(own_kinds: Kinds, rates: list[float], rounds: int, drafted: int = 4, seed: int = 1) -> None:
    """Answers one after another, each of so many rounds."""
    chance = random.Random(seed)
    for rate in rates:
        own = Own(lambda *_: own_kinds)
        for _ in range(rounds):
            own.observe(0, 1, drafted, kept(chance, rate, drafted))


def kept(chance: random.Random, rate: float, drafted: int) -> int:
    count = 0
    while count < drafted and chance.random() < rate:
        count += 1
    return count


@given(st.lists(st.tuples(st.integers(-1, 80), st.integers(-1, 80), st.booleans()), max_size=30), st.integers(1, 64))
def test_reach_falls_from_one_whatever_was_seen(rounds: list[tuple[int, int, bool]], upto: int) -> None:
    kinds = Kinds()
    own, other = Own(lambda *_: kinds), Own(lambda *_: kinds)
    for drafted, accepted, mine in rounds:
        (own if mine else other).observe(0, 1, drafted, accepted)
        own.idle(0, 1)
    found = own.reach(0, 1, upto)
    assert len(found) == upto + 1
    assert found[0] == 1.0
    assert all(0.0 <= after <= before for before, after in pairwise(found))


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=20))
def test_the_law_of_kinds_is_one(rounds: list[tuple[int, int]]) -> None:
    kinds = Kinds()
    assert not kinds.known
    for place, (drafted, accepted) in enumerate(rounds):
        own = Own(lambda *_: kinds)
        own.observe(0, 1, drafted, accepted)
        own.observe(0, 1, drafted, place % (drafted + 1))
    assert kinds.known
    assert sum(kinds.shares()) == pytest.approx(1.0)
    assert min(kinds.shares()) >= 0.0


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9])
def test_an_answers_rate_is_found(rate: float) -> None:
    kinds, chance = Kinds(), random.Random(3)
    own = Own(lambda *_: kinds)
    assert own.reach(0, 1, 1)[1] == pytest.approx(0.6, abs=0.05)  # the even law over rates
    for _ in range(60):
        own.observe(0, 1, 4, kept(chance, rate, 4))
    assert own.reach(0, 1, 3)[1:] == pytest.approx([rate, rate**2, rate**3], abs=0.1)


def test_kinds_that_differ_are_told_apart_by_a_round_or_two() -> None:
    kinds = Kinds()
    answers(kinds, [0.9, 0.02] * 20, 12)
    easy, hard, alike = Own(lambda *_: kinds), Own(lambda *_: kinds), Own(lambda *_: Kinds())
    assert easy.reach(0, 1, 4)[1] == pytest.approx(0.46, abs=0.1)
    assert easy.reach(0, 1, 4)[4] > 4 * 0.46**4  # one rate for all would say this
    easy.observe(0, 1, 4, 4)
    assert easy.reach(0, 1, 4)[1] > 0.85
    for own in (hard, alike):
        for _ in range(2):
            own.observe(0, 1, 1, 0)
    assert hard.reach(0, 1, 1)[1] < 0.08 < alike.reach(0, 1, 1)[1]  # the control never saw another answer


def test_where_all_are_alike_one_bad_round_says_little() -> None:
    kinds = Kinds()
    answers(kinds, [0.8] * 60, 20)
    own = Own(lambda *_: kinds)
    own.observe(0, 1, 4, 0)
    assert own.reach(0, 1, 1)[1] > 0.65


def test_an_answer_does_not_confirm_itself() -> None:
    """Its own verdicts are left out of what it is expected to be like."""
    kinds = Kinds()
    first = Own(lambda *_: kinds)
    first.observe(0, 1, 1, 1)
    fresh = Own(lambda *_: Kinds())
    fresh.observe(0, 1, 1, 1)
    assert first.reach(0, 1, 4) == fresh.reach(0, 1, 4)


def test_what_was_seen_before_fades_while_nothing_is_drafted() -> None:
    kinds = Kinds()
    answers(kinds, [0.9, 0.02] * 10, 12)
    own = Own(lambda *_: kinds)
    for _ in range(3):
        own.observe(0, 1, 1, 0)
    assert own.reach(0, 1, 1)[1] < 0.1
    for _ in range(2000):
        own.idle(0, 1)
    assert own.reach(0, 1, 1)[1] > 0.35


@pytest.mark.parametrize("skewed", [True, False])
def test_positions_that_are_kept_less_often_than_a_rate_says_are_learned(skewed: bool) -> None:
    """Conditional acceptance falls from .9 by a tenth at each position, or stays."""
    kinds, chance = Kinds(), random.Random(5)
    for _ in range(60):
        own = Own(lambda *_: kinds)
        for _ in range(20):
            count = 0
            while count < 6 and chance.random() < 0.9 * (0.9**count if skewed else 1.0):
                count += 1
            own.observe(0, 1, 6, count)
    found, truth = own.reach(0, 1, 6), 1.0
    for place in range(6):
        truth *= 0.9 * (0.9**place if skewed else 1.0)
    assert found[6] == pytest.approx(truth, abs=0.08)


def test_a_try_is_worth_less_the_more_of_them_were_in_vain() -> None:
    kinds = Kinds()
    answers(kinds, [0.9, 0.02] * 10, 12)
    own, gains = Own(lambda *_: kinds), [rate - 0.3 for rate in RATES]
    worth = [own.hoped(0, 1, gains)]
    for _ in range(5):
        own.observe(0, 1, 1, 0)
        worth.append(own.hoped(0, 1, gains))
    assert worth == sorted(worth, reverse=True)
    assert worth[0] > 0.2
    assert worth[-1] < 0.02


def test_pairs_are_apart_and_drafts_without_tokens_say_nothing() -> None:
    made: dict[tuple[int, int], Kinds] = {}
    own = Own(lambda drafter, target: made.setdefault((drafter, target), Kinds()))
    own.observe(0, 1, 0, 0)
    assert not made
    own.observe(0, 1, 4, 4)
    assert own.reach(0, 1, 1)[1] > 0.7 > own.reach(0, 2, 1)[1]
    assert made[0, 1].known
    assert not made[0, 2].known


def test_beyond_the_longest_draft_nothing_is_foreseen() -> None:
    own = Own(lambda *_: Kinds())
    assert len(own.reach(0, 1, LONGEST)) == LONGEST + 1
    own.observe(0, 1, 3 * LONGEST, 2 * LONGEST)
    assert own.reach(0, 1, 1)[1] > 0.9
