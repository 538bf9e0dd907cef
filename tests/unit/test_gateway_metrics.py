"""What ``GET /metrics`` and ``GET /ready`` tell, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway_fakes import PRICE, STAGES, Script, World, attempt, chunk, fault, get, plays, post, world
from stepladder.gateway.app import GatewaySettings, create_app
from stepladder.gateway.exposition import Histogram, Values, exposed, number
from stepladder.gateway.health import readiness
from stepladder.gateway.watch import Visit, Watch
from stepladder.router import Router
from stepladder.traces.memory import MemoryTraceStore
from stepladder.types import (
    Absence,
    Attempt,
    Delta,
    Drafting,
    EngineEvent,
    Request,
    Snapshot,
    Speculation,
    Stage,
    StageState,
    Usage,
)

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2+2?"}]}

Sample = tuple[str, tuple[tuple[str, str], ...]]


def read(body: bytes) -> dict[Sample, float]:
    """Every sample as the usual parser sees it; a sample that stands there twice would be an error of ours."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for each in family.samples:
            key = each.name, tuple(sorted(each.labels.items()))
            assert key not in found, key
            found[key] = each.value
    return found


def of(name: str, **labels: str) -> Sample:
    return name, tuple(sorted(labels.items()))


async def scraped(made: World) -> dict[Sample, float]:
    got = await get(made.app, "/metrics")
    assert (got.status, got.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return read(got.body)


# ── the format ───────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(st.tuples(texts, texts), st.floats(allow_nan=False), max_size=5), texts)
def test_any_label_and_any_number_read_back(values: Mapping[tuple[str, str], float], told: str) -> None:
    family = Values("gauge", "x", told, ("a", "b"))
    for labels, value in values.items():
        family.set(labels, value)
    assert read(exposed([family])) == {of("x", a=a, b=b): value for (a, b), value in values.items()}


@given(st.floats())
def test_a_number_reads_back(value: float) -> None:
    back = float(number(value))
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(st.lists(st.floats(-10, 10), max_size=30), st.lists(st.floats(-10, 10), unique=True, max_size=6).map(sorted))
def test_a_histogram_counts_everything_once(values: list[float], bounds: list[float]) -> None:
    family = Histogram("h", "told", bounds, ("who",))
    for value in values:
        family.observe(("me",), value)
    found = read(exposed([family]))
    if not values:
        assert found == {}
        return
    for bound in bounds:
        assert found[of("h_bucket", who="me", le=number(bound))] == sum(value <= bound for value in values)
    assert found[of("h_bucket", who="me", le="+Inf")] == found[of("h_count", who="me")] == len(values)
    assert found[of("h_sum", who="me")] == pytest.approx(sum(values))


def test_bounds_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"h: bounds must rise, not \[2, 1\]"):
        Histogram("h", "told", [2, 1])


def test_a_count_goes_up_and_a_gauge_is_what_it_is() -> None:
    count, gauge = Values("counter", "c_total", "c", ("a",)), Values("gauge", "g", "g")
    count.add(("x",))
    count.add(("x",), 2.5)
    gauge.set((), -3)
    assert (count.get(("x",)), count.get(("y",)), gauge.get()) == (3.5, 0, -3)
    gauge.replace({})
    assert gauge.get() == 0


# ── what is counted ──────────────────────────────────────────────────────────


def by_whoever(made: Attempt) -> Script:
    """An engine whose stages all end like this."""

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield replace(made, stage=stage.name)

    return script


async def test_an_answered_request() -> None:
    made = world(by_whoever(attempt("?", usage=Usage(7, 2, 3))))
    assert (await post(made.app, CHAT, QUESTION)).status == 200
    found = await scraped(made)
    assert found[of("stepladder_requests_total", mode="route", outcome="answered")] == 1
    assert found[of("stepladder_http_replies_total", route="chat", status="200")] == 1
    assert found[of("stepladder_decisions_total", stage="small", action="call")] == 1
    assert found[of("stepladder_decisions_total", stage="small", action="stop")] == 1
    assert found[of("stepladder_attempts_total", stage="small", outcome="ok")] == 1
    kinds = {kind: found[of("stepladder_tokens_total", stage="small", kind=kind)] for kind in ("prompt", "output")}
    assert kinds == {"prompt": 7, "output": 2}
    assert found[of("stepladder_tokens_total", stage="small", kind="cached")] == 3
    assert found[of("stepladder_cost_total", stage="small", unit="relative")] == PRICE["small"]
    assert found[of("stepladder_baseline_cost_total", unit="relative")] == PRICE["large"]
    saving = found[of("stepladder_estimated_saving", unit="relative")]
    assert saving == pytest.approx(PRICE["large"] - PRICE["small"])
    assert found[of("stepladder_decide_seconds_count")] == 1
    assert found[of("stepladder_request_seconds_count", mode="route")] == 1
    assert found[of("stepladder_in_flight")] == 1  # the scrape itself
    assert found[of("stepladder_state", state="serving")] == 1
    assert found[of("stepladder_config_info", ladder="fakes", config="", artifact="")] == 1
    assert found[of("stepladder_traces_total", outcome="appended")] == 1
    assert not any(name.startswith("stepladder_first_token_seconds") for name, _ in found)
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert found[of(name)] > 0


async def test_a_cascade_that_costs_more_than_it_saves() -> None:
    made = world()
    await post(made.app, CHAT, {**QUESTION, "stepladder": {"mode": "cascade"}})
    found = await scraped(made)
    assert found[of("stepladder_requests_total", mode="cascade", outcome="answered")] == 1
    for stage in STAGES:
        assert found[of("stepladder_attempts_total", stage=stage, outcome="ok")] == 1
    saving = found[of("stepladder_estimated_saving", unit="relative")]
    assert saving == pytest.approx(-PRICE["small"] - PRICE["medium"])


async def test_savings_are_told_by_the_baseline_that_was_set() -> None:
    made = world(settings=GatewaySettings(baseline="medium"))
    await post(made.app, CHAT, QUESTION)
    assert (await scraped(made))[of("stepladder_baseline_cost_total", unit="relative")] == PRICE["medium"]


async def test_faults_by_stage_and_kind() -> None:
    made = world(by_whoever(fault("?", "timeout")))
    assert (await post(made.app, CHAT, QUESTION)).status == 504
    found = await scraped(made)
    for stage in STAGES:
        assert found[of("stepladder_attempts_total", stage=stage, outcome="timeout")] == 1
    assert found[of("stepladder_decisions_total", stage="", action="fail")] == 1
    assert found[of("stepladder_requests_total", mode="route", outcome="failed")] == 1
    assert found[of("stepladder_http_replies_total", route="chat", status="504")] == 1
    assert of("stepladder_baseline_cost_total", unit="relative") not in found


async def test_a_request_that_cannot_be_served() -> None:
    made = world()
    await post(made.app, CHAT, {"messages": []})
    await post(made.app, CHAT, {**QUESTION, "model": "nobody"})
    await post(made.app, CHAT, b"{")
    found = await scraped(made)
    statuses = {dict(labels)["status"]: n for (name, labels), n in found.items() if name.endswith("http_replies_total")}
    assert statuses == {"400": 2, "404": 1}


async def test_drafts_by_pair() -> None:
    told = Speculation(chain=("small", "large"), pairs=(Drafting("small", "large", 8, 5),))
    made = world(by_whoever(attempt("?", speculation=told)))
    await post(made.app, CHAT, QUESTION)
    found = await scraped(made)
    pair = {"drafter": "small", "target": "large"}
    assert found[of("stepladder_speculation_tokens_total", kind="drafted", **pair)] == 8
    assert found[of("stepladder_speculation_tokens_total", kind="accepted", **pair)] == 5


async def test_the_first_words_of_a_stream() -> None:
    made = world(plays(chunk("Four", role="assistant"), chunk(finish="stop"), attempt("?", first_token_s=0.1)))
    await post(made.app, CHAT, {**QUESTION, "stream": True})
    found = await scraped(made)
    counted = {labels: n for (name, labels), n in found.items() if name == "stepladder_first_token_seconds_count"}
    assert counted == {(("stream_mode", "final"),): 1}


async def test_labels_are_never_a_clients_words() -> None:
    made = world()
    marker = "mark-9d1f"
    bodies = [
        {**QUESTION, "model": marker},
        {**QUESTION, "user": marker, "metadata": {marker: marker}},
        {**QUESTION, "stepladder": {"mode": marker}},
        {**QUESTION, "stepladder": {"session": marker, "max_stage": marker}},
        {marker: marker},
    ]
    for body in bodies:
        await post(made.app, CHAT, body, {"user-agent": marker, "x-stepladder-session": marker})
        await post(made.app, CHAT, QUESTION, {"x-stepladder-mode": marker, "x-stepladder-stream-mode": marker})
    for path in (f"/v1/models/{marker}", f"/v1/decisions/{marker}", f"/{marker}"):
        await get(made.app, path)
    body = (await get(made.app, "/metrics")).body
    assert marker.encode() not in body
    routes = {dict(labels)["route"] for (name, labels) in read(body) if name.endswith("http_replies_total")}
    assert routes == {"chat", "model", "decision", "none"}


async def test_many_requests_leave_no_more_names_than_one() -> None:
    made = world()
    sizes = []
    for _ in range(3):
        for _ in range(20):
            await post(made.app, CHAT, QUESTION)
        sizes.append(len(await scraped(made)))
    assert sizes[1] == sizes[2]


async def test_clients_that_leave_are_told_apart() -> None:
    gate = asyncio.Event()

    async def waits(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        if request.params.get("stream"):
            yield Delta("Fo", {"choices": [{"index": 0, "delta": {"content": "Fo"}}]})
        await gate.wait()
        yield attempt(stage.name)

    watch = Watch()
    made = world(waits)
    app = create_app(made.router, watch=watch)
    for stream in (False, True):
        await leave_midway(app, {**QUESTION, "stream": stream}, after=1 if stream else 0)
    found = read(watch.expose(made.router))
    assert found[of("stepladder_client_disconnects_total", route="chat", when="before the reply")] == 1
    assert found[of("stepladder_client_disconnects_total", route="chat", when="amid the reply")] == 1
    assert found[of("stepladder_requests_total", mode="route", outcome="cancelled")] == 2
    assert (watch.in_flight, found[of("stepladder_in_flight")]) == (0, 0)


@pytest.mark.parametrize(("method", "path", "route"), [("POST", CHAT, "chat"), ("GET", "/v1/decisions", "decisions")])
async def test_a_client_that_takes_nothing_is_counted(method: str, path: str, route: str) -> None:
    async def streams(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        yield chunk("Four")
        yield attempt(stage.name, first_token_s=0.1)

    async def never_sent(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    visits: list[Visit] = []
    watch = Watch(tell=visits.append)
    router = Router(replace(world(streams).router.parts, store=MemoryTraceStore()))
    app = create_app(router, GatewaySettings(write_idle_s=0.05), watch=watch)
    messages = iter([{"type": "http.request", "body": orjson.dumps({**QUESTION, "stream": True}), "more_body": False}])

    async def receive() -> Mapping[str, Any]:
        return next(messages, None) or await asyncio.Event().wait()  # type: ignore[func-returns-value, return-value]

    async with asyncio.timeout(5):
        await app({**scope(), "method": method, "path": path}, receive, never_sent)
    found = read(watch.expose(router))
    assert [(visit.route, visit.ending) for visit in visits] == [(route, "stalled")]
    assert found[of("stepladder_client_disconnects_total", route=route, when="amid the reply")] == 1
    assert watch.in_flight == 0


async def leave_midway(app: Any, body: Mapping[str, Any], after: int) -> None:
    """A client that leaves once it has got so many pieces of the reply's body."""
    came, leave = [], asyncio.Event()
    messages = iter([{"type": "http.request", "body": orjson.dumps(body), "more_body": False}])

    async def receive() -> Mapping[str, Any]:
        message = next(messages, None)
        if message is not None:
            return message
        if after:
            await leave.wait()
        else:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        if message.get("body"):
            came.append(message)
            if len(came) == after:
                leave.set()

    async with asyncio.timeout(5):
        await app(scope(), receive, send)


def scope() -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "root_path": ""}


async def test_what_the_guard_tells() -> None:
    made = world()
    state = stage_state("small", Absence("breaker", "secret", 2.0), breaker="open", opened=2, retries=3)
    watch = Watch()
    watch.metrics.stages.look(Snapshot((state, stage_state("large")), {"predictor: ValueError": 4}, 5, 6, 7))
    found = read(watch.metrics.expose())
    assert found[of("stepladder_breaker_state", stage="small", state="open")] == 1
    assert found[of("stepladder_breaker_state", stage="small", state="closed")] == 0
    assert found[of("stepladder_breaker_state", stage="large", state="closed")] == 1
    assert [found[of("stepladder_stage_available", stage=name)] for name in ("small", "large")] == [0, 1]
    assert found[of("stepladder_breaker_opened_total", stage="small")] == 2
    assert found[of("stepladder_retries_total", stage="small")] == 3
    assert found[of("stepladder_stage_left_out_total", stage="small", reason="full")] == 1
    assert found[of("stepladder_failed_open_total", failure="predictor: ValueError")] == 4
    assert found[of("stepladder_conversations")] == 5
    assert found[of("stepladder_followups_total", by="same")] == 6
    assert found[of("stepladder_followups_total", by="other")] == 7
    assert found[of("stepladder_stage_in_flight", stage="small")] == 1
    assert found[of("stepladder_stage_waiting", stage="small")] == 0
    assert made.store.closed == 0


def stage_state(stage: str, absence: Absence | None = None, **more: Any) -> StageState:
    usual: dict[str, Any] = {"breaker": "closed", "places": 4, "in_flight": 1, "waiting": 0, "calls": 9, "failures": 0}
    usual |= {"opened": 0, "retries": 0, "left_out": {"full": 1, "rate_limit": 0, "breaker": 0}}
    return StageState(stage=stage, absence=absence, **{**usual, **more})


# ── whether it is ready ──────────────────────────────────────────────────────


async def test_ready_while_serving() -> None:
    got = await get(world().app, "/ready")
    assert (got.status, got.json["status"]) == (200, "ready")


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_not_ready_while_it_comes_or_goes(state: Any) -> None:
    status, body = readiness(state, Snapshot((stage_state("small"),)))
    assert (status, body["status"]) == (503, state)


def test_not_ready_where_no_stage_can_take_a_call() -> None:
    away = Absence("breaker", "at http://10.0.0.7 with key sk-1", 2.5)
    status, body = readiness("serving", Snapshot((stage_state("small", away, breaker="open"),)))
    assert (status, body["status"]) == (503, "unavailable")
    assert body["stages"] == [
        {
            "stage": "small",
            "available": False,
            "breaker": "open",
            "reason": "breaker",
            "retry_after_s": 2.5,
            "in_flight": 1,
            "waiting": 0,
        }
    ]
    assert "sk-1" not in str(body)


def test_one_stage_is_enough_to_be_ready() -> None:
    away = Absence("full", "is full", 1.0)
    status, body = readiness("serving", Snapshot((stage_state("small", away), stage_state("large"))))
    assert (status, body["status"]) == (200, "ready")
    assert Counter(each["available"] for each in body["stages"]) == {True: 1, False: 1}
