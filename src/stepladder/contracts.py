"""The seams of Stepladder on one screen. Whatever keeps these shapes can be plugged in by name (``plugins.py``)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import Future
from math import inf
from typing import Any, Final, Protocol

from stepladder.types import (
    Absence,
    Attempt,
    Capability,
    Cost,
    Decision,
    EngineCost,
    EngineEvent,
    Estimates,
    Features,
    Outcome,
    Receipt,
    Request,
    Stage,
    StageState,
    StoreCounts,
    Stored,
    Trace,
    View,
)

LOGPROBS: Final = "logprobs"
"""What a predictor may read of an attempt beside what every engine tells (``Predictor``)."""


class Featurizer(Protocol):
    """Request and attempts so far → numbers. The same function in training and in serving."""

    def features(self, request: Request, history: tuple[Attempt, ...] = ()) -> Features: ...


class Predictor(Protocol):
    """Numbers → estimated quality of every stage: before an answer, and as a posterior after the answers seen.

    One that rests on the log probabilities of an answer's tokens says so in an attribute ``reads``, a frozenset that
    holds LOGPROBS. The router then asks stages that can tell them, for answers that it will look at.
    """

    version: str

    def predict(self, features: Features) -> Estimates: ...


class CostModel(Protocol):
    """What calling a stage is expected to cost now, and what an attempt is billed.

    ``draft`` is the answer of ``history`` that a policy would hand to this stage (``types.draft_below``), None where
    there is none: a model that goes by the engine's forecast passes it on.
    """

    version: str

    def expected(
        self, stage: Stage, request: Request, history: tuple[Attempt, ...] = (), draft: Attempt | None = None
    ) -> Cost: ...
    def billed(self, stage: Stage, attempt: Attempt) -> float: ...


class Policy(Protocol):
    """View → Decision. Pure: no I/O, no clock, no chance but the view's coin and lot."""

    name: str

    def decide(self, view: View) -> Decision: ...


class Engine(Protocol):
    """The only door to models. One engine object serves all stages of a ladder that name it.

    ``generate`` never raises for a failure of the model or its server: it yields one ``Attempt`` that carries a
    ``Fault``. Closing the generator early cancels the work. ``Attempt.first_token_s`` is set exactly where a ``Delta``
    was yielded. ``expected_cost`` answers None until it has something to go by; ``draft`` is a lower stage's answer
    that this one may read in one pass: a hint, which an engine may ignore, and which never changes what the law of the
    answer is. ``request.dials.lam`` is the λ in force, whether the caller named one or not. An engine that speculates
    says so in ``Attempt.speculation``. It takes any number of calls and lets those beyond ``stage.max_concurrency``
    wait. One that by its nature answers only so many at once says how many in a method ``places(stage)``.
    """

    def capabilities(self, stage: Stage) -> frozenset[Capability]: ...
    def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]: ...
    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class Entry(Protocol):
    """A call that a guard let in. ``heard`` is told when its answer begins to come, ``leave`` once, at its end.

    ``leave`` gets None where nothing came of the call that an attempt could tell.
    """

    def heard(self) -> None: ...
    def leave(self, attempt: Attempt | None) -> None: ...


class Guard(Protocol):
    """Who can take a call now. Asked before every decision, so it is quick, and never waits.

    What it lets in may still wait within its engine, which keeps to ``Stage.max_concurrency`` itself.
    """

    def absent(self, stages: Iterable[str]) -> Mapping[str, Absence]: ...
    def enter(self, stage: str) -> Entry | Absence: ...
    def states(self) -> tuple[StageState, ...]: ...


class Conversation(Protocol):
    """The conversation that a request goes on with. ``home`` is the stage that answered last in it, if any is known."""

    @property
    def home(self) -> str | None: ...
    def answered(self, attempt: Attempt) -> None: ...


class Conversations(Protocol):
    """Where conversations were answered. ``stayed`` and ``switched`` count follow-ups; the length, what is known."""

    @property
    def stayed(self) -> int: ...
    @property
    def switched(self) -> int: ...
    def __len__(self) -> int: ...
    def open(self, request: Request) -> Conversation: ...


class TraceStore(Protocol):
    """Where traces and outcomes go (``stepladder.testing.check_store``). Safe from any thread.

    ``append`` must not wait for the disk; all that reads sees what was appended before. The future of ``report`` is
    done once the outcome is kept for good, however the process ends then; ``outcome`` waits for that. ``read`` goes by
    the time at which traces were made, ``scan`` a page at a time by the order in which they were written.
    """

    def append(self, trace: Trace) -> None: ...
    def report(self, outcome: Outcome) -> Future[Receipt]: ...
    def outcome(self, outcome: Outcome) -> Receipt: ...
    def get(self, trace_id: str) -> Trace | None: ...
    def read(self, *, since: float = 0.0, limit: int | None = None) -> Iterable[Trace]: ...
    def scan(
        self, *, after: int = 0, since: float = 0.0, until: float = inf, stage: str | None = None, limit: int = 256
    ) -> tuple[Stored, ...]: ...
    def outcomes(self, trace_id: str) -> tuple[Outcome, ...]: ...
    def counts(self) -> StoreCounts: ...
    def close(self) -> None: ...


class Forecast(Protocol):
    """The engine's own forecast for a call (``Engine.expected_cost``); None where it has nothing to go by yet."""

    def __call__(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None: ...


# How ``build.py`` makes each part from its settings. A plug-in's entry point names one of these callables.


class EngineFactory(Protocol):
    def __call__(self, stages: tuple[Stage, ...]) -> Engine: ...


class PredictorFactory(Protocol):
    """Built from an artifact's parameters and arrays (``predictors/artifact.py``); raises ArtifactError."""

    def __call__(self, stages: tuple[str, ...], params: Mapping[str, Any], arrays: Mapping[str, Any]) -> Predictor: ...


class PolicyFactory(Protocol):
    def __call__(self, **options: Any) -> Policy: ...


class CostFactory(Protocol):
    def __call__(self, stages: tuple[Stage, ...], forecast: Forecast, **options: Any) -> CostModel: ...
