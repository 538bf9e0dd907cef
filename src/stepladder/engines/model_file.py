"""Looks at a GGUF file before llama.cpp does: what llama.cpp cannot read it reports poorly, or aborts on."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=64)
def _digest(path: str, _mtime_ns: int, _size: int) -> str:
    """Kept for as long as the file's time and size stay the same, so that restarts need not read it again."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
