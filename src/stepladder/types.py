"""The words of Stepladder: every value that passes between parts. Frozen (but for ``Delta``), standard library only.

Units: seconds for time, tokens for text, the ladder's ``cost_unit`` for money, quality in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

CostUnit = Literal["relative", "usd", "gpu_s"]
Mode = Literal["route", "cascade", "fixed"]
Endpoint = Literal["chat", "completion"]
StreamMode = Literal["final", "hold-back", "restart"]
Capability = Literal["stream", "logprobs", "tools", "images", "json", "score", "prompts"]
FaultKind = Literal[
    "timeout",
    "connect",
    "rate_limit",
    "bad_request",
    "context",
    "auth",
    "server",
    "protocol",
    "crash",
    "cancelled",
    "unavailable",
]
AbsenceKind = Literal["full", "rate_limit", "breaker"]
BreakerState = Literal["closed", "open", "half_open", "off"]

EMPTY: Mapping[str, Any] = MappingProxyType({})
V = TypeVar("V")


def changed(value: V, **changes: Any) -> V:
    """The value with other fields: what ``dataclasses.replace`` does, for the values of this module and cheaper.

    Not for a class that works out some of its fields itself (``Ladder``).
    """
    kind: Any = type(value)
    fields = [changes[name] if name in changes else getattr(value, name) for name in kind.__slots__]
    made: V = kind(*fields)
    return made


# ── the ladder ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of the ladder.

    ``context`` is in tokens (None: unknown), ``gpus`` is how many the model occupies. ``cost`` is a hand-set price
    of one call in the ladder's unit; ``price_in`` and ``price_out`` are in usd for a million tokens. ``options`` are
    the engine's own settings (base_url, threads, timeouts …), which only that engine reads.
    """

    name: str
    engine: str
    model: str
    context: int | None = None
    gpus: float = 1.0
    cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    max_concurrency: int | None = None
    capabilities: frozenset[Capability] = frozenset({"stream"})
    options: Mapping[str, Any] = field(default_factory=lambda: EMPTY, repr=False)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Stages from cheapest to dearest, and the unit that their costs are counted in."""

    name: str
    stages: tuple[Stage, ...]
    cost_unit: CostUnit = "relative"

    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Stage names, cheapest first."""
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(stage.name for stage in self.stages)
        object.__setattr__(self, "names", names)  # asked for many times a request
        object.__setattr__(self, "_places", {name: place for place, name in reversed(tuple(enumerate(names)))})

    def index(self, name: str) -> int:
        """Position of a stage; raises KeyError for a name that is not on this ladder."""
        return self._places[name]

    def __getitem__(self, name: str) -> Stage:
        return self.stages[self._places[name]]


# ── the request ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Dials:
    """What one caller asks of the climb; None leaves the ladder's own setting.

    ``stream_mode`` says what a caller who streams sees of answers that may yet be dropped (``router.Router.stream``):
    nothing (`final`), nothing of their first ``hold_back`` tokens (`hold-back`), or all (`restart`). ``report`` asks
    for what was spent at the end of a stream. ``session`` names the conversation that this request goes on with, by a
    name of the caller's.
    """

    lam: float | None = None
    mode: Mode | None = None
    min_stage: str | None = None
    max_stage: str | None = None
    max_cost: float | None = None
    explain: bool = False
    stream_mode: StreamMode | None = None
    hold_back: int | None = None
    report: bool = False
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One question. ``messages`` and ``params`` are OpenAI wire values, kept as they came so that nothing is lost.

    ``caller`` is the name of whoever asks, where somebody checked it; ``only`` are the stages that the caller may use
    (None: all).
    """

    id: str
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    params: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    dials: Dials = Dials()
    needs: frozenset[Capability] = frozenset()
    caller: str | None = None
    only: tuple[str, ...] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Which of the two OpenAI shapes this is."""
        return "chat" if self.prompt is None else "completion"

    @property
    def text(self) -> str:
        """The question that features read: the last user message, or the raw prompt."""
        if self.prompt is not None:
            return self.prompt
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return message_text(message)
        return message_text(self.messages[-1]) if self.messages else ""

    @property
    def chars(self) -> int:
        """Characters that the model will read: all messages, or the raw prompt."""
        if self.prompt is not None:
            return len(self.prompt)
        chars = 0
        for message in self.messages:
            content = message.get("content")
            chars += len(content if isinstance(content, str) else message_text(message))
        return chars


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one wire message; text parts are joined by newlines, other parts are left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(part for part in parts if isinstance(part, str))


# ── predicting ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Features:
    """What a predictor may look at: named numbers, the text itself, and the attempts made so far.

    ``memo`` goes with one request from decision to decision: a predictor keeps there, under itself as the key, what it
    read out of the text, which answers do not change. Whoever copies features to another text leaves it behind.
    """

    values: Mapping[str, float]
    text: str
    attempts: tuple[Attempt, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected quality of one stage's answer in [0, 1], with the standard deviation of its outcome.

    ``told`` is how far this stage's own answer will move the estimate against those of the other stages, as a standard
    deviation: 0 where answers tell nothing, or the same of every stage, and never above ``sd``. It is what makes an
    answer worth looking at before one decides.
    """

    mean: float
    sd: float = 0.0
    told: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimates:
    """One estimate per stage. ``calibrated`` is False where no measured outcome stands behind the numbers."""

    stages: Mapping[str, Estimate]
    calibrated: bool = False
    notes: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    def __getitem__(self, stage: str) -> Estimate:
        return self.stages[stage]


# ── paying ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step is expected to cost, in parts. Only ``resource`` is ever billed.

    ``resource``, ``latency``, ``congestion`` and ``switch`` are in the ladder's cost unit; ``seconds`` is the expected
    time, of which ``latency`` is the price. ``switch`` is the price of leaving the stage that a conversation is at.
    """

    resource: float
    seconds: float = 0.0
    latency: float = 0.0
    congestion: float = 0.0
    switch: float = 0.0

    @property
    def total(self) -> float:
        """What the objective sees."""
        return self.resource + self.latency + self.congestion + self.switch


@dataclass(frozen=True, slots=True)
class EngineCost:
    """An engine's own forecast for one call: wall-clock ``seconds`` and ``device_s``, device-seconds occupied."""

    seconds: float
    device_s: float


# ── answering ────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as the engine counted them."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt failed. ``status`` is the HTTP status where there was one; ``retry_after`` is in seconds."""

    kind: FaultKind
    message: str
    status: int | None = None
    retry_after: float | None = None


NGRAM: Final = "ngram"
"""The drafter that is no stage: it proposes what followed the same tokens earlier in the text."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """What one drafter proposed to the stage above it within an attempt, in tokens.

    ``drafter`` is a stage's name or NGRAM, ``target`` the stage that verified. ``accepted`` is how many of ``drafted``
    the target took over; the token that it adds itself after each verification is in neither.
    """

    drafter: str
    target: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an attempt's tokens came to be where its stage did not write each of them in a pass of its own.

    ``chain`` is what drafted in most rounds, bottom first, and the answering stage last: one name is plain decoding.
    ``passes`` are forward passes by stage. ``climbed`` are the tokens of a lower stage's answer that was read as a
    draft, ``kept`` those of them that stand in the answer, ``saved_s`` the seconds of decoding that these saved, by
    the engine's estimate. ``moved`` is None where the text is drawn from the stage's own law; where token-level
    deferral let another law in, it is the mean total variation, in [0, 1], between the two over the answer's tokens.
    """

    chain: tuple[str, ...] = ()
    pairs: tuple[Drafting, ...] = ()
    passes: Mapping[str, int] = field(default_factory=lambda: EMPTY, hash=False)
    climbed: int = 0
    kept: int = 0
    saved_s: float = 0.0
    moved: float | None = None

    @property
    def drafted(self) -> int:
        """Tokens that were proposed, over all pairs; those of a lower answer are not among them."""
        return sum(pair.drafted for pair in self.pairs)

    @property
    def accepted(self) -> int:
        """Tokens that were proposed and taken over, over all pairs."""
        return sum(pair.accepted for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One stage's try, successful or not.

    ``raw`` is the engine's whole reply in OpenAI's shape where it has one, so that a gateway loses nothing;
    ``logprobs`` are the chosen tokens' natural-log probabilities. ``cost`` is what is billed for it. ``speculation``
    is None where the engine does not speculate or does not tell. ``tries`` is how often its server was asked: above 1
    where it was asked again after it had refused without a byte of an answer.
    """

    stage: str
    text: str = ""
    usage: Usage = Usage()
    seconds: float = 0.0
    first_token_s: float | None = None
    finish_reason: str | None = None
    logprobs: tuple[float, ...] | None = None
    cost: float = 0.0
    fault: Fault | None = None
    raw: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    speculation: Speculation | None = None
    tries: int = 1

    @property
    def is_answer(self) -> bool:
        """True where the stage answered, False where it failed."""
        return self.fault is None


@dataclass(slots=True)  # unfrozen: one is made for every token, and freezing takes four times as long as the rest of it
class Delta:
    """A piece of an attempt on its way: its text, and the wire chunk it came in where there was one. Not to be changed.

    ``data`` are the chunk's bytes where they say just what ``raw`` says, so that it need not be written anew;
    ``logprobs`` the natural-log probabilities of its tokens where they are told. ``more`` says that the next piece is
    already here, so that both may be sent on together.

    ``parts`` are several pieces of plain text that came at once, where this stands for all of them: then ``text`` is
    all of theirs, ``raw`` the last one's, and ``data`` their bytes as a stream of events has them, from the first one's
    to the last one's.
    """

    text: str
    raw: Mapping[str, Any] | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False, compare=False)
    logprobs: tuple[float, ...] = ()
    more: bool = field(default=False, compare=False)
    parts: tuple[Delta, ...] = field(default=(), repr=False, compare=False)

    @property
    def pieces(self) -> tuple[Delta, ...]:
        """One by one, as they came."""
        return self.parts or (self,)


EngineEvent = Delta | Attempt
"""What ``Engine.generate`` yields: any number of ``Delta``, then exactly one ``Attempt``."""


def draft_below(stage: str, order: Sequence[str], attempts: Iterable[Attempt], estimates: Estimates) -> Attempt | None:
    """The answer that ``stage`` is handed as a draft: of those from below it, the one expected to be best.

    ``order`` are stages, cheapest first, ``stage`` among them; answers of stages that it does not name, faults and
    empty texts are no drafts. Best is the highest current posterior mean, the earliest of equals. Policies and prices
    both ask here, so that a climb is priced with the draft that it will get.
    """
    below = order[: order.index(stage)]
    lower = [made for made in attempts if made.is_answer and made.text and made.stage in below]
    return max(lower, key=lambda made: estimates[made.stage].mean, default=None)


# ── being there ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a stage cannot take a call now, and in how many seconds it may be tried again (an estimate, from 0 up).

    ``full``: as many calls wait for it as may; ``rate_limit``: its server asked to be left alone until then;
    ``breaker``: it failed so often that it is left in peace for a while.
    """

    kind: AbsenceKind
    message: str
    retry_after: float


def absence_fault(absent: Mapping[str, Absence]) -> Fault:
    """The fault of a request that none of these stages can take now; at least one is given.

    Where all of them failed too often it is `unavailable` (503), else there is too much to do, `rate_limit` (429).
    Either way the caller is told the soonest that any of them may be tried.
    """
    kind: FaultKind = "unavailable" if all(each.kind == "breaker" for each in absent.values()) else "rate_limit"
    told = "; ".join(f"stage '{name}' {each.message}" for name, each in absent.items())
    head = "" if len(absent) == 1 else "no allowed stage can take a call now: "
    return Fault(kind, f"{head}{told}", retry_after=min(each.retry_after for each in absent.values()))


@dataclass(frozen=True, slots=True)
class Fallback:
    """What is done where no decision could be made: ``stage`` is called first, since ``reason``."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class StageState:
    """How one stage stands at this moment, and what has happened to it since the start.

    ``in_flight`` calls are at work; beyond ``places`` (None: not known) further ones are ``waiting``. ``calls`` counts
    those begun, ``failures`` the attempts that spoke against the stage's health, ``opened`` how often its breaker
    opened, ``retries`` how often its server was asked again, ``left_out`` by reason the decisions and calls that it was
    left out of. ``absence`` is None while it can take a call.
    """

    stage: str
    breaker: BreakerState
    absence: Absence | None
    places: int | None
    in_flight: int
    waiting: int
    calls: int
    failures: int
    opened: int
    retries: int
    left_out: Mapping[AbsenceKind, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The router's counters at this moment.

    ``failed_open`` counts, by what failed ("predictor: ValueError"), decisions that were made without it.
    ``conversations`` are remembered; ``stayed`` and ``switched`` of their follow-ups were answered by the stage that
    had answered before, or by another.
    """

    stages: tuple[StageState, ...] = ()
    failed_open: Mapping[str, int] = field(default_factory=lambda: EMPTY)
    conversations: int = 0
    stayed: int = 0
    switched: int = 0


# ── deciding ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Call:
    """Ask a stage. ``final`` promises to keep whatever it answers, so that it may be streamed as it comes."""

    stage: str
    final: bool = False
    draft: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Keep this attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up, with the reason that the caller will read."""

    fault: Fault


Action = Call | Stop | Fail


@dataclass(frozen=True, slots=True)
class View:
    """All that a policy may know at one step.

    ``stages`` are the allowed ones that can take a call now, cheapest first; ``absent`` are allowed ones that cannot;
    ``costs`` are the expected marginal costs from here; ``spent`` is what was billed so far. ``coin`` in [0, 1) is
    drawn from (seed, request id, step), ``lot`` from (seed, request id): the same at every step of a request.
    ``fallback`` is set where estimates or costs could not be had and stand for nothing: then the policy is not asked.
    """

    stages: tuple[str, ...]
    lam: float
    estimates: Estimates
    costs: Mapping[str, Cost]
    attempts: tuple[Attempt, ...] = ()
    spent: float = 0.0
    coin: float = 0.0
    lot: float = 0.0
    absent: Mapping[str, Absence] = field(default_factory=lambda: EMPTY)
    fallback: Fallback | None = None

    def value(self, stage: str) -> float:
        """V = λ·Q − C of calling this stage now (DESIGN §1)."""
        return self.lam * self.estimates[stage].mean - self.costs[stage].total


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy chose, how likely it was to choose it, and what each candidate was worth."""

    action: Action
    propensity: float = 1.0
    values: Mapping[str, float] = field(default_factory=lambda: EMPTY)
    reason: str = ""


# ── remembering ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Versions:
    """What was in force: enough to say later why a decision came out as it did."""

    code: str = ""
    config: str = ""
    artifact: str = ""
    prices: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the loop: what was known, what was decided, what came of it.

    ``partial`` is an answer that was looked at before it was whole (a stream held back): the last of the view's
    attempts then, without a fault and without a finish reason, and none of the trace's.
    """

    view: View
    decision: Decision
    decide_s: float = 0.0
    attempt: Attempt | None = None
    partial: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that happened to one request; enough to replay it without a model.

    ``created_at`` is seconds since the Unix epoch; ``answer_index`` points into the attempts, None where all failed.
    ``first_token_s`` is when the caller, not the router, saw the first piece of an answer: seconds from the start, None
    where nothing was streamed to it. ``private`` says what was put in the place of every text before it was stored: a
    keyed hash, or nothing but a mark. The numbers are as they were.
    """

    id: str
    created_at: float
    request: Request
    ladder: str
    stages: tuple[str, ...]
    policy: str
    mode: Mode
    cost_unit: CostUnit
    versions: Versions
    steps: tuple[Step, ...] = ()
    answer_index: int | None = None
    fault: Fault | None = None
    seconds: float = 0.0
    first_token_s: float | None = None
    private: Literal["hash", "omit"] | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts in the order they were made."""
        return tuple(step.attempt for step in self.steps if step.attempt is not None)

    @property
    def cost(self) -> float:
        """Everything billed for this request, in the ladder's cost unit."""
        return sum(attempt.cost for attempt in self.attempts)

    @property
    def decide_s(self) -> float:
        """Time spent deciding, in seconds, over all steps."""
        return sum(step.decide_s for step in self.steps)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the router returns: the attempt that was kept, and the trace of how it came to be."""

    attempt: Attempt
    trace: Trace

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.attempt.text

    @property
    def stage(self) -> str:
        """The stage that wrote it."""
        return self.attempt.stage

    @property
    def cost(self) -> float:
        """Everything billed for the request, not only for this answer."""
        return self.trace.cost


@dataclass(frozen=True, slots=True)
class Decided:
    """The router took a decision; comes before what it leads to."""

    trace_id: str
    step: Step


RouterEvent = Decided | Delta | Attempt | Answer
"""What ``router.stream`` yields: Decided, Delta, Attempt, and so on; at the end one Answer.

Deltas are the caller's to show: those of a final call, and of others as ``Dials.stream_mode`` allows.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Measured quality of an attempt in [0, 1]: a grader's, a judge's or a user's.

    A source may tell several of one decision, each under a ``key`` of its own, which stand as they came. Without a key
    there is one for each ``stage`` that it names (None: the answer that was kept), and a later one replaces it.
    """

    decision_id: str
    score: float
    source: str
    stage: str | None = None
    comment: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A trace as a store holds it: ``seq`` rises in the order in which they were written, and none is given twice."""

    seq: int
    trace: Trace


Change = Literal["added", "same", "replaced", "conflict"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an outcome that was handed to a store.

    ``change`` is "same" where exactly this outcome was kept before, and "conflict" where another one was and stays.
    ``found`` says whether the store holds the trace of its decision.
    """

    change: Change
    found: bool


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What a trace store did since it was opened, and what waits now.

    ``shed`` are traces that were dropped for want of room or could not be written, ``pruned`` those that were old
    enough to go. Feedback is accepted (it is on disk), refused (it contradicts what was kept under its key), or failed.
    """

    appended: int = 0
    written: int = 0
    shed: int = 0
    pruned: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    feedback_accepted: int = 0
    feedback_refused: int = 0
    feedback_failed: int = 0
    feedback_waiting: int = 0
