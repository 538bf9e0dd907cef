"""What rounds write and take, and what an answer of a given length is made of; enumerated, and simulated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_simulator import Text, World, flat, linear, steady, stepped
from stepladder.decoding.acceptance import NGRAM
from stepladder.decoding.controller import Planner
from stepladder.decoding.pace import CURVE, Answers, Host, Rounds
from stepladder.decoding.planner_settings import PlannerSettings

reaches = st.lists(st.floats(0.0, 1.0), max_size=6).map(lambda found: [1.0, *sorted(found, reverse=True)])


def enumerated(left: int, shares: list[float]) -> Iterator[tuple[float, int]]:
    """(probability, rounds) of every way to write ``left`` tokens."""
    if left <= 0:
        yield 1.0, 0
        return
    for wrote, share in enumerate(shares, start=1):
        for chance, rounds in enumerated(left - wrote, shares):
            yield share * chance, rounds + 1


@given(reach=reaches, tokens=st.integers(0, 6))
@settings(deadline=None)
def test_the_rounds_of_an_answer_are_those_of_every_way_to_write_it(reach: list[float], tokens: int) -> None:
    shares = [low - high for low, high in zip(reach, [*reach[1:], 0.0], strict=True)]
    expected = sum(chance * rounds for chance, rounds in enumerated(tokens, shares))
    assert Answers(reach).rounds(tokens) == pytest.approx(expected)


@given(reach=reaches, tokens=st.floats(0.0, 300.0), more=st.floats(0.0, 50.0))
def test_longer_answers_take_more_rounds_and_none_takes_more_than_its_tokens(
    reach: list[float], tokens: float, more: float
) -> None:
    answers = Answers(reach)
    fewer, rounds = answers.rounds(tokens), answers.rounds(tokens + more)
    assert fewer <= rounds + 1e-9
    assert tokens / len(reach) - 1e-9 <= fewer <= max(tokens, 1.0) + 1e-9


def test_beyond_the_curve_a_round_writes_its_mean() -> None:
    reach = [1.0, 0.8, 0.64]
    answers = Answers(reach)
    slope = answers.rounds(CURVE + 200) - answers.rounds(CURVE + 100)
    assert slope == pytest.approx(100 / sum(reach))
    slope = answers.rounds(CURVE) - answers.rounds(CURVE - 1)
    assert slope == pytest.approx(1 / sum(reach), rel=1e-3)


def learned(alpha: float, length: int, answer: int, *, blind: bool, answers: int = 3000) -> float:
    """Mean tokens of a free round, learned from rounds of which those that end an answer are cut."""
    chance, rounds = random.Random(1), Rounds()
    for _ in range(answers):
        left = answer
        while left:
            kept = 0
            while kept < length and chance.random() < alpha:
                kept += 1
            wrote = min(kept + 1, left)
            rounds.observe(wrote, 1.0, ended=wrote == left and not blind)
            left -= wrote
    return sum(rounds.reach([1.0]))


def test_rounds_that_an_answer_ended_in_are_not_taken_for_short_ones() -> None:
    free = sum(0.8**k for k in range(5))
    assert learned(0.8, 4, 9, blind=False) == pytest.approx(free, rel=0.1)
    assert learned(0.8, 4, 9, blind=True) < 0.9 * free  # the control: counted as if they were free


def test_what_was_never_seen_is_what_was_foreseen_and_is_outweighed_by_what_was() -> None:
    rounds = Rounds()
    assert rounds.reach([1.0, 0.5, 0.25]) == pytest.approx([1.0, 0.5, 0.25, 0.0])
    assert rounds.seconds(3.0) == 3.0
    for _ in range(100):
        rounds.observe(3, 1.0, ended=False)
    assert rounds.reach([1.0, 0.5, 0.25])[2] > 0.9
    assert rounds.seconds(3.0) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("told_of", [True, False])
def test_short_answers_and_long_ones_are_counted_by_their_like(told_of: bool) -> None:
    """Short ones are hard here and long ones easy, turn by turn; the control is not told of whole answers."""
    chance, rounds = random.Random(2), Rounds()
    sums = {5: [0.0, 0.0], 40: [0.0, 0.0]}
    for turn in range(1200):
        size, alpha = ((5, 0.3), (40, 0.97))[turn % 2]
        foreseen, left, count = rounds.of_answer(size, [1.0, 0.5, 0.3]), size, 0
        while left:
            kept = 0
            while kept < 6 and chance.random() < alpha:
                kept += 1
            wrote = min(kept + 1, left)
            left, count = left - wrote, count + 1
            rounds.observe(wrote, 1.0, ended=not left)
        if told_of:
            rounds.answered(size, count)
        if turn >= 400:
            sums[size][0] += foreseen
            sums[size][1] += count
    errors = [abs(told / took - 1.0) for told, took in sums.values()]
    assert max(errors) < 0.08 if told_of else max(errors) > 0.15


# ── time beside passes ───────────────────────────────────────────────────────


@pytest.mark.parametrize("chain", [(1,), (0, 1)])
def test_what_is_done_once_is_no_pace(chain: tuple[int, ...]) -> None:
    host = Host()
    for seconds in (9.0, 1.2, 1.2, 1.2, 1.2, 1.2):
        host.rounded(chain, seconds, 1.0, 1.0)
    assert host.usual(chain, 1.0, 1.0) == pytest.approx(1.2, rel=0.01)


def test_what_lasts_is_the_pace() -> None:
    host = Host()
    assert host.usual((0, 1), 1.0, 1.0) == float("inf")
    assert host.factor((0, 1)) == 1.0
    for seconds in [1.0] * 31 + [2.0] * 24:
        host.rounded((0, 1), seconds, 1.0, 1.0)
    assert host.factor((0, 1)) == pytest.approx(2.0, rel=0.01)


def test_time_beside_passes_and_beside_rounds_are_told_apart() -> None:
    host = Host()
    for _ in range(10):
        host.rounded((1,), 1.5, 1.0, 1.0)  # .5 beside a round of one pass
        host.rounded((0, 1), 1.0 + 4 * 0.1 + 0.5 + 4 * 0.05, 1.4, 5.0)  # .05 beside each pass more
    assert host.overhead() == pytest.approx(0.05)
    assert host.beside() == pytest.approx(0.45)
    assert host.factor((0, 1)) == pytest.approx(1.0)


def test_rounds_that_rows_share_are_counted_by_their_share() -> None:
    host = Host()
    for _ in range(10):
        host.rounded((1,), 0.5 * 1.5, 0.5, 0.5, 0.5)
        host.rounded((0, 1), 0.5 * 2.1, 0.7, 2.5, 0.5)
    assert host.overhead() == pytest.approx(0.05)
    assert host.usual((0, 1), 0.7, 2.5, 0.5) == pytest.approx(0.5 * 2.1)


# ── forecasts of whole answers ───────────────────────────────────────────────

GRAMS = steady((NGRAM, 0, 0.2), (NGRAM, 1, 0.7), (0, 1, 0.5))
WORLDS: dict[str, Callable[[int], World]] = {
    "α .8": lambda seed: World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=seed),
    "α .95": lambda seed: World(steady((0, 1, 0.95)), linear(0.02, 0.2, 1.0), seed=seed),
    "noise": lambda seed: World(steady((0, 1, 0.7)), linear(0.02, 0.1, 1.0), seed=seed, noise=0.2),
    "confidence tells": lambda seed: World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=seed, informed=2.0),
    "beside passes": lambda seed: World(steady((0, 1, 0.8)), stepped(4, 0.15, 0.1, 1.0), seed=seed, overhead=0.2),
    "n-grams": lambda seed: World(GRAMS, linear(0.02, 0.1, 1.0), match=0.4, seed=seed),
    "three": lambda seed: World(
        steady((0, 1, 0.75), (1, 2, 0.9), (0, 2, 0.6)), flat(1 / 70, 13 / 70, 1.0), stages=3, seed=seed
    ),
}
CHAINS = {"n-grams": (NGRAM, 1), "three": (0, 1, 2)}


def forecasts(name: str, mode: str, answer: int, prompt: int, answers: int = 300, *, by_pace: bool = False) -> float:
    """Forecast seconds over seconds taken, of the second half of some answers; each was foreseen before it.

    ``by_pace``: foreseen as an answer without an end would be, so much for each token.
    """
    world = WORLDS[name](3)
    top, chain = world.stages - 1, CHAINS.get(name, (0, 1))
    asked = {"chain": PlannerSettings(mode="chain", chain=chain), "off": PlannerSettings(mode="off")}
    planner = Planner(world.stages, asked.get(mode, PlannerSettings(ngram=NGRAM in chain)), sizes=range(1, top + 2))
    pairs: list[tuple[float, float]] = []
    for turn in range(answers):
        foreseen, spent = planner.forecast(top, prompt, answer), 0.0
        if by_pace:
            foreseen = planner.reading(top, prompt) + answer * (planner.seconds_per_token(top) or 0.0)
        text = Text(world, planner, prompt, size=answer)
        text.origin += turn * answer
        while not text.is_over:
            plan = planner.plan(top, unread=text.unread(), remaining=text.end - text.length)
            tokens = text.round(plan, plan.asks, planner.stopping(plan))
            planner.observe_round(plan, text.took(tokens))
            spent += text.spent
        pairs.append((foreseen or 0.0, spent))
    half = pairs[answers // 2 :]
    return sum(foreseen for foreseen, _ in half) / sum(spent for _, spent in half)


@pytest.mark.parametrize("mode", ["off", "chain", "auto"])
@pytest.mark.parametrize("name", WORLDS)
def test_whole_answers_are_forecast_within_ten_per_cent(name: str, mode: str) -> None:
    for answer, prompt in ((3, 20), (9, 20), (60, 700)):
        assert forecasts(name, mode, answer, prompt) == pytest.approx(1.0, abs=0.1), (answer, prompt)


@pytest.mark.parametrize("mode", ["off", "chain"])
def test_answers_taken_for_streams_of_tokens_would_miss_that(mode: str) -> None:
    assert forecasts("α .8", mode, 3, 20, by_pace=True) > 1.15
