"""The outcomes table: one row for each query and stage, in Parquet or JSON lines.

Every column but ``query_id``, ``model`` and ``quality`` may be missing or null. ``cost`` and ``cost_unit`` say what an
answer was billed in any unit; where that unit is usd, ``cost_usd`` says the same again, and a table that has
``cost_usd`` alone is read as one in usd. Columns that are not known here are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from math import isfinite, isnan
from pathlib import Path
from typing import Any, BinaryIO, get_args

import orjson

from stepladder.errors import MissingExtraError, UsageError
from stepladder.files import replacing
from stepladder.types import EMPTY, Attempt, CostUnit, Request, Usage

SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """What one stage made of one query.

    ``model`` is the stage's name (in tables from elsewhere the model's), ``quality`` lies in [0, 1] and ``metric`` says
    who measured it. ``prompt`` is the question; ``messages`` are there where the request was more than that.
    ``confidence`` is the mean log probability of the answer's tokens, ``token_logprobs`` each one's, ``pred`` its final
    answer, ``latency_s`` seconds, ``cost`` what was billed, in ``cost_unit``. ``group_id`` names the fact behind the
    query: rows that share one belong on the same side of every split. Where the call was for several choices, quality,
    response and log probabilities are the first one's, ``other_preds`` the final answers of the others, and tokens and
    cost those of all.
    """

    query_id: str
    model: str
    quality: float
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    metric: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    cost_unit: CostUnit | None = None
    latency_s: float | None = None
    response: str | None = None
    confidence: float | None = None
    pred: str | None = None
    family: str | None = None
    level: str | None = None
    group_id: str | None = None
    token_logprobs: tuple[float, ...] | None = None
    other_preds: tuple[str, ...] | None = None

    @property
    def request(self) -> Request:
        """The query as a request, for features and costs."""
        messages = self.messages or ({"role": "user", "content": self.prompt or ""},)
        return Request(self.query_id, messages=messages, params=EMPTY)

    def attempt(self, stage: str, cost: float = 0.0) -> Attempt:
        """The answer as the attempt of a stage, billed ``cost``: what predictors read of it, in training and in replay.

        Its text is the response, else the final answer that was taken from it; where the tokens' log probabilities are
        not there, ``confidence`` stands for them. Tables do not tell how an answer ended. Several choices stand in
        ``raw`` as a server would tell them.
        """
        text = (self.pred or "") if self.response is None else self.response
        mean = None if self.confidence is None else (self.confidence,)
        return Attempt(
            stage,
            text,
            Usage(self.prompt_tokens or 0, self.output_tokens or 0),
            self.latency_s or 0.0,
            finish_reason="stop",
            logprobs=self.token_logprobs or mean,
            cost=cost,
            raw=_choices(text, self.other_preds) if self.other_preds else None,
        )


def _choices(text: str, others: Sequence[str]) -> Mapping[str, Any]:
    return {"choices": [{"index": number, "text": said} for number, said in enumerate((text, *others))]}


def read(path: str | Path, *, on_bad: Callable[[str], None] | None = None) -> list[OutcomeRow]:
    """All rows of a table, format by suffix.

    Raises UsageError that names the first bad row by number (from 1), column and value; with ``on_bad`` such rows are
    told there and left out instead. Raises MissingExtraError for Parquet without the extra [train].
    """
    path = Path(path)
    rows: list[OutcomeRow] = []
    for number, values in _numbered(path):
        try:
            rows.append(_row(values))
        except ValueError as error:
            told = f"{path}: row {number}: {error}"
            if on_bad is None:
                raise UsageError(told) from error
            on_bad(told)
    return rows


def write(rows: Sequence[OutcomeRow], path: str | Path) -> None:
    """Write a table in one step, format by suffix: the file is the old one or the whole new one.

    Raises UsageError where the file cannot be written, MissingExtraError for Parquet without the extra [train].
    """
    path = Path(path)
    check_path(path)
    try:
        with replacing(path) as file:
            if path.suffix == ".parquet":
                _write_parquet(file, rows)
            else:
                file.writelines(_lines(rows))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_path(path: str | Path) -> None:
    """Raise UsageError where a table's name has neither suffix, MissingExtraError where Parquet cannot be written."""
    if Path(path).suffix not in SUFFIXES:
        raise UsageError(f"{path}: an outcomes table ends in {' or '.join(SUFFIXES)}")
    if Path(path).suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError(f"{path}: Parquet", "train")


# ── columns ──────────────────────────────────────────────────────────────────


class BadValueError(ValueError):
    """A value that its column cannot hold, and why."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadValueError("is no text")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadValueError("should be a text that is not empty")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadValueError("is no finite number")
    return float(value)


def _amount(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise BadValueError("should not be negative")
    return number


def _share(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise BadValueError("does not lie between 0 and 1")
    return number


def _count(value: Any) -> int:
    number = _amount(value)
    if number != int(number):
        raise BadValueError("should be a whole number")
    return int(value)


def _unit(value: Any) -> CostUnit:
    for unit in get_args(CostUnit):
        if value == unit:
            known: CostUnit = unit
            return known
    raise BadValueError(f"should be one of {', '.join(get_args(CostUnit))}")


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    """A list of objects, or that as JSON, as Parquet holds it."""
    found = orjson.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(each, Mapping) for each in found):
        raise BadValueError("should be a list of messages that is not empty")
    return tuple(found)


def _logprobs(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise BadValueError("should be a list of numbers")
    found = tuple(map(_number, value))
    if max(found, default=0.0) > 0:
        raise BadValueError("should hold no number above 0")
    return found


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise BadValueError("should be a list of texts")
    return tuple(value)


COLUMNS: Mapping[str, Callable[[Any], Any]] = {
    "query_id": _name,
    "model": _name,
    "quality": _share,
    "dataset": _text,
    "subset": _text,
    "split": _text,
    "prompt": _text,
    "messages": _messages,
    "metric": _text,
    "prompt_tokens": _count,
    "output_tokens": _count,
    "cost": _amount,
    "cost_unit": _unit,
    "cost_usd": _amount,
    "latency_s": _amount,
    "response": _text,
    "confidence": _number,
    "pred": _text,
    "family": _text,
    "level": _text,
    "group_id": _text,
    "token_logprobs": _logprobs,
    "other_preds": _texts,
}
REQUIRED = ("query_id", "model", "quality")


def _row(values: Any) -> OutcomeRow:
    """One row from its values; raises BadValueError with column and value."""
    if isinstance(values, ValueError):
        raise BadValueError(f"is no JSON: {values}")
    if not isinstance(values, Mapping):
        raise BadValueError(f"is no object: {_shown(values)}")
    for name in REQUIRED:
        if values.get(name) is None:
            raise BadValueError(f"{name} is missing")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in COLUMNS and not _is_missing(name, value):
            found[name] = _checked(name, value)
    usd = found.pop("cost_usd", None)
    if usd is not None and "cost" not in found:
        found |= {"cost": usd, "cost_unit": "usd"}
    return OutcomeRow(**found)


def _is_missing(name: str, value: Any) -> bool:
    """Null, or the NaN that some writers put in its place."""
    return value is None or (isinstance(value, float) and isnan(value) and name not in REQUIRED)


def _checked(name: str, value: Any) -> Any:
    try:
        return COLUMNS[name](value)
    except ValueError as error:  # messages that are no JSON raise one of their own
        raise BadValueError(f"{name} {error}: {_shown(value)}") from error


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else told[:79] + "…"


# ── reading ──────────────────────────────────────────────────────────────────


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    check_path(path)
    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    yield number, error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        file = parquet.ParquetFile(path)
        known = [name for name in file.schema_arrow.names if name in COLUMNS]
        for batch in file.iter_batches(columns=known):
            names = batch.schema.names
            for values in zip(*(_values(column) for column in batch.columns), strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))
    except ArrowException as error:
        raise UsageError(f"{path}: is no Parquet file that can be read: {error}") from error


def _values(column: Any) -> list[Any]:
    """A column as a list; of a dictionary's column, equal values are one object."""
    if not hasattr(column, "dictionary"):
        found: list[Any] = column.to_pylist()
        return found
    words = column.dictionary.to_pylist()
    return [None if index is None else words[index] for index in column.indices.to_pylist()]


# ── writing ──────────────────────────────────────────────────────────────────


def as_json(row: OutcomeRow) -> dict[str, Any]:
    """The row's values by column, those that are there."""
    found = {field.name: getattr(row, field.name) for field in fields(row)}
    if row.cost_unit == "usd":
        found["cost_usd"] = row.cost
    return {name: value for name, value in found.items() if value is not None}


def _lines(rows: Iterable[OutcomeRow]) -> Iterator[bytes]:
    for row in rows:
        yield orjson.dumps(as_json(row), default=dict, option=orjson.OPT_APPEND_NEWLINE)


def _write_parquet(file: BinaryIO, rows: Sequence[OutcomeRow]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    wide: dict[Any, Any] = {_count: pa.int64(), **dict.fromkeys((_share, _number, _amount), pa.float64())}
    wide |= {_logprobs: pa.list_(pa.float64()), _texts: pa.list_(pa.string())}
    schema = pa.schema([(name, wide.get(check, pa.string())) for name, check in COLUMNS.items()])
    found = [as_json(row) for row in rows]
    for values in found:
        if "messages" in values:
            values["messages"] = orjson.dumps(values["messages"], default=dict).decode()
    columns = {name: [values.get(name) for values in found] for name in COLUMNS}
    parquet.write_table(pa.table(columns, schema=schema), file, compression="zstd", compression_level=12)
