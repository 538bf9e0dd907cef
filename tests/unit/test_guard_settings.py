"""From ladder.toml to gates, memory and fallback."""

from __future__ import annotations

from typing import Any

import pytest

from stepladder import config
from stepladder.build import SWITCH_COST, build
from stepladder.engines.llama import LlamaEngine
from stepladder.engines.torch import TorchEngine
from stepladder.errors import ConfigError
from stepladder.guard.gates import Entry, GateRules
from stepladder.router import Router
from stepladder.testing import make_attempt, make_request
from stepladder.types import Stage, StageState

STAGES: list[dict[str, Any]] = [
    {"name": "a", "engine": "scripted", "model": "a", "cost": 1.0},
    {"name": "b", "engine": "scripted", "model": "b", "cost": 2.0},
]


def router_of(*, tables: dict[str, Any] | None = None, **options: Any) -> Router:
    return build(config.parse({"stages": [{**STAGES[0], **options}, STAGES[1]], **(tables or {})}))


def state_after(router: Router, *faults: bool) -> StageState:
    """Of stage a, after so many calls of it that failed or not."""
    guard = router.parts.guard
    assert guard is not None
    for failed in faults:
        entry = guard.enter("a")
        assert isinstance(entry, Entry)
        entry.leave(make_attempt("a", fault="server" if failed else None))
    return router.snapshot().stages[0]


def test_the_usual_breaker_opens_at_the_fifth_failure_for_about_a_second() -> None:
    assert state_after(router_of(), *[True] * 4).breaker == "closed"
    state = state_after(router_of(), *[True] * 5)
    assert state.breaker == "open"
    assert state.absence is not None
    assert 0.5 < state.absence.retry_after < 1.26


def test_breakers_are_set_by_stage_and_can_be_off() -> None:
    state = state_after(router_of(breaker_failures=1, breaker_pause_s=100.0), True)
    assert state.absence is not None
    assert 90 < state.absence.retry_after < 126
    assert state_after(router_of(breaker_failures=0), *[True] * 50).breaker == "off"


def test_queues_are_bounded_by_setting() -> None:
    router = router_of(max_concurrency=2, max_queue=1)
    guard = router.parts.guard
    assert guard is not None
    assert [isinstance(guard.enter("a"), Entry) for _ in range(4)] == [True, True, True, False]
    assert (GateRules().max_queue, router.snapshot().stages[1].places) == (1000, None)


@pytest.mark.parametrize(("options", "places"), [({}, 4), ({"n_parallel": 2}, 2)])
@pytest.mark.parametrize("at_once", [None, 1, 100])
def test_engines_that_have_places_of_their_own_say_so(
    options: dict[str, Any], places: int, at_once: int | None
) -> None:
    for name, engine in (("llama", LlamaEngine), ("torch", TorchEngine)):
        stage = Stage("a", name, "a.gguf", max_concurrency=at_once, options={"n_parallel": 4, **options})
        made = engine((stage,))  # type: ignore[operator]
        assert made.places(stage) == min(places, at_once or places)


def test_the_price_of_leaving_a_stage_has_a_default_where_costs_are_relative() -> None:
    assert router_of().parts.switch_cost == SWITCH_COST
    assert router_of(tables={"policy": {"switch_cost": 0}}).parts.switch_cost == 0
    usd = {"ladder": {"cost_unit": "usd"}, "policy": {"lambda": 0.01}}
    assert router_of(tables=usd).parts.switch_cost == 0


def test_the_fallback_stage_is_a_stage() -> None:
    assert router_of(tables={"policy": {"fallback_stage": "a"}}).parts.fallback == "a"
    with pytest.raises(ConfigError, match="policy.fallback_stage: no stage 'c'"):
        router_of(tables={"policy": {"fallback_stage": "c"}})


def test_a_queue_that_can_never_form_is_told() -> None:
    stage = {"name": "a", "model": "m", "base_url": "http://127.0.0.1:9/v1", "max_queue": 5}
    with pytest.raises(ConfigError, match=r"stages\[0\].max_queue: needs max_concurrency"):
        config.parse({"stages": [stage]})
    config.parse({"stages": [{**stage, "max_concurrency": 2}]})


@pytest.mark.parametrize(
    "options",
    [
        {"max_queue": -1},
        {"breaker_failures": -1},
        {"breaker_failures": 1.5},
        {"breaker_pause_s": 0},
        {"retries": 11},
        {"retries": -1},
    ],
)
def test_settings_that_are_wrong_are_named(options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(ConfigError, match=key):
        router_of(**options)


async def test_conversations_are_remembered_by_default() -> None:
    router = router_of()
    await router.start()
    await router.answer(make_request())
    await router.close()
    assert router.snapshot().conversations == 1
