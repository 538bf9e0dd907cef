"""Models of Hugging Face's kind in this process, with exact speculative chains between the stages.

The models run in one thread of their own, many answers at once (``decoding/batch.py``). All stages of a ladder that
name this engine share it, so that a lower one can draft for a higher one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

from stepladder.engines.deadline import Deadline
from stepladder.engines.torch_settings import Settings, read_settings
from stepladder.engines.wire import WireError
from stepladder.errors import EngineError, MissingExtraError, StepladderError
from stepladder.tokens import tokens_of
from stepladder.types import Attempt, Capability, EngineCost, EngineEvent, Fault, Request, Stage

if TYPE_CHECKING:
    from stepladder.decoding.rounds import AllRounds
    from stepladder.engines.torch_answer import Answering
    from stepladder.engines.torch_chains import Shared
    from stepladder.engines.torch_models import Row
    from stepladder.engines.torch_worker import Worker

CAN: frozenset[Capability] = frozenset({"stream", "logprobs"})
"""What this engine can do; a stage that declares more is not given it."""


@dataclass(slots=True)
class _Running:
    """What there is between ``start`` and ``close``."""

    row: Row
    worker: Worker
    planners: dict[str, Shared]
    rounds: dict[str, AllRounds]
    places: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    everywhere: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))


class TorchEngine:
    """Serves causal models like Llama and Qwen. ``stage.model``: a folder, a GGUF file, or ``OWNER/NAME`` of the hub.

    Options of a stage: ``device`` (auto, cpu, cuda), ``dtype`` (auto: float32 on a CPU, bfloat16 on a GPU; float64,
    float16), ``n_parallel`` (answers at once, 8), ``prefill_chunk`` (tokens of a prompt in one pass, 512), ``sha256``
    of a GGUF file, ``total_timeout_s`` 600; ``stage.context`` is in positions of each answer.

    ``speculation``: "auto" (the planner measures and chooses: the default), "off", or the drafters below this stage,
    bottom first, names of lower stages and "ngram". ``draft_length``: tokens asked of each drafter, or "auto".
    ``drafter``: one more model, which drafts for this stage alone and is called STAGE-drafter. ``verification``:
    rejection or block. None of these changes what is written: a stage's own law is kept.

    ``rounds``: "auto" (the default) runs rounds whole on a GPU, as CUDA graphs with one wait each, where models and
    options allow it, and says in the log where not; "off" runs them pass by pass; "on" runs them whole on any device.
    Drafts are then as long as was planned, never ended by confidence.

    ``threads``: cores that a pass may use, the same for all stages that set it; by default PyTorch's own choice.

    ``deferral`` (chow, diff, opt, token; off by default) does change it: drafts that are good enough under λ are kept
    though the stage would write otherwise (``decoding/deferral.py``). Its slack is stage.cost/λ, or ``deferral_slack``.

    A lower stage's answer that is handed over as a draft is read in one pass and kept as far as this stage would have
    written the same. An answer at a temperature above 0 that was asked for with a seed is the same each time: its chain
    is then what was set, or plain decoding, whatever was measured. Raises ConfigError for options that cannot be used.
    ``timer`` gives monotonic seconds, ``new_seed`` a seed for requests that bring none, ``trial_s`` is how many seconds
    each model is timed at its start.
    """

    ignores = frozenset({"price_in", "price_out", "gpus", "capabilities"})
    """Fields of a stage that no model was loaded with (a cost may set what deferral gives up): see ``llama``."""

    def __init__(
        self,
        stages: tuple[Stage, ...],
        *,
        timer: Callable[[], float] = time.perf_counter,
        new_seed: Callable[[], int] = lambda: secrets.randbits(63),
        trial_s: float = 1.0,
    ) -> None:
        self._settings = {each.stage.name: each for each in read_settings(stages)}
        self._timer = timer
        self._new_seed = new_seed
        self._trial_s = trial_s
        self._running: _Running | None = None
        self._closed = False
        self._loading: asyncio.Task[_Running] | None = None
        self._wanted = 0
        """Callers who wait for the load."""

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """Those configured that this engine has."""
        return stage.capabilities & CAN

    def places(self, stage: Stage) -> int:
        """Answers of this stage that are written at once; further ones wait."""
        slots = self._settings[stage.name].slots
        return min(slots, stage.max_concurrency or slots)

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """Seconds under the chain that would run now; None before the models were started and timed.

        A request is taken to be like the stage's last one: greedy or not, with as many answers at work beside it.

        A draft's tokens are read with the prompt, and the share of them that climbs usually keep is not written again.
        """
        running = self._running
        if running is None or stage.name in running.row.failed:
            return None
        shared = running.planners[stage.name]
        drafted = 0 if draft is None else draft.usage.output_tokens or tokens_of(draft.text)
        with shared.lock:
            greedy, rows = shared.latest
            seconds = shared.planner.forecast(
                running.row.index(stage.name), prompt_tokens, output_tokens, drafted, greedy=greedy, batch=rows
            )
        return None if seconds is None else EngineCost(seconds, seconds * stage.gpus)

    async def start(self) -> None:
        """Load the models and time them; where it was not called, the first answer waits for that.

        Raises MissingExtraError, ModelFileError or EngineError with the stage's name, or ConfigError where a chain
        joins models whose tokens differ; then nothing is left running. An answer is less strict: it is written where
        its own stage can be, whatever is wrong with the others.
        """
        self._closed = False
        try:
            running = await self._started()
            if running.row.failed:
                await self._let_go()
                raise next(iter(running.row.failed.values()))
        except EngineError:
            if not self._closed:
                raise  # else it was closed meanwhile, which is no failure of the start

    async def _started(self) -> _Running:
        """What runs, loaded once however many ask for it. A caller who leaves does not end the load for the others."""
        if self._running is not None:
            return self._running
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_once())
            self._loading.add_done_callback(_retrieve)
        loading = self._loading
        self._wanted += 1
        try:
            await asyncio.wait((loading,))  # unlike ``await loading`` it does not hand on a cancellation
        finally:
            self._wanted -= 1
        return loading.result()

    async def _load_once(self) -> _Running:
        try:
            missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
            if missing:
                raise MissingExtraError(f"stage '{next(iter(self._settings))}' (engine 'torch')", "torch")
            running = await asyncio.to_thread(self._load)
            if self._closed or not self._wanted:
                raise EngineError(f"stage '{next(iter(self._settings))}': the engine was closed")
            running.worker.start()  # not before: who gives up waiting for the models leaves no thread behind
            self._running = running
        finally:
            self._loading = None
        return running

    async def close(self) -> None:
        """End what is at work with a fault (cancelled), end the thread, let go of the models."""
        self._closed = True
        if self._loading is not None:
            await asyncio.wait((self._loading,))
        await self._let_go()

    async def _let_go(self) -> None:
        """End the thread, if there is one, and drop the models."""
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(running.worker.stop)

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Write one answer, loading the models first if need be. Raises EngineError after ``close`` only."""
        settings = self._settings[stage.name]
        deadline = Deadline(stage.name, settings.total_s)
        try:
            async with deadline.waiting("no loaded model"):
                running = self._at_work(stage) if self._running or self._closed else await self._started()
        except WireError as error:
            yield Attempt(stage.name, fault=error.fault)
            return
        except Exception as error:  # loading lets through whatever files and drivers lead to; it is a failed attempt
            if self._closed:
                raise EngineError(f"stage '{stage.name}': the engine was closed") from error
            yield Attempt(stage.name, fault=_not_loaded(stage, error))
            return
        if stage.name in running.row.failed:
            yield Attempt(stage.name, fault=_not_loaded(stage, running.row.failed[stage.name]))
            return
        with ExitStack() as held:
            try:
                for place in (running.places[stage.name], running.everywhere):
                    async with deadline.waiting("no free place"):
                        await place.acquire()
                    held.callback(place.release)
                async with deadline.waiting("no tokens of the prompt"):
                    answering = await self._answering(request, settings, running, draft)
                if self._at_work(stage) is not running:
                    raise EngineError(f"stage '{stage.name}': the engine was closed")
            except EngineError:
                raise
            except (StepladderError, WireError) as error:
                held.close()
                yield Attempt(stage.name, fault=_fault(error))
                return
            shared = running.planners[stage.name]
            shared.at_work += 1
            held.callback(shared.left)
            held.callback(answering.cancel)
            deadline.let_go(held)
            running.worker.submit(answering.task)
            async for event in self._events(answering, deadline):
                yield event

    def _at_work(self, stage: Stage) -> _Running:
        if self._closed or self._running is None:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        return self._running

    async def _events(self, answering: Answering, deadline: Deadline) -> AsyncGenerator[EngineEvent, None]:
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline.left)):
                    event = await answering.events.get()
            except TimeoutError:
                answering.cancel()
                yield answering.attempt(deadline.over().fault)
                return
            yield event
            if isinstance(event, Attempt):
                return

    async def _answering(
        self, request: Request, settings: Settings, running: _Running, draft: Attempt | None
    ) -> Answering:
        """In a thread: a long prompt takes a while to be split into tokens, and others hold the tokenizer's lock."""
        from stepladder.engines.torch_answer import begin

        return await asyncio.to_thread(
            begin,
            request,
            settings,
            row=running.row,
            shared=running.planners[settings.stage.name],
            draft=draft,
            rounds=running.rounds.get(settings.stage.name),
            seed=self._new_seed(),
            timer=self._timer,
            loop=asyncio.get_running_loop(),
        )

    def _load(self) -> _Running:
        """Everything that takes time; blocks."""
        from stepladder.decoding.batch import Batch
        from stepladder.decoding.graphs import WIDTHS
        from stepladder.decoding.times import StepTimes
        from stepladder.engines.torch_chains import Shared, planner_for
        from stepladder.engines.torch_models import load_row, rounds_of, time_passes, use_threads
        from stepladder.engines.torch_worker import Worker

        settings = tuple(self._settings.values())
        threads = max((each.threads or 0 for each in settings), default=0)
        use_threads(threads)
        row, times, lock = load_row(settings), StepTimes(), Lock()
        served = [each for each in settings if each.stage.name not in row.failed]
        time_passes(row.models, times.observe, timer=self._timer, budget_s=self._trial_s)
        chunk = min(each.chunk for each in settings)
        rounds = rounds_of(served, row, timer=self._timer)
        shared = {
            each.stage.name: Shared(
                planner_for(each, row, times, chunk=chunk, on_device=each.stage.name in rounds), lock
            )
            for each in served
        }

        def on_pass(stage: int, width: int, rows: int, seconds: float) -> None:
            if rounds and width <= WIDTHS[-1]:
                return  # such passes are planned with as rounds have them, without the host's time
            with lock:
                times.observe(stage, width, rows, seconds)

        batch = Batch(
            row.models,
            timer=self._timer,
            on_pass=on_pass,
            chunk=chunk,
            usual={index: times.seconds(index, 1) or 0.0 for index in range(len(row.models))},
            rounds=next(iter(rounds.values()), None),
        )
        worker = Worker(batch, first=lambda: use_threads(threads))
        places = {each.stage.name: asyncio.Semaphore(self.places(each.stage)) for each in settings}
        # Every answer may hold a cache row of every model.
        return _Running(row, worker, shared, rounds, places, asyncio.Semaphore(min(each.slots for each in settings)))


def _retrieve(load: asyncio.Task[_Running]) -> None:
    """Know the error of a load whose callers have all left: the next caller meets it again."""
    if not load.cancelled():
        load.exception()


def _not_loaded(stage: Stage, error: Exception) -> Fault:
    told = str(error) if isinstance(error, StepladderError) else f"{type(error).__name__}: {error}"
    return Fault("crash", f"stage '{stage.name}' cannot be loaded: {told}")


def _fault(error: StepladderError | WireError) -> Fault:
    if isinstance(error, WireError):
        return error.fault
    return Fault("bad_request", str(error))
