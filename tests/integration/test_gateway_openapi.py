"""schemathesis against the document that is served: nothing that it describes, or forbids, brings a 5xx or a surprise.

Each route of a real gateway is asked with data that fits its description, and with data that does not. Every reply has
a status, a content type and a body that are described; what does not fit is refused. That data which fits the schema
is always accepted is not claimed: an empty prompt, or a bound below every stage's cost, is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from gateway_fakes import get, world
from stepladder import config
from stepladder.build import build
from stepladder.gateway.app import create_app
from stepladder.gateway.server import running

OPERATIONS = [
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/route"),
    ("post", "/v1/feedback"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("get", "/v1/decisions"),
    ("get", "/v1/decisions/{id}"),
    ("get", "/health"),
    ("get", "/ready"),
    ("get", "/metrics"),
]
FEW, MANY = 10, 400


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    able = ["stream", "logprobs", "tools", "images", "json"]
    stages = [
        {
            "name": name,
            "engine": "scripted",
            "model": name,
            "cost": cost,
            "capabilities": able,
            "options": {"reply": name},
        }
        for name, cost in (("low", 1.0), ("high", 3.0))
    ]
    path = str(tmp_path_factory.mktemp("schemathesis") / "traces.sqlite3")
    router = build(config.parse({"stages": stages, "traces": {"path": path}}))
    with running(create_app(router, manage_router=True)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


def hold(schema: OpenApiSchema, session: requests.Session, operation: Any, mode: GenerationMode, examples: int) -> int:
    """Put so many cases to one operation and check every reply; how many were put."""
    put = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal put
        put += 1
        case.call_and_validate(session=session, excluded_checks=[positive_data_acceptance])

    ask()
    return put


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_replies_are_as_described(
    schema: OpenApiSchema, session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
        assert operation.method == "get"  # nothing can be put wrong
        return
    assert hold(schema, session, operation, mode, FEW)


async def test_no_operation_is_left_out() -> None:
    doc = (await get(world().app, "/openapi.json")).json
    described = {(method, path) for path, methods in doc["paths"].items() for method in methods}
    assert described - {("get", "/openapi.json")} == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if each[0] == "post"])
def test_replies_are_as_described_many_times(
    schema: OpenApiSchema, session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    assert hold(schema, session, schema[path][method], mode, MANY) >= MANY // 2
