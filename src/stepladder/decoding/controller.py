"""Which plan the next round runs with: learns from every pass and every verification, and keeps a promise.

The promise is that speculation never costs more than a few per cent against plain decoding, whatever the drafters are
worth. So a run starts plain. Chains are tried in short bursts that are paid from a budget: a share of the time spent so
far, charged with what each trial round really took beyond what its tokens would have taken. A trial that gains pays
itself back, so good drafters are taken up at once and hopeless ones stop at the budget. What runs is watched round by
round against plain decoding, by measured seconds and not by forecasts (``course``).

What is learned for nothing: a pass of any stage tells its times for all chains with it, a verification tells its pair
for all chains, temperatures apart; a climbed answer tells how far the upper stage agrees with the lower; and whoever
knows what a drafter that is not in use would have proposed may tell it to ``acceptance``, as the engine does of
n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf

from stepladder.decoding.acceptance import NGRAM, Acceptance
from stepladder.decoding.beliefs import CHUNK, Beliefs
from stepladder.decoding.course import EVERY, Course, Round, Trial
from stepladder.decoding.kinds import Own
from stepladder.decoding.planner_settings import PlannerSettings
from stepladder.decoding.planning import (
    Ground,
    Law,
    Plan,
    all_plans,
    fitted,
    plain_plan,
    priced,
)
from stepladder.decoding.stopping import Fixed, Marginal, Never, Stopping
from stepladder.decoding.times import StepTimes

HOPE = 1.3
"""Standard deviations by which trials look at the bright side of a rate; a chain not worth it even so is not tried."""

CAUTION = 1.0
"""Standard deviations below which a rate would have to lie for a chain that is taken up to lose against plain."""

BURST = 6
"""Rounds of a trial."""

GIVEN_UP = 1024
"""Tokens that a trial waits for the budget to bear it; others get their turn then."""

TRIAL_LENGTH = 4
"""Draft by whose cost the chains that may be tried are compared."""

LEAST_COST = 0.1
"""Cost of a trial round, in tokens' time, below which trials are held to cost the same when they are compared."""

REFRESH = 600
"""Tokens after which plain decoding is timed again while a chain runs."""

REFRESH_ROUNDS = 3

HORIZON = 64
"""Tokens over which what is learned of an answer is held to be of use."""

RESERVE = 0.3
"""What of the budget is left alone, in tokens' time: the first trials come when a round's noise still matters."""

CONFIDENT = 48.0
"""Verdicts before drafts stop by confidence."""

KEPT_PRIOR = 0.5
KEPT_WEIGHT = 2.0
KEPT_MEMORY = 0.95
"""Share of a climbed draft that is kept: prior, climbs that it counts for, and what each climb leaves of older ones."""

DEFAULT_LENGTH = 4


class Planner:
    """Plans for every answering stage, temperature regime and batch size, from shared measurements.

    ``stages``: the number of stages, 0 the cheapest. ``sizes``: what a pass of each costs relative to the others
    (parameters do), used for a stage only until it was timed. Without them trials are charged as if an untimed drafter
    were as dear as its target, and hoped to show that it is not. ``greedy`` parts the regimes: at temperature 0 other
    tokens are kept than above. ``able``: the stages that may draft, all where None; which of them stand below an
    answering stage is seen to. ``times`` may be shared with other planners, and is told of passes by whoever makes
    them. ``chunk``: tokens of a prompt that are read in one pass. Raises ConfigError for sizes that are none. Not
    thread-safe.
    """

    def __init__(
        self,
        stages: int,
        settings: PlannerSettings | None = None,
        *,
        sizes: Sequence[float] = (),
        times: StepTimes | None = None,
        able: Sequence[int] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.settings = settings or PlannerSettings()
        self.times = times or StepTimes()
        self._beliefs = Beliefs(stages, sizes, self.times, longest=self.settings.longest, chunk=chunk)
        self._courses: dict[tuple[int, bool, int], Course] = {}
        self._climbs = [0.0, 0.0]
        self._allowed = None if able is None else frozenset(able)

    # ── what happened ────────────────────────────────────────────────────────

    def acceptance(self, *, greedy: bool = True) -> Acceptance:
        """What is known of the pairs in a regime; verifications are told to it, those by any chain."""
        return self._beliefs.acceptance[greedy]

    def observe_round(self, plan: Plan, took: Round, *, greedy: bool = True, batch: int = 1) -> None:
        """A round ran with a plan. ``batch``: rows that shared its time. One without tokens or time says nothing."""
        if took.tokens < 1 or not 0.0 < took.seconds < inf:
            return
        self.acceptance(greedy=greedy).age(took.tokens)
        host, share = self._beliefs.host, 1.0 / batch
        usual = host.usual(plan.chain, *took.passes, share) * batch
        host.rounded(plan.chain, took.seconds * share, *took.passes, share)
        self._course(plan.top, greedy, batch).observe(plan, took, self.settings.probe_share, usual)

    def observe_climb(self, drafted: int, kept: int, *, stage: int | None = None, top: int | None = None) -> None:
        """Of a lower answer's ``drafted`` tokens, read as a draft by a higher stage, the first ``kept`` were kept.

        ``stage`` and ``top``, where both answered at temperature 0: the lower stage would have drafted the same tokens,
        so the pair learns from them what drafts of ``TRIAL_LENGTH`` would have told.
        """
        if stage is not None and top is not None and stage < top:
            for start in range(0, min(kept + 1, drafted), TRIAL_LENGTH):
                length = min(TRIAL_LENGTH, drafted - start)
                self._beliefs.acceptance[True].observe(stage, top, length, min(length, kept - start))
        if drafted > 0:
            self._climbs[0] = self._climbs[0] * KEPT_MEMORY + min(max(kept, 0), drafted) / drafted
            self._climbs[1] = self._climbs[1] * KEPT_MEMORY + 1.0

    def own(self, *, greedy: bool = True) -> Own:
        """What one answer will show, for lengths that follow it (``plan``): tell it of each of its verifications."""
        return Own(partial(self._beliefs.kinds, greedy))

    # ── what to do ───────────────────────────────────────────────────────────

    def plan(
        self,
        top: int,
        *,
        greedy: bool = True,
        batch: int = 1,
        unread: Mapping[int, int] | None = None,
        remaining: int | None = None,
        own: Own | None = None,
    ) -> Plan:
        """The plan for the next round of an answer by stage ``top``.

        ``unread``: tokens of this answer that each stage has not read; a few (``beliefs.FEW``) are every round's own
        business. ``remaining``: tokens that may still be written. A chain whose reading does not pay in what remains is
        left for other answers. ``own``: what this answer has shown (``own``). Where one model drafts, and drafts do not
        end by confidence, the length goes by it, none included.
        """
        if self.settings.mode == "off":
            return Plan((top,))
        course = self._course(top, greedy, batch)
        if self.settings.stopping != "fixed":
            own = None
        if own is not None and own.is_new:
            own.is_new = False
            course.begin()
        self._see_to(course)
        if self.settings.mode == "chain":
            return self._opened(course, course.running)
        trial = course.trial
        if trial is not None and self._affordable(course, trial, unread):
            return trial.plan
        plan = course.running
        if own is not None:
            plan = self._fitted(course, plan, own, unread, remaining)
        elif not self._pays(course, plan, unread, remaining):
            plan = self._plain(course)
        if own is not None and plan.plain and len(course.running.chain) == 2:
            own.idle(*course.running.chain)
        return self._opened(course, plan)

    def _fitted(
        self, course: Course, plan: Plan, own: Own, unread: Mapping[int, int] | None, remaining: int | None
    ) -> Plan:
        """The plan with the length that suits this answer where one model drafts; plain where nothing pays.

        A token is drafted to learn where what an answer of a better kind would gain is worth it.
        """
        ground, chain = course.ground, plan.chain
        if len(chain) != 2 or chain[0] == NGRAM or ground is None:
            return plan if self._pays(course, plan, unread, remaining) else self._plain(course)
        reach = own.reach(*chain, ground.longest)
        fitted = course.fitted(*chain, ground, reach)
        if not fitted.plain and self._pays(course, fitted, unread, remaining):
            return fitted
        tried = course.tried(*chain, ground, reach)
        more = (tried.seconds_per_token - course.plain_pace) * sum(reach[:2])
        left = min(HORIZON, HORIZON if remaining is None else remaining)
        hope = left * own.hoped(*chain, course.gains[chain]) if chain in course.gains else 0.0
        return tried if more + self._catching_up(course, tried, unread) < hope else self._plain(course)

    def stopping(self, plan: Plan, *, greedy: bool = True, batch: int = 1) -> Stopping:
        """The rule by which the plan's bottom drafter ends a draft, to go with ``plan.asks``; one for each answer.

        It goes by what was known at the last look, so it wants to be asked for anew with each plan.
        """
        if plan.plain:
            return Never()
        course = self._course(plan.top, greedy, batch)
        if not plan.cap or course.ground is None or plan.chain[0] not in course.ground.steps:
            return Fixed(plan.lengths[0])
        if course.rule is None or course.rule[0] != plan:
            course.rule = (plan, self._marginal(plan, course.ground, greedy))
        return course.rule[1].fresh()

    def _marginal(self, plan: Plan, ground: Ground, greedy: bool) -> Marginal:
        drafter, target = plan.chain[0], plan.chain[1]
        above = ground.steps[target]
        return Marginal(
            self._beliefs.acceptance[greedy].chances(drafter, target),
            widening=[above[k + 2] - above[k + 1] for k in range(plan.cap)],
            draft=ground.steps[drafter][1] + ground.overhead,
            rate=1.0 / plan.paces[1],
        )

    def settled(self, top: int) -> Plan:
        """A plan that depends on nothing measured: the chain that was set, or plain decoding."""
        below = tuple(stage for stage in self.settings.chain if stage < top) if self.settings.mode == "chain" else ()
        return Plan((*below, top), self.settings.lengths[: len(below)] or (DEFAULT_LENGTH,) * len(below))

    # ── what it will cost ────────────────────────────────────────────────────

    def seconds_per_token(self, top: int, batch: int = 1, *, greedy: bool = True) -> float | None:
        """Expected seconds per token of the plan in force, in an answer without end; None before the top was timed."""
        course = self._course(top, greedy, batch)
        self._see_to(course)
        pace = course.running.seconds_per_token
        return pace if pace < inf else None

    def forecast(
        self,
        top: int,
        prompt_tokens: int,
        output_tokens: float,
        draft_tokens: int = 0,
        *,
        batch: int = 1,
        greedy: bool = True,
    ) -> float | None:
        """Expected seconds of an answer of ``output_tokens``, by the plan in force; None before the top was timed.

        Rounds until the answer is whole (``pace.Rounds.of_answer``), each at what the chain's rounds take and with what
        trials have been adding, and what the first passes of all its stages take more for reading the prompt. A lower
        answer handed over as a draft is read with the prompt in a round of its own, and ``kept_share`` of it is not
        written again.
        """
        course = self._course(top, greedy, batch)
        self._see_to(course)
        plan, ground = course.running, course.ground
        if plan.seconds_per_token == inf or ground is None:
            return None
        read, left, drafted = prompt_tokens + draft_tokens, float(output_tokens), sum(plan.lengths[-1:])
        if draft_tokens:
            spent = self.reading(top, read, batch) + ground.overhead + ground.beside
            left = max(0.0, left - self.kept_share() * draft_tokens - 1.0)
        else:
            spent = self._beliefs.beyond(top, prompt_tokens, drafted, batch)
        if left > 0.0:
            spent += sum(self._beliefs.beyond(each, read, 0, batch) for each in plan.chain[:-1] if each != NGRAM)
            spent += course.with_trials(self._rounds_seconds(course, plan, ground, left))
        return spent

    def _rounds_seconds(self, course: Course, plan: Plan, ground: Ground, tokens: float) -> float:
        """Seconds of writing so many tokens, the answer's last among them, nothing being left to read."""
        if plan.plain:
            return tokens * plan.seconds_per_token
        pair = plan.chain[-2], plan.chain[-1]
        taken = plan.seconds_per_token * sum(ground.reach(pair)[: plan.lengths[-1] + 1])
        # Only n-grams come short of what they are asked for within an answer; at its end all do, and that is counted.
        law = ground.laws[pair] if pair[0] == NGRAM else Law(ground.laws[pair].rates)
        rounds = course.rounds_for(plan.chain)
        return rounds.seconds(taken) * rounds.of_answer(tokens, law.reach()[: plan.lengths[-1] + 1])

    def kept_share(self) -> float:
        """Expected share of a climbed draft that is kept."""
        return (self._climbs[0] + KEPT_PRIOR * KEPT_WEIGHT) / (self._climbs[1] + KEPT_WEIGHT)

    def reading(self, stage: int, tokens: int, batch: int = 1) -> float:
        """Seconds to read so many tokens in chunks; nothing for a stage that was never timed."""
        return self._beliefs.reading(stage, tokens, batch)

    # ── how it is chosen ─────────────────────────────────────────────────────

    def _course(self, top: int, greedy: bool, batch: int) -> Course:
        rows = 1 << (max(1, batch) - 1).bit_length()
        key = (top, greedy, rows)
        course = self._courses.get(key)
        if course is None:
            course = self._courses[key] = Course(top, greedy, rows, self._beliefs.host)
        return course

    def _ground(self, course: Course, hope: float = 0.0) -> Ground:
        return self._beliefs.ground(course.top, course.greedy, course.batch, hope)

    def _see_to(self, course: Course) -> None:
        """Look at the plans where it is time, or where the text has suddenly changed."""
        changes = self._beliefs.acceptance[course.greedy].changes
        if changes != course.changes:
            course.changes, course.interval, course.look_at = changes, EVERY, course.rounds
        if course.rounds >= course.look_at:
            before = course.running
            self._look(course)
            course.looked(steady=before.chain == course.running.chain and before.lengths == course.running.lengths)

    def _look(self, course: Course) -> None:
        """Forecast every chain anew; keep, refit or change what runs; think of a trial."""
        ground = course.ground = self._ground(course)
        if self.settings.mode == "chain":
            course.running = self._forced(course, ground)
            return
        if course.top not in ground.steps:
            return
        if self.settings.mode == "off":
            course.running = course.corrected(plain_plan(course.top, ground))
            course.foreseen = {course.running.chain: plain_plan(course.top, ground).seconds_per_token}
            return
        plans = {plan.chain: course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))}
        plans = {chain: plan for chain, plan in plans.items() if self._knows(course, chain)}
        course.choose(
            plans, ground, self.settings.margin, lambda: self._ground(course, -CAUTION), self._mixed(course, ground)
        )
        if course.trial is not None and course.tokens > course.trial.until:
            course.pause(course.trial.plan.chain)
            course.trial = None
        # Where a chain is about to be taken up, others can wait for one look.
        if course.trial is None and course.rival_looks != 1 and course.open_to_trials:
            course.trial = self._trial(course)

    def _forced(self, course: Course, ground: Ground) -> Plan:
        below = [stage for stage in self.settings.chain if stage < course.top]
        chain = (*below, course.top)
        lengths = self.settings.lengths[: len(below)]
        if not all(stage == NGRAM or stage in ground.steps for stage in chain):
            return Plan(chain, lengths or (DEFAULT_LENGTH,) * len(below))
        plan = priced(chain, lengths, ground) if lengths or not below else fitted(chain, ground)
        return course.corrected(plan)

    def _plain(self, course: Course) -> Plan:
        steps = self.times.seconds(course.top, 1, course.batch)
        return Plan((course.top,)) if steps is None else Plan((course.top,), (), steps, (steps,))

    def _opened(self, course: Course, plan: Plan) -> Plan:
        """Where drafts end by confidence, the planned length of the bottom drafter is no bound: the longest is."""
        bound = self.settings.stopping == "fixed" or bool(self.settings.lengths) or plan.plain
        if bound or plan.chain[0] == NGRAM or not plan.paces:
            return plan
        if self._beliefs.acceptance[course.greedy].weight(plan.chain[0], plan.chain[1]) < CONFIDENT:
            return plan
        return replace(plan, cap=self.settings.longest)

    def _eligible(self, course: Course) -> list[int]:
        """Drafters that "auto" may use below a stage."""
        stages = [stage for stage in range(course.top) if self._allowed is None or stage in self._allowed]
        return [NGRAM, *stages] if self.settings.ngram else stages

    def _mixed(self, course: Course, ground: Ground) -> dict[tuple[int, ...], float]:
        """Seconds per token of chains whose lengths follow each answer: the mean over answers of all kinds seen.

        What answers of each kind gain over plain decoding is noted.
        """
        found: dict[tuple[int, ...], float] = {}
        plain = course.corrected(plain_plan(course.top, ground)).seconds_per_token
        if self.settings.stopping != "fixed" or self.settings.lengths:
            return found
        for drafter in self._eligible(course):
            if drafter == NGRAM or drafter not in ground.steps:
                continue
            kinds = self._beliefs.kinds(course.greedy, drafter, course.top)
            if kinds.known:
                plans = [course.fitted(drafter, course.top, ground, reach) for reach in kinds.each(ground.longest)]
                gains = [plain - plan.seconds_per_token for plan in plans]
                course.gains[drafter, course.top] = gains
                found[drafter, course.top] = plain - sum(
                    share * gain for share, gain in zip(kinds.shares(), gains, strict=True)
                )
        return found

    def _knows(self, course: Course, chain: tuple[int, ...]) -> bool:
        return self._beliefs.knows(chain, course.greedy, course.batch)

    # ── trials ───────────────────────────────────────────────────────────────

    def _trial(self, course: Course) -> Trial | None:
        """The chain most worth a burst: the best one if everything not known turns out well."""
        if not course.running.plain and course.tokens - course.plain_at > REFRESH:
            plain = replace(self._plain(course), probe=True)
            return Trial([(plain, plain.seconds_per_token)], REFRESH_ROUNDS, course.tokens + GIVEN_UP)
        ground = self._ground(course, HOPE)
        bound = course.running.seconds_per_token * (1.0 - self.settings.margin)
        plans = [course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))]
        hopeful = [plan for plan in plans[1:] if plan.seconds_per_token < bound and course.open_to(plan.chain)]
        if not hopeful:
            return None
        nothing = [0.0] * ground.longest
        laws = {pair: Law(nothing, law.offers) for pair, law in ground.laws.items()}
        dear = replace(ground, steps=self._beliefs.steps(course.top, course.batch), laws=laws, reaches={})
        least = course.running.seconds_per_token

        def worth(plan: Plan) -> float:
            """What might be gained for what a trial may cost, and the more the longer ago the last one was."""
            cost = max(_shortened(plan, TRIAL_LENGTH, dear)[1] - least, LEAST_COST * least)
            return (bound - plan.seconds_per_token) / cost * course.since(plan.chain)

        chosen = max(hopeful, key=worth)
        lengths = [1 << k for k in range(max(chosen.lengths).bit_length())]
        return Trial([_shortened(chosen, length, dear) for length in lengths], BURST, course.tokens + GIVEN_UP)

    def _affordable(self, course: Course, trial: Trial, unread: Mapping[int, int] | None) -> bool:
        """True where the budget bears the round even if nothing that it drafts is kept.

        Where the beginning is the dear part, a burst begins only if it could be ended, since a later round would have
        to begin anew.
        """
        pace = course.running.seconds_per_token
        more = trial.cost - pace
        trial.start = self._catching_up(course, trial.plan, unread)
        if not trial.begun:
            trial.start += course.start_of(trial.plan.chain)
        rounds = trial.left if trial.start > more else 1
        trial.need = trial.start + rounds * more + (0.0 if trial.begun else RESERVE * pace)
        advance = trial.advance if trial.begun and trial.start == 0.0 else 0.0
        return trial.need <= course.credit + advance

    def _catching_up(self, course: Course, plan: Plan, unread: Mapping[int, int] | None) -> float:
        return self._beliefs.catching_up(plan.chain[:-1], course.top, course.batch, unread)

    def _pays(self, course: Course, plan: Plan, unread: Mapping[int, int] | None, remaining: int | None) -> bool:
        """True where what the chain saves on the rest of this answer outweighs its drafters' reading."""
        reading = self._catching_up(course, plan, unread)
        if not reading or remaining is None:
            return True
        plain = course.plain_pace if course.plain_pace < inf else self._plain(course).seconds_per_token
        return reading < (plain - plan.seconds_per_token) * remaining


def _shortened(plan: Plan, longest: int, ground: Ground) -> tuple[Plan, float]:
    """A round to learn, and its seconds on a ground where nothing is kept: a round writes one token."""
    lengths = tuple(min(length, longest) for length in plan.lengths)
    return replace(plan, lengths=lengths, probe=True), priced(plan.chain, lengths, ground).seconds_per_token
