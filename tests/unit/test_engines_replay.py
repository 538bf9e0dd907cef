from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepladder.engines.replay import ReplayEngine
from stepladder.errors import ConfigError, EngineError, MissingExtraError
from stepladder.types import Attempt, Delta, Request, Stage, Usage

ROWS: list[dict[str, Any]] = [
    {"query_id": "q1", "prompt": "2+2?", "model": "small", "response": "5", "quality": 0.0, "latency_s": 0.5},
    {"query_id": "q1", "prompt": "2+2?", "model": "large", "response": "4", "prompt_tokens": 7, "output_tokens": 1},
    {"query_id": "q1", "prompt": "2+2?", "model": "large", "response": "a later row is not read"},
    {"query_id": "q2", "messages": [{"role": "user", "content": "Hi"}], "model": "large", "response": None},
]


def stage(table: Path, model: str = "large", **options: Any) -> Stage:
    return Stage(model, "replay", model, options={"table": str(table), **options})


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "outcomes.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


async def ask(engine: ReplayEngine, where: Stage, text: str, **params: Any) -> list[Delta | Attempt]:
    request = Request("r", ({"role": "user", "content": text},), params=params)
    return [event async for event in engine.generate(request, where)]


async def test_answers_by_prompt_and_model(tmp_path: Path) -> None:
    table = write(tmp_path, ROWS)
    small, large = stage(table, "small"), stage(table)
    engine = ReplayEngine((small, large))
    assert await ask(engine, small, "2+2?") == [Attempt("small", "5", seconds=0.5, finish_reason="stop")]
    assert await ask(engine, large, "2+2?") == [Attempt("large", "4", Usage(7, 1), finish_reason="stop")]
    assert [event.text for event in await ask(engine, large, "2+2?", stream=True)] == ["4", "4"]
    assert (await ask(engine, large, "Hi"))[0].text == ""
    (missing,) = await ask(engine, small, "Hi")
    assert isinstance(missing, Attempt)
    assert missing.fault is not None
    assert (missing.fault.kind, "no answer of 'small'" in missing.fault.message) == ("bad_request", True)


async def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "outcomes.parquet"
    rows = [{**row, "messages": json.dumps(row["messages"]) if "messages" in row else None} for row in ROWS]
    columns = ("prompt", "messages", "model", "response", "latency_s", "output_tokens")
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path)
    where = stage(path)
    engine = ReplayEngine((where,))
    assert (await ask(engine, where, "2+2?"))[0].text == "4"
    assert (await ask(engine, where, "Hi"))[0].text == ""
    path.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="no Parquet"):
        await ReplayEngine((where,)).start()


async def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[train\]"):
        await ReplayEngine((stage(tmp_path / "x.parquet"),)).start()


async def test_realtime_waits_as_long_as_the_model_took(tmp_path: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    where = stage(write(tmp_path, ROWS), "small", realtime=True)
    await ask(ReplayEngine((where,), sleep=sleep), where, "2+2?")
    assert slept == [0.5]


BAD: list[tuple[Any, str]] = [
    ("{oops\n", "is no JSON"),
    ([1], "is no object"),
    ({"prompt": "x", "response": "y"}, "'model' must be"),
    ({"model": "m", "response": "y"}, "needs 'prompt'"),
    ({"model": "m", "messages": "[", "response": "y"}, ""),
    ({"model": "m", "prompt": "x", "response": 4}, "'response' must be"),
    ({"model": "m", "prompt": "x", "output_tokens": -1}, "'output_tokens' must be"),
    ({"model": "m", "prompt": "x", "latency_s": "slow"}, "'latency_s' must be"),
    ({"model": "m", "prompt": "x", "token_logprobs": "sure"}, "'token_logprobs' must be"),
    ({"model": "m", "prompt": "x", "token_logprobs": [-1, 0.5]}, "'token_logprobs' must be"),
]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, None),
        ({"token_logprobs": [-0.25, -1], "confidence": -0.5}, (-0.25, -1.0)),
        ({"token_logprobs": [], "confidence": -0.5}, (-0.5,)),
        ({"confidence": 0.9}, None),
        ({"confidence": "high"}, None),
    ],
)
async def test_log_probabilities_are_the_recorded_ones(tmp_path: Path, row: dict[str, Any], told: Any) -> None:
    where = stage(write(tmp_path, [{"prompt": "2+2?", "model": "small", "response": "4", **row}]), "small")
    assert (await ask(ReplayEngine((where,)), where, "2+2?"))[0].logprobs == told


async def test_bad_rows_are_numbered(tmp_path: Path) -> None:
    where = stage(write(tmp_path, [ROWS[0], *(row for row, _ in BAD)]))
    with pytest.raises(ConfigError) as caught:
        await ReplayEngine((where,)).start()
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == len(BAD)
    for number, (line, (_, why)) in enumerate(zip(told, BAD, strict=True), start=2):
        assert line.startswith(f"row {number}: ")
        assert why in line


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "table: is missing"), ({"table": "x.csv"}, "must end in"), ({"table": "x.jsonl", "tabel": 1}, "'table'")],
)
def test_options_that_are_wrong(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ReplayEngine((Stage("s", "replay", "m", options=options),))


async def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    engine = ReplayEngine((stage(tmp_path / "no.jsonl"),))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        await engine.start()


async def test_closed(tmp_path: Path) -> None:
    where = stage(write(tmp_path, ROWS))
    engine = ReplayEngine((where,))
    await engine.close()
    with pytest.raises(EngineError):
        await ask(engine, where, "2+2?")
