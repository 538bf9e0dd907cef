"""Golden cases: request → upstream call → reply, each a readable file in tests/golden/gateway.

``PYTHONPATH=src:tests python tests/unit/test_gateway_golden.py`` writes what comes out now into the files; read the
difference before it is committed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway_fakes import Got, World, post, world
from stepladder.types import Attempt, Delta, Drafting, EngineEvent, Fault, Request, Speculation, Stage, Usage

CASES = sorted((Path(__file__).parent.parent / "golden" / "gateway").glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
async def test_case(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    assert await play(case) == {"upstream": case["upstream"], "reply": case["reply"]}


def test_there_are_cases() -> None:
    assert len(CASES) > 10


async def play(case: Mapping[str, Any]) -> dict[str, Any]:
    """Run one case; gives the upstream calls and the reply."""
    scripts = case.get("engine_by_stage")

    async def script(request: Request, stage: Stage) -> AsyncGenerator[EngineEvent, None]:
        for event in case["engine"] if scripts is None else scripts[stage.name]:
            yield _event(stage.name, event)

    made = world(script, calibrated=case.get("calibrated", True))
    asked = case["request"]
    got = await post(made.app, asked["path"], asked["body"], asked["headers"])
    return {"upstream": _calls(made), "reply": _reply(got)}


def _event(stage: str, event: Mapping[str, Any]) -> EngineEvent:
    if "delta" in event:
        return Delta(event["delta"], event.get("raw"))
    fields = dict(event["attempt"])
    usage = Usage(*fields.pop("usage", ()))
    fault = Fault(**event["fault"]) if "fault" in event else None
    return Attempt(stage, usage=usage, fault=fault, raw=event.get("raw"), speculation=_speculation(event), **fields)


def _speculation(event: Mapping[str, Any]) -> Speculation | None:
    if "speculation" not in event:
        return None
    fields = dict(event["speculation"])
    pairs = tuple(Drafting(**pair) for pair in fields.pop("pairs"))
    return Speculation(chain=tuple(fields.pop("chain")), pairs=pairs, **fields)


def _calls(made: World) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "messages": list(request.messages),
            "prompt": request.prompt,
            "params": dict(request.params),
            "needs": sorted(request.needs),
        }
        for stage, request in made.engine.calls
    ]


def _reply(got: Got) -> dict[str, Any]:
    headers = {name: value for name, value in got.headers.items() if name != "content-length"}
    streamed = headers["content-type"].startswith("text/event-stream")
    body = {"events": got.events} if streamed else {"body": got.json}
    return {"status": got.status, "headers": headers, **body}


def rewrite() -> None:
    """Write what comes out now into every file."""
    for path in CASES:
        case = json.loads(path.read_text(encoding="utf-8"))
        case.update(asyncio.run(play(case)))
        path.write_text(json.dumps(case, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    rewrite()
