"""Answers from a table of recorded outcomes: what a model said once, without the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import orjson

from stepladder.engines.forecast import Forecasts
from stepladder.engines.options import Options
from stepladder.errors import ConfigError, EngineError, MissingExtraError, Problem
from stepladder.types import Attempt, Capability, Delta, EngineCost, EngineEvent, Fault, Request, Stage, Usage

Answers = dict[tuple[str, str], Attempt]
"""(the question's text, the model) → what it answered, not yet named after a stage."""

MAX_PROBLEMS = 20


class BadRowError(ValueError):
    """A row that cannot be read, and why."""


class ReplayEngine:
    """Looks answers up by the request's text and ``stage.model``.

    Options of a stage: ``table`` (required; a .jsonl or .parquet file, the latter with the extra [train]) and
    ``realtime`` (false; true waits for as long as the model took). Columns read: ``prompt`` or ``messages``, ``model``,
    ``response``, ``prompt_tokens``, ``output_tokens``, ``latency_s``, ``token_logprobs`` and ``confidence``; others are
    ignored, and of several rows for one question and model the first counts. Tables are read at ``start``, or at the
    first call.

    An attempt's seconds are the recorded ones, and so are its tokens' log probabilities: each one's, or their mean.
    A question that is not in the table is a ``bad_request`` fault.
    """

    def __init__(self, stages: tuple[Stage, ...], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._tables: dict[str, str] = {}
        self._realtime: dict[str, bool] = {}
        self._answers: dict[str, Answers] = {}
        self._loading = asyncio.Lock()
        self._forecasts = Forecasts()
        self._closed = False
        for stage in stages:
            self._read_options(stage)

    def capabilities(self, stage: Stage) -> frozenset[Capability]:
        """As configured."""
        return stage.capabilities

    def expected_cost(
        self, stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        """Learned from the recorded seconds of the answers given so far."""
        return self._forecasts.cost(stage, prompt_tokens, output_tokens)

    async def start(self) -> None:
        """Read the tables. Raises ConfigError naming every bad row, or MissingExtraError."""
        self._closed = False
        async with self._loading:
            for path in set(self._tables.values()) - set(self._answers):
                self._answers[path] = await asyncio.to_thread(read_answers, path)

    async def close(self) -> None:
        """Forget the tables."""
        self._closed = True
        self._answers.clear()

    async def generate(
        self, request: Request, stage: Stage, draft: Attempt | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """Give the recorded answer. Raises EngineError after ``close``, and as ``start`` does."""
        if self._closed:
            raise EngineError(f"stage '{stage.name}': the engine was closed")
        await self.start()
        attempt = self._attempt(request, stage)
        if self._realtime[stage.name]:
            await self._sleep(attempt.seconds)
        if request.params.get("stream") and attempt.text:
            yield Delta(attempt.text)
        self._forecasts.observe(attempt)
        yield attempt

    def _attempt(self, request: Request, stage: Stage) -> Attempt:
        table = self._tables[stage.name]
        found = self._answers[table].get((request.text, stage.model))
        if found is None:
            message = f"the table {table} holds no answer of '{stage.model}' to this prompt: {request.text[:80]!r}"
            return Attempt(stage.name, fault=Fault("bad_request", message))
        shown = found.seconds if request.params.get("stream") and found.text else None
        return Attempt(
            stage.name,
            found.text,
            found.usage,
            found.seconds,
            first_token_s=shown,
            finish_reason="stop",
            logprobs=found.logprobs,
        )

    def _read_options(self, stage: Stage) -> None:
        options = Options(stage)
        table = options.text("table")
        if table is None:
            options.wrong("table", "is missing: the path of the recorded outcomes, .jsonl or .parquet")
        elif Path(table).suffix not in (".jsonl", ".parquet"):
            options.wrong("table", f"must end in .jsonl or .parquet, not {table!r}")
        self._realtime[stage.name] = options.flag("realtime", default=False)
        options.done()
        self._tables[stage.name] = str(table)


def read_answers(path: str) -> Answers:
    """All answers of a table. Raises ConfigError, which numbers the bad rows from 1, or MissingExtraError."""
    answers: Answers = {}
    problems: list[Problem] = []
    for number, row in enumerate(_rows(path), start=1):
        try:
            key, attempt = _answer(row)
        except ValueError as error:
            problems.append(Problem(f"row {number}", str(error)))
            if len(problems) == MAX_PROBLEMS:
                break
        else:
            answers.setdefault(key, attempt)
    if problems:
        raise ConfigError(path, problems)
    return answers


def _rows(path: str) -> Iterator[Any]:
    try:
        yield from _parquet(path) if path.endswith(".parquet") else _jsonl(path)
    except OSError as error:
        raise ConfigError(path, [Problem("table", f"cannot be read: {error.strerror or error}")]) from error


def _jsonl(path: str) -> Iterator[Any]:
    with Path(path).open("rb") as lines:
        for line in lines:
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield error


def _parquet(path: str) -> Iterator[Any]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "train") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ConfigError(path, [Problem("table", f"is no Parquet file: {error}")]) from error


def _answer(row: Any) -> tuple[tuple[str, str], Attempt]:
    """One row's key and answer. Raises BadRowError with what is wrong."""
    if isinstance(row, ValueError):
        raise BadRowError(f"is no JSON: {row}")
    if not isinstance(row, Mapping):
        raise BadRowError("is no object")
    model, text = row.get("model"), row.get("response")
    if not isinstance(model, str) or not model:
        raise BadRowError("'model' must be a string that is not empty")
    if text is not None and not isinstance(text, str):
        raise BadRowError(f"'response' must be a string, not {text!r}")
    usage = Usage(int(_number(row, "prompt_tokens")), int(_number(row, "output_tokens")))
    made = Attempt("", text or "", usage, _number(row, "latency_s"), logprobs=_logprobs(row))
    return (_question(row), model), made


def _question(row: Mapping[str, Any]) -> str:
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(messages, str):
        messages = orjson.loads(messages)  # a Parquet column may hold them as JSON
    if isinstance(messages, list) and messages and all(isinstance(message, Mapping) for message in messages):
        return Request("", tuple(messages)).text
    if not isinstance(prompt, str):
        raise BadRowError("needs 'prompt' (a string) or 'messages' (a list of objects)")
    return prompt


def _logprobs(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The tokens' log probabilities, or ``confidence`` in their place; None where that is of another kind."""
    told = row.get("token_logprobs")
    if told:
        if not isinstance(told, list) or not all(map(_is_logprob, told)):
            raise BadRowError(f"'token_logprobs' must be a list of numbers up to 0, not {told!r}")
        return tuple(map(float, told))
    mean = row.get("confidence")
    return (float(mean),) if mean is not None and _is_logprob(mean) else None


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -inf < value <= 0


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise BadRowError(f"'{key}' must be a number from 0, not {value!r}")
    return float(value)
