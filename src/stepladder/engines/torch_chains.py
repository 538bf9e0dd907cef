"""Which chain an answer's next round runs with: what was set, or what the planner measured to be fastest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stepladder.decoding.batch import Took
from stepladder.decoding.beliefs import CHUNK, FEW
from stepladder.decoding.chain import (
    GIVEN,
    NGRAM,
    GivenDraft,
    Level,
    ModelDrafter,
    NgramDrafter,
    Verifier,
    WouldBe,
)
from stepladder.decoding.controller import Planner
from stepladder.decoding.course import Round
from stepladder.decoding.decode import Chain
from stepladder.decoding.deferral import Deferral
from stepladder.decoding.kinds import Own
from stepladder.decoding.planner_settings import PlannerSettings
from stepladder.decoding.planning import LONGEST, Plan
from stepladder.decoding.rounds import AllRounds, DeviceRound
from stepladder.decoding.sequence import Sequence as Answer
from stepladder.decoding.tally import Tally
from stepladder.decoding.times import StepTimes
from stepladder.decoding.verify import RULES
from stepladder.engines.torch_models import Row
from stepladder.engines.torch_settings import NGRAM as NGRAM_NAME
from stepladder.engines.torch_settings import Settings

LOGITS_MAX = 2**24
"""Numbers in the logits of one pass over climbed drafts, of all answers that may share it: 64 MB of float32."""

SOME_S = 1e-6

LOOKED_UP = 8
"""Tokens of a draft that n-grams would have made where they are not in use."""


@dataclass(slots=True)
class Shared:
    """A stage's planner, used by the thread that decodes and by those that ask for prices.

    All stages of an engine have one ``lock``, for their planners read the same step times.
    """

    planner: Planner
    lock: threading.Lock = field(default_factory=threading.Lock)
    latest: tuple[bool, int] = (True, 1)
    """Whether the last answer was greedy, and how many were at work with it: what the next is taken to be like."""
    at_work: int = 0
    """Answers of the stage that are being written."""

    def left(self) -> None:
        """One answer less is at work."""
        self.at_work -= 1


def planner_for(
    settings: Settings, row: Row, times: StepTimes, *, chunk: int = CHUNK, on_device: bool = False
) -> Planner:
    """The planner that a stage's options ask for; step times are shared by all stages, and read in chunks by all.

    ``on_device``: rounds run whole on their device, where no draft ends by confidence.
    """
    top = row.index(settings.stage.name)
    fixed: Literal["fixed", "marginal"] = "fixed" if on_device or settings.length is not None else "marginal"
    if settings.chain is None:
        asked = PlannerSettings(longest=settings.length or LONGEST, stopping=fixed)
    elif not settings.chain:
        asked = PlannerSettings(mode="off")
    else:
        chain = (*(NGRAM if name == NGRAM_NAME else row.index(name) for name in settings.chain), top)
        lengths = (settings.length,) * len(settings.chain) if settings.length else ()
        asked = PlannerSettings(mode="chain", chain=chain, lengths=lengths, stopping=fixed)
    sizes = [model.parameters for model in row.models]
    return Planner(len(row.models), asked, sizes=sizes, times=times, able=row.below[top], chunk=chunk)


class Watch(Tally):
    """Counts for one answer, handed on to the planner. The climbed draft is no drafter that could be planned with."""

    def __init__(self, shared: Shared, *, greedy: bool) -> None:
        super().__init__()
        self._shared = shared
        self._greedy = greedy
        self.own = shared.planner.own(greedy=greedy)

    def verified(self, drafter: int, target: int, asked: int, accepted: int, confidences: Sequence[float]) -> None:
        """Count it, and let the planner learn from it."""
        if drafter == GIVEN:
            return
        super().verified(drafter, target, asked, accepted, confidences)
        with self._shared.lock:
            acceptance = self._shared.planner.acceptance(greedy=self._greedy)
            acceptance.observe(drafter, target, len(confidences), accepted, confidences, asked=asked)
            self.own.observe(drafter, target, len(confidences), accepted)


@dataclass(slots=True, kw_only=True)
class Chains:
    """The chains of one answer. ``next`` gives the one for the round to come, ``ended`` is told of the one gone.

    ``contexts`` are the positions that each model has: a drafter that would run out of them is left out. ``most`` is
    how many tokens the answer may have, ``ends`` are those that end it. ``settled``: run with what was set and nothing
    that was measured, for an answer that is to be the same whenever it is asked for with its seed. ``own``: what the
    answer has shown so far. ``device`` runs rounds whole where it can, with numbers of the answer's own ``chance``;
    None: pass by pass.
    """

    top: int
    shared: Shared
    answer: Answer
    greedy: bool
    rule: str
    contexts: Sequence[int]
    vocab: int
    most: int
    timer: Callable[[], float]
    ends: frozenset[int] = frozenset()
    deferral: Deferral | None = None
    settled: bool = False
    given: Sequence[int] = ()
    own: Own | None = None
    device: AllRounds | None = None
    chance: Callable[[], float] | None = None
    plan: Plan = field(init=False)
    climbing: bool = field(init=False, default=False)
    _ngram: NgramDrafter = field(init=False)
    _would_be: WouldBe = field(init=False)
    _given: GivenDraft = field(init=False)
    _began: float = field(init=False, default=0.0)
    _rows: int = field(init=False, default=1)
    rounds: dict[tuple[int, ...], int] = field(init=False, default_factory=dict)
    """How many rounds ran with each chain; those over a climbed draft are left out."""
    _passes: list[float] = field(init=False, default_factory=lambda: [0.0, 0.0])
    """Seconds and number of the round's passes, each divided by the rows that shared it."""
    _read: list[float] = field(init=False, default_factory=lambda: [0.0, 0.0])
    """Seconds of the round in which the answering stage read a prompt, and in which drafters did."""
    _captured_s: float = field(init=False, default=0.0)
    _made: tuple[Plan | None, Chain | None] = field(init=False, default=(None, None))

    def __post_init__(self) -> None:
        self.plan = Plan((self.top,))
        self._ngram = NgramDrafter(extra=self.given)
        self._would_be = WouldBe(self._ngram, len(self.answer.tokens), LOOKED_UP)
        self._given = GivenDraft(self.given)

    @property
    def usual(self) -> tuple[int, ...]:
        """The chain that most rounds ran with, the latest of equals; that of the plan where none did."""
        latest = reversed(list(self.rounds.items()))  # a copy: who ran out of time asks from another thread
        return max(latest, key=lambda each: each[1])[0] if self.rounds else self.plan.chain

    def next(self) -> Chain:
        """The chain for the next round: a climbed draft goes first for as long as the answer agrees with it."""
        self._began, self._rows, self._captured_s = self.timer(), max(1, self.shared.at_work), 0.0
        self._passes, self._read = [0.0, 0.0], [0.0, 0.0]
        self.climbing = self._agrees()
        if self.climbing:
            length = max(16, LOGITS_MAX // max(1, self.vocab * self._rows))
            return Verifier(self.top, self._given, length=length, rule=RULES[self.rule])
        plan = self._plan()
        if not self._fits(plan):
            plan = Plan((self.top,))
        if plan != self._made[0] or (isinstance(self._made[1], DeviceRound) and self._refused(plan)):
            self._made = (plan, self._chain(plan))
        self.plan = plan
        if NGRAM in plan.chain:
            self._ngram.learn(self.answer.tokens, len(self.answer.tokens))
        chain = self._made[1]
        assert chain is not None  # noqa: S101 - made above with its plan
        return chain

    def _plan(self) -> Plan:
        if self.settled:
            return self.shared.planner.settled(self.top)
        with self.shared.lock:
            self.shared.latest = (self.greedy, self._rows)
            return self.shared.planner.plan(
                self.top,
                greedy=self.greedy,
                batch=self._rows,
                unread=self._unread(),
                remaining=self._left(),
                own=self.own if self._rows == 1 else None,
            )

    def passed(self, took: Took) -> None:
        """A pass that this answer took part in, within the round, or the whole of it."""
        if took.passes:
            self._captured_s += took.captured_s
            self._passes = self._foreseen(took)
            return
        self._passes[0] += took.seconds / took.rows
        self._passes[1] += 1 / took.rows
        if took.want and took.read - took.want <= FEW:
            return
        with self.shared.lock:
            usual = self.shared.planner.times.seconds(took.stage, max(1, took.want), took.rows) or 0.0
        self._read[took.stage != self.top] += max(0.0, took.seconds - (usual if took.want else 0.0))

    def _foreseen(self, took: Took) -> list[float]:
        """Seconds and number of the passes of a whole round, which nobody can time one by one, as they were timed."""
        with self.shared.lock:
            each = [(self.shared.planner.times.seconds(s, width, took.rows), many) for s, width, many in took.passes]
        seconds = sum((one or 0.0) * many for one, many in each)
        whole = seconds if all(one is not None for one, _ in each) else took.seconds
        return [min(whole, took.seconds) / took.rows, sum(many for _, many in each) / took.rows]

    def ended(self, tokens: int) -> None:
        """The round wrote so many tokens; the planner hears of it, but for rounds over a climbed draft."""
        if self.climbing:
            self._would_be.go_on(len(self.answer.tokens))
            return
        self.rounds[self.plan.chain] = self.rounds.get(self.plan.chain, 0) + 1
        if self.settled:
            return
        over = self._left() <= 0 or self.answer.tokens[-1] in self.ends
        passes = (self._passes[0], self._passes[1])
        seconds = max(SOME_S, self.timer() - self._began - self._captured_s)
        took = Round(tokens, seconds, passes, self._read[1], self._read[0], over, self._whole() if over else (0, 0))
        with self.shared.lock:
            self.shared.planner.observe_round(self.plan, took, greedy=self.greedy, batch=self._rows)
            self._look_up(over)

    def _whole(self) -> tuple[int, int]:
        """Tokens and rounds of the answer where one chain wrote all of it."""
        if self.given or len(self.rounds) != 1:
            return 0, 0
        return len(self.answer.tokens) - self.answer.prompt, sum(self.rounds.values())

    def _look_up(self, over: bool) -> None:
        """Tell the planner what n-grams would have drafted where they were not asked, but may be."""
        settings, tokens = self.shared.planner.settings, self.answer.tokens
        if settings.mode != "auto" or not settings.ngram:
            return
        if NGRAM in self.plan.chain:
            self._would_be.go_on(len(tokens))
            return
        acceptance = self.shared.planner.acceptance(greedy=self.greedy)
        for drafted, accepted in self._would_be.judged(tokens, over=over):
            acceptance.observe(NGRAM, self.top, drafted, accepted, asked=LOOKED_UP)

    def saved(self, prompt: int, drafted: int, kept: int) -> float:
        """Seconds that a climbed draft saved: writing those kept, less reading all of them; 0 where that is a loss."""
        with self.shared.lock:
            planner = self.shared.planner
            pace = planner.seconds_per_token(self.top, greedy=self.greedy)
            more = planner.reading(self.top, prompt + drafted) - planner.reading(self.top, prompt)
        return 0.0 if pace is None else max(0.0, kept * pace - more)

    def _agrees(self) -> bool:
        """True while all that is written stands in the climbed draft, and more of it is left."""
        written = self.answer.tokens[self.answer.prompt :]
        return len(written) < len(self.given) and written == list(self.given[: len(written)])

    def _left(self) -> int:
        return self.most - (len(self.answer.tokens) - self.answer.prompt)

    def _unread(self) -> dict[int, int]:
        length = len(self.answer.tokens)
        return {stage: length - self.answer.read.get(stage, 0) for stage in range(self.top)}

    def _fits(self, plan: Plan) -> bool:
        """True where every drafter has room for what is written, what it may draft and the token behind."""
        need = len(self.answer.tokens) + sum(plan.asks) + 1
        return all(stage == NGRAM or self.contexts[stage] >= need for stage in plan.chain[:-1])

    def _refused(self, plan: Plan) -> str | None:
        """Why rounds of a plan are not run whole on their device; None where they are."""
        if self.device is None or self.chance is None:
            return "rounds are not asked for"
        if self.rule != "rejection" or self.deferral is not None:
            return "rounds verify by rejection alone"
        return self.device.why_not(plan.chain)

    def _chain(self, plan: Plan) -> Chain:
        if self.chance is not None and self._refused(plan) is None:
            return DeviceRound(
                plan.chain,
                plan.lengths,
                context=self.contexts[self.top],
                chance=self.chance,
                look_up=self._ngram.found,
            )
        level: Level | None = None
        if not plan.plain:
            with self.shared.lock:
                stopping = self.shared.planner.stopping(plan, greedy=self.greedy, batch=self._rows)
            bottom = plan.chain[0]
            level = self._ngram if bottom == NGRAM else ModelDrafter(bottom, stopping)
        for place, stage in enumerate(plan.chain[1:] or plan.chain):
            length = plan.asks[place] if level is not None else 0
            deferral = self.deferral if stage == self.top else None
            level = Verifier(stage, level, length=length, rule=RULES[self.rule], deferral=deferral)
        assert isinstance(level, Verifier)  # noqa: S101 - a plan has at least the answering stage
        return level
