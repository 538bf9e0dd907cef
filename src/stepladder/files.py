"""Write a file beside the one that it replaces, then replace it: a reader, or a crash, meets the old one or the new."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MODE = 0o644
"""Readable by all, as files are that are not made by ``mkstemp``."""


@contextmanager
def replacing(path: str | Path, *, mode: int = MODE) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of ``path`` when the block ends, with all of it on the disk.

    The folder is made where it is not there. Where the block raises, or anything fails, ``path`` stays as it was and
    nothing is left beside it. Raises OSError where the folder or the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:  # re-raised: only the half-written file is cleared away
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: str | Path, data: bytes, *, mode: int = MODE) -> None:
    """``replacing``, of bytes that are there already."""
    with replacing(path, mode=mode) as file:
        file.write(data)
