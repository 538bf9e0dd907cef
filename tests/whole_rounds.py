"""What must hold of the engine ``torch`` where it runs whole rounds: checked on a processor and on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from stepladder.engines.torch import TorchEngine
from stepladder.types import Attempt, Delta, Request, Stage
from torch_fakes import ask, attempt, collect, running

TEXTS = (
    "What is 12 + 7?",
    "Sort: pear fig apple",
    "Reverse the word ladder",
    "Is 17 prime?",
)
Ladder = Callable[..., tuple[Stage, ...]]
"""Options of all stages, and of the largest → stages named small, medium and large."""

WAYS: Mapping[str, Mapping[str, Any]] = {
    "two": {"speculation": ["small"], "draft_length": 4},
    "three": {"speculation": ["small", "medium"], "draft_length": 3},
    "looked up": {"speculation": ["ngram"], "draft_length": 4},
    "planned": {},
    "looked up below a model": {"speculation": ["ngram", "small"], "draft_length": 2},
}


async def told(stages: tuple[Stage, ...], *requests: Request, at_once: int = 8) -> list[Attempt]:
    """Whole answers of the largest stage, several at once."""
    places = asyncio.Semaphore(at_once)

    async def one(engine: TorchEngine, request: Request) -> Attempt:
        async with places:
            return await attempt(engine, stages[-1], request)

    async with running(*stages, trial_s=0.2) as engine:
        assert_runs_whole(engine, stages[-1])
        found = await asyncio.gather(*(one(engine, request) for request in requests))
        await engine.close()
    assert [each.fault for each in found] == [None] * len(requests)
    return list(found)


def assert_runs_whole(engine: TorchEngine, stage: Stage) -> None:
    """Whole rounds are run unless that is switched off."""
    assert engine._running is not None
    assert (stage.name in engine._running.rounds) == (stage.options.get("rounds") != "off")


async def greedy_answers_are_plain_ones(ladder: Ladder, way: str) -> None:
    """The engine's answers with whole rounds are those of the engine that runs pass by pass and plainly."""
    requests = [ask(text, max_tokens=count) for text in TEXTS for count in (1, 2, 30)]
    plain = await told(ladder({"rounds": "off"}, speculation="off"), *requests)
    for at_once in (1, 8):
        found = await told(ladder({}, **WAYS[way]), *requests, at_once=at_once)
        assert [each.text for each in found] == [each.text for each in plain]
        assert [each.usage for each in found] == [each.usage for each in plain]
        assert [each.finish_reason for each in found] == [each.finish_reason for each in plain]
    if way in {"two", "three"}:
        pairs = {(pair.drafter, pair.target) for each in found if each.speculation for pair in each.speculation.pairs}
        assert pairs == {("small", "large")} if way == "two" else {("small", "medium"), ("medium", "large")}


async def drawn_answers_hang_on_their_seed_alone(ladder: Ladder, way: str) -> None:
    """Not on who is beside; and seeds make a difference."""
    params = {"temperature": 2.5, "top_k": 40, "max_tokens": 30}
    requests = [ask(text, seed=place % 2, **params) for place, text in enumerate(TEXTS[:3] * 2)]
    stages = ladder({}, **WAYS[way])
    beside, alone = [await told(stages, *requests, at_once=count) for count in (6, 1)]
    assert [each.text for each in beside] == [each.text for each in alone]
    assert len({each.text for each in beside}) > 3


async def a_stop_string_ends_an_answer(ladder: Ladder) -> None:
    """In the middle of what a round wrote, streamed or not."""
    stages = ladder({}, **WAYS["two"])
    async with running(*stages) as engine:
        for text in TEXTS:
            whole = (await attempt(engine, stages[-1], ask(text, max_tokens=40))).text
            stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
            cut = whole[: whole.index(stop)]
            found = await attempt(engine, stages[-1], ask(text, max_tokens=40, stop=stop))
            assert (found.text, found.finish_reason) == (cut, "stop")
            *deltas, last = await collect(engine, stages[-1], ask(text, max_tokens=40, stop=stop, stream=True))
            assert "".join(each.text for each in deltas if isinstance(each, Delta)) == cut
            assert isinstance(last, Attempt)


async def who_leaves_gives_the_place_back(ladder: Ladder) -> None:
    """Answers are left at any point while others go on, which write what they would have."""
    stages = ladder({"n_parallel": 2}, **WAYS["three"])
    async with running(*stages) as engine:
        wanted = (await attempt(engine, stages[-1], ask(TEXTS[0], max_tokens=40))).text
        for events in range(4):
            kept = asyncio.create_task(attempt(engine, stages[-1], ask(TEXTS[0], max_tokens=40)))
            left = engine.generate(ask(TEXTS[1], max_tokens=100, stream=True, temperature=2.0), stages[-1])
            for _ in range(events):
                await anext(left, None)
            await left.aclose()
            assert (await kept).text == wanted
        assert engine._running is not None
        await asyncio.gather(*(attempt(engine, stages[-1], ask(text, max_tokens=4)) for text in TEXTS))
        rows = engine._running.row.models
    assert all(model._lengths == [None, None] for model in rows)


async def what_rounds_cannot_tell_is_written_pass_by_pass(ladder: Ladder) -> None:
    """Log probabilities, climbed drafts and block verification: the same answers."""
    stages = ladder({}, **WAYS["two"])
    async with running(*stages) as engine:
        plain = await attempt(engine, stages[-1], ask(TEXTS[0], max_tokens=20))
        scored = await attempt(engine, stages[-1], ask(TEXTS[0], max_tokens=20, logprobs=True))
        assert scored.text == plain.text
        assert scored.logprobs is not None
        lower = await attempt(engine, stages[0], ask(TEXTS[0], max_tokens=20))
        assert (await attempt(engine, stages[-1], ask(TEXTS[0], max_tokens=20), lower)).text == plain.text
    blocks = ladder({}, **WAYS["two"], verification="block")
    assert [each.text for each in await told(blocks, ask(TEXTS[0], max_tokens=20))] == [plain.text]


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    **{f"greedy, {way}": (lambda ladder, way=way: greedy_answers_are_plain_ones(ladder, way)) for way in WAYS},
    **{
        f"drawn, {way}": (lambda ladder, way=way: drawn_answers_hang_on_their_seed_alone(ladder, way))
        for way in ("two", "three", "looked up")
    },
    "stop strings": a_stop_string_ends_an_answer,
    "leaving": who_leaves_gives_the_place_back,
    "pass by pass": what_rounds_cannot_tell_is_written_pass_by_pass,
}
