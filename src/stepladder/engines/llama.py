"""Local GGUF models through llama.cpp, each in a process of its own that is asked over HTTP on the loopback address.

A file can make llama.cpp abort the process it lives in. Here that is a failed attempt, and the next call starts the
process again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from stepladder.engines.client import Pool
from stepladder.engines.deadline import Deadline
from stepladder.engines.forecast import Forecasts
from stepladder.engines.http import Limits, Target, bearer, exchange, new_pool, read_limits
from stepladder.engines.llama_drafting import Drafter, check_drafter, check_room, read_speculation
from stepladder.engines.llama_process import Child, Model, start_child
from stepladder.engines.llama_trial import Trial
from stepladder.engines.model_file import verify
from stepladder.engines.options import Options
from stepladder.engines.threads import ThreadBudget, available_cores
from stepladder.engines.wire import Reply, WireError
from stepladder.errors import EngineError, MissingExtraError, ModelFileError, StepladderError
from stepladder.types import Attempt, Capability, EngineCost, EngineEvent, Fault, Request, Stage

LOG = logging.getLogger("stepladder.engines.llama")

RESTARTS = 3
RESTART_WINDOW_S = 60.0
DEATH_S = 1.0
"""How long after a broken connection its process may take to be seen dead."""

WHERE_DEATH_SHOWS = ("connect", "protocol")
"""Kinds of fault behind which the process may have died."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One stage's options, read. ``sha256`` is in hex. Those ``on_trial`` may come to draft, and are tried in order."""

    model: Model
    limits: Limits
    sha256: str | None
    places: int
    on_trial: tuple[Drafter, ...] = ()


class LlamaEngine:
    """Serves GGUF files from this machine. ``stage.model`` is the file's path.

    Options of a stage: ``sha256`` (the file's, in hex; checked before loading); ``threads`` (compute threads; default
    the cores divided by the local stages); ``n_parallel`` (answers written at once, 4); ``load_timeout_s`` 120; and the
    time limits of the ``openai`` engine. ``stage.context`` is the context of each answer in tokens (llama.cpp rounds
    it up); None leaves the model's own, which the answers at work then share. ``speculation`` is llama.cpp's own
    speculative decoding, which changes how fast a text is written and not which:

    * ``"off"``, the default;
    * ``{ draft = "small", n_max = 8, p_min = 0.6 }``: another stage's file drafts up to ``n_max`` tokens, as long as
      each has a probability of ``p_min``. The two files must have the same vocabulary;
    * ``"ngram"``, or ``{ draft = "ngram", n_match = 6, n_max = 16 }``: what followed the same tokens before;
    * ``"auto"``: what pays. llama.cpp takes the choice when it loads and not from a request, so for the time of a
      trial a second process serves the same file (its weights are shared, its context is not), and the two answer by
      turns (``llama_trial.Trial``) until it is clear which writes faster; that one stays, and its times are the stage's
      forecast. First n-grams are tried, then, against what has won, the cheapest lower stage of this engine that can
      draft for it, is no more than two thirds as large, and fits into memory beside it.

    A draft that the caller hands over, a lower answer, is not read: llama.cpp's HTTP API has no place for one.

    The threads of all stages at work or loading never exceed ``cores``: a stage waits for its turn
    (``threads.ThreadBudget``), and that wait, like the one for a place, counts against ``total_timeout_s`` and is not
    part of an attempt's seconds. Raises ConfigError for options that cannot be used.
    """

    ignores = frozenset({"cost", "price_in", "price_out", "gpus", "capabilities"})
    """Fields of a stage that no process was started with: where only these changed, a reload keeps the models."""

    def __init__(
        self, stages: tuple[Stage, ...], *, cores: int | None = None, timer: Callable[[], float] = time.monotonic
    ) -> None:
        cores = cores or available_cores()
        usual = max(1, cores // max(1, len(stages)))
        self._budget = ThreadBudget(cores)
        self._hosts: dict[str, _Host] = {}
        self._trials: dict[str, _OnTrial] = {}
        self._to_come: dict[str, asyncio.Task[None]] = {}
        """Trials that are being prepared, by stage."""
        self._retired: list[_Host] = []
        for stage in stages:
            settings = _settings(stage, stages, cores, usual)
            host = self._hosts[stage.name] = _Host(settings, self._budget, timer)
            if settings.on_trial:
                first, *rest = settings.on_trial
                self._trials[stage.name] = _OnTrial(host.drafting(first), tuple(rest))
        self._pool: Pool | None = None
        self._closed = False

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured."""
        return stage.capabilities

    def places(self, stage: Stage) -> int:
        """Answers of this stage that are written at once; further ones wait."""
        return self._hosts[stage.name].settings.places

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """Learned from the answers so far, with the drafting now in force; a draft is not read and changes nothing."""
        return self._hosts[stage.name].forecasts.cost(stage, prompt_tokens, output_tokens)

    def speculates(self, stage: str) -> bool | None:
        """Whether a stage's tokens are drafted; None while that is on trial."""
        if stage in self._trials or stage in self._to_come:
            return None
        return self._hosts[stage].settings.model.drafter is not None

    def pid(self, stage: str) -> int | None:
        """The process that holds a stage's model now."""
        child = self._hosts[stage].child
        return child.pid if child is not None and child.is_alive else None

    async def start(self) -> None:
        """Check every file, then load the models, side by side as far as the cores go.

        Raises MissingExtraError, or ModelFileError or EngineError with the stage's name; then nothing is left running.
        """
        self._closed = False
        for host in (*self._hosts.values(), *(tried.host for tried in self._trials.values())):
            host.is_open = True
        try:
            await asyncio.gather(*(host.check() for host in self._hosts.values()))
            async with asyncio.TaskGroup() as loading:
                for host in self._hosts.values():
                    loading.create_task(host.ready())
                for name in self._trials:
                    loading.create_task(self._prepare_trial(name))
        except BaseExceptionGroup as group:  # the first of several loads that failed is told, as a plain error
            await self.close()
            raise group.exceptions[0] from None
        except BaseException:  # re-raised: a start that failed or was cancelled leaves nothing running
            await self.close()
            raise

    async def close(self) -> None:
        """End every process and close the connections."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        to_come = tuple(self._to_come.values())
        for task in to_come:
            task.cancel()
        await asyncio.gather(*to_come, return_exceptions=True)
        hosts = (*self._hosts.values(), *(tried.host for tried in self._trials.values()), *self._retired)
        await asyncio.gather(*(host.close() for host in hosts))
        await asyncio.gather(*(host.ending for host in self._retired if host.ending is not None))
        self._retired.clear()

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Ask the stage's process, starting it where it does not run. Raises EngineError after ``close`` only."""
        if self._closed:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        deadline = Deadline(stage.name, self._hosts[stage.name].settings.limits.total_s)
        with ExitStack() as held:
            deadline.let_go(held)
            try:
                host, child = await self._admit(stage.name, deadline, held)
            except (StepladderError, WireError) as error:
                held.close()
                fault = error.fault if isinstance(error, WireError) else Fault("crash", str(error))
                yield Attempt(stage.name, fault=fault)
                return
            async with aclosing(self._ask(request, host, child, deadline)) as events:
                async for event in events:
                    yield event

    async def _admit(self, stage: str, deadline: Deadline, held: ExitStack) -> tuple[_Host, Child]:
        """A place at the stage, its running child, and its threads. Raises WireError where the time is over before."""
        places = self._hosts[stage].places
        async with deadline.waiting("no free place"):
            await places.acquire()
        held.callback(places.release)
        host = self._turn(stage)
        try:
            return host, await self._seat(host, deadline, held)
        except StepladderError as error:
            if host is self._hosts[stage]:
                raise
            self._end_trial(stage, str(error))  # what is only tried out costs nobody an answer
            host = self._hosts[stage]
            return host, await self._seat(host, deadline, held)

    async def _seat(self, host: _Host, deadline: Deadline, held: ExitStack) -> Child:
        """A host's running child, with its threads held. Raises WireError, or as ``_Host.ready`` does."""
        model, seat = host.settings.model, host.seat
        host.enter()
        held.callback(host.leave)
        while True:
            async with deadline.waiting("no loaded model"):
                child = await host.ready()  # holds threads of its own: inside ours it would wait for those behind us
            async with deadline.waiting("no free threads"):
                await self._budget.acquire(seat, model.threads)
            if child.is_alive:
                held.callback(self._budget.release, seat)
                return child
            self._budget.release(seat)  # it died while we waited

    async def _ask(
        self, request: Request, host: _Host, child: Child, deadline: Deadline
    ) -> AsyncGenerator[EngineEvent, None]:
        if self._pool is None:
            self._pool = new_pool()
        reply = host.reply()
        async with aclosing(exchange(self._pool, host.target(child), request, deadline, reply=reply)) as events:
            async for event in events:
                if isinstance(event, Attempt):
                    event = await host.explained(event, child)  # noqa: PLW2901 - the attempt, told better
                    host.forecasts.observe(event)
                    self._judge(host, event, reply)
                yield event

    # ── drafting on trial ────────────────────────────────────────────────────

    async def _prepare_trial(self, stage: str) -> None:
        """Load the second process; the stage is served without it where that fails."""
        try:
            await self._trials[stage].host.ready()
        except StepladderError as error:
            self._end_trial(stage, str(error))

    def _turn(self, stage: str) -> _Host:
        """Who writes the stage's next answer."""
        tried = self._trials.get(stage)
        if tried is None:
            return self._hosts[stage]
        drafting = tried.trial.turn()
        if tried.trial.verdict is not None:
            self._settle(stage)
            return self._hosts[stage]
        return tried.host if drafting else self._hosts[stage]

    def _judge(self, host: _Host, attempt: Attempt, reply: Reply) -> None:
        """Let an answer count in its stage's trial, where there is one."""
        tried = self._trials.get(attempt.stage)
        if tried is None:
            return
        drafting = host is tried.host
        if attempt.fault is None:
            for tokens, seconds in _written(reply):
                tried.trial.observe(drafting=drafting, tokens=tokens, seconds=seconds)
        elif drafting and attempt.fault.kind == "crash":
            tried.trial.give_up(attempt.fault.message)
        if tried.trial.verdict is not None:
            self._settle(attempt.stage)

    def _end_trial(self, stage: str, reason: str) -> None:
        """Go on without drafting; another answer may have ended the trial before."""
        if stage in self._trials:
            self._trials[stage].trial.give_up(reason)
            self._settle(stage)

    def _settle(self, stage: str) -> None:
        """Keep the host that won, and end the other as soon as nobody uses it."""
        tried = self._trials.pop(stage)
        winner, loser = self._hosts[stage], tried.host
        if tried.trial.verdict:
            winner, loser = loser, winner
        self._hosts[stage] = winner
        self._retired.append(loser)
        loser.retire()
        drafter, verdict = tried.host.drafter, "on" if tried.trial.verdict else "off"
        LOG.info("stage '%s': drafting by %s is %s: %s", stage, drafter, verdict, tried.trial.reason)
        if tried.rest and not self._closed:
            self._to_come[stage] = asyncio.create_task(self._try_next(stage, tried.rest, loser))

    async def _try_next(self, stage: str, drafters: tuple[Drafter, ...], loser: _Host) -> None:
        """Put the first drafter on trial that can draft for the stage, once the last trial's loser has made room."""
        try:
            await loser.ended.wait()
            for drafter in drafters:
                host = self._hosts[stage].drafting(drafter)
                try:
                    await host.check_room()
                    await host.ready()
                except StepladderError as error:
                    LOG.info("stage '%s': drafting by %s is not tried: %s", stage, drafter.name, error)
                    await host.close()
                    continue
                except BaseException:  # re-raised: a trial that was called off leaves no process
                    await host.close()
                    raise
                self._trials[stage] = _OnTrial(host)
                return
        finally:
            del self._to_come[stage]


@dataclass(slots=True)
class _OnTrial:
    """A second host of a stage, which drafts, what is known of it, and who may be tried after it."""

    host: _Host
    rest: tuple[Drafter, ...] = ()
    trial: Trial = field(default_factory=Trial)


def _written(reply: Reply) -> Iterator[tuple[int, float]]:
    """(tokens, seconds of writing them) of each choice, as llama.cpp measured them: without prompt and queue."""
    for told in reply.latest_timings:
        tokens, milliseconds = told.get("predicted_n"), told.get("predicted_ms")
        if isinstance(tokens, int) and isinstance(milliseconds, int | float):
            yield tokens, milliseconds / 1e3


class _Host:
    """One stage's process, and the rule by which it is started again.

    ``seat`` is the name under which it holds threads, ``users`` are the calls that have chosen it, ``forecasts`` what
    its own answers took. One that was retired ends once it has no users any more; ``ending`` is then its end.
    """

    def __init__(self, settings: Settings, budget: ThreadBudget, timer: Callable[[], float]) -> None:
        self.settings = settings
        self.seat = settings.model.stage
        self.forecasts = Forecasts()
        self.users = 0
        self.is_retired = False
        self.ending: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        """Set once it was closed."""
        self._budget = budget
        self.child: Child | None = None
        self.is_open = True
        self._timer = timer
        self._load: asyncio.Task[Child] | None = None
        self.places = asyncio.Semaphore(settings.places)
        """One for each answer that the stage may write at once."""
        self._deaths: deque[float] = deque()

    def drafting(self, drafter: Drafter) -> _Host:
        """A second host of the same stage, with this drafter, that shares the stage's places and waits for threads
        like another stage."""
        model = replace(self.settings.model, drafter=drafter)
        second = _Host(replace(self.settings, model=model), self._budget, self._timer)
        second.seat, second.places = f"{model.stage} with {drafter.name}", self.places
        return second

    @property
    def drafter(self) -> str:
        """Who drafts; empty where nobody does."""
        drafter = self.settings.model.drafter
        return "" if drafter is None else drafter.name

    async def check_room(self) -> None:
        """Raise as ``check_room`` does where this host's drafter is not worth a process, or none has room."""
        model = self.settings.model
        if model.drafter is not None:
            await asyncio.to_thread(check_room, model.stage, model.path, model.drafter, model.n_ctx)

    def enter(self) -> None:
        """A call has chosen this host; ``leave`` is to follow, once."""
        self.users += 1

    def leave(self) -> None:
        """The call is over."""
        self.users -= 1
        self._end_if_idle()

    def retire(self) -> None:
        """End once the last call is over."""
        self.is_retired = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.is_retired and not self.users and self.ending is None:
            self.ending = asyncio.create_task(self.close())

    async def check(self) -> None:
        """Raise MissingExtraError or ModelFileError where the model cannot be loaded."""
        model = self.settings.model
        if find_spec("xllamacpp") is None:
            raise MissingExtraError(f"stage '{model.stage}' (engine 'llama')", "llama")
        try:
            await asyncio.to_thread(verify, model.path, self.settings.sha256)
        except ModelFileError as error:
            raise ModelFileError(f"stage '{model.stage}': {error}") from error
        await asyncio.to_thread(check_drafter, model.stage, model.path, model.drafter)

    async def ready(self) -> Child:
        """The running child, loaded first if need be. Raises as ``start_child`` does, or EngineError at the limit.

        The load is the host's: a caller that leaves does not end it, and finds it done when it comes again.
        """
        if not self.is_open:
            raise self._closed()
        if self.child is not None and self.child.is_alive:
            return self.child
        if self._load is None:
            self._load = asyncio.create_task(self._start())
            self._load.add_done_callback(_retrieve)
        load = self._load
        await asyncio.wait((load,))  # unlike ``await load`` it does not hand on a cancellation, in either direction
        if load.cancelled():
            raise self._closed()
        return load.result()

    async def _start(self) -> Child:
        try:
            self._refuse_what_does_not_stay()
            await self.check()
            async with self._budget.hold(self.seat, self.settings.model.threads):
                self.child = await self._started()
        finally:
            self._load = None
        return self.child

    async def _started(self) -> Child:
        """A new child; one that dies before it answers is a death like any other."""
        model = self.settings.model
        try:
            return await start_child(model)
        except OSError as error:
            self._deaths.append(self._timer())
            raise EngineError(f"the process of stage '{model.stage}' cannot be started: {error}") from error
        except StepladderError:
            self._deaths.append(self._timer())
            raise

    def target(self, child: Child) -> Target:
        """Where the child is asked."""
        stage = self.settings.model.stage
        url = f"http://127.0.0.1:{child.port}/v1"
        return Target(stage, stage, url, headers=bearer(child.key), limits=self.settings.limits)

    def reply(self) -> Reply:
        """What an answer of this host is read into."""
        model = self.settings.model
        return Reply(model.stage, drafter=self.drafter)

    async def explained(self, attempt: Attempt, child: Child) -> Attempt:
        """The attempt, where its process died with that as the fault."""
        fault = attempt.fault
        if fault is None or fault.kind not in WHERE_DEATH_SHOWS or not await child.ended_within(DEATH_S):
            return attempt
        message = f"the process of stage '{attempt.stage}' {await child.obituary()}"
        return replace(attempt, fault=Fault("crash", message))

    async def close(self) -> None:
        """End the child; also one that is just being started. Calls that still wait for it start none."""
        self.is_open = False
        load, self._load = self._load, None
        if load is not None:
            load.cancel()
            await asyncio.wait((load,))
        child, self.child = self.child, None
        self._deaths.clear()
        if child is not None:
            await child.end()
        self.ended.set()

    def _refuse_what_does_not_stay(self) -> None:
        """``RESTARTS`` deaths within the window are made good; loads that were given up are none."""
        now = self._timer()
        if self.child is not None:
            self._deaths.append(now)
            self.child = None
        while self._deaths and now - self._deaths[0] > RESTART_WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) > RESTARTS:
            raise EngineError(
                f"the process of stage '{self.settings.model.stage}' died {len(self._deaths)} times within "
                f"{RESTART_WINDOW_S:g} s; it is left alone until that time is over"
            )

    def _closed(self) -> EngineError:
        return EngineError(f"stage '{self.settings.model.stage}': the engine was closed")


def _retrieve(load: asyncio.Task[Child]) -> None:
    """Know the error of a load whose callers have all left: the next caller meets it again."""
    if not load.cancelled():
        load.exception()


def _settings(stage: Stage, stages: tuple[Stage, ...], cores: int, usual_threads: int) -> Settings:
    options = Options(stage)
    slots = options.whole("n_parallel", 4, most=256)
    wanted = read_speculation(options, stage, stages)
    model = Model(
        stage=stage.name,
        path=stage.model,
        n_ctx=(stage.context or 0) * slots,
        slots=slots,
        threads=min(cores, options.whole("threads", usual_threads)),
        load_timeout_s=options.seconds("load_timeout_s", 120.0),
        drafter=wanted.drafter,
    )
    settings = Settings(
        model,
        read_limits(options),
        _sha256(options),
        places=min(slots, stage.max_concurrency or slots),
        on_trial=wanted.on_trial,
    )
    options.done()
    return settings


def _sha256(options: Options) -> str | None:
    value = options.text("sha256")
    if value is not None and (len(value) != 64 or set(value.lower()) - set("0123456789abcdef")):
        options.wrong("sha256", "must be 64 hexadecimal digits")
    return value
