"""``check_engine``: what every engine promises, as a test that plug-in authors run on theirs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise, product
from typing import NoReturn, get_args

from stepladder.contracts import Engine
from stepladder.types import (
    Attempt,
    Capability,
    Delta,
    EngineCost,
    EngineEvent,
    Request,
    Speculation,
    Stage,
    Usage,
)

SIZES = (0, 1, 10, 100, 1000)
DEFAULT_TIMEOUT_S = 60.0


async def check_engine(
    engine: Engine,
    stage: Stage,
    request: Request,
    *,
    failing: Request | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> None:
    """Raise AssertionError, with a sentence, where the engine breaks its contract; leaves the engine closed.

    ``request`` is one that the stage can answer. ``failing``, where given, is one that its model or server refuses.
    The request is asked about a dozen times, half of them as a stream where the stage declares ``stream``.
    """
    async with asyncio.timeout(timeout_s):
        await engine.start()
        await engine.start()  # a second start changes nothing
        try:
            _check_capabilities(engine, stage)
            await _check_calls(engine, stage, request)
            _check_expected_cost(engine, stage)
            if failing is not None:
                await _check_failure(engine, stage, failing)
        finally:
            await engine.close()
            await engine.close()  # neither does a second close


async def _check_calls(engine: Engine, stage: Stage, request: Request) -> None:
    whole = _unstreamed(request)
    _check_events(await _collect(engine, stage, whole), stage, answered=True)
    for draft in _drafts():
        _check_events(await _collect(engine, stage, whole, draft), stage, answered=True)
    shapes = [whole]
    if "stream" in engine.capabilities(stage):
        streamed = replace(request, params={**request.params, "stream": True})
        shapes.append(streamed)
        _check_stream(await _collect(engine, stage, streamed), stage)
    for shape in shapes:
        await _check_early_close(engine, stage, shape)
        await _check_cancel(engine, stage, shape)
        await _check_two_at_once(engine, stage, shape)


async def _collect(engine: Engine, stage: Stage, request: Request, draft: Attempt | None = None) -> list[EngineEvent]:
    async with aclosing(engine.generate(request, stage, draft)) as events:
        return [event async for event in events]


def _check_events(events: Sequence[EngineEvent], stage: Stage, *, answered: bool) -> Attempt:
    last = events[-1] if events else None
    if not isinstance(last, Attempt):
        _broken(f"generate() must end with an Attempt; it ended with {last!r}")
    for event in events[:-1]:
        _expect(isinstance(event, Delta), f"generate() must yield Deltas before its one Attempt; it yielded {event!r}")
    _expect(last.stage == stage.name, f"the Attempt must name stage '{stage.name}'; it names '{last.stage}'")
    _expect(last.is_answer or not answered, f"the request must be answered; it failed: {last.fault}")
    _expect(math.isfinite(last.seconds) and last.seconds >= 0, f"seconds must be from 0; they are {last.seconds}")
    counts = (last.usage.prompt_tokens, last.usage.output_tokens, last.usage.cached_tokens)
    _expect(min(counts) >= 0, f"token counts must be from 0; they are {last.usage}")
    for logprob in last.logprobs or ():
        _expect(logprob <= 0, f"a log probability must be at most 0; one is {logprob}")
    if last.speculation is not None:
        _check_speculation(last.speculation, stage)
    return last


def _drafts() -> tuple[Attempt, ...]:
    """Answers of a lower stage, which this one may read or not, and must be none the worse for."""
    return Attempt("below", "Four, or so they say.", Usage(4, 7)), Attempt("below", "\U0001f9d7" * 3)


def _check_speculation(found: Speculation, stage: Stage) -> None:
    _expect(found.chain[-1:] in ((), (stage.name,)), f"a chain must end with '{stage.name}'; it is {found.chain}")
    for pair in found.pairs:
        _expect(0 <= pair.accepted <= pair.drafted, f"accepted tokens must be among the drafted; {pair} says otherwise")
    _expect(0 <= found.kept <= found.climbed, f"kept tokens must be among the climbed; {found} says otherwise")
    _expect(all(count >= 0 for count in found.passes.values()), f"passes must be from 0; they are {found.passes}")
    _expect(math.isfinite(found.saved_s) and found.saved_s >= 0, f"saved_s must be from 0; it is {found.saved_s}")
    _expect(found.moved is None or 0 <= found.moved <= 1, f"moved must be from 0 to 1 or None; it is {found.moved}")


def _check_stream(events: Sequence[EngineEvent], stage: Stage) -> None:
    attempt = _check_events(events, stage, answered=True)
    text = "".join(event.text for event in events if isinstance(event, Delta))
    _expect(text == attempt.text, f"the deltas must join to the attempt's text {attempt.text!r}; they join to {text!r}")
    _expect(not text or attempt.first_token_s is not None, "an answer that was streamed must say its first_token_s")
    first = attempt.first_token_s or 0.0
    _expect(0 <= first <= attempt.seconds, f"first_token_s {first} must lie within the {attempt.seconds} seconds")


async def _check_early_close(engine: Engine, stage: Stage, request: Request) -> None:
    events = engine.generate(request, stage)
    await anext(events)
    await events.aclose()
    _check_events(await _collect(engine, stage, request), stage, answered=True)


async def _check_cancel(engine: Engine, stage: Stage, request: Request) -> None:
    task = asyncio.create_task(_collect(engine, stage, request))
    await asyncio.sleep(0)
    task.cancel()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    allowed = isinstance(result, asyncio.CancelledError | list)
    _expect(allowed, f"cancelling the task must end it with CancelledError; it ended with {result!r}")


async def _check_two_at_once(engine: Engine, stage: Stage, request: Request) -> None:
    other = replace(request, id=f"{request.id}-again")
    for events in await asyncio.gather(_collect(engine, stage, request), _collect(engine, stage, other)):
        _check_events(events, stage, answered=True)


async def _check_failure(engine: Engine, stage: Stage, request: Request) -> None:
    try:
        events = await _collect(engine, stage, request)
    except Exception as error:  # whatever it is, it is what must not happen
        raise AssertionError(f"a failure must be an Attempt with a Fault; generate() raised {error!r}") from error
    attempt = _check_events(events, stage, answered=False)
    _expect(attempt.fault is not None, "a failure must be an Attempt with a Fault; this one looks like an answer")
    _expect(bool(attempt.fault and attempt.fault.message), "a Fault must say what happened; its message is empty")


def _check_capabilities(engine: Engine, stage: Stage) -> None:
    found = engine.capabilities(stage)
    _expect(isinstance(found, frozenset), f"capabilities() must be a frozenset; it is {found!r}")
    unknown = found - set(get_args(Capability))
    _expect(not unknown, f"capabilities() may hold {', '.join(get_args(Capability))}; it holds {sorted(unknown)}")


def _check_expected_cost(engine: Engine, stage: Stage) -> None:
    for prompt, draft in product(SIZES, (None, *_drafts())):
        costs = [engine.expected_cost(stage, prompt, output, draft) for output in SIZES]
        known = [cost for cost in costs if cost is not None]
        _expect(len(known) in (0, len(costs)), "expected_cost() must be None for all sizes or for none")
        for cost in known:
            _check_cost(cost)
        rises = all(low.seconds <= high.seconds for low, high in pairwise(known))
        _expect(rises, "expected_cost() must not fall as output_tokens rise")


def _check_cost(cost: EngineCost) -> None:
    for value in (cost.seconds, cost.device_s):
        _expect(math.isfinite(value) and value >= 0, f"expected_cost() must be finite and from 0; it is {cost}")


def _unstreamed(request: Request) -> Request:
    kept = {key: value for key, value in request.params.items() if key not in ("stream", "stream_options")}
    return replace(request, params=kept)


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        _broken(sentence)


def _broken(sentence: str) -> NoReturn:
    raise AssertionError(sentence)
