"""The routes beside the two that answer, and what an answer tells of its making."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from gateway_fakes import PRICE, STAGES, attempt, chunk, echoes, fault, get, plays, post, world
from stepladder.errors import EngineError
from stepladder.gateway.app import GatewaySettings
from stepladder.gateway.report import call_headers
from stepladder.gateway.stream import is_preamble
from stepladder.types import Delta, EngineEvent, Request, Stage, Usage

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
CHAT = "/v1/chat/completions"


async def test_models_are_the_door_and_the_stages() -> None:
    app = world(settings=GatewaySettings(model_name="auto")).app
    listed = (await get(app, "/v1/models")).json
    assert [model["id"] for model in listed["data"]] == ["auto", *STAGES]
    assert (await get(app, "/v1/models/auto")).json == listed["data"][0]
    assert (await get(app, "/v1/models/large")).json == listed["data"][3]
    missing = await get(app, "/v1/models/stepladder")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_health_names_the_ladder() -> None:
    assert (await get(world().app, "/health")).json == {"status": "ok", "ladder": "fakes", "stages": list(STAGES)}


async def test_a_decision_can_be_asked_for_later() -> None:
    made = world()
    answered = (await post(made.app, CHAT, QUESTION)).json
    got = await get(made.app, f"/v1/decisions/{answered['stepladder']['decision_id']}")
    assert got.json["id"] == "dec-1"
    assert got.json["request"]["messages"] == QUESTION["messages"]
    assert got.json["outcomes"] == [{"score": 0.5, "source": "user", "stage": None, "comment": None, "key": None}]
    missing = await get(made.app, "/v1/decisions/dec-9")
    assert (missing.status, missing.error["code"]) == (404, "decision_not_found")


async def test_nobody_waits_for_the_disk_that_a_stored_decision_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = world(), threading.Event()
    monkeypatch.setattr(made.store, "get", lambda _: None if read.wait(5) else pytest.fail("the loop waited"))
    asked = asyncio.create_task(get(made.app, "/v1/decisions/dec-1"))
    await asyncio.sleep(0.01)
    assert (await post(made.app, CHAT, QUESTION)).status == 200
    read.set()
    assert (await asked).status == 404


@pytest.mark.parametrize("body", [QUESTION, {"prompt": "2+2="}])
async def test_route_decides_and_calls_nothing(body: dict[str, Any]) -> None:
    made = world()
    got = (await post(made.app, "/v1/route", {**body, "stepladder": {"lambda": 3, "max_stage": "medium"}})).json
    assert (got["action"], got["stage"], got["lambda"], got["mode"]) == ("call", "small", 3.0, "route")
    assert [each["allowed"] for each in got["stages"]] == [True, True, False]
    assert [each["cost"]["resource"] for each in got["stages"]] == list(PRICE.values())
    assert got["stages"][2]["value"] is None
    assert got["notes"] == {"class": "simple"}
    assert got["baseline"] == {"stage": "large", "cost": 1.8, "saved": pytest.approx(0.8), "estimate": True}
    assert got["decide_us"] > 0
    assert made.engine.calls == []
    assert made.store.traces == []


async def test_explain_shows_every_step() -> None:
    body = (await post(world().app, CHAT, {**QUESTION, "stepladder": {"mode": "cascade", "explain": True}})).json
    steps = body["stepladder"]["steps"]
    assert [step["action"] for step in steps] == ["call", "call", "call", "stop"]
    assert [step["stage"] for step in steps] == ["small", "medium", "large", "large"]
    assert set(steps[0]["stages"][0]["cost"]) == {"resource", "latency", "congestion", "switch", "total", "seconds"}
    assert body["stepladder"]["cost"] == pytest.approx(sum(PRICE.values()))
    assert "steps" not in (await post(world().app, CHAT, QUESTION)).json["stepladder"]


async def test_usage_is_the_answering_calls_and_spent_is_everything() -> None:
    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        if stage.name == "small":
            yield replace(fault("small", "timeout"), usage=Usage(5, 1), seconds=3.0)
        else:
            yield attempt(stage.name)

    made = world(script)
    body = (await post(made.app, CHAT, QUESTION)).json
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    small, medium = body["stepladder"]["spent"]
    assert small == {
        "stage": "small",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "output_tokens": 1,
        "cost": PRICE["small"],
        "seconds": 3.0,
        "fault": "timeout",
    }
    assert (medium["stage"], medium["output_tokens"], medium["fault"]) == ("medium", 2, None)
    assert body["stepladder"]["cost"] == PRICE["small"] + PRICE["medium"]


async def test_usage_by_stage_adds_up_to_everything() -> None:
    body = (await post(world().app, CHAT, {**QUESTION, "stepladder": {"mode": "cascade"}})).json["stepladder"]
    assert list(body["usage"]) == list(STAGES)
    assert sum(each["cost"] for each in body["usage"].values()) == pytest.approx(body["cost"])
    assert sum(each["calls"] for each in body["usage"].values()) == len(body["spent"])
    assert {each["faults"] for each in body["usage"].values()} == {0}


async def test_value_before_and_after_the_answer() -> None:
    block = (await post(world().app, CHAT, QUESTION)).json["stepladder"]
    expected, realised = block["value"]["expected"], block["value"]["realised"]
    assert expected == {"quality": 0.6, "cost": 1.25, "value": pytest.approx(5 * 0.6 - 1.25)}
    assert realised["cost"] == pytest.approx(1.0 + 0.5 * 0.25)  # billed, and a quarter of a second at 0.25 / 0.5 s
    assert realised["value"] == pytest.approx(5 * realised["quality"] - realised["cost"])


async def test_a_cascade_that_climbed_to_the_top_saved_less_than_nothing() -> None:
    body = (await post(world().app, CHAT, {**QUESTION, "stepladder": {"mode": "cascade"}})).json["stepladder"]
    saved = PRICE["large"] - sum(PRICE.values())
    assert body["baseline"] == {"stage": "large", "cost": 1.8, "saved": pytest.approx(saved), "estimate": False}
    assert body["baseline"]["saved"] < 0


@pytest.mark.parametrize("stream", [False, True])
async def test_savings_are_told_against_the_declared_baseline(stream: bool) -> None:
    made = world(settings=GatewaySettings(baseline="medium"))
    got = await post(made.app, CHAT, {**QUESTION, "stream": stream, "stepladder": {"report": True}})
    block = (got.events[-2] if stream else got.json)["stepladder"]
    assert block["baseline"] == {"stage": "medium", "cost": 1.3, "saved": pytest.approx(0.3), "estimate": True}
    assert got.headers.get("x-stepladder-saved") == (None if stream else "0.3")
    route = (await post(made.app, "/v1/route", QUESTION)).json
    assert route["baseline"]["saved"] == pytest.approx(0.3)


async def test_the_runner_up_and_why_it_lost() -> None:
    body = (await post(world().app, CHAT, {**QUESTION, "stepladder": {"explain": True}})).json
    second = body["stepladder"]["runner_up"]
    assert (second["action"], second["stage"]) == ("call", "large")  # 5 x 0.9 - 2.05 = 2.45, medium's 2.2
    assert second["behind"] == pytest.approx(1.75 - 2.45)  # the fake policy does not go by value
    assert "quality +0.300, worth +1.5 at λ=5, for +0.8 in cost" in second["why"]
    assert "looks at more than the next step" in second["why"]
    assert second == body["stepladder"]["steps"][0]["runner_up"]
    stop = body["stepladder"]["steps"][1]["runner_up"]
    assert (stop["action"], stop["stage"]) == ("call", "large")
    assert "runner_up" not in (await post(world().app, CHAT, QUESTION)).json["stepladder"]


async def test_one_stage_has_no_runner_up() -> None:
    block = {"min_stage": "large", "explain": True}
    body = (await post(world().app, CHAT, {**QUESTION, "stepladder": block})).json
    assert body["stepladder"]["runner_up"] is None


PRESETS = {"production": {"lambda": 1.5}, "careful": {"lambda": 9.0, "mode": "cascade", "max_stage": "medium"}}


async def test_a_preset_is_a_model() -> None:
    made = world(settings=GatewaySettings(presets=PRESETS))
    listed = [model["id"] for model in (await get(made.app, "/v1/models")).json["data"]]
    assert listed == ["stepladder", "stepladder/production", "stepladder/careful", *STAGES]
    assert (await get(made.app, "/v1/models/stepladder/careful")).json["id"] == "stepladder/careful"
    body = (await post(made.app, CHAT, {**QUESTION, "model": "stepladder/careful"})).json
    assert (body["model"], body["stepladder"]["lambda"], body["stepladder"]["mode"]) == ("medium", 9.0, "cascade")
    assert made.engine.calls[0][1].dials.max_stage == "medium"


@pytest.mark.parametrize("model", ["production", "stepladder/", "stepladder/produktion", "large/production"])
async def test_presets_that_are_none(model: str) -> None:
    got = await post(world(settings=GatewaySettings(presets=PRESETS)).app, CHAT, {**QUESTION, "model": model})
    assert (got.status, got.error["code"]) == (404, "model_not_found")


async def test_what_was_spent_without_an_answer_is_told() -> None:
    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield replace(fault(stage.name, "timeout"), usage=Usage(5, 1))

    got = await post(world(script).app, CHAT, QUESTION)
    assert got.status == 504
    block = got.json["stepladder"]
    assert [each["stage"] for each in block["spent"]] == list(STAGES)
    assert {each["fault"] for each in block["spent"]} == {"timeout"}
    assert block["cost"] == pytest.approx(sum(PRICE.values()))
    assert block["decision_id"] == "dec-1"


async def test_what_a_client_that_left_had_spent_can_be_asked_for() -> None:
    made = world(plays(Delta("Once upon"), Delta(" a time"), attempt("large")))
    request = Request("r", messages=tuple(QUESTION["messages"]), params={"stream": True})
    async with aclosing(made.router.stream(request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    (each,) = (await get(made.app, "/v1/decisions/dec-1")).json["spent"]
    assert (each["stage"], each["fault"], each["cost"]) == ("small", "cancelled", PRICE["small"])
    assert each["output_tokens"] > 0


async def test_many_choices_survive_a_cascade_stream() -> None:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": str(i)}, "finish_reason": "stop"} for i in (0, 1)
    ]
    made = world(plays(attempt("large", "0", raw={"id": "x", "choices": choices})))
    body = {**QUESTION, "n": 2, "stream": True, "model": "large", "stepladder": {}}
    events = (await post(made.app, CHAT, body)).events
    got = [event["choices"][0] for event in events[:-1] if event["choices"]]
    assert [choice["delta"].get("content") for choice in got] == ["0", None, "1", None]
    assert [choice["index"] for choice in got] == [0, 0, 1, 1]
    assert events[-1] == "[DONE]"


async def test_read_only_chunks_are_relayed() -> None:
    raw = MappingProxyType({"id": "x", "choices": [MappingProxyType({"index": 0, "delta": {"content": "4"}})]})
    made = world(plays(Delta("4", raw), attempt("large", "4", first_token_s=0.1)))
    events = (await post(made.app, CHAT, {**QUESTION, "stream": True, "model": "large"})).events
    assert events[0] == {"id": "x", "choices": [{"index": 0, "delta": {"content": "4"}}], "model": "large"}
    assert [event["choices"][0]["finish_reason"] for event in events[1:-1]] == ["stop"]


@pytest.mark.parametrize(
    ("delta", "silent"),
    [
        (chunk("", role="assistant"), True),
        (chunk(None), True),
        (Delta(""), True),
        (chunk("x"), False),
        (chunk(None, finish="stop"), False),
        (Delta("", {"choices": [{"delta": {"reasoning_content": "hm"}}]}), False),
        (Delta("", {"choices": [{"text": "x"}]}), False),
        (Delta("", {"choices": []}), True),
        (Delta("", {}), True),
    ],
)
def test_a_preamble_says_nothing(delta: Delta, silent: bool) -> None:
    assert is_preamble(delta) == silent


async def test_a_name_cannot_break_a_header() -> None:
    made = world()
    await post(made.app, CHAT, QUESTION)
    step = made.store.traces[0].steps[0]
    headers = dict(call_headers("dec\r\nset-cookie: x", step, "small"))
    assert headers[b"x-stepladder-decision-id"] == b"dec%0D%0Aset-cookie: x"


@pytest.mark.parametrize("managed", [True, False])
async def test_the_lifespan_minds_the_router_only_when_asked(managed: bool) -> None:
    made = world(manage_router=managed)
    async with made.app.router.lifespan_context(made.app):
        assert made.engine.started == managed
        assert made.engine.closed == 0
    assert made.engine.closed == managed
    assert made.store.closed == managed


async def test_a_router_that_cannot_start_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(manage_router=True)

    async def cannot() -> None:
        raise EngineError("no model")

    monkeypatch.setattr(made.engine, "start", cannot)
    with pytest.raises(EngineError, match="no model"):
        async with made.app.router.lifespan_context(made.app):
            pytest.fail("it was entered")
    assert made.engine.closed
    assert made.store.closed


# ── many at once ─────────────────────────────────────────────────────────────


async def test_many_at_once_do_not_mix() -> None:
    app = world(echoes).app
    bodies = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(50)]
    replies = await asyncio.gather(*(post(app, CHAT, body) for body in bodies))
    said = [reply.json["choices"][0]["message"]["content"] for reply in replies]
    assert said == [f"question {i}" for i in range(50)]
