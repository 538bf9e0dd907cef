"""Acceptance: what is believed of a pair after so many verdicts, and when it is dropped."""

from __future__ import annotations

import random

import pytest

from stepladder.decoding.acceptance import EDGES, NGRAM, PRIOR, Acceptance, divergence


def told(
    alpha: float, rounds: int, *, length: int = 4, seed: int = 0, acceptance: Acceptance | None = None
) -> Acceptance:
    chance, found = random.Random(seed), acceptance or Acceptance()
    for _ in range(rounds):
        kept = 0
        while kept < length and chance.random() < alpha:
            kept += 1
        found.observe(0, 1, length, kept)
    return found


def test_an_unknown_pair_has_the_prior_and_says_that_it_is_unknown() -> None:
    acceptance = Acceptance()
    assert acceptance.rate(0, 1) == PRIOR
    assert acceptance.weight(0, 1) == 0.0
    assert acceptance.survival(0, 1, 3) == pytest.approx([0.5, 0.25, 0.125])
    assert acceptance.chances(0, 1).of(0.99) == PRIOR
    assert acceptance.spread(0, 1) > 0.25


def test_bad_is_not_unknown() -> None:
    bad = told(0.0, 40)
    assert bad.rate(0, 1) < 0.03
    assert bad.weight(0, 1) > 30
    assert bad.spread(0, 1) < 0.05


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 0.95])
def test_the_rate_is_found(alpha: float) -> None:
    assert told(alpha, 400).rate(0, 1) == pytest.approx(alpha, abs=0.06)


def test_only_tokens_up_to_the_first_rejection_were_judged() -> None:
    acceptance = Acceptance()
    acceptance.observe(0, 1, 8, 2)
    assert acceptance.weight(0, 1) == pytest.approx(3.0)
    assert acceptance.rate(0, 1) == pytest.approx(3 / 5)  # (2 + 1) / (3 + 2)


def test_positions_are_told_apart_and_those_never_seen_have_the_pooled_rate() -> None:
    acceptance, chance = Acceptance(), random.Random(1)
    for _ in range(300):
        first = chance.random() < 0.9
        acceptance.observe(0, 1, 2, int(first) + int(first and chance.random() < 0.4))
    rates = acceptance.rates(0, 1, 4)
    assert rates[0] == pytest.approx(0.9, abs=0.08)
    assert rates[1] == pytest.approx(0.4, abs=0.12)
    assert rates[2] == rates[3] == pytest.approx(acceptance.rate(0, 1))


def test_survival_is_the_product_of_rates() -> None:
    acceptance = told(0.7, 50)
    rates, survival = acceptance.rates(0, 1, 3), acceptance.survival(0, 1, 3)
    assert survival == pytest.approx([rates[0], rates[0] * rates[1], rates[0] * rates[1] * rates[2]])


def test_drift_is_followed_within_twice_the_memory() -> None:
    """A drift too slow for the watch on sudden changes."""
    acceptance = told(0.8, 300)
    for step, alpha in enumerate((0.7, 0.6, 0.5, 0.5, 0.5)):
        told(alpha, 120, seed=step, acceptance=acceptance)
    assert acceptance.rate(0, 1) == pytest.approx(0.5, abs=0.1)


def test_a_sudden_change_is_noticed_within_a_score_of_verdicts() -> None:
    acceptance = told(0.8, 300)
    before = acceptance.changes
    told(0.0, 24, acceptance=acceptance)
    assert acceptance.changes > before
    assert acceptance.rate(0, 1) < 0.35


def test_without_a_change_none_is_noticed() -> None:
    assert sum(told(alpha, 400, seed=seed).changes for alpha in (0.3, 0.8) for seed in range(5)) <= 5


def test_clustered_text_is_no_change() -> None:
    """Runs of easy and hard tokens would set off a test that takes verdicts to be independent, again and again."""
    chance, acceptance = random.Random(2), Acceptance()
    alpha = 0.8
    for _ in range(600):
        if chance.random() < 0.1:
            alpha = chance.choice((0.95, 0.6))
        kept = 0
        while kept < 4 and chance.random() < alpha:
            kept += 1
        acceptance.observe(0, 1, 4, kept)
    assert acceptance.changes <= 12


def test_a_pair_that_is_not_in_use_is_forgotten_slowly() -> None:
    acceptance = told(0.8, 100)
    before = acceptance.weight(0, 1)
    acceptance.age(0)  # ends the round in which it was in use
    acceptance.age(600)
    assert 0.5 * before < acceptance.weight(0, 1) < 0.9 * before
    for _ in range(100):
        acceptance.age(600)
    assert acceptance.weight(0, 1) == pytest.approx(0.0, abs=1e-6)
    assert acceptance.rate(0, 1) == pytest.approx(PRIOR)


def test_offers_are_counted_beside_acceptance() -> None:
    acceptance = Acceptance()
    for found in (4, 0, 2, 0) * 50:
        acceptance.observe(NGRAM, 1, found, found, asked=4)
    offers = acceptance.offers(NGRAM, 1, 6)
    assert offers[0] == pytest.approx(0.5, abs=0.05)
    assert offers[3] == pytest.approx(0.25, abs=0.05)
    assert offers[4] == offers[5] == offers[3]
    assert acceptance.rate(NGRAM, 1) > 0.95
    assert acceptance.tried(NGRAM, 1) > 100


def test_models_offer_what_they_are_asked_for() -> None:
    assert told(0.5, 20).offers(0, 1, 3) == [1.0, 1.0, 1.0]
    assert Acceptance().offers(0, 1, 2) == [1.0, 1.0]


def test_confidence_tells_where_it_tells() -> None:
    chance, acceptance = random.Random(4), Acceptance()
    for _ in range(1500):
        confidences = [chance.choice((0.25, 0.65, 0.95)) for _ in range(3)]
        kept = 0
        while kept < 3 and chance.random() < confidences[kept]:
            kept += 1
        acceptance.observe(0, 1, 3, kept, confidences)
    chances = acceptance.chances(0, 1)
    assert chances.of(0.25) == pytest.approx(0.25, abs=0.08)
    assert chances.of(0.65) == pytest.approx(0.65, abs=0.08)
    assert chances.of(0.95) == pytest.approx(0.95, abs=0.05)
    assert list(chances.this) == sorted(chances.this)
    # what follows is independent here: the present token's confidence says nothing of it
    assert chances.after(0.95) - chances.after(0.25) < 0.25


def test_confidence_that_tells_nothing_gives_the_pooled_chance() -> None:
    chance, acceptance = random.Random(5), Acceptance()
    for _ in range(1500):
        kept = 0
        while kept < 3 and chance.random() < 0.7:
            kept += 1
        acceptance.observe(0, 1, 3, kept, [chance.random() for _ in range(3)])
    chances = acceptance.chances(0, 1)
    assert max(chances.this) - min(chances.this) < 0.2
    assert len(chances.this) == len(EDGES) + 1


def test_verdicts_that_cannot_be_are_cut_to_what_can() -> None:
    acceptance = Acceptance()
    acceptance.observe(0, 1, 2, 9)
    acceptance.observe(0, 1, 2, -1)
    assert acceptance.weight(0, 1) == pytest.approx(3.0, abs=0.01)
    acceptance.observe(0, 1, 0, 0)
    assert acceptance.weight(0, 1) == pytest.approx(3.0, abs=0.01)


def test_divergence_is_nought_for_the_same_coin_and_defined_at_the_ends() -> None:
    assert divergence(0.3, 0.3) == pytest.approx(0.0)
    assert divergence(0.0, 0.8) == pytest.approx(1.6094, abs=1e-3)
    assert divergence(1.0, 0.8) == pytest.approx(0.2231, abs=1e-3)
