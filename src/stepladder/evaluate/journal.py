"""The journal of a collection: one JSON line for each call as it ends, so that nothing paid for is lost or repeated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Literal

import orjson

from stepladder.errors import UsageError

SCHEMA = 1
SYNC_EVERY = 64
"""Lines that may wait for the disk. They are with the operating system at once; a power cut loses these at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One call that ended: an answer of ``stage``, or the judge's verdict on that answer.

    ``digest`` names what was asked, of which model, with which settings. ``fault`` is the kind of fault of a call that
    failed for good; such an entry only counts what it cost. ``cost`` is in the ladder's unit, ``seconds`` wall-clock.
    ``sample`` numbers the answers of one stage to one query from 0; ``logprobs`` are its tokens' own.
    """

    kind: Literal["answer", "verdict"]
    query_id: str
    stage: str
    digest: str
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    confidence: float | None = None
    fault: str | None = None
    sample: int = 0
    logprobs: tuple[float, ...] | None = None


class Journal:
    """An append-only file of entries; ``entries`` are those that it held when it was opened.

    A last line that a crash tore is dropped. Raises UsageError for a file that is no journal, is damaged elsewhere, or
    is being written by another process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unsynced = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"{self.path}: the journal cannot be opened: {error.strerror or error}") from error
        try:
            self._lock()
            self.entries = self._load()
        except BaseException:  # re-raised: nobody else could close the file
            os.close(self._file)
            raise

    def append(self, entry: Entry) -> None:
        """Write one entry. Raises UsageError where the disk is full or gone."""
        try:
            self._write(orjson.dumps(asdict(entry), option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Bring everything to the disk and close; a journal that nothing was written to is removed."""
        if self._file >= 0:
            os.fsync(self._file)
            if os.fstat(self._file).st_size <= len(_HEADER):
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            os.fsync(self._file)
            self._unsynced = 0

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{self.path}: another process is collecting into it") from error

    def _load(self) -> list[Entry]:
        lines = self.path.read_bytes().splitlines(keepends=True)
        entries: list[Entry] = []
        kept = 0
        for number, line in enumerate(lines, start=1):
            try:
                entry = self._entry(line, number)
            except ValueError as error:
                if number == len(lines):
                    break
                raise UsageError(f"{self.path}: line {number} is damaged: {error}") from error
            kept += len(line)
            entries += [] if entry is None else [entry]
        os.ftruncate(self._file, kept)
        if not kept:
            self._write(_HEADER)
        return entries

    def _entry(self, line: bytes, number: int) -> Entry | None:
        """The line's entry, None for the first line; raises ValueError for one that is not whole."""
        if number == 1 and not _HEADER.startswith(line):
            raise UsageError(f"{self.path}: is no journal of schema {SCHEMA}; move it away or name another --out")
        if not line.endswith(b"\n"):
            raise ValueError("it has no end")
        if number == 1:
            return None
        values = orjson.loads(line)
        if not isinstance(values, dict) or not set(values) <= _FIELDS:
            raise ValueError("it is no entry")
        try:
            told = values.get("logprobs")
            return Entry(**{**values, "logprobs": None if told is None else tuple(told)})
        except TypeError as error:
            raise ValueError(str(error)) from error


_FIELDS = {field.name for field in fields(Entry)}
_HEADER = orjson.dumps({"journal": SCHEMA}, option=orjson.OPT_APPEND_NEWLINE)
