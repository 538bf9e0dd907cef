"""The document that is served agrees with what is served."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from gateway_fakes import Got, World, fault, get, plays, post, world
from stepladder.gateway import export, feedback, wire
from stepladder.gateway.openapi import block, document
from stepladder.gateway.wire import Names

NAMES = Names("stepladder", ("small", "medium", "large"), ("route", "cascade", "fixed"))
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2+2?"}]}


async def served(made: World) -> dict[str, Any]:
    return dict((await get(made.app, "/openapi.json")).json)


def check(value: Any, schema: Any, doc: dict[str, Any]) -> None:
    whole = {**schema, "components": doc["components"]}
    jsonschema.Draft202012Validator.check_schema(whole)
    jsonschema.Draft202012Validator(whole).validate(value)


def response(doc: dict[str, Any], path: str, method: str, got: Got) -> dict[str, Any]:
    """The described reply to this one: its status and its content type must be there."""
    described = doc["paths"][path][method]["responses"][str(got.status)]
    kind = got.headers["content-type"].partition(";")[0]
    return dict(described["content"][kind]["schema"])


async def test_every_route_is_described_and_nothing_else() -> None:
    made = world()
    doc = await served(made)
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in made.app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert routes == {(path, method) for path, methods in doc["paths"].items() for method in methods}


def test_the_keys_of_ours_are_the_keys_that_are_read() -> None:
    doc = document(NAMES)
    assert set(block(NAMES)["properties"]) == set(wire._DIALS)
    headers = {each["name"] for each in doc["paths"]["/v1/route"]["post"]["parameters"]}
    assert headers == {f"x-stepladder-{key.replace('_', '-')}" for key in wire._DIALS}
    assert set(doc["components"]["schemas"]["Feedback"]["properties"]) == set(feedback.KEYS)
    assert {each["name"] for each in doc["paths"]["/v1/decisions"]["get"]["parameters"]} == set(export._PARAMS)


def test_every_reference_leads_somewhere() -> None:
    doc = document(NAMES)

    def references(value: Any) -> Any:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from [inner] if key == "$ref" else references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    assert {each.rpartition("/")[2] for each in references(doc)} <= set(doc["components"]["schemas"])
    assert len({each["operationId"] for path in doc["paths"].values() for each in path.values()}) == len(doc["paths"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**QUESTION, "stepladder": {"explain": True, "mode": "cascade"}}),
        ("/v1/chat/completions", {**QUESTION, "stream": True}),
        ("/v1/chat/completions", {**QUESTION, "model": "nobody"}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": "2+2="}),
        ("/v1/route", QUESTION),
        ("/v1/route", {"prompt": 4}),
        ("/v1/feedback", {"decision_id": "dec-1", "score": 7}),
    ],
)
async def test_replies_are_as_described(path: str, body: dict[str, Any]) -> None:
    made = world()
    doc, got = await served(made), await post(made.app, path, body)
    schema = response(doc, path, "post", got)
    if got.headers["content-type"] == "application/json":
        check(got.json, schema, doc)


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/openapi.json", "/metrics"])
async def test_what_can_be_got_is_as_described(path: str) -> None:
    made = world()
    doc, got = await served(made), await get(made.app, path)
    schema = response(doc, path, "get", got)
    if path != "/metrics":
        check(got.json, schema, doc)


async def test_a_stored_decision_is_as_described() -> None:
    made = world()
    await post(made.app, "/v1/chat/completions", QUESTION)
    doc = await served(made)
    for asked in ("dec-1", "dec-9"):
        got = await get(made.app, f"/v1/decisions/{asked}")
        check(got.json, response(doc, "/v1/decisions/{id}", "get", got), doc)


@pytest.mark.parametrize("kind", ["timeout", "connect", "rate_limit", "bad_request", "context", "auth", "crash"])
async def test_faults_are_as_described(kind: str) -> None:
    made = world(plays(fault("large", kind)))
    doc, got = await served(made), await post(made.app, "/v1/chat/completions", QUESTION)
    check(got.json, response(doc, "/v1/chat/completions", "post", got), doc)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (QUESTION, True),
        ({**QUESTION, "anything": [1], "stepladder": {"lambda": 1, "stream_mode": "restart"}}, True),
        ({**QUESTION, "stepladder": {"lambda": None, "explain": None, "min_stage": None, "mode": None}}, True),
        ({**QUESTION, "stepladder": {"lamda": 1}}, False),
        ({**QUESTION, "stepladder": {"hold_back": 0}}, False),
        ({**QUESTION, "stream": "yes"}, False),
        ({"messages": []}, False),
    ],
)
async def test_bodies_are_taken_or_refused_as_described(body: dict[str, Any], good: bool) -> None:
    made = world()
    doc = await served(made)
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": doc["components"]}
    assert jsonschema.Draft202012Validator(schema).is_valid(body) is good
    assert ((await post(made.app, "/v1/chat/completions", body)).status == 200) is good
