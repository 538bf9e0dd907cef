"""Which plan the next round runs with: learns from every pass and every verification, and keeps a promise.

The promise is that speculation never costs more than a few per cent against plain decoding, whatever the drafters are
worth. So a run starts plain. Chains are tried in short bursts that are paid from a budget: a share of the time spent so
far, charged with what each trial round really took beyond what its tokens would have taken. A trial that gains pays
itself back, so good drafters are taken up at once and hopeless ones stop at the budget. What runs is watched round by
round against plain decoding, by measured seconds and not by forecasts.

What is learned for nothing: a pass of any stage tells its times for all chains with it, a verification tells its pair
for all chains, temperatures apart; a climbed answer tells how far the upper stage agrees with the lower; and whoever
knows what a drafter that is not in use would have proposed (n-grams always do, a lower stage that read the answer in
a longer chain does) may tell it by ``observe_verified``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, sqrt
from typing import Literal

from stepladder.decoding.acceptance import NGRAM, Acceptance
from stepladder.decoding.planning import (
    LONGEST,
    Ground,
    Law,
    Plan,
    all_plans,
    corrected,
    fitted,
    plain_plan,
    priced,
)
from stepladder.decoding.stopping import Fixed, Marginal, Never, Stopping
from stepladder.decoding.times import StepTimes
from stepladder.errors import ConfigError, Problem

NEEDED = 6.0
"""Verdicts on each pair of a chain before the chain may run outside of trials."""

HOPE = 1.3
"""Standard deviations by which trials look at the bright side of a rate; a chain not worth it even so is not tried."""

CAUTION = 1.0
"""Standard deviations below which a rate would have to lie for a chain that is taken up to lose against plain."""

REVISIT = 400
REVIVED = 0.8
"""A pair without a verdict for so many tokens may have changed: it is hoped to have this rate, whatever it had."""

UNTIMED = 0.1
"""Share of the answering stage's time that a stage of unknown size and time is hoped to take."""

BURST = 6
"""Rounds of a trial."""

LONG_AGO = 4096
"""Tokens beyond which it makes no difference when a chain was last tried."""

GIVEN_UP = 1024
"""Tokens that a trial waits for the budget to bear it; others get their turn then."""

TRIAL_LENGTH = 4
"""Longest draft in a trial."""

SPIKE = 2.0
"""Multiple of its forecast cost up to which a trial round is charged."""

LEAST_COST = 0.1
"""Cost of a trial round, in tokens' time, below which trials are held to cost the same when they are compared."""

FIRST_PAUSE, LONGEST_PAUSE = 64, 512
"""Tokens before a chain that was tried in vain is tried again; doubled each time."""

VAIN = 4.0
LEAST_SHARE = 0.25
"""The share of time that trials may cost is halved after so many in vain, and falls to this part of it."""

QUIET = 16
"""Tokens without any trial after the first in vain; after the second twice that, and so on until a chain is taken up.
"""

EVERY, RAREST = 8, 32
"""Rounds between two looks at the plans; doubled, up to the second, while nothing changes."""

STAYS = 2
"""Looks in a row that must prefer a chain before it is taken up."""

REFRESH = 600
"""Tokens after which plain decoding is timed again while a chain runs."""

REFRESH_ROUNDS = 3

FEW = 8
"""Tokens up to which what a stage has not read is not counted as reading: every round leaves it some."""

CREDIT = 20.0
"""Most that may be saved up for trials, in tokens' time."""

RESERVE = 0.3
"""What of it is left alone, in tokens' time: the first trials come when a round's noise still matters."""

LENGTH_GAIN = 0.01
"""Least forecast gain for new lengths of the chain that runs."""

HOST_KEEP = 0.97
"""What a round leaves of the older ones in the measure of time beside passes."""

FIRST_BAN, LONGEST_BAN = 256, 4096
"""Tokens for which a chain that the guard stopped is not taken up again; doubled each time."""

SPEED_MEMORY = 600.0
SPEED_PRIOR = 200.0
PLAIN_PRIOR = 20.0
"""Rounds over which measured time is compared to the forecast, and rounds that a forecast without error counts for.
A chain's rounds write now one token, now many, so they take long to tell."""

GUARD_MEMORY = 40.0
GUARD_ROUNDS = 10
GUARD_DEVIATIONS = 2.0
"""The chain that runs is dropped where its mean loss against plain decoding lies this many standard errors above 0."""

CONFIDENT = 48.0
"""Verdicts before drafts stop by confidence."""

CHUNK = 512
"""Tokens of a prompt that are read in one pass."""

KEPT_PRIOR = 0.5
KEPT_WEIGHT = 2.0
KEPT_MEMORY = 0.95
"""Share of a climbed draft that is kept: prior, climbs that it counts for, and what each climb leaves of older ones."""

DEFAULT_LENGTH = 4

Mode = Literal["auto", "off", "chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSettings:
    """What is left to measurement and what is set.

    ``mode``: "off" decodes plainly; "chain" runs ``chain`` (drafters bottom first, answering stage last; another
    answering stage runs with those of its drafters that are below it), with ``lengths`` where they are given and
    fitted ones where not; "auto" chooses. ``longest``: longest draft. ``ngram``: may "auto" draft by n-grams.
    ``stopping``: "marginal" ends drafts by confidence, "fixed" drafts what was planned. ``probe_share``: part of the
    time that trials may cost. ``margin``: least forecast gain for another chain.

    Raises ConfigError, listing everything that is wrong.
    """

    mode: Mode = "auto"
    chain: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    longest: int = LONGEST
    ngram: bool = True
    stopping: Literal["marginal", "fixed"] = "marginal"
    probe_share: float = 0.02
    margin: float = 0.03

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError("speculation", problems)


class Planner:
    """Plans for every answering stage, temperature regime and batch size, from shared measurements.

    ``stages``: the number of stages, 0 the cheapest. ``sizes``: what a pass of each costs relative to the others
    (parameters do), used for a stage only until it was timed. Without them trials are charged as if an untimed drafter
    were as dear as its target, and hoped to show that it is not. ``greedy`` parts the regimes: at temperature 0 other
    tokens are kept than above. ``able``: the stages that may draft, all where None; which of them stand below an
    answering stage is seen to. ``times`` may be shared with other planners; whoever feeds them tells each planner of
    its part by ``passed``. Raises ConfigError for sizes that are none. Not thread-safe.
    """

    def __init__(
        self,
        stages: int,
        settings: PlannerSettings | None = None,
        *,
        sizes: Sequence[float] = (),
        times: StepTimes | None = None,
        able: Sequence[int] | None = None,
    ) -> None:
        self.settings = settings or PlannerSettings()
        self.times = times or StepTimes()
        self._stages = stages
        self._sizes = _checked_sizes(sizes, stages)
        self._acceptance = {True: Acceptance(), False: Acceptance()}
        self._courses: dict[tuple[int, bool, int], _Course] = {}
        self._host = _Host()
        self._climbs = [0.0, 0.0]
        self._allowed = None if able is None else frozenset(able)

    # ── what happened ────────────────────────────────────────────────────────

    def observe_pass(self, stage: int, width: int, batch: int, seconds: float) -> None:
        """A forward pass of ``batch`` rows, ``width`` tokens each (the widest, where ragged)."""
        self.times.observe(stage, width, batch, seconds)
        self.passed(seconds)

    def passed(self, seconds: float) -> None:
        """A pass took so many seconds for this planner's answers; for those that share ``times``."""
        self._host.passed(seconds)

    def observe_verified(
        self,
        drafter: int,
        target: int,
        drafted: int,
        accepted: int,
        confidences: Sequence[float] = (),
        *,
        asked: int | None = None,
        greedy: bool = True,
    ) -> None:
        """A target kept the first ``accepted`` of ``drafted`` tokens; see ``Acceptance.observe``.

        N-gram drafters that found nothing must be told too (``drafted`` 0), with ``asked``.
        """
        self._acceptance[greedy].observe(drafter, target, drafted, accepted, confidences, asked=asked)

    def observe_round(
        self,
        plan: Plan,
        tokens: int,
        seconds: float,
        *,
        greedy: bool = True,
        batch: int = 1,
        reading: float = 0.0,
        prompt: float = 0.0,
        passes: tuple[float, float] | None = None,
    ) -> None:
        """A round of the answering stage wrote ``tokens`` tokens in ``seconds`` of wall time.

        ``batch``: rows that shared that time. ``reading``: the part of it in which drafters read what they had skipped
        (a prompt), charged to trials; ``prompt``: in which the answering stage read, which any chain would have taken.
        Neither says anything of the chain's pace. ``passes``: seconds and number of the round's passes, each divided by
        the rows that shared it; where None, those told by ``passed`` since the last round.
        """
        if tokens < 1 or not 0.0 < seconds < inf:
            return
        self._acceptance[greedy].age(tokens)
        if passes is not None:
            self._host.only(*passes)
        self._host.rounded(plan.chain, seconds, batch)
        course = self._course(plan.top, greedy, batch)
        course.observe(plan, tokens, seconds, (reading, prompt), self.settings.probe_share)

    def observe_climb(self, drafted: int, kept: int, *, stage: int | None = None, top: int | None = None) -> None:
        """Of a lower answer's ``drafted`` tokens, read as a draft by a higher stage, the first ``kept`` were kept.

        ``stage`` and ``top``, where both answered at temperature 0: the lower stage would have drafted the same tokens,
        so the pair learns from them what drafts of ``TRIAL_LENGTH`` would have told.
        """
        if stage is not None and top is not None and stage < top:
            for start in range(0, min(kept + 1, drafted), TRIAL_LENGTH):
                length = min(TRIAL_LENGTH, drafted - start)
                self._acceptance[True].observe(stage, top, length, min(length, kept - start))
        if drafted > 0:
            self._climbs[0] = self._climbs[0] * KEPT_MEMORY + min(max(kept, 0), drafted) / drafted
            self._climbs[1] = self._climbs[1] * KEPT_MEMORY + 1.0

    # ── what to do ───────────────────────────────────────────────────────────

    def plan(
        self,
        top: int,
        *,
        greedy: bool = True,
        batch: int = 1,
        unread: Mapping[int, int] | None = None,
        remaining: int | None = None,
    ) -> Plan:
        """The plan for the next round of an answer by stage ``top``.

        ``unread``: tokens of this answer that each stage has not read; up to ``FEW`` are every round's own business.
        ``remaining``: tokens that may still be written. A chain whose reading does not pay in what remains is left for
        other answers.
        """
        if self.settings.mode == "off":
            return Plan((top,))
        course = self._course(top, greedy, batch)
        self._see_to(course)
        if self.settings.mode == "chain":
            return self._opened(course, course.running)
        trial = course.trial
        if trial is not None and self._affordable(course, trial, unread):
            return trial.plan
        return self._opened(course, course.running if self._pays(course, unread, remaining) else self._plain(course))

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
            self._acceptance[greedy].chances(drafter, target),
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
        """Expected seconds per token of the plan in force; None before stage ``top`` was timed."""
        course = self._course(top, greedy, batch)
        self._see_to(course)
        pace = course.running.seconds_per_token
        return pace if pace < inf else None

    def forecast(
        self,
        top: int,
        prompt_tokens: int,
        output_tokens: int,
        draft_tokens: int = 0,
        *,
        batch: int = 1,
        greedy: bool = True,
    ) -> float | None:
        """Expected seconds of an answer: reading the prompt (and a lower answer as a draft), and writing what is left.

        All stages of the chain in force read. None before stage ``top`` was timed.
        """
        pace = self.seconds_per_token(top, batch, greedy=greedy)
        if pace is None:
            return None
        read = self.reading(top, prompt_tokens + draft_tokens, batch)
        for stage in self._course(top, greedy, batch).running.chain[:-1]:
            if stage != NGRAM:
                read += self.reading(stage, prompt_tokens + draft_tokens, batch)
        return read + pace * max(0.0, output_tokens - self.kept_share() * draft_tokens)

    def acceptance(self, *, greedy: bool = True) -> Acceptance:
        """What is known of the pairs in a regime."""
        return self._acceptance[greedy]

    def kept_share(self) -> float:
        """Expected share of a climbed draft that is kept."""
        return (self._climbs[0] + KEPT_PRIOR * KEPT_WEIGHT) / (self._climbs[1] + KEPT_WEIGHT)

    def reading(self, stage: int, tokens: int, batch: int = 1) -> float:
        """Seconds to read so many tokens in chunks; nothing for a stage that was never timed."""
        whole, rest = divmod(max(0, tokens), CHUNK)
        seconds = whole * (self.times.seconds(stage, CHUNK, batch) or 0.0) if whole else 0.0
        return seconds + (self.times.seconds(stage, rest, batch) or 0.0 if rest else 0.0)

    # ── how it is chosen ─────────────────────────────────────────────────────

    def _course(self, top: int, greedy: bool, batch: int) -> _Course:
        rows = 1 << (max(1, batch) - 1).bit_length()
        key = (top, greedy, rows)
        course = self._courses.get(key)
        if course is None:
            course = self._courses[key] = _Course(top, greedy, rows, self._host)
        return course

    def _see_to(self, course: _Course) -> None:
        """Look at the plans where it is time, or where the text has suddenly changed."""
        changes = self._acceptance[course.greedy].changes
        if changes != course.changes:
            course.changes, course.interval, course.look_at = changes, EVERY, course.rounds
        if course.rounds >= course.look_at:
            before = course.running
            self._look(course)
            course.looked(steady=before.chain == course.running.chain and before.lengths == course.running.lengths)

    def _look(self, course: _Course) -> None:
        """Forecast every chain anew; keep, refit or change what runs; think of a trial."""
        ground = course.ground = self._ground(course)
        if course.top not in ground.steps:
            if self.settings.mode == "chain":
                course.running = self._forced(course, None)
            return
        if self.settings.mode == "chain":
            course.running = self._forced(course, ground)
            return
        plans = {plan.chain: course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))}
        plans = {chain: plan for chain, plan in plans.items() if self._knows(course, chain)}
        course.choose(plans, ground, self.settings.margin, lambda: self._ground(course, -CAUTION))
        if course.trial is not None and course.tokens > course.trial.until:
            course.pause(course.trial.plan.chain)
            course.trial = None
        if course.trial is None and course.tokens >= course.quiet_until and course.credit > 0.0:
            course.trial = self._trial(course)

    def _forced(self, course: _Course, ground: Ground | None) -> Plan:
        below = [stage for stage in self.settings.chain if stage < course.top]
        chain = (*below, course.top)
        lengths = self.settings.lengths[: len(below)]
        known = ground is not None and all(stage == NGRAM or stage in ground.steps for stage in chain)
        if ground is None or not known:
            return Plan(chain, lengths or (DEFAULT_LENGTH,) * len(below))
        plan = priced(chain, lengths, ground) if lengths or not below else fitted(chain, ground)
        return course.corrected(plan)

    def _plain(self, course: _Course) -> Plan:
        steps = self.times.seconds(course.top, 1, course.batch)
        return Plan((course.top,)) if steps is None else Plan((course.top,), (), steps, (steps,))

    def _opened(self, course: _Course, plan: Plan) -> Plan:
        """Where drafts end by confidence, the planned length of the bottom drafter is no bound: the longest is."""
        bound = self.settings.stopping == "fixed" or bool(self.settings.lengths) or plan.plain
        if bound or plan.chain[0] == NGRAM or not plan.paces:
            return plan
        if self._acceptance[course.greedy].weight(plan.chain[0], plan.chain[1]) < CONFIDENT:
            return plan
        return replace(plan, cap=self.settings.longest)

    def _eligible(self, course: _Course) -> list[int]:
        """Drafters that "auto" may use below a stage."""
        stages = [stage for stage in range(course.top) if self._allowed is None or stage in self._allowed]
        return [NGRAM, *stages] if self.settings.ngram else stages

    def _knows(self, course: _Course, chain: tuple[int, ...]) -> bool:
        """True where every stage of a chain was timed and every pair of it judged often enough."""
        acceptance = self._acceptance[course.greedy]
        timed = all(stage == NGRAM or self.times.seconds(stage, 1, course.batch) is not None for stage in chain)
        return timed and all(
            acceptance.weight(*pair) >= NEEDED or acceptance.tried(*pair) >= BURST for pair in pairwise(chain)
        )

    def _ground(self, course: _Course, hope: float = 0.0) -> Ground:
        """What is believed now; with ``hope``, that many standard deviations better. No steps before the top's."""
        longest, acceptance = self.settings.longest, self._acceptance[course.greedy]
        laws = {
            (drafter, target): _law(acceptance, drafter, target, longest, hope)
            for target in range(course.top + 1)
            for drafter in range(NGRAM, target)
        }
        return Ground(
            self._steps(course, UNTIMED if hope > 0.0 else 1.0),
            laws,
            self._host.overhead(),
            longest,
            self._host.beside(),
        )

    def _steps(self, course: _Course, untimed: float) -> dict[int, list[float]]:
        """Seconds of passes of 1 … longest + 2 tokens of every stage up to the top.

        Stages that were never timed are priced by size, or at the share ``untimed`` of the top where sizes are unknown.
        """
        widths = range(1, self.settings.longest + 3)
        found: dict[int, list[float]] = {}
        if self.times.seconds(course.top, 1, course.batch) is None:
            return found
        for stage in range(course.top, -1, -1):
            timed = self.times.seconds(stage, 1, course.batch) is not None
            asked, share = (stage, 1.0) if timed else (course.top, self._share(stage, course.top, untimed))
            found[stage] = [0.0, *(share * (self.times.seconds(asked, w, course.batch) or 0.0) for w in widths)]
        return found

    def _share(self, stage: int, top: int, unknown: float) -> float:
        """What a pass of a stage is held to cost of one of the top's."""
        return self._sizes[stage] / self._sizes[top] if self._sizes else unknown

    # ── trials ───────────────────────────────────────────────────────────────

    def _trial(self, course: _Course) -> _Trial | None:
        """The chain most worth a burst: the best one if everything not known turns out well."""
        if not course.running.plain and course.tokens - course.plain_at > REFRESH:
            plain = replace(self._plain(course), probe=True)
            return _Trial(plain, REFRESH_ROUNDS, plain.seconds_per_token, course.tokens + GIVEN_UP)
        ground = self._ground(course, HOPE)
        bound = course.running.seconds_per_token * (1.0 - self.settings.margin)
        plans = [course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))]
        hopeful = [plan for plan in plans[1:] if plan.seconds_per_token < bound and course.open_to(plan.chain)]
        if not hopeful:
            return None
        nothing = [0.0] * ground.longest
        laws = {pair: Law(nothing, law.offers) for pair, law in ground.laws.items()}
        dear = replace(ground, steps=self._steps(course, 1.0), laws=laws, reaches={})
        trials = [(plan, _trial_of(plan, dear, course.tokens + GIVEN_UP)) for plan in hopeful]
        least = course.running.seconds_per_token

        def worth(pair: tuple[Plan, _Trial]) -> float:
            """What might be gained for what the trial may cost, and the more the longer ago the last one was."""
            plan, trial = pair
            cost = max(trial.cost - least, LEAST_COST * least)
            return (bound - plan.seconds_per_token) / cost * course.since(plan.chain)

        return max(trials, key=worth)[1]

    def _affordable(self, course: _Course, trial: _Trial, unread: Mapping[int, int] | None) -> bool:
        """True where the budget bears the round even if nothing that it drafts is kept."""
        cost = trial.cost - course.running.seconds_per_token + self._catching_up(course, trial.plan, unread)
        return cost + RESERVE * course.running.seconds_per_token <= course.credit

    def _catching_up(self, course: _Course, plan: Plan, unread: Mapping[int, int] | None) -> float:
        if not unread:
            return 0.0
        return sum(
            self.reading(stage, unread[stage], course.batch) or self._guessed_reading(stage, unread, course)
            for stage in plan.chain[:-1]
            if unread.get(stage, 0) > FEW
        )

    def _guessed_reading(self, stage: int, unread: Mapping[int, int], course: _Course) -> float:
        """As long as the answering stage would read, by the stages' sizes."""
        return self._share(stage, course.top, 1.0) * self.reading(course.top, unread[stage], course.batch)

    def _pays(self, course: _Course, unread: Mapping[int, int] | None, remaining: int | None) -> bool:
        """True where what the chain saves on the rest of this answer outweighs its drafters' reading."""
        reading = self._catching_up(course, course.running, unread)
        if not reading or remaining is None:
            return True
        return reading < (self._plain(course).seconds_per_token - course.running.seconds_per_token) * remaining


@dataclass(slots=True)
class _Trial:
    """Rounds to run to learn. ``cost``: seconds of one; ``until``: tokens after which it is given up as too dear."""

    plan: Plan
    left: int
    cost: float
    until: int


@dataclass(slots=True)
class _Speed:
    """Measured seconds of a chain's rounds beside the forecast for the tokens that they wrote, both forgotten."""

    measured: float = 0.0
    foreseen: float = 0.0
    rounds: float = 0.0

    def observe(self, seconds: float, foreseen: float) -> None:
        keep = 1.0 - 1.0 / SPEED_MEMORY
        self.measured = self.measured * keep + seconds
        self.foreseen = self.foreseen * keep + foreseen
        self.rounds = self.rounds * keep + 1.0

    def factor(self, weight: float) -> float:
        """Measured over foreseen, held towards 1 by so many rounds."""
        if not self.rounds or self.foreseen <= 0.0:
            return 1.0
        pull = weight * self.foreseen / self.rounds
        return (self.measured + pull) / (self.foreseen + pull)


@dataclass(slots=True)
class _Course:
    """What runs for one answering stage, regime and batch, and how it got there."""

    top: int
    greedy: bool
    batch: int
    host: _Host
    running: Plan = field(init=False)
    trial: _Trial | None = None
    rounds: int = 0
    tokens: int = 0
    look_at: int = 0
    looked_at: int = 0
    plain_at: int = 0
    spent: float = 0.0
    lost: float = 0.0
    credit: float = 0.0
    switches: int = 0
    rival: tuple[int, ...] = ()
    rival_looks: int = 0
    speeds: dict[tuple[int, ...], _Speed] = field(default_factory=dict)
    vain: int = 0
    quiet_until: int = 0
    pauses: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    bans: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    foreseen: dict[tuple[int, ...], float] = field(default_factory=dict)
    plain_pace: float = inf
    ground: Ground | None = None
    rule: tuple[Plan, Marginal] | None = None
    changes: int = 0
    interval: int = EVERY
    guard: _Guard = field(init=False)

    def __post_init__(self) -> None:
        self.running = Plan((self.top,))
        self.guard = _Guard()

    def looked(self, steady: bool) -> None:
        """Look less often where looking changed nothing."""
        self.interval = min(RAREST, 2 * self.interval) if steady and not self.rival else EVERY
        self.look_at, self.looked_at = self.rounds + self.interval, self.rounds
        self.rule = None

    def open_to(self, chain: tuple[int, ...]) -> bool:
        """True where a chain may be tried: it does not run and does not rest."""
        until = max(self.pauses.get(chain, (0, 0))[0], self.bans.get(chain, (0, 0))[0])
        return chain != self.running.chain and until <= self.tokens

    def since(self, chain: tuple[int, ...]) -> int:
        """Tokens since a chain was last tried in vain; as if long ago where it never was."""
        ended = self.pauses.get(chain)
        return LONG_AGO if ended is None else min(LONG_AGO, self.tokens - ended[0] + ended[1])

    def pause(self, chain: tuple[int, ...]) -> None:
        """Leave a chain alone for a while, each time for longer."""
        length = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self.pauses.get(chain, (0, 0))[1]))
        self.pauses[chain] = (self.tokens + length, length)

    def rest(self, chain: tuple[int, ...]) -> None:
        """Pause a chain that was run in vain, and all others too, for less."""
        self.pause(chain)
        self.vain += 1
        self.quiet_until = self.tokens + min(LONGEST_PAUSE // 2, QUIET * self.vain)

    def corrected(self, plan: Plan) -> Plan:
        """A forecast brought to what rounds of this chain really took, or of plain decoding where it never ran."""
        return corrected(plan, self._factor(plan.chain))

    def _factor(self, chain: tuple[int, ...]) -> float:
        """Measured over foreseen: as plain decoding, by its time beside passes, and by what is left after both."""
        plain = self.speeds.get((self.top,))
        factor = plain.factor(PLAIN_PRIOR) if plain else 1.0
        return factor if len(chain) == 1 else factor * self.host.factor(chain) * self._rest(chain)

    def _rest(self, chain: tuple[int, ...]) -> float:
        speed = self.speeds.get(chain)
        return speed.factor(SPEED_PRIOR) if speed else 1.0

    def observe(self, plan: Plan, tokens: int, seconds: float, read: tuple[float, float], share: float) -> None:
        reading, prompt = read
        self.rounds += 1
        self.tokens += tokens
        self.spent += seconds
        self._earn(seconds, share)
        if plan.plain:
            self.plain_at = self.tokens
        pace = max(0.0, seconds - reading - prompt)
        foreseen = self.foreseen.get(plan.chain)
        if foreseen is not None and (plan.plain or not plan.probe):
            self.speeds.setdefault(plan.chain, _Speed()).observe(pace, tokens * foreseen)
        if plan.probe:
            self._charge(plan, tokens, max(0.0, seconds - prompt), reading)
        elif not plan.plain:
            self._watch(plan, tokens, pace)

    def _earn(self, seconds: float, share: float) -> None:
        """What trials may cost grows with the time spent, more slowly after trials in vain."""
        self.credit += seconds * share * max(LEAST_SHARE, 1.0 / (1.0 + self.vain / VAIN))
        if self.running.seconds_per_token < inf:
            self.credit = min(self.credit, CREDIT * self.running.seconds_per_token)

    def _charge(self, plan: Plan, tokens: int, seconds: float, reading: float) -> None:
        """Book what a trial round took beyond its tokens' time; what it gained is booked too.

        A round out of all proportion is the machine's doing and not the trial's. Answers that run side by side may
        bring rounds of a trial that has ended: they are booked, and count for no other.
        """
        mine = self.trial if self.trial is not None and self.trial.plan.chain == plan.chain else None
        pace = self.running.seconds_per_token
        if pace < inf:
            if mine is not None:
                seconds = min(seconds, SPIKE * (mine.cost + reading))
            self.lost += seconds - tokens * pace
            self.credit -= seconds - tokens * pace
        if mine is None:
            return
        mine.left -= 1
        if mine.left <= 0:
            if not plan.plain:
                self.rest(plan.chain)
            self.trial = None
            self.interval, self.look_at = EVERY, self.rounds

    def _watch(self, plan: Plan, tokens: int, seconds: float) -> None:
        if plan.chain == self.running.chain and self.plain_pace < inf:
            self.guard.observe(seconds, tokens, self.plain_pace)
            if self.guard.losing():
                self.look_at = min(self.look_at, self.looked_at + EVERY)
            if self.guard.alarmed():
                self.rest(plan.chain)
                length = min(LONGEST_BAN, max(FIRST_BAN, 2 * self.bans.get(plan.chain, (0, 0))[1]))
                self.bans[plan.chain] = (self.tokens + length, length)
                self._switch(Plan((self.top,), (), self.plain_pace, (self.plain_pace,)))

    def choose(
        self,
        plans: Mapping[tuple[int, ...], Plan],
        ground: Ground,
        margin: float,
        doubted: Callable[[], Ground],
    ) -> None:
        """Refit what runs, and go over to a chain that was better by the margin at ``STAYS`` looks in a row.

        ``plans``: the chains that are known, corrected. ``doubted``: what to plan from if drafters are worse than they
        seem.
        """
        self._choose(plans, ground, margin, doubted)
        self.foreseen = {self.running.chain: self.running.seconds_per_token / self._rest(self.running.chain)}
        self.foreseen[self.top,] = plain_plan(self.top, ground).seconds_per_token

    def _choose(
        self,
        plans: Mapping[tuple[int, ...], Plan],
        ground: Ground,
        margin: float,
        doubted: Callable[[], Ground],
    ) -> None:
        plain = self.corrected(plain_plan(self.top, ground))
        self.plain_pace = plain.seconds_per_token
        self.running = self._refit(plans, ground)
        free = [plan for chain, plan in plans.items() if self.bans.get(chain, (0, 0))[0] <= self.tokens]
        best = min(free, key=lambda plan: plan.seconds_per_token, default=plain)
        wanted = 1.0 if best.plain else 1.0 - margin
        better = best.seconds_per_token < wanted * self.running.seconds_per_token
        if best.chain == self.running.chain or not better:
            self.rival, self.rival_looks = (), 0
            return
        self.rival_looks = self.rival_looks + 1 if best.chain == self.rival else 1
        self.rival = best.chain
        clear = best.plain and best.seconds_per_token < (1.0 - margin) * self.running.seconds_per_token
        if clear or (self.rival_looks >= STAYS and (best.plain or self._safe(best, doubted()))):
            self._switch(best)

    def _safe(self, plan: Plan, ground: Ground) -> bool:
        """True where a chain gains over plain decoding even if its drafters are somewhat worse than they seem."""
        return self.corrected(priced(plan.chain, plan.lengths, ground)).seconds_per_token < self.plain_pace

    def _refit(self, plans: Mapping[tuple[int, ...], Plan], ground: Ground) -> Plan:
        """The chain that runs with its lengths, priced anew, or with better lengths where they gain enough."""
        if self.running.plain:
            return self.corrected(plain_plan(self.top, ground))
        same = self.corrected(priced(self.running.chain, self.running.lengths, ground))
        fresh = plans.get(self.running.chain)
        if fresh is not None and fresh.seconds_per_token < same.seconds_per_token * (1.0 - LENGTH_GAIN):
            return fresh
        return same

    def _switch(self, plan: Plan) -> None:
        self.running = plan
        self.rival, self.rival_looks = (), 0
        self.guard = _Guard()
        self.switches += 1
        self.vain = 0
        if not plan.plain:
            self.pauses.pop(plan.chain, None)


class _Guard:
    """Loss of the running chain against plain decoding, round by round: mean and deviation, forgotten."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._sum = 0.0
        self._squares = 0.0
        self._latest = 0.0
        self._rounds = 0

    def observe(self, seconds: float, tokens: int, pace: float) -> None:
        """``pace``: plain decoding's seconds per token. Rounds out of all proportion are cut to size."""
        loss = min(seconds / pace - tokens, 4.0)
        keep = 1.0 - 1.0 / GUARD_MEMORY
        self._weight = self._weight * keep + 1.0
        self._sum = self._sum * keep + loss
        self._squares = self._squares * keep + loss * loss
        self._rounds += 1
        self._latest += (loss - self._latest) / EVERY

    def losing(self) -> bool:
        """True where the latest rounds lost: time to look, if no reason to act yet."""
        return self._latest > 0.0

    def alarmed(self) -> bool:
        if self._rounds < GUARD_ROUNDS:
            return False
        mean = self._sum / self._weight
        spread = max(0.0, self._squares / self._weight - mean * mean)
        return mean > GUARD_DEVIATIONS * sqrt(spread / self._weight)


class _Host:
    """What rounds took beyond their passes: beside each pass in plain decoding, in proportion for each chain.

    Passes are laid to the round that ends next. Where answers run side by side that is right on average.
    """

    def __init__(self) -> None:
        self._pending = 0.0
        self._count = 0.0
        self._beside = [0.0, 0.0]
        self._drafted = [0.0, 0.0, 0.0]
        self._chains: dict[tuple[int, ...], list[float]] = {}

    def passed(self, seconds: float) -> None:
        self._pending += seconds
        self._count += 1.0

    def only(self, seconds: float, count: float) -> None:
        """The round that ends next had these passes, and no others."""
        self._pending, self._count = seconds, count

    def rounded(self, chain: tuple[int, ...], seconds: float, batch: int) -> None:
        pending, count = self._pending, self._count
        self._pending = self._count = 0.0
        if not count:
            return
        if len(chain) == 1:
            told, sums = (seconds / batch - pending, count), self._beside
        else:
            self._drafted = [
                sums * HOST_KEEP + amount
                for sums, amount in zip(self._drafted, (seconds / batch - pending, count, 1.0), strict=True)
            ]
            told = (seconds / batch, pending + self.overhead() * count + self.beside())
            sums = self._chains.setdefault(chain, [0.0, 0.0])
        for place, amount in enumerate(told):
            sums[place] = sums[place] * HOST_KEEP + amount

    def _plain(self) -> float:
        """Seconds beside a round of plain decoding."""
        total, count = self._beside
        return max(0.0, total) / count if count else 0.0

    def overhead(self) -> float:
        """Seconds beside each pass: what rounds of more passes take more, all of plain decoding's where none were seen.

        At most plain decoding's own: what chains take beyond that is theirs (``factor``).
        """
        plain, (total, passes, rounds) = self._plain(), self._drafted
        if passes <= rounds:
            return plain
        return min(plain, max(0.0, (total - plain * rounds) / (passes - rounds)))

    def beside(self) -> float:
        """Seconds beside each round, whatever its passes."""
        return self._plain() - self.overhead()

    def factor(self, chain: tuple[int, ...]) -> float:
        """Time of a chain's rounds over what their passes explain; 1 for one that never ran."""
        measured, explained = self._chains.get(chain, (0.0, 0.0))
        return measured / explained if explained > 0.0 else 1.0


def _trial_of(plan: Plan, ground: Ground, until: int) -> _Trial:
    """A burst with short drafts, priced on a ground where nothing is kept: a round writes one token."""
    lengths = tuple(min(length, TRIAL_LENGTH) for length in plan.lengths)
    short = priced(plan.chain, lengths, ground)
    return _Trial(replace(plan, lengths=lengths, probe=True), BURST, short.seconds_per_token, until)


def _law(acceptance: Acceptance, drafter: int, target: int, longest: int, hope: float) -> Law:
    more = hope * acceptance.spread(drafter, target)
    if hope > 0.0 and acceptance.idle(drafter, target) > REVISIT:
        more = max(more, REVIVED - acceptance.rate(drafter, target))
    rates = [min(1.0, max(0.0, rate + more)) for rate in acceptance.rates(drafter, target, longest)]
    offers = acceptance.offers(drafter, target, longest)
    if drafter != NGRAM and min(offers) >= 1.0:
        return Law(rates)
    if hope:
        slack = hope / (2.0 * sqrt(acceptance.tried(drafter, target) + 1.0))
        offers = [min(1.0, max(0.0, offer + slack)) for offer in offers]
    return Law(rates, offers)


def _checked_sizes(sizes: Sequence[float], stages: int) -> tuple[float, ...]:
    if sizes and (len(sizes) != stages or not all(0.0 < size < inf for size in sizes)):
        wrong = f"should be one positive number for each of the {stages} stages, not {list(sizes)}"
        raise ConfigError("speculation", [Problem("sizes", wrong)])
    return tuple(sizes)


def _problems(settings: PlannerSettings) -> list[Problem]:
    found: list[Problem] = []
    if settings.mode not in {"auto", "off", "chain"}:
        found.append(Problem("mode", f"should be 'auto', 'off' or 'chain', not '{settings.mode}'"))
    if settings.stopping not in {"marginal", "fixed"}:
        found.append(Problem("stopping", f"should be 'marginal' or 'fixed', not '{settings.stopping}'"))
    if not 1 <= settings.longest <= 64:
        found.append(Problem("longest", f"should be from 1 to 64 tokens, not {settings.longest}"))
    if not 0.0 <= settings.probe_share <= 0.5:
        found.append(Problem("probe_share", f"should be a share from 0 to 0.5, not {settings.probe_share}"))
    if not 0.0 <= settings.margin < 1.0:
        found.append(Problem("margin", f"should be a share from 0 up to 1, not {settings.margin}"))
    return found + _chain_problems(settings)


def _chain_problems(settings: PlannerSettings) -> list[Problem]:
    found: list[Problem] = []
    chain, lengths = settings.chain, settings.lengths
    if settings.mode == "chain" and len(chain) < 2:
        found.append(Problem("chain", f"should name at least a drafter and an answering stage, not {list(chain)}"))
    if any(low >= high for low, high in pairwise(chain)) or any(link < NGRAM for link in chain):
        found.append(Problem("chain", f"should go from the cheapest up, each stage once, not {list(chain)}"))
    if lengths and len(lengths) != max(0, len(chain) - 1):
        found.append(
            Problem("lengths", f"should be one for each drafter ({max(0, len(chain) - 1)}), not {len(lengths)}")
        )
    if any(not 1 <= length <= settings.longest for length in lengths):
        found.append(Problem("lengths", f"should be from 1 to {settings.longest} tokens each, not {list(lengths)}"))
    return found
