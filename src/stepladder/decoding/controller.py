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

from collections.abc import Mapping, Sequence
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
    refined,
)
from stepladder.decoding.stopping import Fixed, Marginal, Never, Stopping
from stepladder.decoding.times import StepTimes
from stepladder.errors import ConfigError, Problem

NEEDED = 6.0
"""Verdicts on each pair of a chain before the chain may run outside of trials."""

HOPE = 1.3
"""Standard deviations by which trials look at the bright side of a rate; a chain not worth it even so is not tried."""

BURST = 6
"""Rounds of a trial."""

TRIAL_LENGTH = 4
"""Longest draft in a trial."""

FIRST_PAUSE, LONGEST_PAUSE = 64, 512
"""Tokens before a chain that was tried in vain is tried again; doubled each time."""

EVERY = 8
"""Rounds between two looks at the plans."""

STAYS = 2
"""Looks in a row that must prefer a chain before it is taken up."""

REFRESH = 600
"""Tokens after which plain decoding is timed again while a chain runs."""

REFRESH_ROUNDS = 3

CREDIT = 20.0
"""Most that may be saved up for trials, in tokens' time."""

LENGTH_GAIN = 0.01
"""Least forecast gain for new lengths of the chain that runs."""

SPEED_MEMORY = 300.0
SPEED_PRIOR = 50.0
"""Rounds over which measured time is compared to the forecast, and rounds that the prior (as plain) counts for."""

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
    (parameters do), used for a stage only until it was timed; without them an untimed drafter is held to be as dear as
    its target. ``greedy`` parts the regimes: at temperature 0 other tokens are kept than above. Not thread-safe.
    """

    def __init__(
        self,
        stages: int,
        settings: PlannerSettings | None = None,
        *,
        sizes: Sequence[float] = (),
        times: StepTimes | None = None,
    ) -> None:
        self.settings = settings or PlannerSettings()
        self.times = times or StepTimes()
        self._stages = stages
        self._sizes = tuple(sizes)
        self._acceptance = {True: Acceptance(), False: Acceptance()}
        self._courses: dict[tuple[int, bool, int], _Course] = {}
        self._host = _Host()
        self._climbs = [0.0, 0.0]

    # ── what happened ────────────────────────────────────────────────────────

    def observe_pass(self, stage: int, width: int, batch: int, seconds: float) -> None:
        """A forward pass of ``batch`` rows, ``width`` tokens each (the widest, where ragged)."""
        self.times.observe(stage, width, batch, seconds)
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
    ) -> None:
        """A round of the answering stage wrote ``tokens`` tokens in ``seconds`` of wall time.

        ``batch``: rows that shared that time. ``reading``: the part of it in which drafters read what they had skipped
        (a prompt); it is charged to trials, but says nothing of the chain's pace.
        """
        if tokens < 1 or not 0.0 < seconds < inf:
            return
        self._acceptance[greedy].age(tokens)
        self._host.rounded(seconds, batch)
        course = self._course(plan.top, greedy, batch)
        course.observe(plan, tokens, seconds, reading, self.settings.probe_share)

    def observe_climb(self, drafted: int, kept: int) -> None:
        """Of a lower answer's ``drafted`` tokens, read as a draft by a higher stage, the first ``kept`` were kept."""
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

        ``unread``: tokens of this answer that each stage has not read, as far as more than a few; ``remaining``: tokens
        that may still be written. A chain whose reading does not pay in what remains is left for other answers.
        """
        if self.settings.mode == "off":
            return Plan((top,))
        course = self._course(top, greedy, batch)
        if course.rounds >= course.look_at:
            self._look(course)
        if self.settings.mode == "chain":
            return self._opened(course, course.running)
        trial = course.trial
        if trial is not None and self._affordable(course, trial, unread):
            return trial.plan
        return self._opened(course, course.running if self._pays(course, unread, remaining) else self._plain(course))

    def stopping(self, plan: Plan, *, greedy: bool = True, batch: int = 1) -> Stopping:
        """The rule by which the plan's bottom drafter ends a draft, to go with ``plan.asks``; one for each answer.

        It is made of what is known now, so it wants to be asked for anew with each plan or every few rounds.
        """
        if plan.plain:
            return Never()
        drafter, target = plan.chain[0], plan.chain[1]
        acceptance = self._acceptance[greedy]
        fixed = self.settings.stopping == "fixed" or bool(self.settings.lengths) or plan.probe or not plan.paces
        if fixed or drafter == NGRAM or acceptance.weight(drafter, target) < CONFIDENT:
            return Fixed(plan.lengths[0])
        ground = self._ground(self._course(plan.top, greedy, batch))
        above = ground.steps[target]
        widening = [above[k + 2] - above[k + 1] for k in range(plan.asks[0])]
        return Marginal(
            acceptance.chances(drafter, target),
            widening=widening,
            draft=ground.steps[drafter][1] + ground.overhead,
            rate=1.0 / plan.paces[1],
            peaks=greedy,
        )

    # ── what it will cost ────────────────────────────────────────────────────

    def seconds_per_token(self, top: int, batch: int = 1, *, greedy: bool = True) -> float | None:
        """Expected seconds per token of the plan in force; None before stage ``top`` was timed."""
        course = self._course(top, greedy, batch)
        if course.rounds >= course.look_at:
            self._look(course)
        pace = course.running.seconds_per_token
        return pace if pace < inf else None

    def forecast(
        self, top: int, prompt_tokens: int, output_tokens: int, draft_tokens: int = 0, *, batch: int = 1
    ) -> float | None:
        """Expected seconds of an answer: reading the prompt (and a lower answer as a draft), and writing what is left.

        All stages of the chain in force read. None before stage ``top`` was timed.
        """
        pace = self.seconds_per_token(top, batch)
        if pace is None:
            return None
        read = self._reading(top, prompt_tokens + draft_tokens, batch)
        for stage in self._course(top, True, batch).running.chain[:-1]:
            if stage != NGRAM:
                read += self._reading(stage, prompt_tokens + draft_tokens, batch)
        return read + pace * max(0.0, output_tokens - self.kept_share() * draft_tokens)

    def kept_share(self) -> float:
        """Expected share of a climbed draft that is kept."""
        return (self._climbs[0] + KEPT_PRIOR * KEPT_WEIGHT) / (self._climbs[1] + KEPT_WEIGHT)

    def _reading(self, stage: int, tokens: int, batch: int) -> float:
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
            course = self._courses[key] = _Course(top, greedy, rows)
        return course

    def _look(self, course: _Course) -> None:
        """Forecast every chain anew; keep, refit or change what runs; think of a trial."""
        course.looked()
        ground = self._ground(course)
        if course.top not in ground.steps:
            if self.settings.mode == "chain":
                course.running = self._forced(course, None)
            return
        if self.settings.mode == "chain":
            course.running = self._forced(course, ground)
            return
        plans = {plan.chain: course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))}
        plans = {chain: plan for chain, plan in plans.items() if self._knows(course, chain)}
        course.choose(plans, ground, self.settings.margin)
        if course.trial is None:
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
        return [NGRAM, *range(course.top)] if self.settings.ngram else list(range(course.top))

    def _knows(self, course: _Course, chain: tuple[int, ...]) -> bool:
        """True where every stage of a chain was timed and every pair of it judged often enough."""
        acceptance = self._acceptance[course.greedy]
        timed = all(stage == NGRAM or self.times.seconds(stage, 1, course.batch) is not None for stage in chain)
        return timed and all(
            acceptance.weight(*pair) >= NEEDED or acceptance.tried(*pair) >= BURST for pair in pairwise(chain)
        )

    def _ground(self, course: _Course, hope: float = 0.0) -> Ground:
        """What is believed now; with ``hope``, that many standard deviations better."""
        longest, acceptance = self.settings.longest, self._acceptance[course.greedy]
        stages = [stage for stage in {*range(course.top), course.top} if self._steps(stage, course) is not None]
        steps = {stage: self._steps(stage, course) or () for stage in stages}
        laws: dict[tuple[int, int], Law] = {}
        for drafter in self._drafters(course):
            for target in stages:
                if target > drafter:
                    laws[drafter, target] = _law(acceptance, drafter, target, longest, hope)
        return Ground(steps, laws, self._host.overhead(), longest)

    def _drafters(self, course: _Course) -> list[int]:
        return [NGRAM, *range(course.top)]

    def _steps(self, stage: int, course: _Course) -> list[float] | None:
        """Seconds of passes of 1 … longest + 2 tokens, by size where the stage was never timed."""
        widths = range(1, self.settings.longest + 3)
        if self.times.seconds(stage, 1, course.batch) is not None:
            return [0.0, *(self.times.seconds(stage, width, course.batch) or 0.0 for width in widths)]
        if self.times.seconds(course.top, 1, course.batch) is None:
            return None
        share = self._sizes[stage] / self._sizes[course.top] if self._sizes else 1.0
        return [0.0, *((self.times.seconds(course.top, width, course.batch) or 0.0) * share for width in widths)]

    # ── trials ───────────────────────────────────────────────────────────────

    def _trial(self, course: _Course) -> _Trial | None:
        """The chain most worth a burst: the best one if everything not known turns out well."""
        if not course.running.plain and course.tokens - course.plain_at > REFRESH:
            plain = replace(self._plain(course), probe=True)
            return _Trial(plain, REFRESH_ROUNDS, plain.seconds_per_token)
        ground = self._ground(course, HOPE)
        bound = course.running.seconds_per_token * (1.0 - self.settings.margin)
        plans = [course.corrected(plan) for plan in all_plans(course.top, ground, self._eligible(course))]
        hopeful = [plan for plan in plans if plan.seconds_per_token < bound and course.open_to(plan.chain)]
        if not hopeful:
            return None
        best = min(hopeful, key=lambda plan: plan.seconds_per_token)
        lengths = tuple(min(length, TRIAL_LENGTH) for length in best.lengths)
        short = priced(best.chain, lengths, ground)
        cost = short.seconds_per_token * sum(ground.reach((best.chain[-2], course.top))[: lengths[-1] + 1])
        return _Trial(replace(short, probe=True), BURST, cost)

    def _affordable(self, course: _Course, trial: _Trial, unread: Mapping[int, int] | None) -> bool:
        """True where the budget bears the round even if nothing that it drafts is kept."""
        cost = trial.cost - course.running.seconds_per_token + self._catching_up(course, trial.plan, unread)
        return cost <= course.credit(self.settings.probe_share)

    def _catching_up(self, course: _Course, plan: Plan, unread: Mapping[int, int] | None) -> float:
        if not unread:
            return 0.0
        return sum(self._reading(stage, unread.get(stage, 0), course.batch) for stage in plan.chain[:-1])

    def _pays(self, course: _Course, unread: Mapping[int, int] | None, remaining: int | None) -> bool:
        """True where what the chain saves on the rest of this answer outweighs its drafters' reading."""
        reading = self._catching_up(course, course.running, unread)
        if not reading or remaining is None:
            return True
        return reading < (self._plain(course).seconds_per_token - course.running.seconds_per_token) * remaining


@dataclass(slots=True)
class _Trial:
    """Rounds to run to learn; ``cost``: seconds of one."""

    plan: Plan
    left: int
    cost: float


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

    def factor(self, prior: float) -> float:
        """Measured over foreseen, held towards ``prior``."""
        if not self.rounds or self.foreseen <= 0.0:
            return prior
        pull = SPEED_PRIOR * self.foreseen / self.rounds
        return (self.measured + pull * prior) / (self.foreseen + pull)


@dataclass(slots=True)
class _Course:
    """What runs for one answering stage, regime and batch, and how it got there."""

    top: int
    greedy: bool
    batch: int
    running: Plan = field(init=False)
    trial: _Trial | None = None
    rounds: int = 0
    tokens: int = 0
    look_at: int = 0
    plain_at: int = 0
    spent: float = 0.0
    lost: float = 0.0
    switches: int = 0
    rival: tuple[int, ...] = ()
    rival_looks: int = 0
    speeds: dict[tuple[int, ...], _Speed] = field(default_factory=dict)
    pauses: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    foreseen: dict[tuple[int, ...], float] = field(default_factory=dict)
    plain_pace: float = inf
    guard: _Guard = field(init=False)

    def __post_init__(self) -> None:
        self.running = Plan((self.top,))
        self.guard = _Guard()

    def looked(self) -> None:
        self.look_at = self.rounds + EVERY

    def credit(self, share: float) -> float:
        """Seconds that trials may still cost."""
        return share * self.spent - self.lost

    def open_to(self, chain: tuple[int, ...]) -> bool:
        """True where a chain may be tried: it does not run and does not rest."""
        return chain != self.running.chain and self.pauses.get(chain, (0, 0))[0] <= self.tokens

    def rest(self, chain: tuple[int, ...]) -> None:
        """Leave a chain alone for a while, each time for longer."""
        length = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self.pauses.get(chain, (0, 0))[1]))
        self.pauses[chain] = (self.tokens + length, length)

    def corrected(self, plan: Plan) -> Plan:
        """A forecast brought to what rounds of this chain really took, or of plain decoding where it never ran."""
        self.foreseen[plan.chain] = plan.seconds_per_token
        plain = self.speeds.get((self.top,))
        prior = plain.factor(1.0) if plain else 1.0
        speed = self.speeds.get(plan.chain)
        return corrected(plan, speed.factor(prior) if speed else prior)

    def observe(self, plan: Plan, tokens: int, seconds: float, reading: float, share: float) -> None:
        self.rounds += 1
        self.tokens += tokens
        self.spent += seconds
        if plan.plain:
            self.plain_at = self.tokens
        pace = max(0.0, seconds - reading)
        foreseen = self.foreseen.get(plan.chain)
        if foreseen is not None:
            self.speeds.setdefault(plan.chain, _Speed()).observe(pace, tokens * foreseen)
        if plan.probe:
            self._charge(tokens, seconds, share)
        elif not plan.plain:
            self._watch(plan, tokens, pace)

    def _charge(self, tokens: int, seconds: float, share: float) -> None:
        """Book what a trial round took beyond its tokens' time; what it gained is booked too, up to a bound."""
        pace = self.running.seconds_per_token
        if pace < inf:
            floor = share * self.spent - CREDIT * pace
            self.lost = max(floor, self.lost + seconds - tokens * pace)
        if self.trial is None:
            return
        self.trial.left -= 1
        if self.trial.left <= 0:
            self.rest(self.trial.plan.chain)
            self.trial = None
            self.look_at = self.rounds

    def _watch(self, plan: Plan, tokens: int, seconds: float) -> None:
        if plan.chain == self.running.chain and self.plain_pace < inf:
            self.guard.observe(seconds, tokens, self.plain_pace)
            if self.guard.alarmed():
                self.rest(plan.chain)
                self._switch(Plan((self.top,), (), self.plain_pace, (self.plain_pace,)))

    def choose(self, plans: Mapping[tuple[int, ...], Plan], ground: Ground, margin: float) -> None:
        """Refit what runs, and go over to a chain that was better by the margin at ``STAYS`` looks in a row."""
        plain = self.corrected(plain_plan(self.top, ground))
        self.plain_pace = plain.seconds_per_token
        self.running = self._refit(plans, ground)
        best = min(plans.values(), key=lambda plan: plan.seconds_per_token, default=plain)
        wanted = 1.0 if best.plain else 1.0 - margin
        better = best.seconds_per_token < wanted * self.running.seconds_per_token
        if best.chain == self.running.chain or not better:
            self.rival, self.rival_looks = (), 0
            return
        self.rival_looks = self.rival_looks + 1 if best.chain == self.rival else 1
        self.rival = best.chain
        if self.rival_looks >= STAYS:
            self._switch(refined(best, ground) if len(best.chain) > 2 else best)

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
        if not plan.plain:
            self.pauses.pop(plan.chain, None)


class _Guard:
    """Loss of the running chain against plain decoding, round by round: mean and deviation, forgotten."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._sum = 0.0
        self._squares = 0.0
        self._rounds = 0

    def observe(self, seconds: float, tokens: int, pace: float) -> None:
        """``pace``: plain decoding's seconds per token. Rounds out of all proportion are cut to size."""
        loss = min(seconds / pace - tokens, 4.0)
        keep = 1.0 - 1.0 / GUARD_MEMORY
        self._weight = self._weight * keep + 1.0
        self._sum = self._sum * keep + loss
        self._squares = self._squares * keep + loss * loss
        self._rounds += 1

    def alarmed(self) -> bool:
        if self._rounds < GUARD_ROUNDS:
            return False
        mean = self._sum / self._weight
        spread = max(0.0, self._squares / self._weight - mean * mean)
        return mean > GUARD_DEVIATIONS * sqrt(spread / self._weight)


class _Host:
    """Seconds beside each pass: what rounds took beyond their passes."""

    def __init__(self) -> None:
        self._rounds = 0.0
        self._passes = 0.0
        self._count = 0.0

    def passed(self, seconds: float) -> None:
        self._passes += seconds
        self._count += 1.0

    def rounded(self, seconds: float, batch: int) -> None:
        keep = 1.0 - 1.0 / SPEED_MEMORY
        self._rounds = (self._rounds + seconds / batch) * keep
        self._passes *= keep
        self._count *= keep

    def overhead(self) -> float:
        """Mean seconds per pass."""
        return max(0.0, self._rounds - self._passes) / self._count if self._count else 0.0


def _law(acceptance: Acceptance, drafter: int, target: int, longest: int, hope: float) -> Law:
    more = hope * acceptance.spread(drafter, target)
    rates = [min(1.0, rate + more) for rate in acceptance.rates(drafter, target, longest)]
    if drafter != NGRAM:
        return Law(rates)
    offers = acceptance.offers(drafter, target, longest)
    if hope:
        slack = hope / (2.0 * sqrt(acceptance.tried(drafter, target) + 1.0))
        offers = [min(1.0, offer + slack) for offer in offers]
    return Law(rates, offers)


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
