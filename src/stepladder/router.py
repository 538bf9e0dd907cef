"""The loop. Read this first.

    Request ─► features ─► predictor ─► policy ──Call(stage)──► engine ─► Attempt ─┐
                 ▲                        │                                        │
                 └──────── history ◄──────┼────────────────────────────────────────┘
                                          └──Stop(attempt)──► Answer + Trace ─► store

The router sees contracts and types and no concrete part. It decides nothing: it asks the policy, does what the policy
said, shows it what came of it, and writes all of that down.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from stepladder.contracts import (
    LOGPROBS,
    Conversation,
    Conversations,
    CostModel,
    Engine,
    Entry,
    Featurizer,
    Guard,
    Policy,
    Predictor,
    TraceStore,
)
from stepladder.errors import AnswerError, NoStageError, RequestError, nearest
from stepladder.held import HOLD_BACK, Held, is_preamble
from stepladder.tokens import usage_of
from stepladder.types import (
    EMPTY,
    Absence,
    Action,
    Answer,
    Attempt,
    Call,
    Cost,
    Decided,
    Decision,
    Delta,
    EngineEvent,
    Estimate,
    Estimates,
    Fail,
    Fallback,
    Fault,
    Features,
    Ladder,
    Mode,
    Request,
    RouterEvent,
    Snapshot,
    Stage,
    StageState,
    Step,
    Stop,
    Trace,
    Versions,
    View,
    absence_fault,
    changed,
    draft_below,
    message_text,
)

LOG = logging.getLogger("stepladder.router")

STEPS_PER_STAGE = 4
LOT = -1
"""The step that a request's lot is drawn for: none of its real ones."""

REFUSALS = 3
"""Refusals of log probabilities in a row that are taken for good."""

KNOWS_NOTHING = Estimate(0.5, 0.5)
"""Any quality from 0 to 1, and no answer would tell."""

CHARS_PER_TOKEN_MAX = 16
"""No tokenizer in use packs ordinary text denser than this, so chars / 16 is a safe lower bound on tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a router is made of; ``build.py`` chooses them, tests hand in fakes.

    ``engines`` maps stage names to engines, ``policies`` maps modes to policies; ``pinned`` serves a request in mode
    `fixed` that leaves one stage, whatever policy that mode has. ``clock`` gives seconds since the
    epoch, ``timer`` monotonic seconds; ``new_id`` names a decision; ``seed`` feeds the coin.

    ``guard`` says who can take a call now (None: everyone always). ``conversations`` are remembered so that leaving a
    stage costs ``switch_cost`` more, in the ladder's cost unit. ``fallback`` is called first where no decision could be
    made (None: the dearest that may be).
    """

    ladder: Ladder
    engines: Mapping[str, Engine]
    featurizer: Featurizer
    predictor: Predictor
    costs: CostModel
    policies: Mapping[Mode, Policy]
    pinned: Policy | None = None
    store: TraceStore
    guard: Guard | None = None
    conversations: Conversations | None = None
    switch_cost: float = 0.0
    fallback: str | None = None
    lam: float
    mode: Mode = "route"
    seed: int = 0
    versions: Versions = field(default_factory=Versions)
    clock: Callable[[], float] = time.time
    timer: Callable[[], float] = time.perf_counter
    new_id: Callable[[], str] = lambda: decision_id(time.time_ns(), os.urandom(10))


@dataclass(slots=True)
class Climb:
    """The state of one request on its way; only the router touches it."""

    id: str
    request: Request
    lam: float
    mode: Mode
    created_at: float
    started: float
    stages: tuple[str, ...] = ()
    policy: Policy | None = None
    conversation: Conversation | None = None
    lot: float = 0.0
    memo: dict[Any, Any] = field(default_factory=dict)
    """What predictors read out of the text, for the request's next decision (``Features.memo``)."""
    steps: list[Step] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    kept: Attempt | None = None
    fault: Fault | None = None
    ahead: Step | None = None
    """A step that was decided before the call under way was over, and is taken next."""
    held: dict[int, Held] = field(default_factory=dict)
    """The pieces of the attempts that could still be dropped when they came, by their number."""
    shown: int | None = None
    """The attempt that the caller has seen whole and last."""
    first_token_s: float | None = None


class Router:
    """Answers requests by climbing a ladder. Safe for any number of requests at once on one event loop."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._refusals: dict[str, int] = {}
        """How often in a row each stage refused to tell log probabilities and answered without them."""
        self._watchers: list[Callable[[Trace], None]] = []
        self._guard: Guard = parts.guard or Unguarded()
        self._failed_open: dict[str, int] = {}

    async def start(self) -> None:
        """Start every engine. The first that cannot raises EngineError or ModelFileError, and none stays started."""
        async with AsyncExitStack() as started:
            for engine in self.engines():
                await engine.start()
                started.push_async_callback(engine.close)
            started.pop_all()

    async def close(self) -> None:
        """Close engines and store, all of them even where one raises; safe to call twice."""
        async with AsyncExitStack() as closing:
            closing.callback(self.parts.store.close)
            for engine in self.engines():
                closing.push_async_callback(engine.close)

    def watch(self, watcher: Callable[[Trace], None]) -> None:
        """Tell ``watcher`` of each trace as it is stored, before the answer goes out. It is quick, and never raises."""
        self._watchers.append(watcher)

    def snapshot(self) -> Snapshot:
        """How every stage stands now, and what was counted since the start; cheap enough to ask at any time."""
        known = self.parts.conversations
        told = (0, 0, 0) if known is None else (len(known), known.stayed, known.switched)
        return Snapshot(self._guard.states(), dict(self._failed_open), *told)

    async def answer(self, request: Request) -> Answer:
        """The fold of ``stream``: the last event. Raises RequestError or AnswerError."""
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise AssertionError("stream() ends with an Answer or raises")

    async def stream(self, request: Request) -> AsyncGenerator[RouterEvent, None]:
        """Decide, call, look, decide again, until the policy stops.

        The pieces of a final call are yielded as they come. Of one that may yet be dropped, where the caller streams,
        the dial ``stream_mode`` says what is: nothing, the answer being asked for in one piece (`final`); nothing until
        the policy has seen its first tokens and keeps it (`hold-back`); or all, and those of the next answer after them
        (`restart`). Pieces that were kept back of an answer that is kept come before the ``Answer``.

        Raises RequestError before anything was called, AnswerError where every way failed. The trace is written
        however this ends, also when the caller closes the iterator midway.
        """
        climb = self._begin(request)
        try:
            self._admit(climb)
            while True:
                step, climb.ahead = climb.ahead or self._decide(climb), None
                climb.steps.append(step)
                yield Decided(climb.id, step)
                match step.decision.action:
                    case Call() as call:
                        async with aclosing(self._call(climb, call)) as events:
                            async for event in events:
                                self._note_first(climb, event)
                                yield event
                    case Stop(attempt):
                        for event in self._unshown(climb, attempt):
                            self._note_first(climb, event)
                            yield event
                        climb.kept = attempt
                        break
                    case Fail(fault):
                        climb.fault = fault
                        break
        except BaseException as error:  # re-raised: whatever happened, it must leave a trace
            climb.fault = _fault_of(error)
            raise
        finally:
            trace = self._finish(climb)
            self._store(trace)
        if climb.kept is None:
            raise AnswerError(climb.fault or Fault("server", "no answer"), trace)
        if climb.conversation is not None:
            climb.conversation.answered(climb.kept)
        yield Answer(climb.kept, trace)

    def decide(self, request: Request) -> Trace:
        """The first decision alone: nothing is called and nothing is stored. Raises RequestError."""
        climb = self._begin(request)
        self._admit(climb)
        climb.steps.append(self._decide(climb))
        return self._finish(climb)

    def policy_for(self, mode: Mode, stages: Sequence[str]) -> Policy:
        """The policy that decides in this mode where these stages are allowed. Raises RequestError."""
        if mode == "fixed" and len(stages) == 1 and self.parts.pinned is not None:
            return self.parts.pinned
        try:
            return self.parts.policies[mode]
        except KeyError:
            offered = ", ".join(self.parts.policies)
            raise RequestError(f"mode '{mode}' is not offered by this ladder; valid: {offered}", param="mode") from None

    # ── the turns of the loop ────────────────────────────────────────────────

    def _begin(self, request: Request) -> Climb:
        parts, dials = self.parts, request.dials
        if dials.lam is not None and not 0 <= dials.lam < math.inf:
            raise RequestError(f"lambda: should be a number from 0 up, not {dials.lam}", param="lambda")
        return Climb(
            id=parts.new_id(),
            request=request,
            lam=parts.lam if dials.lam is None else dials.lam,
            mode=dials.mode or parts.mode,
            created_at=parts.clock(),
            started=parts.timer(),
            lot=coin(parts.seed, request.id, LOT),
        )

    def _admit(self, climb: Climb) -> None:
        """Find who may answer; raises RequestError where nobody may, or where there is nothing to answer."""
        if is_blank(climb.request):
            param = "messages" if climb.request.prompt is None else "prompt"
            raise RequestError(f"{param}: the prompt is empty; ask something", param=param)
        climb.stages = self._allowed(climb.request)
        climb.policy = self.policy_for(climb.mode, climb.stages)
        if self.parts.conversations is not None and self.parts.switch_cost > 0:
            climb.conversation = self.parts.conversations.open(climb.request)

    def _decide(self, climb: Climb, held: Held | None = None) -> Step:
        """The next decision; with ``held`` the one on an answer that is not whole yet.

        To stop at that is to wait for the rest, and to keep it.
        """
        started = self.parts.timer()
        partial = None if held is None else self._billed(self.parts.ladder[held.stage], held.partial())
        view = self._view(climb, *(() if partial is None else (partial,)))
        last = climb.steps[-1].decision.action if climb.steps else None
        assert climb.policy is not None  # noqa: S101 - _admit has set it
        decision = next_decision(climb.policy, view, last, step=len(climb.steps))
        return Step(view, decision, self.parts.timer() - started, partial=partial)

    def _view(self, climb: Climb, *partial: Attempt) -> View:
        parts, history = self.parts, (*climb.attempts, *partial)
        estimates, unsure = self._estimates(climb, history)
        costs, unpriced = self._costs(climb.request, history, estimates)
        spent = sum(attempt.cost for attempt in history)
        budget = climb.request.dials.max_cost
        stages = self._roomier(climb.stages, history)
        if budget is not None:
            stages = tuple(name for name in stages if spent + costs[name].resource <= budget)
            if not stages and not history:
                raise NoStageError(_over_budget(budget, {name: costs[name].resource for name in climb.stages}))
        absent = self._absent(climb, stages)
        stages = tuple(name for name in stages if name not in absent) if absent else stages
        failed = unsure or unpriced
        return View(
            stages=stages,
            lam=climb.lam,
            estimates=estimates,
            costs=self._with_switch(costs, stages, climb),
            attempts=history,
            spent=spent,
            coin=coin(parts.seed, climb.request.id, len(climb.steps)),
            lot=climb.lot,
            absent=absent,
            fallback=self._fallback(stages, failed, careful=bool(unpriced) and budget is not None) if failed else None,
        )

    def _absent(self, climb: Climb, stages: tuple[str, ...]) -> Mapping[str, Absence]:
        """Who cannot take a call now. One that could not before an answer came stays out after it.

        A call is final where nothing else could be called, and what it answers is on its way to the caller: a stage
        that is back in the meantime must not make a climb of it.
        """
        absent = self._guard.absent(stages)
        if climb.steps and climb.steps[-1].view.absent and any(attempt.is_answer for attempt in climb.attempts):
            return {**climb.steps[-1].view.absent, **absent}
        return absent

    def _with_switch(self, costs: Mapping[str, Cost], stages: tuple[str, ...], climb: Climb) -> Mapping[str, Cost]:
        home, price = None if climb.conversation is None else climb.conversation.home, self.parts.switch_cost
        if home not in stages:
            return costs
        return {name: cost if name == home else changed(cost, switch=price) for name, cost in costs.items()}

    # ── where a part fails, the request does not ─────────────────────────────

    def _estimates(self, climb: Climb, history: tuple[Attempt, ...]) -> tuple[Estimates, str]:
        """The predictor's estimates; where it or the featurizer fails, those of one that knows nothing, and why."""
        part, names = "features", self.parts.ladder.names
        try:
            found = self.parts.featurizer.features(climb.request, history)
            part = "predictor"
            estimates = self.parts.predictor.predict(Features(found.values, found.text, found.attempts, climb.memo))
            if not math.isfinite(sum([estimates[name].mean for name in names])):
                raise ValueError("an estimate is no finite number")
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - parts are anybody's code, and requests must outlive their faults
            kind = self._note_failure(part, error)
            return Estimates(dict.fromkeys(names, KNOWS_NOTHING), notes={"failed": kind}), kind
        return estimates, ""

    def _costs(
        self, request: Request, history: tuple[Attempt, ...], estimates: Estimates
    ) -> tuple[Mapping[str, Cost], str]:
        """What every stage costs from here; where the cost model fails nothing is known to cost anything, and why."""
        ladder = self.parts.ladder
        names = ladder.names
        try:
            drafts = {name: draft_below(name, names, history, estimates) for name in names} if history else EMPTY
            expected = self.parts.costs.expected
            priced = {s.name: expected(s, request, history, drafts.get(s.name)) for s in ladder.stages}
            if not math.isfinite(sum([cost.total for cost in priced.values()])):
                raise ValueError("a cost is no finite number")
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - as in _estimates
            return dict.fromkeys(names, Cost(0.0)), self._note_failure("costs", error)
        return priced, ""

    def _fallback(self, stages: tuple[str, ...], reason: str, *, careful: bool) -> Fallback:
        """Who is called where nothing can be decided; the cheapest where a bound on costs cannot be kept otherwise."""
        if careful and stages:
            return Fallback(stages[0], reason)
        chosen = self.parts.fallback
        return Fallback(chosen if chosen in stages else next(reversed(stages), self.parts.ladder.names[-1]), reason)

    def _note_failure(self, part: str, error: Exception) -> str:
        """Count it, and log it where it is the first of its kind."""
        kind = f"{part}: {type(error).__name__}"
        self._failed_open[kind] = self._failed_open.get(kind, 0) + 1
        if self._failed_open[kind] == 1:
            LOG.error("the part '%s' failed, and requests are decided without it", part, exc_info=error)
        return kind

    async def _call(self, climb: Climb, call: Call) -> AsyncGenerator[Decided | Delta | Attempt, None]:
        stage = self.parts.ladder[call.stage]
        held, at = self._held(climb, call), len(climb.steps) - 1
        streamed = call.final or held is not None
        request = with_lam(climb.request if streamed else without_stream(climb.request), climb.lam)
        asks = not call.final and self._reads_logprobs(request, stage)
        events = self._telling(request, stage, call.draft) if asks else self._generate(request, stage, call.draft)
        entry = self._guard.enter(stage.name)
        if isinstance(entry, Absence):  # it was still there when the policy chose it
            yield self._book(climb, stage, Attempt(stage.name, fault=absence_fault({stage.name: entry})))
            return
        began, pieces, made = self.parts.timer(), list[str](), None
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Attempt):
                        made = event
                        break
                    if not pieces:
                        entry.heard()
                    pieces += [piece.text for piece in event.pieces]
                    if call.final:
                        yield event
                        continue
                    for each in self._shown(climb, held, event):
                        yield each
                    if climb.ahead is not None:
                        break
            made = (
                made
                or _dropped(held, climb.ahead)
                or Attempt(stage.name, fault=Fault("protocol", f"stage '{stage.name}': no attempt was made"))
            )
        except (GeneratorExit, asyncio.CancelledError):
            made = made or cut_short(request, stage.name, pieces, self.parts.timer() - began)
            raise
        finally:
            entry.leave(made)
            if made is not None:
                made = self._book(climb, stage, made, at)
        self._keep(climb, held, made)
        yield made

    # ── what the caller sees of answers that may yet be dropped ──────────────

    def _held(self, climb: Climb, call: Call) -> Held | None:
        """Where this call's pieces are kept; None where they are not: it is final, or asked for in one piece."""
        request, mode = climb.request, climb.request.dials.stream_mode or "final"
        climb.shown = None
        if call.final or mode == "final" or not request.params.get("stream"):
            return None
        limit = (request.dials.hold_back or HOLD_BACK) if mode == "hold-back" else None
        return Held(request, call.stage, limit, self.parts.timer, is_open=mode == "restart")

    def _shown(self, climb: Climb, held: Held | None, delta: Delta) -> Iterable[Decided | Delta]:
        """What these pieces let out; each is looked at, also where they came at once."""
        found: list[Decided | Delta] = []
        if held is None:
            return found
        for piece in delta.pieces:
            found += self._let_out(climb, held, piece)
            if climb.ahead is not None:
                break
        return found

    def _let_out(self, climb: Climb, held: Held, delta: Delta) -> Iterable[Decided | Delta]:
        """What this piece lets out: itself, nothing, or, where the policy now keeps the answer, all up to it.

        Where the policy goes on without it, that step is the next.
        """
        held.take(delta)
        if held.is_open:
            return (delta,)
        if not held.is_due:
            return ()
        step = self._decide(climb, held)
        action = step.decision.action
        if isinstance(action, Fail):  # nobody else can answer: the rest is waited for
            held.wait()
            return ()
        if not (isinstance(action, Stop) and action.attempt is step.partial):
            climb.ahead = step
            return ()
        climb.steps.append(step)
        held.is_open = True
        return (Decided(climb.id, step), *held.deltas)

    def _keep(self, climb: Climb, held: Held | None, made: Attempt) -> None:
        """Hold on to the pieces of an answer: it may be the one that is kept in the end."""
        if held is not None and made.is_answer:
            number = len(climb.attempts) - 1
            climb.held[number] = held
            climb.shown = number if held.is_open else None

    def _unshown(self, climb: Climb, attempt: Attempt) -> Sequence[Delta]:
        """The pieces of an answer that is kept, as far as the caller has not just seen them."""
        number = _position(attempt, climb.attempts)
        held = climb.held.get(-1 if number is None else number)
        return () if held is None or number == climb.shown else held.deltas

    def _note_first(self, climb: Climb, event: RouterEvent) -> None:
        if climb.first_token_s is None and isinstance(event, Delta) and not is_preamble(event):
            climb.first_token_s = self.parts.timer() - climb.started

    # ── calling ──────────────────────────────────────────────────────────────

    def _generate(self, request: Request, stage: Stage, draft: Attempt | None) -> AsyncGenerator[EngineEvent, None]:
        return self.parts.engines[stage.name].generate(request, stage, draft)

    def _reads_logprobs(self, request: Request, stage: Stage) -> bool:
        """True where the predictor reads log probabilities that the stage can tell and the caller did not ask for."""
        wanted = LOGPROBS in getattr(self.parts.predictor, "reads", ()) and not asks_logprobs(request)
        able = LOGPROBS in self.parts.engines[stage.name].capabilities(stage)
        return wanted and able and self._refusals.get(stage.name, 0) < REFUSALS

    async def _telling(
        self, request: Request, stage: Stage, draft: Attempt | None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Ask with log probabilities, for the predictor: the attempt has them, its wire reply does not.

        What we added must not break a request that is good without it. One that is refused is put again as it was, and
        where that is answered ``REFUSALS`` times in a row, the stage is not asked for them any more.
        """
        refused = False
        async with aclosing(self._generate(with_logprobs(request), stage, draft)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    for piece in event.pieces:
                        yield without_delta_logprobs(piece)
                elif not (refused := event.fault is not None and event.fault.kind == "bad_request"):
                    if event.is_answer:
                        self._refusals.pop(stage.name, None)
                    yield without_wire_logprobs(event)
        if not refused:
            return
        async with aclosing(self._generate(request, stage, draft)) as events:
            async for event in events:
                if isinstance(event, Attempt) and event.is_answer:
                    self._note_refusal(stage.name)
                yield event

    def _note_refusal(self, stage: str) -> None:
        self._refusals[stage] = self._refusals.get(stage, 0) + 1
        if self._refusals[stage] == REFUSALS:
            LOG.warning("stage '%s' has the capability 'logprobs' but refuses to tell them", stage)

    def _book(self, climb: Climb, stage: Stage, made: Attempt, at: int = -1) -> Attempt:
        """Bill an attempt and keep it as what came of step ``at``."""
        attempt = self._billed(stage, made)
        climb.attempts.append(attempt)
        climb.steps[at] = changed(climb.steps[at], attempt=attempt)
        return attempt

    def _billed(self, stage: Stage, made: Attempt) -> Attempt:
        try:
            return changed(made, cost=self.parts.costs.billed(stage, made))
        except Exception as error:  # noqa: BLE001 - as in _estimates; an answer that cannot be billed is still one
            self._note_failure("billing", error)
            return made

    def _finish(self, climb: Climb) -> Trace:
        parts = self.parts
        seconds = parts.timer() - climb.started
        whole = seconds if climb.kept is not None and climb.request.params.get("stream") else None
        return Trace(
            id=climb.id,
            created_at=climb.created_at,
            request=climb.request,
            ladder=parts.ladder.name,
            stages=parts.ladder.names,
            policy=climb.policy.name if climb.policy else "",
            mode=climb.mode,
            cost_unit=parts.ladder.cost_unit,
            versions=parts.versions,
            steps=tuple(climb.steps),
            answer_index=_position(climb.kept, climb.attempts),
            fault=climb.fault,
            seconds=seconds,
            first_token_s=whole if climb.first_token_s is None else climb.first_token_s,
        )

    def _store(self, trace: Trace) -> None:
        self.parts.store.append(trace)
        for watcher in self._watchers:
            watcher(trace)

    # ── who may be asked ─────────────────────────────────────────────────────

    def _allowed(self, request: Request) -> tuple[str, ...]:
        ladder, dials = self.parts.ladder, request.dials
        low = self._bound(dials.min_stage, "min_stage", default=0)
        high = self._bound(dials.max_stage, "max_stage", default=len(ladder.stages) - 1)
        if low > high:
            raise RequestError(
                f"min_stage '{dials.min_stage}' stands above max_stage '{dials.max_stage}'; "
                f"the ladder is {' < '.join(ladder.names)}",
                param="min_stage",
            )
        within = ladder.stages[low : high + 1]
        reasons = {stage.name: self._refusal(stage, request) for stage in within}
        allowed = tuple(name for name, reason in reasons.items() if reason is None)
        if not allowed:
            raise _no_stage(request, within, reasons)
        return allowed

    def _bound(self, name: str | None, param: str, *, default: int) -> int:
        if name is None:
            return default
        try:
            return self.parts.ladder.index(name)
        except KeyError:
            known = self.parts.ladder.names
            raise RequestError(f"{param}: no stage '{name}'; {nearest(name, known)}", param=param) from None

    def _roomier(self, stages: tuple[str, ...], history: tuple[Attempt, ...]) -> tuple[str, ...]:
        """Stages without those that cannot hold more than one which found the prompt too long."""
        if not history:
            return stages
        ladder = self.parts.ladder
        full = [ladder[a.stage].context for a in history if a.fault is not None and a.fault.kind == "context"]
        bounds = [context for context in full if context is not None]
        if not bounds:
            return stages
        contexts = {name: ladder[name].context for name in stages}
        return tuple(name for name, context in contexts.items() if context is None or context > max(bounds))

    def _refusal(self, stage: Stage, request: Request) -> str | None:
        if request.only is not None and stage.name not in request.only:
            return "is not for this caller"
        missing = request.needs - self.parts.engines[stage.name].capabilities(stage)
        if missing:
            return f"cannot do {', '.join(sorted(missing))}"
        if stage.context is not None and request.chars / CHARS_PER_TOKEN_MAX > stage.context:
            return f"its context holds {stage.context} tokens"
        return None

    def engines(self) -> tuple[Engine, ...]:
        """Every engine once: stages may share one."""
        return tuple({id(engine): engine for engine in self.parts.engines.values()}.values())


def next_decision(policy: Policy, view: View, last: Action | None, *, step: int = 0) -> Decision:
    """The policy's decision, but for five laws above it.

    There is no climb once part of an answer was sent to the caller, nor from one that the policy stopped at before it
    was whole (``Step.partial``), and a policy that does not come to an end within 4 steps for each stage (and 4 more)
    is ended. Where no stage can take a call the reason is the answer, and where estimates could not be had the stage is
    called that is set for that. An answer that was dropped before it was whole is asked for again before giving up.
    """
    if step >= STEPS_PER_STAGE * len(view.costs) + STEPS_PER_STAGE:
        fault = Fault("server", f"the policy '{policy.name}' did not come to an end within {step} steps")
        return Decision(Fail(fault), reason=fault.message)
    if isinstance(last, Stop) and view.attempts:
        return _kept_its_word(view.attempts[-1])
    if isinstance(last, Call) and last.final and view.attempts:
        attempt = view.attempts[-1]
        if attempt.fault is not None and attempt.first_token_s is not None:
            return Decision(Fail(attempt.fault), reason="part of this answer was sent: no climb after the first byte")
    if not view.stages and not view.attempts and view.absent:
        fault = absence_fault(view.absent)
        return Decision(Fail(fault), reason=fault.message)
    decision = policy.decide(view) if view.fallback is None else fall_back(view, view.fallback)
    return _or_again(decision, view)


def _or_again(decision: Decision, view: View) -> Decision:
    """The decision; where it is to give up, the stage is called again, for good, whose answer was dropped unread."""
    dropped = [each.stage for each in view.attempts if each.fault is not None and each.fault.kind == "cancelled"]
    if not dropped or not isinstance(decision.action, Fail):
        return decision
    tried = [each.stage for each in view.attempts]
    left = [stage for stage in dropped if stage in view.stages and tried.count(stage) == 1]
    if not left:
        return decision
    told = f"{left[-1]}, whose answer was dropped, is asked again: nothing else is left"
    return Decision(Call(left[-1], final=True), values=decision.values, reason=told)


def fall_back(view: View, fallback: Fallback) -> Decision:
    """What is done without estimates: the fallback stage, where it fails the others from the dearest down, once each.

    The first answer is kept, and a ``bad_request`` ends it, as it does in every policy.
    """
    told = f"decided without estimates ({fallback.reason})"
    answers = [attempt for attempt in view.attempts if attempt.is_answer]
    if answers:
        return Decision(Stop(answers[-1]), reason=f"{told}: {answers[-1].stage} answered")
    faults = [attempt.fault for attempt in view.attempts if attempt.fault is not None]
    tried = {attempt.stage for attempt in view.attempts}
    order = dict.fromkeys((fallback.stage, *reversed(view.stages)))
    left = [stage for stage in order if stage in view.stages and stage not in tried]
    if left and not any(fault.kind == "bad_request" for fault in faults):
        return Decision(Call(left[0], final=True), reason=f"{told}: {left[0]} is next")
    fault = faults[-1] if faults else Fault("bad_request", "no stage is allowed to take this request")
    return Decision(Fail(fault), reason=f"{told}: no stage left")


class Unguarded:
    """The guard of a router that has none: every stage can always take a call, and nothing is counted."""

    def absent(self, stages: Iterable[str]) -> Mapping[str, Absence]:
        """Nobody."""
        return EMPTY

    def enter(self, stage: str) -> Entry | Absence:
        """Everybody."""
        return self

    def states(self) -> tuple[StageState, ...]:
        """Nothing is known."""
        return ()

    def heard(self) -> None:
        """Of no concern."""

    def leave(self, attempt: Attempt | None) -> None:
        """Of no concern."""


def _dropped(held: Held | None, ahead: Step | None) -> Attempt | None:
    """What a call comes to where the policy went on before it was over."""
    if held is None or ahead is None or ahead.partial is None:
        return None
    return held.dropped(ahead.partial)


def _kept_its_word(attempt: Attempt) -> Decision:
    """What follows where the first tokens of an answer were let out: it is kept whole, or it failed."""
    if attempt.fault is None:
        return Decision(Stop(attempt), reason=f"{attempt.stage} was kept when its first tokens were let out")
    return Decision(Fail(attempt.fault), reason="part of this answer was sent: no climb after the first byte")


def decision_id(now_ns: int, chance: bytes) -> str:
    """A name that nobody can guess and that rises with time: a store's index grows at its end, which costs half."""
    return f"dec-{now_ns // 1_000_000:012x}{chance.hex()}"


def coin(seed: int, request_id: str, step: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, so that a replay draws the same."""
    digest = hashlib.blake2b(f"{seed}:{request_id}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def is_blank(request: Request) -> bool:
    """True where there is nothing to answer: no message, or a last user message that says nothing."""
    if request.prompt is not None:
        return not request.prompt.strip()
    asked = [message for message in request.messages if message.get("role") == "user"]
    if not asked:
        return not request.messages
    content = asked[-1].get("content")
    if isinstance(content, list) and any(not (isinstance(p, Mapping) and p.get("type") == "text") for p in content):
        return False  # an image or a sound says something without text
    return not message_text(asked[-1]).strip()


def cut_short(request: Request, stage: str, pieces: Sequence[str], seconds: float) -> Attempt:
    """The attempt behind a call that was cancelled: what it had written stands, and is billed by estimate.

    The estimate is the one for answers that their server broke off (``tokens.usage_of``); without a piece nothing is
    known to have been read or written.
    """
    text = "".join(pieces)
    fault = Fault("cancelled", "the caller left before the answer was whole")
    first = seconds if pieces else None
    return Attempt(stage, text, usage_of(request, text, len(pieces)), seconds, first, fault=fault)


def _fault_of(error: BaseException) -> Fault:
    """What a request's trace says of the exception that ended it."""
    if isinstance(error, RequestError):
        return Fault("bad_request", str(error))
    if isinstance(error, GeneratorExit | asyncio.CancelledError | KeyboardInterrupt):
        return Fault("cancelled", "the request ended before it was answered")
    return Fault("server", f"{type(error).__name__}: {error}")


def with_lam(request: Request, lam: float) -> Request:
    """The request as engines see it, with the λ in force: those that defer between tokens price them by it too."""
    return changed(request, dials=changed(request.dials, lam=lam))


def without_stream(request: Request) -> Request:
    """The same request asked for in one piece: an answer that may yet be dropped is not streamed."""
    if not request.params.get("stream"):
        return request
    kept = {key: value for key, value in request.params.items() if key not in ("stream", "stream_options")}
    return changed(request, params=kept)


def asks_logprobs(request: Request) -> bool:
    """True where the caller asks for log probabilities: a flag in chats, a number from 0 in completions."""
    asked = request.params.get("logprobs")
    return not (asked is None or asked is False) or bool(request.params.get("top_logprobs"))


def with_logprobs(request: Request) -> Request:
    """The same request, asking for the chosen tokens' log probabilities and for as little else as servers allow.

    llama.cpp tells 20 tokens for each where no number is given, and none at all where it is 0.
    """
    wanted = {"logprobs": True, "top_logprobs": 1} if request.endpoint == "chat" else {"logprobs": 1}
    return changed(request, params={**request.params, **wanted})


def without_wire_logprobs(attempt: Attempt) -> Attempt:
    """The attempt with a wire reply that tells no log probabilities, for a caller who asked for none."""
    return changed(attempt, raw=_bare(attempt.raw))


def without_delta_logprobs(delta: Delta) -> Delta:
    """The same of a piece: it still has them, its wire chunk does not."""
    return changed(delta, raw=_bare(delta.raw), data=None)


def _bare(raw: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    choices = None if raw is None else raw.get("choices")
    if raw is None or not isinstance(choices, list):
        return raw
    bare = [
        {**each, "logprobs": None} if isinstance(each, Mapping) and "logprobs" in each else each for each in choices
    ]
    return {**raw, "choices": bare}


def _position(kept: Attempt | None, attempts: Sequence[Attempt]) -> int | None:
    """Where the kept attempt stands; by identity first, since two stages may say the same."""
    if kept is None:
        return None
    same = [index for index, attempt in enumerate(attempts) if attempt is kept]
    return same[0] if same else list(attempts).index(kept)


def _over_budget(budget: float, costs: Mapping[str, float]) -> str:
    cheapest = min(costs, key=lambda name: costs[name])
    price = f"the cheapest, '{cheapest}', takes {costs[cheapest]:g}"
    return f"max_cost {budget:g} is below the expected cost of every allowed stage; {price}"


def _no_stage(request: Request, stages: tuple[Stage, ...], reasons: Mapping[str, str | None]) -> NoStageError:
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    if all(reason is not None and "context" in reason for reason in reasons.values()):
        message = f"the prompt is too long ({request.chars} characters) for every allowed stage: {told}"
        return NoStageError(message, param="messages", code="context_length_exceeded")
    return NoStageError(f"no allowed stage can take this request: {told}", param="model")
