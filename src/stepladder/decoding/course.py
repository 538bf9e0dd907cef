"""What runs for one answering stage, one regime and one batch: its account of trials, and when a chain takes over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from stepladder.decoding.pace import SPIKE, Guard, Host, Rounds, Speed
from stepladder.decoding.planning import Ground, Law, Plan, corrected, for_reach, plain_plan, priced
from stepladder.decoding.stopping import Marginal
from stepladder.decoding.times import middle

LONG_AGO = 4096
"""Tokens beyond which it makes no difference when a chain was last tried."""

CHARGED = 2.0
"""Multiple of its forecast cost up to which a trial round is charged."""

STARTS = 3
"""Bursts of a chain whose beginnings are remembered."""

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

CREDIT = 20.0
"""Most that may be saved up for trials, in tokens' time."""

LENGTH_GAIN = 0.01
"""Least forecast gain for new lengths of the chain that runs."""

FIRST_BAN, LONGEST_BAN = 256, 4096
"""Tokens for which a chain that the guard stopped is not taken up again; doubled each time."""

SPEED_PRIOR = 200.0
PLAIN_PRIOR = 20.0
"""Rounds that a forecast without error counts for. A chain's rounds write now one token, now many, so they take long to
tell."""


@dataclass(slots=True)
class Trial:
    """Rounds to run to learn, with drafts that grow while they are kept and are short again once one is not.

    ``steps``: plans with longer and longer drafts, and seconds of a round of each in which nothing is kept. ``until``:
    tokens after which it is given up as too dear. ``start``: seconds that the next round is expected to take more,
    drafters having to read what they missed; ``need``: seconds that the budget must have for it; ``advance``: seconds
    that the beginning took beyond what was foreseen. They are spent, so that the rounds behind it are judged without.
    ``goes_on``: a trial that turned out well; it was not in vain whatever comes of it.
    """

    steps: Sequence[tuple[Plan, float]]
    left: int
    until: int
    at: int = 0
    start: float = 0.0
    need: float = 0.0
    advance: float = 0.0
    begun: bool = False
    goes_on: bool = False

    @property
    def plan(self) -> Plan:
        """What its next round runs with."""
        return self.steps[self.at][0]

    @property
    def cost(self) -> float:
        """Seconds of the next round where nothing is kept."""
        return self.steps[self.at][1]

    @property
    def is_untouched(self) -> bool:
        """True before its first round."""
        return not self.begun and self.at == 0 and not self.goes_on and self.advance == 0.0

    def went(self, tokens: int) -> None:
        """A round wrote so many tokens."""
        self.left -= 1
        if tokens > sum(self.plan.lengths[-1:]):
            self.at = min(self.at + 1, len(self.steps) - 1)
        elif tokens == 1:
            self.at = 0


@dataclass(frozen=True, slots=True)
class Round:
    """What a round of the answering stage wrote, and what it took in seconds of wall time.

    ``passes``: seconds and number of its passes, the prompt's included, each divided by the rows that shared it.
    ``ended``: the answer ended with it, by a token that ends answers or by the most that it may have. ``reading``: the
    part in which drafters read what they had skipped (a prompt), charged to trials; ``prompt``: in which the answering
    stage read, which any chain would have taken. Neither says anything of the chain's pace. ``answer``: where the
    answer ended, tokens and rounds of all of it if one chain wrote it from its beginning, else zeros.
    """

    tokens: int
    seconds: float
    passes: tuple[float, float]
    reading: float = 0.0
    prompt: float = 0.0
    ended: bool = False
    answer: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Course:
    """What runs for one answering stage, regime and batch, and how it got there."""

    top: int
    greedy: bool
    batch: int
    host: Host
    running: Plan = field(init=False)
    trial: Trial | None = None
    rounds: int = 0
    tokens: int = 0
    look_at: int = 0
    looked_at: int = 0
    plain_at: int = 0
    credit: float = 0.0
    rival: tuple[int, ...] = ()
    rival_looks: int = 0
    just_tried: tuple[int, ...] = ()
    speeds: dict[tuple[int, ...], Speed] = field(default_factory=dict)
    rounds_of: dict[tuple[int, ...], Rounds] = field(default_factory=dict)
    trials: Speed = field(default_factory=Speed)
    """Seconds that trials took beyond their tokens' time, beside those of the rounds that were none."""
    vain: int = 0
    quiet_until: int = 0
    pauses: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    bans: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    starts: dict[tuple[int, ...], deque[float]] = field(default_factory=dict)
    foreseen: dict[tuple[int, ...], float] = field(default_factory=dict)
    gains: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    plain_pace: float = inf
    ground: Ground | None = None
    rule: tuple[Plan, Marginal] | None = None
    changes: int = 0
    interval: int = EVERY
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.running = Plan((self.top,))
        self.guard = Guard()

    def looked(self, steady: bool) -> None:
        """Look less often where looking changed nothing."""
        self.interval = min(RAREST, 2 * self.interval) if steady and not self.rival else EVERY
        self.look_at, self.looked_at = self.rounds + self.interval, self.rounds
        self.rule = None

    @property
    def open_to_trials(self) -> bool:
        """True where the budget has something left and trials do not rest."""
        return self.tokens >= self.quiet_until and self.credit > 0.0

    def open_to(self, chain: tuple[int, ...]) -> bool:
        """True where a chain may be tried: it does not run, is not about to, and does not rest."""
        until = max(self.pauses.get(chain, (0, 0))[0], self.bans.get(chain, (0, 0))[0])
        return chain not in (self.running.chain, self.rival) and until <= self.tokens

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

    def with_trials(self, seconds: float) -> float:
        """Seconds of rounds, and of the trials that come between them."""
        spent = self.trials.foreseen
        return seconds * (1.0 + max(0.0, self.trials.measured) / spent) if spent > 0.0 else seconds

    def rounds_for(self, chain: tuple[int, ...]) -> Rounds:
        """What is known of a chain's rounds."""
        return self.rounds_of.setdefault(chain, Rounds())

    def fitted(self, drafter: int, top: int, ground: Ground, reach: Sequence[float]) -> Plan:
        """The plan of a drafter for one answer, whose drafts are kept as ``reach`` says; plain where that is better.

        Both are priced as they were measured.
        """
        factor, plain = self._factor((drafter, top)), self._factor((top,))
        return corrected(for_reach(drafter, top, ground, reach, factor / plain), plain)

    def tried(self, drafter: int, top: int, ground: Ground, reach: Sequence[float]) -> Plan:
        """A draft of one token for such an answer."""
        ground = replace(ground, reaches={(drafter, top): list(reach)})
        return replace(self.corrected(priced((drafter, top), (1,), ground)), own=True)

    def begin(self) -> None:
        """Another answer begins, of which earlier trials say less than of the one that they were made in."""
        self.pauses = {chain: (min(until, self.tokens), length) for chain, (until, length) in self.pauses.items()}
        self.quiet_until = min(self.quiet_until, self.tokens)
        self.look_at = self.rounds

    def start_of(self, chain: tuple[int, ...]) -> float:
        """Seconds that a burst's first round takes beyond its forecast: the lower middle one of the last."""
        found = self.starts.get(chain)
        return middle(sorted(found)) if found else 0.0

    def observe(self, plan: Plan, took: Round, share: float, usual: float = inf) -> None:
        """A round more; ``share`` of its time may be spent on trials. ``usual``: seconds that such a round takes."""
        tokens, seconds, prompt = took.tokens, took.seconds, took.prompt
        self.rounds += 1
        self.tokens += tokens
        self._earn(seconds, share)
        if plan.plain:
            self.plain_at = self.tokens
        pace = max(0.0, seconds - took.reading - prompt)
        if not plan.probe:
            rounds = self.rounds_for(plan.chain)
            rounds.observe(tokens, pace, ended=took.ended)
            if took.answer[1]:
                rounds.answered(*took.answer)
        foreseen = plan.seconds_per_token / self._rest(plan.chain) if plan.own else self.foreseen.get(plan.chain)
        if foreseen is not None and (plan.plain or not plan.probe):
            self.speeds.setdefault(plan.chain, Speed()).observe(min(pace, SPIKE * usual), tokens * foreseen)
        if plan.probe:
            self._charge(plan, tokens, max(0.0, seconds - prompt))
            return
        self.trials.observe(0.0, pace)
        if self.trial is not None:
            self.trial.begun = False  # its drafters have to read what this round wrote
        if not plan.plain:
            self._watch(plan, tokens, pace)

    def _earn(self, seconds: float, share: float) -> None:
        """What trials may cost grows with the time spent, more slowly after trials in vain."""
        self.credit += seconds * share * max(LEAST_SHARE, 1.0 / (1.0 + self.vain / VAIN))
        if self.running.seconds_per_token < inf:
            need = self.trial.need if self.trial is not None else 0.0
            self.credit = min(self.credit, max(need, CREDIT * self.running.seconds_per_token))

    def _charge(self, plan: Plan, tokens: int, seconds: float) -> None:
        """Book what a trial round took beyond its tokens' time; what it gained is booked too.

        A round out of all proportion is the machine's doing and not the trial's; one that begins a burst is remembered,
        and the next burst foreseen to begin like it. Answers that run side by side may bring rounds of a trial that has
        ended: they are booked, and count for no other.
        """
        mine = self.trial if self.trial is not None and self.trial.plan.chain == plan.chain else None
        if mine is not None:
            foreseen = mine.cost + mine.start
            if not mine.begun:
                known = self.start_of(plan.chain)
                self.starts.setdefault(plan.chain, deque(maxlen=STARTS)).append(max(0.0, seconds - foreseen + known))
            seconds = min(seconds, CHARGED * foreseen)
            if not mine.begun:
                mine.begun, mine.advance = True, max(0.0, seconds - foreseen)
        pace = self.running.seconds_per_token
        if pace < inf:
            self.credit -= seconds - tokens * pace
            self.trials.observe(seconds - tokens * pace, 0.0)
        if mine is None:
            return
        mine.went(tokens)
        if mine.left <= 0:
            if not plan.plain and not mine.goes_on:
                self.rest(plan.chain)
                self.just_tried = plan.chain
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
        mixed: Mapping[tuple[int, ...], float],
    ) -> None:
        """Refit what runs, and go over to a chain that was better by the margin at ``STAYS`` looks in a row.

        ``plans``: the chains that are known, corrected. ``doubted``: what to plan from if drafters are worse than they
        seem. ``mixed``: seconds per token of those whose lengths follow each answer.
        """
        plain = self.corrected(plain_plan(self.top, ground))
        self.plain_pace = plain.seconds_per_token
        self.running = _mixed(self._refit(plans, ground), mixed)
        free = [_mixed(each, mixed) for each in self._free(plans)]
        best = min(free, key=lambda plan: plan.seconds_per_token, default=plain)
        gain = 1.0 - best.seconds_per_token / self.running.seconds_per_token
        if best.chain == self.running.chain or gain <= (0.0 if best.plain else margin):
            self.rival, self.rival_looks = (), 0
        else:
            self.rival_looks = self.rival_looks + 1 if best.chain == self.rival else 1
            self.rival = best.chain
            if self.trial is not None and self.trial.plan.chain == best.chain and self.trial.is_untouched:
                self.trial = None  # its worth has shown without one, as that of n-grams does
            if self._is_due(best, gain > margin, best.chain in mixed, doubted):
                self._switch(best)
            elif self.trial is None and best.chain == self.just_tried:
                self.trial = self._gone_on(best, ground)
        self.just_tried = ()
        self.foreseen = {
            self.running.chain: self.running.seconds_per_token / self._rest(self.running.chain),
            (self.top,): plain_plan(self.top, ground).seconds_per_token,
        }

    def _gone_on(self, rival: Plan, ground: Ground) -> Trial:
        """A trial that turned out well runs until the next look: what it gains pays for it."""
        law = {pair: Law([0.0] * ground.longest, law.offers) for pair, law in ground.laws.items()}
        cost = priced(rival.chain, rival.lengths, replace(ground, laws=law, reaches={})).seconds_per_token
        return Trial([(replace(rival, probe=True), cost)], EVERY, self.tokens + LONG_AGO, goes_on=True)

    def _free(self, plans: Mapping[tuple[int, ...], Plan]) -> list[Plan]:
        """Those that are under no ban."""
        return [plan for chain, plan in plans.items() if self.bans.get(chain, (0, 0))[0] <= self.tokens]

    def _is_due(self, rival: Plan, clear: bool, mixed: bool, doubted: Callable[[], Ground]) -> bool:
        """Plain decoding takes over at once where it is clearly better; a chain that has stayed better, if safe.

        One whose lengths follow each answer is: where it does not gain, it does not draft.
        """
        if rival.plain and clear:
            return True
        return self.rival_looks >= STAYS and (rival.plain or mixed or self._safe(rival, doubted()))

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
        self.guard = Guard()
        self.vain = 0
        if not plan.plain:
            self.pauses.pop(plan.chain, None)


def _mixed(plan: Plan, mixed: Mapping[tuple[int, ...], float]) -> Plan:
    """The plan with the forecast of lengths that follow each answer, where they do."""
    pace = mixed.get(plan.chain)
    return plan if pace is None else replace(plan, seconds_per_token=pace, paces=(*plan.paces[:-1], pace))
