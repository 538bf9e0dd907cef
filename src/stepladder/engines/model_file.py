"""Looks at a GGUF file before llama.cpp does: what llama.cpp cannot read it reports poorly, or aborts on."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from stepladder.errors import ModelFileError

MAGIC = b"GGUF"


def verify(path: str, sha256: str | None) -> None:
    """Raise ModelFileError unless the file is there, begins as GGUF and has the SHA-256 (hex), where one is given.

    Reads the whole file the first time a checksum is asked for, so call it in a thread. Damaged weights load without
    an error; only the checksum tells.
    """
    file = Path(path)
    try:
        found = file.stat()
        with file.open("rb") as opened:
            magic = opened.read(len(MAGIC))
    except OSError as error:
        raise ModelFileError(f"the model file {path} cannot be read: {error.strerror or error}") from error
    if magic != MAGIC:
        raise ModelFileError(f"the model file {path} is no GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    if sha256 is not None and (actual := _digest(path, found.st_mtime_ns, found.st_size)) != sha256.lower():
        raise ModelFileError(f"the model file {path} is not the one expected: its SHA-256 is {actual}, not {sha256}")


# ── the header ───────────────────────────────────────────────────────────────
# GGUF from version 2 on: magic, version, counts of tensors and keys, then each key with its type and its value. Only as
# much is read as is needed to find one key.

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 2**20


def own_context(path: str) -> int | None:
    """The context that a GGUF file's model was trained for, in tokens; None where its header does not tell.

    Reads the beginning of the file only, and never raises for what stands there: loading the file will.
    """
    try:
        with Path(path).open("rb") as file:
            return _find_context(file)
    except (OSError, struct.error, ValueError):
        return None


def _find_context(file: BinaryIO) -> int | None:
    if file.read(len(MAGIC)) != MAGIC or _number(file, "<I") < 2:
        return None
    _, keys = _number(file, "<Q"), _number(file, "<Q")
    for _ in range(int(keys)):
        name = _string(file)
        kind = int(_number(file, "<I"))
        if name.endswith(b".context_length") and kind in _NUMBERS:
            return int(_number(file, _NUMBERS[kind]))
        _skip(file, kind)
    return None


def _number(file: BinaryIO, form: str) -> float:
    found: float = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return found


def _string(file: BinaryIO) -> bytes:
    length = int(_number(file, "<Q"))
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes in a header")
    return file.read(length)


def _skip(file: BinaryIO, kind: int) -> None:
    """Pass over one value. Raises ValueError for a type that GGUF does not have."""
    if kind == _STRING:
        _string(file)
    elif kind in _NUMBERS:
        file.seek(struct.calcsize(_NUMBERS[kind]), 1)
    elif kind == _ARRAY:
        inner, count = int(_number(file, "<I")), int(_number(file, "<Q"))
        if inner in _NUMBERS:
            file.seek(count * struct.calcsize(_NUMBERS[inner]), 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        raise ValueError(f"no type of value has the number {kind}")


@lru_cache(maxsize=64)
def _digest(path: str, _mtime_ns: int, _size: int) -> str:
    """Kept for as long as the file's time and size stay the same, so that restarts need not read it again."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
