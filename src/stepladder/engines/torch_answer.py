"""One answer of the ``torch`` engine: from the request to the tokens, and from the tokens to events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepladder.decoding.batch import Job
from stepladder.decoding.chain import NGRAM as NGRAM_KEY
from stepladder.decoding.chain import Emitted, Run
from stepladder.decoding.decode import decode
from stepladder.decoding.deferral import Deferral, slack
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.rounds import AllRounds
from stepladder.decoding.sequence import Sequence
from stepladder.decoding.tokenizer import Detokenizer, Tokenizer
from stepladder.engines import torch_text
from stepladder.engines.torch_chains import Chains, Shared, Watch
from stepladder.engines.torch_models import Row
from stepladder.engines.torch_order import Order, plain_messages, plain_prompt, read_order
from stepladder.engines.torch_settings import NGRAM, Settings
from stepladder.engines.torch_text import Transcript
from stepladder.engines.torch_worker import StoppedError, Task
from stepladder.engines.wire import WireError
from stepladder.errors import UsageError
from stepladder.types import Attempt, Delta, Drafting, EngineEvent, Fault, Request, Speculation, Usage

LOG = logging.getLogger("stepladder.engines")


@dataclass(slots=True, kw_only=True)
class Answering:
    """An answer at work. The worker's thread writes it; ``events`` are read on the caller's loop."""

    request: Request
    settings: Settings
    order: Order
    row: Row
    prompt: list[int]
    draft: list[int]
    transcript: Transcript
    chains: Chains
    watch: Watch
    run: Run
    timer: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    created: int
    most: int
    lower: int | None = None
    """The model whose answer the draft is, where it is one of this engine's that may draft here."""
    events: asyncio.Queue[EngineEvent] = field(default_factory=asyncio.Queue)
    started: float = field(init=False)
    first_s: float | None = field(init=False, default=None)
    passes: Mapping[int, int] = field(init=False, default_factory=dict)
    task: Task = field(init=False)
    _told: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.started = self.timer()
        self.task = Task(self._job, self._done, self._failed)

    def cancel(self) -> None:
        """Have the worker drop it after the pass that it is in; nothing happens where it is done."""
        self.task.cancelled.set()

    def attempt(self, fault: Fault | None, finish: str | None = None) -> Attempt:
        """What stands now, as an attempt."""
        transcript = self.transcript
        logprobs = tuple(score.logprob for score in transcript.scores) or None
        usage = Usage(len(self.prompt), len(transcript.tokens))
        return Attempt(
            stage=self.settings.stage.name,
            text=transcript.text,
            usage=usage,
            seconds=self.timer() - self.started,
            first_token_s=self.first_s,
            finish_reason=finish,
            logprobs=logprobs,
            fault=fault,
            raw=self._body(finish) if finish and logprobs else None,
            speculation=self._speculation(),
        )

    # ── in the worker's thread ───────────────────────────────────────────────

    def _job(self) -> Job:
        asking = decode(self.run, self.chains.next, self.most, self._keep)
        job = Job(asking, self.run.answer, told=self.chains.passed)
        self.passes = job.passes
        return job

    def _keep(self, wrote: list[Emitted]) -> bool:
        self.chains.ended(len(wrote))
        stop = self.transcript.take(wrote)
        if self.order.streamed:
            self._show(self.transcript.fresh(all_of_it=False))
        return stop

    def _done(self, job: Job) -> None:
        if job.error is not None:
            self._failed(job.error)
            return
        self.transcript.finish()
        if self.order.streamed:
            self._show(self.transcript.fresh(all_of_it=True))
        finish = "stop" if self.transcript.stopped else job.result
        if self.draft:
            with self.chains.shared.lock:
                planner, lower = self.chains.shared.planner, self.lower if self.order.sampling.greedy else None
                planner.observe_climb(len(self.draft), self._kept(), stage=lower, top=self.chains.top)
        self._send(self.attempt(None, finish))

    def _failed(self, error: BaseException) -> None:
        name = self.settings.stage.name
        if isinstance(error, StoppedError):
            self._send(self.attempt(Fault("cancelled", f"stage '{name}': {error}")))
            return
        LOG.error("stage '%s': an answer failed", name, exc_info=error)
        self._send(self.attempt(Fault("server", f"stage '{name}': {type(error).__name__}: {error}")))

    def _show(self, piece: str) -> None:
        if not piece:
            return
        if self.first_s is None:
            self.first_s = self.timer() - self.started
        self._send(Delta(piece, self._chunk(piece)))

    def _send(self, event: EngineEvent) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody is left who could read it
            self.task.cancelled.set()

    # ── how it is told ───────────────────────────────────────────────────────

    def _kept(self) -> int:
        """Leading tokens of the draft that stand in the answer."""
        written = self.transcript.tokens
        pairs = enumerate(zip(self.draft, written, strict=False))
        return next(
            (place for place, (drafted, token) in pairs if drafted != token), min(len(self.draft), len(written))
        )

    def _speculation(self) -> Speculation:
        names = self.row.names

        def name(key: int) -> str:
            return NGRAM if key == NGRAM_KEY else names[key]

        pairs = tuple(
            Drafting(name(drafter), name(target), *counts)
            for (drafter, target), counts in list(self.watch.counts.items())  # the worker may be adding to it
        )
        kept = self._kept() if self.draft else 0
        return Speculation(
            chain=tuple(name(key) for key in self.chains.usual),
            pairs=pairs,
            passes={names[stage]: count for stage, count in sorted(self.passes.items())},
            climbed=len(self.draft),
            kept=kept,
            saved_s=self.chains.saved(len(self.prompt), len(self.draft), kept) if self.draft else 0.0,
            moved=self.watch.mean_moved(self.chains.top) if self.settings.deferral else None,
        )

    def _head(self) -> dict[str, Any]:
        kind = "chatcmpl" if self.request.endpoint == "chat" else "cmpl"
        return {"id": f"{kind}-{self.request.id}", "created": self.created, "model": self.settings.stage.name}

    def _body(self, finish: str) -> dict[str, Any]:
        told = torch_text.wire_logprobs(self.transcript.scores, self._spell, self.request.endpoint)
        return torch_text.whole_body(self.request.endpoint, self._head(), self.transcript.text, finish, told)

    def _chunk(self, piece: str) -> dict[str, Any] | None:
        """A stream's chunk where log probabilities are told; those of tokens whose text is held back come early."""
        if self.order.top_logprobs is None:
            return None
        fresh, first = self.transcript.scores[self._told :], self._told == 0
        self._told = len(self.transcript.scores)
        told = torch_text.wire_logprobs(fresh, self._spell, self.request.endpoint)
        return torch_text.chunk_body(self.request.endpoint, self._head(), piece, told, first=first)

    def _spell(self, token: int) -> str:
        tokenizer = self.row.tokenizer(self.chains.top)
        return tokenizer.decode([token]) or tokenizer.text_of(token) or ""


def begin(
    request: Request,
    settings: Settings,
    *,
    row: Row,
    shared: Shared,
    draft: Attempt | None,
    seed: int,
    timer: Callable[[], float],
    loop: asyncio.AbstractEventLoop,
    clock: Callable[[], float] = time.time,
    rounds: AllRounds | None = None,
) -> Answering:
    """Everything that can be said before the first pass. Raises WireError for a request that cannot be answered.

    ``rounds`` runs rounds whole on their device; an answer whose log probabilities are told is written pass by pass.
    """
    order, top = read_order(request), row.index(settings.stage.name)
    tokenizer, model = row.tokenizer(top), row.models[top]
    prompt = _prompt(request, tokenizer)
    room = model.context - len(prompt)
    if room < 1:
        told = f"the prompt has {len(prompt)} tokens and the context of stage '{settings.stage.name}' {model.context}"
        raise WireError(Fault("context", f"{told}: no room is left for an answer"))
    most = min(order.most or room, room)
    given = _given(draft, tokenizer)[:most]
    answer = Sequence(list(prompt))
    watch = Watch(shared, greedy=order.sampling.greedy)
    # A stream of the stage's own: a lower answer that is judged here was drawn with the same seed.
    oracle = SeededOracle(f"{settings.stage.name}:{seed if order.seed is None else order.seed}")
    chains = Chains(
        top=top,
        shared=shared,
        answer=answer,
        greedy=order.sampling.greedy,
        rule=settings.rule,
        contexts=[each.context for each in row.models],
        vocab=model.vocab,
        most=most,
        timer=timer,
        ends=tokenizer.eos,
        deferral=_deferral(settings, request),
        settled=order.seed is not None and not order.sampling.greedy,
        given=given,
        own=watch.own,
        device=rounds if order.top_logprobs is None else None,
        chance=oracle.number,
    )
    return Answering(
        request=request,
        settings=settings,
        order=order,
        row=row,
        prompt=prompt,
        draft=given,
        transcript=Transcript(Detokenizer(tokenizer), order.stops, tokenizer.eos, order.top_logprobs),
        chains=chains,
        watch=watch,
        run=Run(answer, order.sampling, oracle, tokenizer.eos, watch, tells=order.top_logprobs is not None),
        timer=timer,
        loop=loop,
        created=int(clock()),
        most=most,
        lower=_lower(draft, row, top),
    )


def _lower(draft: Attempt | None, row: Row, top: int) -> int | None:
    if draft is None or draft.stage not in row.names:
        return None
    stage = row.index(draft.stage)
    return stage if stage in row.below[top] else None


def _prompt(request: Request, tokenizer: Tokenizer) -> list[int]:
    if request.prompt is None:
        tokens = tokenizer.chat(plain_messages(request))
    else:
        tokens = tokenizer.prompt(plain_prompt(request.prompt))
    if not tokens:
        raise WireError(Fault("bad_request", "prompt: it has no tokens for this model; ask something"))
    return tokens


def _given(draft: Attempt | None, tokenizer: Tokenizer) -> list[int]:
    """A lower answer's tokens, with an end behind them where it came to one."""
    if draft is None or not draft.text:
        return []
    tokens = tokenizer.encode(draft.text)
    return [*tokens, tokenizer.end] if draft.finish_reason == "stop" and tokenizer.end is not None else tokens


def _deferral(settings: Settings, request: Request) -> Deferral | None:
    if settings.deferral is None:
        return None
    amount = settings.slack
    if amount is None:
        try:
            amount = slack(settings.stage.cost or 0.0, request.dials.lam or 0.0)
        except UsageError as error:
            raise WireError(Fault("bad_request", str(error))) from None
    return Deferral(settings.deferral, amount)  # type: ignore[arg-type]  # one of the names, as settings were read
