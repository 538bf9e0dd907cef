"""Local GGUF models through llama.cpp, each in a process of its own that is asked over HTTP on the loopback address.

A file can make llama.cpp abort the process it lives in. Here that is a failed attempt, and the next call starts the
process again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from importlib.util import find_spec

import aiohttp

from stepladder.engines.deadline import Deadline
from stepladder.engines.forecast import Forecasts
from stepladder.engines.http import Limits, Target, bearer, exchange, new_session, read_limits
from stepladder.engines.llama_process import Child, Model, start_child
from stepladder.engines.model_file import verify
from stepladder.engines.options import Options
from stepladder.engines.threads import ThreadBudget, available_cores
from stepladder.engines.wire import WireError
from stepladder.errors import EngineError, MissingExtraError, ModelFileError, StepladderError
from stepladder.types import Attempt, Capability, EngineCost, EngineEvent, Fault, Request, Stage

RESTARTS = 3
RESTART_WINDOW_S = 60.0
DEATH_S = 1.0
"""How long after a broken connection its process may take to be seen dead."""

WHERE_DEATH_SHOWS = ("connect", "protocol")
"""Kinds of fault behind which the process may have died."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One stage's options, read. ``sha256`` is in hex."""

    model: Model
    limits: Limits
    sha256: str | None
    places: int


class LlamaEngine:
    """Serves GGUF files from this machine. ``stage.model`` is the file's path.

    Options of a stage: ``sha256`` (the file's, in hex; checked before loading); ``threads`` (compute threads; default
    the cores divided by the local stages); ``n_parallel`` (answers written at once, 4); ``load_timeout_s`` 120; and the
    time limits of the ``openai`` engine. ``stage.context`` is the context of each answer in tokens (llama.cpp rounds
    it up); None leaves the model's own, which the answers at work then share.

    The threads of all stages at work or loading never exceed ``cores``: a stage waits for its turn
    (``threads.ThreadBudget``), and that wait, like the one for a place, counts against ``total_timeout_s`` and is not
    part of an attempt's seconds. Raises ConfigError for options that cannot be used.
    """

    def __init__(
        self, stages: tuple[Stage, ...], *, cores: int | None = None, timer: Callable[[], float] = time.monotonic
    ) -> None:
        cores = cores or available_cores()
        usual = max(1, cores // max(1, len(stages)))
        self._budget = ThreadBudget(cores)
        self._hosts = {stage.name: _Host(_settings(stage, cores, usual), self._budget, timer) for stage in stages}
        self._forecasts = Forecasts()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured."""
        return stage.capabilities

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """Learned from the answers so far; a draft is not read yet, so it changes nothing."""
        return self._forecasts.cost(stage, prompt_tokens, output_tokens)

    def pid(self, stage: str) -> int | None:
        """The process that holds a stage's model now."""
        child = self._hosts[stage].child
        return child.pid if child is not None and child.is_alive else None

    async def start(self) -> None:
        """Check every file, then load the models, side by side as far as the cores go.

        Raises MissingExtraError, or ModelFileError or EngineError with the stage's name; then nothing is left running.
        """
        self._closed = False
        for host in self._hosts.values():
            host.is_open = True
        try:
            await asyncio.gather(*(host.check() for host in self._hosts.values()))
            async with asyncio.TaskGroup() as loading:
                for host in self._hosts.values():
                    loading.create_task(host.ready())
        except BaseExceptionGroup as group:  # the first of several loads that failed is told, as a plain error
            await self.close()
            raise group.exceptions[0] from None
        except BaseException:  # re-raised: a start that failed or was cancelled leaves nothing running
            await self.close()
            raise

    async def close(self) -> None:
        """End every process and close the connections."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await asyncio.gather(*(host.close() for host in self._hosts.values()))

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Ask the stage's process, starting it where it does not run. Raises EngineError after ``close`` only."""
        if self._closed:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        host = self._hosts[stage.name]
        deadline = Deadline(stage.name, host.settings.limits.total_s)
        with ExitStack() as held:
            deadline.let_go(held)
            try:
                child = await self._admit(host, deadline, held)
            except (StepladderError, WireError) as error:
                held.close()
                fault = error.fault if isinstance(error, WireError) else Fault("crash", str(error))
                yield Attempt(stage.name, fault=fault)
                return
            async with aclosing(self._ask(request, host, child, deadline)) as events:
                async for event in events:
                    yield event

    async def _admit(self, host: _Host, deadline: Deadline, held: ExitStack) -> Child:
        """A place at the stage, its running child, and its threads. Raises WireError where the time is over before."""
        model = host.settings.model
        async with deadline.waiting("no free place"):
            await host.places.acquire()
        held.callback(host.places.release)
        while True:
            async with deadline.waiting("no loaded model"):
                child = await host.ready()  # holds threads of its own: inside ours it would wait for those behind us
            async with deadline.waiting("no free threads"):
                await self._budget.acquire(model.stage, model.threads)
            if child.is_alive:
                held.callback(self._budget.release, model.stage)
                return child
            self._budget.release(model.stage)  # it died while we waited

    async def _ask(
        self, request: Request, host: _Host, child: Child, deadline: Deadline
    ) -> AsyncGenerator[EngineEvent, None]:
        if self._session is None:
            self._session = new_session()
        async with aclosing(exchange(self._session, host.target(child), request, deadline)) as events:
            async for event in events:
                if isinstance(event, Attempt):
                    event = await host.explained(event, child)  # noqa: PLW2901 - the attempt, told better
                    self._forecasts.observe(event)
                yield event


class _Host:
    """One stage's process, and the rule by which it is started again."""

    def __init__(self, settings: Settings, budget: ThreadBudget, timer: Callable[[], float]) -> None:
        self.settings = settings
        self._budget = budget
        self.child: Child | None = None
        self.is_open = True
        self._timer = timer
        self._load: asyncio.Task[Child] | None = None
        self.places = asyncio.Semaphore(settings.places)
        """One for each answer that the stage may write at once."""
        self._deaths: deque[float] = deque()

    async def check(self) -> None:
        """Raise MissingExtraError or ModelFileError where the model cannot be loaded."""
        model = self.settings.model
        if find_spec("xllamacpp") is None:
            raise MissingExtraError(f"stage '{model.stage}' (engine 'llama')", "llama")
        try:
            await asyncio.to_thread(verify, model.path, self.settings.sha256)
        except ModelFileError as error:
            raise ModelFileError(f"stage '{model.stage}': {error}") from error

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
            async with self._budget.hold(self.settings.model.stage, self.settings.model.threads):
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


def _settings(stage: Stage, cores: int, usual_threads: int) -> Settings:
    options = Options(stage)
    slots = options.whole("n_parallel", 4, most=256)
    model = Model(
        stage=stage.name,
        path=stage.model,
        n_ctx=(stage.context or 0) * slots,
        slots=slots,
        threads=min(cores, options.whole("threads", usual_threads)),
        load_timeout_s=options.seconds("load_timeout_s", 120.0),
    )
    settings = Settings(model, read_limits(options), _sha256(options), min(slots, stage.max_concurrency or slots))
    options.done()
    return settings


def _sha256(options: Options) -> str | None:
    value = options.text("sha256")
    if value is not None and (len(value) != 64 or set(value.lower()) - set("0123456789abcdef")):
        options.wrong("sha256", "must be 64 hexadecimal digits")
    return value
