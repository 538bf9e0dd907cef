"""Plans, stopping rules and the planner, against the simulator; figures behind them stand in docs/design/0007."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise, product

import pytest

from decoding_simulator import (
    Run,
    Text,
    World,
    decaying,
    flat,
    linear,
    phases,
    run_planned,
    run_static,
    steady,
    stepped,
)
from stepladder.decoding.acceptance import EDGES, NGRAM, Chances
from stepladder.decoding.controller import BURST, Planner
from stepladder.decoding.course import CREDIT, Round, Trial
from stepladder.decoding.planner_settings import PlannerSettings
from stepladder.decoding.planning import Ground, Law, Plan, all_plans, best_plan, fitted, plain_plan, priced
from stepladder.decoding.stopping import Fixed, Marginal, Never, thresholds
from stepladder.errors import ConfigError

THREE = steady((0, 1, 0.75), (1, 2, 0.9), (0, 2, 0.6))
FOUR = steady((0, 1, 0.7), (1, 2, 0.8), (2, 3, 0.9), (0, 2, 0.6), (1, 3, 0.7), (0, 3, 0.5))
GRAMS = steady((NGRAM, 0, 0.6), (NGRAM, 1, 0.6), (0, 1, 0.8))
HOPELESS = steady((0, 1, 0.0), (1, 2, 0.0), (0, 2, 0.0), (NGRAM, 0, 0.0), (NGRAM, 1, 0.0), (NGRAM, 2, 0.0))

STATED_ROUNDS = 300
"""Rounds after which a planner that knew nothing must run at 95 % of the best static plan."""

STATED_RECOVERY = 700
"""Rounds after which it must be back at 90 % where drafters become useful again; and …"""

STATED_SHUT_OFF = 60
"""… rounds after which it must be back at plain decoding's speed where they became useless."""


def without_ngrams(**others: object) -> PlannerSettings:
    return PlannerSettings(ngram=False, **others)  # type: ignore[arg-type]


# ── forecasts ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("alpha", "cost", "speedup", "length"),
    [(0.8, 0.1, 2.47, 6), (0.8, 0.05, 3.09, 8), (0.7, 0.19, 1.61, 3), (0.6, 0.49, 1.07, 1), (0.9, 0.3, 1.87, 5)],
)
def test_two_levels_are_the_known_formula(alpha: float, cost: float, speedup: float, length: int) -> None:
    plan = best_plan(1, World(steady((0, 1, alpha)), flat(cost, 1.0)).ground(), [0])
    # The known formula has no drafter that reads a token more after a full acceptance; flat times make that free.
    assert 1.0 / plan.seconds_per_token == pytest.approx(speedup, abs=0.006)
    assert plan.lengths == (length,)


WORLDS: dict[str, Callable[[], World]] = {
    "2 flat": lambda: World(steady((0, 1, 0.8)), flat(0.1, 1.0)),
    "2 linear, decaying": lambda: World(decaying(0.9, 0.92), linear(0.1, 0.2, 1.0)),
    "2 overhead": lambda: World(steady((0, 1, 0.7)), stepped(4, 0.2, 0.1, 1.0)),
    "3 flat": lambda: World(THREE, flat(1 / 70, 13 / 70, 1.0), stages=3),
    "3 linear": lambda: World(THREE, linear(0.1, 0.05, 0.2, 1.0), stages=3),
    "4 flat": lambda: World(FOUR, flat(0.01, 0.05, 0.2, 1.0), stages=4),
    "4 stepped": lambda: World(FOUR, stepped(4, 0.1, 0.01, 0.05, 0.2, 1.0), stages=4),
    "n-grams": lambda: World(GRAMS, linear(0.02, 0.1, 1.0), match=0.4),
}


@pytest.mark.parametrize("name", WORLDS)
def test_forecasts_are_within_three_per_cent_of_the_simulation(name: str) -> None:
    ground, top = WORLDS[name]().ground(), WORLDS[name]().stages - 1
    plans = all_plans(top, ground, [NGRAM, *range(top)])
    deepest = max(plans, key=lambda plan: len(plan.chain))
    for plan in (best_plan(top, ground, [NGRAM, *range(top)]), deepest):
        run = run_static(WORLDS[name](), plan, 4000)
        assert plan.seconds_per_token * run.rate() == pytest.approx(1.0, abs=0.03), plan


def test_levels_taken_for_streams_of_tokens_would_miss_that() -> None:
    """The negative control: without counting exact counts and short last rounds the error is above 3 %."""
    ground = WORLDS["4 flat"]().ground()
    plan = best_plan(3, ground, [0, 1, 2])
    pace = ground.steps[plan.chain[0]][1]
    for (drafter, target), length in zip(pairwise(plan.chain), plan.lengths, strict=True):
        reach = ground.reach((drafter, target))
        pace = (length * pace + ground.steps[target][length + 1]) / sum(reach[: length + 1])
    assert pace * run_static(WORLDS["4 flat"](), plan, 4000).rate() < 0.97


@pytest.mark.parametrize("name", ["3 flat", "3 linear"])
def test_no_lengths_are_much_better_than_those_chosen(name: str) -> None:
    ground = replace(WORLDS[name]().ground(), longest=12, reaches={})
    every = [priced((0, 1, 2), lengths, ground) for lengths in product(range(1, 13), repeat=2)]
    least = min(plan.seconds_per_token for plan in every)
    assert fitted((0, 1, 2), ground).seconds_per_token <= 1.005 * least


def test_every_chain_below_a_stage_is_looked_at() -> None:
    ground = World(FOUR, flat(0.01, 0.05, 0.2, 1.0), stages=4).ground()
    grams = {(NGRAM, stage): Law([0.5] * 16, [0.5] * 16) for stage in range(4)}
    ground = Ground(ground.steps, {**ground.laws, **grams})
    plans = all_plans(3, ground, [NGRAM, 0, 1, 2])
    assert len({plan.chain for plan in plans}) == 16
    assert plans[0].plain
    assert {plan.chain for plan in all_plans(1, ground, [0, 1, 2])} == {(1,), (0, 1)}
    assert len(all_plans(3, ground)) == 1


def test_a_middle_stage_is_taken_where_it_pays_and_left_where_not() -> None:
    """Thresholds of the research notes, section 4: 1B → 13B → 70B pays from α(13B|70B) ≈ .867 at α(1B|·) = .75."""
    for alpha, pays in ((0.80, False), (0.93, True)):
        world = World(steady((0, 1, 0.75), (1, 2, alpha), (0, 2, 0.75)), flat(1 / 70, 13 / 70, 1.0), stages=3)
        assert (len(best_plan(2, world.ground(), [0, 1]).chain) == 3) is pays


def test_ngrams_that_seldom_match_are_priced_by_how_often_they_do() -> None:
    ground = World(GRAMS, linear(0.02, 0.1, 1.0), match=0.4).ground()
    plan = priced((NGRAM, 1), (4,), ground)
    wrote = 1.0 + 0.4 * (0.6 + 0.6**2 + 0.6**3 + 0.6**4)
    assert plan.seconds_per_token == pytest.approx((1.0 + 0.4 * 4 * 0.02) / wrote)


def test_what_the_ground_does_not_have_is_not_planned_with() -> None:
    ground = World(THREE, flat(0.1, 0.3, 1.0), stages=3).ground()
    without = Ground({2: ground.steps[2], 0: ground.steps[0]}, ground.laws)
    assert {plan.chain for plan in all_plans(2, without, [0, 1])} == {(2,), (0, 2)}
    with pytest.raises(KeyError):
        plain_plan(7, ground)
    with pytest.raises(KeyError):
        priced((1, 2), (3,), without)


# ── stopping ─────────────────────────────────────────────────────────────────


def chances(*, low: float = 0.2, high: float = 0.9) -> Chances:
    this = tuple(low if edge < 0.5 else high for edge in (0.0, *EDGES))
    return Chances(this, (0.6,) * (len(EDGES) + 1), 0.6)


def test_fixed_and_never() -> None:
    assert [Fixed(2).before(drafted, 0.5) for drafted in range(4)] == [False, False, True, True]
    assert [Fixed(2).after(drafted, 0.5) for drafted in range(1, 4)] == [False, True, True]
    assert Never().before(0, 1.0)
    assert Never().after(1, 1.0)


def test_marginal_goes_on_while_survival_is_worth_the_time() -> None:
    rule = Marginal(chances(), widening=[0.0] * 8, draft=0.3, rate=1.0)
    assert not rule.before(0, 0.9)
    assert not rule.after(1, 0.9)  # .9 · .6 > .3
    assert not rule.before(1, 0.9)
    assert not rule.after(2, 0.9)  # .81 · .6
    assert not rule.before(2, 0.1)  # drawing is free where verification is flat
    assert rule.after(3, 0.1)  # .81 · .2 · .6 < .3: kept, and no further pass


def test_marginal_leaves_a_token_undrawn_where_verifying_it_is_dearer_than_its_chance() -> None:
    rule = Marginal(chances(), widening=[0.5] * 4, draft=0.0, rate=1.0)
    assert rule.before(0, 0.1)  # .2 < .5
    assert not rule.before(0, 0.9)


def test_marginal_forgets_the_draft_before() -> None:
    rule = Marginal(chances(), widening=[0.0] * 8, draft=0.3, rate=1.0)
    assert rule.after(1, 0.1)
    assert not rule.after(1, 0.9)
    assert not rule.before(1, 0.9)
    assert not rule.after(1, 0.9), "a new draft, though the one before ended behind a question"
    assert not rule.fresh().after(1, 0.9)


def test_marginal_ends_at_its_longest_draft() -> None:
    rule = Marginal(chances(), widening=[0.0, 0.0], draft=0.0, rate=1.0)
    assert not rule.after(1, 0.9)
    assert rule.after(2, 0.9)
    assert rule.before(2, 0.9)


def test_a_step_of_verification_is_crossed_where_what_lies_behind_is_worth_it() -> None:
    """One token is not worth the step of 0.8; five are."""
    widening = [0.0, 0.8, 0.0, 0.0, 0.0, 0.0, 0.8]
    dear = thresholds(widening, 0.0, 1.0, 0.9, paid=False)
    assert dear[1] < 0.25
    assert thresholds(widening[:2], 0.0, 1.0, 0.9, paid=False)[1] == pytest.approx(0.8)


def test_a_rule_that_looks_at_the_token_and_drops_it_does_not_exist() -> None:
    """Decisions go by the confidences that came before them: other tokens later change nothing earlier."""
    for later in (0.05, 0.95):
        rule = Marginal(chances(), widening=[0.05] * 8, draft=0.1, rate=1.0)
        seen = [rule.before(0, 0.9), rule.after(1, 0.9), rule.before(1, 0.4), rule.after(2, 0.4)]
        rule.before(2, later)
        assert seen == [False, False, False, False] or seen[-1]


# ── the planner ──────────────────────────────────────────────────────────────

CASES: dict[str, tuple[Callable[[int], World], tuple[float, ...]]] = {
    "α .8": (lambda seed: World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=seed), (0.1, 1)),
    "α .5": (lambda seed: World(steady((0, 1, 0.5)), linear(0.01, 0.1, 1.0), seed=seed), (0.1, 1)),
    "noise": (
        lambda seed: World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=seed, noise=0.2, spikes=0.02),
        (0.1, 1),
    ),
    "decaying": (lambda seed: World(decaying(0.9, 0.9), linear(0.02, 0.1, 1.0), seed=seed), (0.1, 1)),
    "stepped": (lambda seed: World(steady((0, 1, 0.8)), stepped(4, 0.15, 0.1, 1.0), seed=seed), (0.1, 1)),
    "overhead": (lambda seed: World(steady((0, 1, 0.8)), flat(0.1, 1.0), seed=seed, overhead=0.1), (0.1, 1)),
    "three": (lambda seed: World(THREE, linear(0.01, 1 / 70, 13 / 70, 1.0), stages=3, seed=seed), (1, 13, 70)),
    "sizes wrong": (lambda seed: World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=seed), (0.3, 1)),
}


def best_static(world: World, below: list[int]) -> float:
    """Tokens per second of the best plan, from the truth."""
    return 1.0 / best_plan(world.stages - 1, world.ground(), below).seconds_per_token


@pytest.mark.parametrize("name", CASES)
def test_it_runs_near_the_best_static_plan_soon(name: str) -> None:
    make, sizes = CASES[name]
    for seed in (1, 2):
        world = make(seed)
        run = run_planned(world, Planner(world.stages, without_ngrams(), sizes=sizes), 2000)
        best = best_static(make(seed), list(range(world.stages - 1)))
        assert run.rate(STATED_ROUNDS) >= 0.95 * best, (name, seed)
        assert run.switches <= 6


def test_plain_decoding_would_not_pass_that() -> None:
    make, sizes = CASES["α .5"]
    run = run_planned(make(1), Planner(2, PlannerSettings(mode="off"), sizes=sizes), 500)
    assert run.rate() < 0.95 * best_static(make(1), [0])


def dearest(run: Run, plain: float) -> float:
    """Least ratio of plain decoding's time to the time taken, over all beginnings of a run."""
    spent, wrote = accumulate(run.clean), accumulate(run.tokens)
    return min(tokens * plain / seconds for tokens, seconds in zip(wrote, spent, strict=True))


DRAGS: dict[str, tuple[Callable[[int], World], tuple[float, ...]]] = {
    "α 0": (lambda seed: World(HOPELESS, linear(0.01, 0.1, 1.0), seed=seed), (0.1, 1)),
    "α 0, noise": (lambda seed: World(HOPELESS, linear(0.01, 0.1, 1.0), seed=seed, noise=0.15), (0.1, 1)),
    "α 0, three": (lambda seed: World(HOPELESS, linear(0.03, 0.02, 0.2, 1.0), stages=3, seed=seed), (1, 10, 50)),
    "α 0, no sizes": (lambda seed: World(HOPELESS, linear(0.01, 0.1, 1.0), seed=seed), ()),
    "not worth it": (lambda seed: World(steady((0, 1, 0.3)), linear(0.02, 0.3, 1.0), seed=seed), (0.3, 1)),
    "break-even": (lambda seed: World(steady((0, 1, 0.12)), linear(0.01, 0.1, 1.0), seed=seed), (0.1, 1)),
    "as dear as the target": (lambda seed: World(steady((0, 1, 0.9)), linear(0.05, 1.0, 1.0), seed=seed), ()),
}


@pytest.mark.parametrize("name", DRAGS)
def test_hopeless_drafters_cost_less_than_three_per_cent_from_the_first_round_on(name: str) -> None:
    make, sizes = DRAGS[name]
    for seed, ngram in ((1, False), (2, False), (3, HOPELESS is make(3).alpha)):
        world = make(seed)
        run = run_planned(world, Planner(world.stages, PlannerSettings(ngram=ngram), sizes=sizes), 2000)
        assert dearest(run, 1.0) >= 0.97, (name, seed)


def test_a_chain_that_was_forced_would_not_pass_that() -> None:
    forced = PlannerSettings(mode="chain", chain=(0, 1), lengths=(4,))
    run = run_planned(DRAGS["α 0"][0](1), Planner(2, forced), 200)
    assert dearest(run, 1.0) < 0.75


def rounds_until(run: Run, start: int, rate: float, window: int = 50) -> int:
    """Rounds from ``start`` until so many in a row were this quick together."""
    return next(at for at in range(start, len(run.tokens)) if run.rate(at, at + window) >= rate) - start


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_change_of_phase_is_followed_both_ways(seed: int) -> None:
    alpha = phases(2500, steady((0, 1, 0.8)), steady((0, 1, 0.0)))
    run = run_planned(
        World(alpha, linear(0.01, 0.1, 1.0), seed=seed), Planner(2, without_ngrams(), sizes=(0.1, 1)), 5000
    )
    wrote = list(accumulate(run.tokens))
    down, up = (next(at for at, tokens in enumerate(wrote) if tokens >= turn) for turn in (2500, 5000))
    best = best_static(World(alpha, linear(0.01, 0.1, 1.0)), [0])
    assert rounds_until(run, down, 0.97) <= STATED_SHUT_OFF
    assert rounds_until(run, up, 0.9 * best) <= STATED_RECOVERY
    lost = sum(run.clean[down:up]) - sum(run.tokens[down:up])
    assert lost <= 0.03 * sum(run.tokens[down:up])
    assert run.switches <= 6


@pytest.mark.parametrize("every", [60, 300])
def test_text_that_turns_over_and_over_loses_nothing_and_sets_off_no_rocking(every: int) -> None:
    alpha = phases(every, steady((0, 1, 0.8)), steady((0, 1, 0.0)))
    for seed in (1, 2):
        run = run_planned(
            World(alpha, linear(0.01, 0.1, 1.0), seed=seed), Planner(2, without_ngrams(), sizes=(0.1, 1)), 3000
        )
        assert run.rate() >= 1.0
        assert run.switches <= max(24, sum(run.tokens) // every)


@pytest.mark.parametrize(("alpha", "cost"), [(0.8, 0.1), (0.7, 0.2)])
def test_stopping_by_confidence_beats_the_best_fixed_length_where_confidence_tells(alpha: float, cost: float) -> None:
    def world(informed: float) -> World:
        return World(steady((0, 1, alpha)), linear(0.01, cost, 1.0), seed=1, informed=informed)

    for informed, gain in ((2.0, 1.05), (0.0, 0.97)):
        fixed = max(run_static(world(informed), Plan((0, 1), (length,)), 2000).rate() for length in range(2, 6))
        run = run_planned(world(informed), Planner(2, without_ngrams(), sizes=(cost, 1)), 3500)
        assert run.rate(1000) >= gain * fixed


def test_fixed_stopping_is_what_it_says() -> None:
    make, sizes = CASES["α .8"]
    run = run_planned(make(1), Planner(2, without_ngrams(stopping="fixed"), sizes=sizes), 1500)
    assert all(plan.asks == plan.lengths for plan in run.plans)
    assert run.rate(STATED_ROUNDS) >= 0.95 * best_static(make(1), [0])


def test_ngrams_are_found_out_beside_a_model() -> None:
    world = World(GRAMS, linear(0.02, 0.1, 1.0), match=0.4, seed=3)
    run = run_planned(world, Planner(2, sizes=(0.1, 1)), 2500)
    assert run.rate(STATED_ROUNDS) >= 0.95 * best_static(world, [NGRAM, 0])


def test_answers_with_prompts_that_drafters_must_read_first() -> None:
    make, sizes = CASES["α .8"]
    run = run_planned(make(1), Planner(2, without_ngrams(), sizes=sizes), 2500, answer=200, prompt=300)
    assert run.rate(STATED_ROUNDS) >= 0.93 * best_static(make(1), [0])
    # Little is left to write, and much to read: not worth it for this answer.
    planner = Planner(2, without_ngrams(), sizes=sizes)
    run_planned(make(1), planner, 600)
    assert not planner.plan(1, unread={0: 2}, remaining=100).plain
    assert planner.plan(1, unread={0: 4000}, remaining=3).plain


def test_answers_side_by_side_share_what_is_learned() -> None:
    make, sizes = CASES["α .8"]
    world, planner = make(1), Planner(2, without_ngrams(), sizes=sizes)
    texts, run = [Text(world, planner, 64) for _ in range(4)], Run()
    held = [planner.plan(1, unread=text.unread()) for text in texts]
    for turn in range(1600):
        which = turn % len(texts)
        text, plan = texts[which], held[which]  # asked for before the others' rounds came in
        tokens = text.round(plan, plan.asks, planner.stopping(plan))
        planner.observe_round(plan, text.took(tokens))
        run.add(plan, tokens, text)
        held[which] = planner.plan(1, unread=text.unread())
    assert run.rate(STATED_ROUNDS) >= 0.95 * best_static(make(1), [0])


@pytest.mark.parametrize("begins", [0, 400])
@pytest.mark.parametrize("factor", [2.6, 5.0])
def test_rounds_that_take_longer_than_their_passes_say_are_found_out(factor: float, begins: int) -> None:
    """Speculating rounds take ``factor`` times what all forecasts are made of, from the start or from some time on."""
    make, sizes = CASES["α .8"]
    world, planner = make(1), Planner(2, without_ngrams(), sizes=sizes)
    text, spent, wrote = Text(world, planner, 64), list[float](), list[int]()
    for turn in range(2000):
        plan = planner.plan(1, unread=text.unread())
        tokens = text.round(plan, plan.asks, planner.stopping(plan))
        took = text.took(tokens)
        longer = factor if turn >= begins and not plan.plain else 1.0
        planner.observe_round(plan, replace(took, seconds=longer * took.seconds))
        spent.append(longer * text.clean)
        wrote.append(tokens)
    assert sum(wrote[begins:]) / sum(spent[begins:]) >= (0.94 if begins else 0.97)
    assert sum(wrote[-500:]) / sum(spent[-500:]) >= 0.97


def test_what_it_tells_the_policy() -> None:
    make, sizes = CASES["α .8"]
    planner = Planner(2, without_ngrams(), sizes=sizes)
    assert planner.seconds_per_token(1) is None
    assert planner.forecast(1, 100, 100) is None
    run_planned(make(1), planner, 1500)
    pace = planner.seconds_per_token(1)
    assert pace == pytest.approx(1.0 / best_static(make(1), [0]), rel=0.1)
    short, long, climbed = (planner.forecast(1, *tokens) or 0.0 for tokens in ((100, 100), (100, 200), (100, 200, 100)))
    assert long - short == pytest.approx(100 * (pace or 0.0), rel=0.01)
    assert climbed < long
    for _ in range(30):
        planner.observe_climb(100, 0)
    assert planner.kept_share() < 0.1
    assert (planner.forecast(1, 100, 200, 100) or 0.0) > climbed


def test_a_climb_teaches_the_pair() -> None:
    planner = Planner(2, without_ngrams())
    planner.observe_climb(40, 31, stage=0, top=1)
    assert planner.acceptance(greedy=True).rate(0, 1) > 0.9
    assert planner.acceptance(greedy=True).weight(0, 1) == pytest.approx(32, rel=0.1)
    assert planner.acceptance(greedy=False).weight(0, 1) == 0.0


def test_regimes_are_apart_and_times_are_shared() -> None:
    make, sizes = CASES["α .8"]
    planner = Planner(2, without_ngrams(), sizes=sizes)
    run_planned(make(1), planner, 600, greedy=True)
    assert not planner.plan(1, greedy=True).plain
    assert planner.plan(1, greedy=False).plain
    assert planner.seconds_per_token(1, greedy=False) == pytest.approx(1.0, rel=0.01)


def test_trials_keep_to_their_budget() -> None:
    for seed in (1, 2, 3):
        world = DRAGS["α 0, three"][0](seed)
        run = run_planned(world, Planner(3, without_ngrams(), sizes=(1, 10, 50)), 3000)
        beyond = sum(seconds - tokens for seconds, tokens in zip(run.clean, run.tokens, strict=True))
        assert 0.0 < beyond <= 0.02 * sum(run.clean)
        assert 0.02 * sum(run.clean) > CREDIT * 0.5, "long enough for the bound to say something"


def test_drafts_of_a_trial_grow_while_they_are_kept_and_are_short_again_once_none_is() -> None:
    plans = [Plan((0, 1), (length,), probe=True) for length in (1, 2, 4)]
    trial = Trial([(plan, 1.0 + plan.lengths[0]) for plan in plans], 8, 100)
    seen = []
    for tokens in (2, 3, 5, 5, 3, 1, 2, 2):
        seen.append(trial.plan.lengths[0])
        assert trial.cost == 1.0 + seen[-1]
        trial.went(tokens)
    assert seen == [1, 2, 4, 4, 4, 4, 1, 2]
    assert trial.left == 0


def test_a_trial_that_turned_out_well_goes_on_until_its_chain_is_taken_up() -> None:
    make, sizes = CASES["α .8"]
    run = run_planned(make(1), Planner(2, without_ngrams(), sizes=sizes), 200)
    taken_up = next(at for at, plan in enumerate(run.plans) if not plan.plain and not plan.probe)
    first = next(at for at, plan in enumerate(run.plans) if plan.probe)
    plainly = sum(plan.plain for plan in run.plans[first:taken_up])
    assert taken_up - first >= BURST
    assert plainly <= 2, "no round is decoded plainly between the burst and the next look"


def test_what_trials_take_is_in_the_forecast() -> None:
    """Hopeless drafters: a trial now and then, and nothing else, makes answers dearer than their tokens."""
    world = DRAGS["α 0, three"][0](1)
    planner = Planner(3, without_ngrams(probe_share=0.1), sizes=(1, 10, 50))
    run = run_planned(world, planner, 1500)
    dearer = sum(run.clean) / sum(run.tokens)
    assert dearer > 1.005
    told = ((planner.forecast(2, 0, 200) or 0.0) - (planner.forecast(2, 0, 100) or 0.0)) / 100
    assert told > 1.0
    assert told == pytest.approx(dearer, abs=0.5 * (dearer - 1.0) + 0.002)


def test_where_beginning_is_dear_a_burst_waits_until_all_of_it_can_be_paid() -> None:
    """Each beginning takes as long as 8 tokens; drafts themselves cost a tenth."""
    world = World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=1)
    planner = Planner(2, without_ngrams(), sizes=(0.1, 1))
    text, probes, spent = Text(world, planner), list[int](), 0.0
    for turn in range(1500):
        plan = planner.plan(1)
        if plan.probe and not plan.plain:
            probes.append(turn)
        begins = not plan.plain and turn - 1 not in probes and plan.probe
        tokens = text.round(plan, plan.asks, planner.stopping(plan))
        took = text.took(tokens)
        spent += took.seconds
        planner.observe_round(plan, replace(took, seconds=took.seconds + 8.0 * begins))
        if not plan.plain and not plan.probe:
            break
    assert not planner.plan(1).plain, "it was taken up"
    gaps = sum(after - before > 1 for before, after in pairwise(probes))
    assert gaps <= 2, "bursts are not broken off to begin anew"


def test_lengths_follow_an_answer_only_where_drafts_do_not_end_by_confidence() -> None:
    make, sizes = CASES["α .8"]
    for stopping, follows in (("fixed", True), ("marginal", False)):
        planner = Planner(2, without_ngrams(stopping=stopping), sizes=sizes)
        run_planned(make(1), planner, 200)
        easy, hard = planner.own(), planner.own()
        for _ in range(20):
            easy.observe(0, 1, 4, 4)
            hard.observe(0, 1, 4, 0)
        long, short = (planner.plan(1, own=own, remaining=100) for own in (easy, hard))
        assert long.own == follows
        assert short.plain == follows
        assert not follows or long.lengths[0] > 6
        dear = planner.plan(1, own=easy, unread={0: 9000}, remaining=3)
        assert dear.plain


# ── what was set ─────────────────────────────────────────────────────────────


def test_off_is_plain() -> None:
    planner = Planner(2, PlannerSettings(mode="off"))
    assert planner.plan(1).plain
    assert isinstance(planner.stopping(planner.plan(1)), Never)


def test_a_chain_and_its_lengths_may_be_set() -> None:
    planner = Planner(3, PlannerSettings(mode="chain", chain=(0, 1, 2), lengths=(2, 5)))
    plan = planner.plan(2)
    assert (plan.chain, plan.asks) == ((0, 1, 2), (2, 5))
    assert planner.plan(1).chain == (0, 1)
    assert planner.plan(1).asks == (2,)
    assert planner.plan(0).chain == (0,)
    assert isinstance(planner.stopping(plan), Fixed)
    run = run_planned(World(THREE, flat(0.01, 0.1, 1.0), stages=3), planner, 50)
    assert {(each.chain, each.asks) for each in run.plans} == {((0, 1, 2), (2, 5))}


def test_a_chain_may_be_set_and_its_lengths_fitted() -> None:
    world = World(steady((0, 1, 0.8)), linear(0.01, 0.1, 1.0), seed=1)
    forced = PlannerSettings(mode="chain", chain=(0, 1), stopping="fixed")
    run = run_planned(world, Planner(2, forced), 1500)
    assert {plan.chain for plan in run.plans} == {(0, 1)}
    assert run.rate(STATED_ROUNDS) >= 0.95 * best_static(world, [0])


def test_only_stages_that_are_able_draft() -> None:
    world = World(THREE, linear(0.01, 1 / 70, 13 / 70, 1.0), stages=3, seed=1)
    run = run_planned(world, Planner(3, without_ngrams(), sizes=(1, 13, 70), able=[1]), 400)
    assert {plan.chain for plan in run.plans} == {(2,), (1, 2)}


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"mode": "fast"}, "mode"),
        ({"stopping": "sometimes"}, "stopping"),
        ({"mode": "chain"}, "chain"),
        ({"mode": "chain", "chain": (1, 0)}, "chain"),
        ({"mode": "chain", "chain": (-3, 1)}, "chain"),
        ({"mode": "chain", "chain": (0, 1), "lengths": (2, 3)}, "lengths"),
        ({"mode": "chain", "chain": (0, 1), "lengths": (0,)}, "lengths"),
        ({"mode": "chain", "chain": (0, 1), "lengths": (17,)}, "lengths"),
        ({"longest": 0}, "longest"),
        ({"probe_share": 0.9}, "probe_share"),
        ({"margin": 1.0}, "margin"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"speculation: {key}: should"):
        PlannerSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1.0,), (0.0, 1.0), (1.0, float("inf"))])
def test_sizes_that_are_none_are_named(sizes: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="sizes: should be one positive number for each of the 2 stages"):
        Planner(2, sizes=sizes)


def test_rounds_that_cannot_be_say_nothing() -> None:
    planner = Planner(2)
    planner.observe_round(Plan((1,)), Round(0, 1.0, (1.0, 1.0)))
    planner.observe_round(Plan((1,)), Round(1, 0.0, (0.0, 1.0)))
    assert planner.seconds_per_token(1) is None


def test_batches_are_planned_apart() -> None:
    """One row gains by drafts; eight rows fill the machine, and there is nothing to gain."""
    planner = Planner(2, without_ngrams(), sizes=(0.1, 1))
    make, _ = CASES["α .8"]
    run_planned(make(1), planner, 600)
    for width in (1, 2, 4, 8):
        for _ in range(8):
            planner.times.observe(1, width, 8, 1.0 + 0.8 * (width - 1))
            planner.times.observe(0, width, 8, 0.5 + 0.3 * (width - 1))
    for _ in range(200):
        plan = planner.plan(1, batch=8)
        planner.observe_round(plan, Round(1, 1.0, (0.125, 0.125)), batch=8)
    assert planner.plan(1, batch=8).plain
    assert not planner.plan(1, batch=1).plain
