"""Rows of a file that others published, whatever its form: JSON lines (plain or gzipped), JSON, CSV or Parquet.

A record knows where it stands, so that whoever finds a mistake in it can name the place. Pickles are never read.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stepladder.errors import MissingExtraError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""Ends of names by which a folder's files are taken. A file that is named itself may have another: JSON lines then."""

PICKLES = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz", ".pkl.zst")
GZIP_MAGIC = b"\x1f\x8b"
BROKEN = (OSError, EOFError, zlib.error)
"""What a file raises that cannot be read, is cut off or is no gzip within."""

LONGEST_FIELD = 16 * 2**20
"""Characters of one CSV field; Python's own bound would refuse long prompts."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its values by column, and its ``place`` ("line 3", "row 3", from 1) in the file ``path``."""

    path: Path
    place: str
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        """How a message names the row."""
        return f"{self.path}: {self.place}"


def read_records(path: str | Path, *, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The rows of one file, form by suffix; ``columns`` names those of a CSV file whose first line names none.

    Raises UsageError that names the file, and the line where there is one, for what cannot be read and for pickles;
    MissingExtraError for Parquet without the extra [train].
    """
    path = Path(path)
    refuse_pickle(path)
    with _reading(path):
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".csv":
            yield from _csv(path, columns)
        elif path.suffix == ".json":
            yield from _json(path)
        else:
            yield from _json_lines(path)


def read_lines(path: str | Path) -> Iterator[Record]:
    """The objects of JSON lines, plain or gzipped, whatever the file's name. Raises UsageError as ``read_records``."""
    path = Path(path)
    with _reading(path):
        yield from _json_lines(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UsageError that names the file for what breaks while it is read."""
    try:
        yield
    except BROKEN as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or a folder's files in the order of their names; raises UsageError where it holds none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
    if not found:
        raise UsageError(f"{path}: holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def refuse_pickle(path: Path) -> None:
    """Raise UsageError for a pickle, with the command that converts it: unpickling runs what a stranger wrote."""
    if path.name.lower().endswith(PICKLES):
        other = f"{path.name.split('.')[0]}.parquet"
        command = f"import pandas; pandas.read_pickle('{path.name}').to_parquet('{other}')"
        raise UsageError(
            f"{path}: is a pickle, which may run any program while it is read, so it is not read here. If you trust "
            f'who made it, convert it where it can do no harm: python -c "{command}"'
        )


# ── one form after the other ─────────────────────────────────────────────────


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(io.BytesIO(_bytes(path)), start=1):
        if line.strip():
            yield _record(path, f"line {number}", line)


def _json(path: Path) -> Iterator[Record]:
    """An array of objects; JSON lines under the name of JSON are taken as what they are."""
    try:
        found = orjson.loads(_bytes(path))
    except orjson.JSONDecodeError:
        yield from _json_lines(path)
        return
    for number, values in enumerate(found if isinstance(found, list) else [found], start=1):
        yield _of_object(path, f"item {number}", values)


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content


def _record(path: Path, place: str, line: bytes) -> Record:
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: {place}: is no JSON: {error}") from error
    return _of_object(path, place, values)


def _of_object(path: Path, place: str, values: Any) -> Record:
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {place}: is no object")
    return Record(path, place, values)


def _csv(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file, columns)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no text in UTF-8: {error}") from error


def _csv_rows(path: Path, file: io.TextIOWrapper, columns: Sequence[str] | None) -> Iterator[Record]:
    reader = csv.reader(file, strict=True)
    begins = 1
    try:
        while (fields := _next_row(reader)) is not None:
            place, begins = f"line {begins}", reader.line_num + 1
            if columns is None:
                columns = _header(path, fields)
            elif fields and len(fields) != len(columns):
                raise UsageError(f"{path}: {place}: has {len(fields)} fields, not {len(columns)}: {', '.join(columns)}")
            elif fields:
                yield Record(path, place, dict(zip(columns, fields, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path}: line {begins}: is no CSV: {error}") from error


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, None behind the last. The bound is the whole process's: it is raised while a row is read alone.

    A generator that held it raised between rows would leave it so where two files are read in turns.
    """
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)


def _header(path: Path, fields: Sequence[str]) -> Sequence[str]:
    for name in fields:
        if fields.count(name) > 1:
            raise UsageError(f"{path}: line 1: names the column '{name}' twice")
    return fields


def _parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError(f"{path}: Parquet", "train") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Record(path, f"row {number}", values)
    except ArrowException as error:
        raise UsageError(f"{path}: is no Parquet file that can be read: {error}") from error
