"""The heads of GGUF files: vocabularies, since only models that number the same tokens alike can draft for one another,
and what a cache takes.

llama.cpp loads a drafter with other tokens without a word where the counts agree, and every draft of it is in vain.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from stepladder.errors import ModelFileError

TOKENS = "tokenizer.ggml.tokens"
SCALARS = ("tokenizer.ggml.model", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
KIND = "general.architecture"
SHAPE = (
    "block_count",
    "embedding_length",
    "attention.head_count",
    "context_length",
    "attention.head_count_kv",
    "attention.key_length",
)
"""What a cache's size follows from, behind the architecture's name; the last two may be missing."""

PADDING = 128
"""By how many tokens two files of one family may differ: they pad their tables to different widths."""

SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each kind of plain value (the GGUF specification, ``gguf_metadata_value_type``)."""

STRING, ARRAY, VERSIONS = 8, 9, (2, 3)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens by number, as bytes, and the settings of the tokenizer that must agree, as bytes too."""

    tokens: tuple[bytes, ...]
    scalars: tuple[bytes | None, ...]


def read_vocabulary(path: str) -> Vocabulary:
    """The vocabulary of a GGUF file of version 2 or 3. Raises ModelFileError, also where it names no tokens."""
    found = _read(path, "vocabulary", (TOKENS, *SCALARS))
    if TOKENS not in found:
        raise ModelFileError(f"the vocabulary of the model file {path} cannot be read: it names no tokens")
    return Vocabulary(found[TOKENS], tuple(b"".join(found[key]) if key in found else None for key in SCALARS))


def cache_shape(path: str) -> tuple[int, int, int, int]:
    """Layers, heads that keep keys and values, numbers in each of them, and the longest context of a model.

    Raises ModelFileError for a head that cannot be read, or does not tell.
    """
    kind = b"".join(_read(path, "head", (KIND,)).get(KIND, ())).decode("utf-8", "replace")
    keys = [f"{kind}.{key}" for key in SHAPE]
    found = _read(path, "head", keys)
    layers, width, heads, longest, kept, size = (
        max((int.from_bytes(value, "little") for value in found.get(key, ())), default=0) for key in keys
    )
    if not (layers and width and heads and longest):
        raise ModelFileError(f"the head of the model file {path} does not tell its layers, heads and context")
    return layers, kept or heads, size or width // heads, longest


def difference(target: Vocabulary, drafter: Vocabulary) -> str | None:
    """Why the drafter's tokens are not the target's; None where they are, but for the padding at the end."""
    for key, ours, theirs in zip(SCALARS, target.scalars, drafter.scalars, strict=True):
        if ours != theirs:
            return f"{key} differs"
    counts = len(target.tokens), len(drafter.tokens)
    if max(counts) - min(counts) > PADDING:
        return f"one has {counts[0]} tokens, the other {counts[1]}"
    for number, (here, there) in enumerate(zip(target.tokens, drafter.tokens, strict=False)):
        if here != there:
            return f"token {number} is {_shown(here)} in one and {_shown(there)} in the other"
    return None


def _shown(token: bytes) -> str:
    return repr(token.decode("utf-8", "replace"))


# ── the file ─────────────────────────────────────────────────────────────────


def _read(path: str, what: str, keys: Collection[str]) -> dict[str, tuple[bytes, ...]]:
    try:
        with Path(path).open("rb") as file:
            return _metadata(file, Path(path).stat().st_size, keys)
    except OSError as error:
        raise ModelFileError(f"the model file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelFileError(f"the {what} of the model file {path} cannot be read: {error}") from error


def _metadata(file: BinaryIO, size: int, keys: Collection[str]) -> dict[str, tuple[bytes, ...]]:
    """The keys that are asked for, in one pass over the file's head. Raises ValueError."""
    _, version, _, count = struct.unpack("<4sIQQ", _take(file, 24, size))
    if version not in VERSIONS:
        raise ValueError(f"it is of GGUF version {version}; known are {', '.join(map(str, VERSIONS))}")
    found: dict[str, tuple[bytes, ...]] = {}
    for _ in range(count):
        key = _string(file, size).decode("utf-8", "replace")
        (kind,) = struct.unpack("<I", _take(file, 4, size))
        if key in keys:
            found[key] = tuple(_values(file, kind, size))
            if len(found) == len(keys):
                break
        else:
            _skip(file, kind, size)
    return found


def _values(file: BinaryIO, kind: int, size: int) -> Iterator[bytes]:
    if kind == ARRAY:
        inner, count = struct.unpack("<IQ", _take(file, 12, size))
        for _ in range(count):
            yield _plain(file, inner, size)
    else:
        yield _plain(file, kind, size)


def _plain(file: BinaryIO, kind: int, size: int) -> bytes:
    if kind == STRING:
        return _string(file, size)
    if kind not in SIZES:
        raise ValueError(f"it holds a value of the unknown kind {kind}")
    return _take(file, SIZES[kind], size)


def _skip(file: BinaryIO, kind: int, size: int) -> None:
    if kind == ARRAY:
        inner, count = struct.unpack("<IQ", _take(file, 12, size))
        if inner in SIZES:
            file.seek(min(count * SIZES[inner], size), 1)
            return
        for _ in range(count):
            _plain(file, inner, size)
    else:
        _plain(file, kind, size)


def _string(file: BinaryIO, size: int) -> bytes:
    (length,) = struct.unpack("<Q", _take(file, 8, size))
    return _take(file, length, size)


def _take(file: BinaryIO, count: int, size: int) -> bytes:
    """So many bytes; a length beyond the file is told before anything of it is read."""
    found = file.read(count) if count <= size else b""
    if len(found) != count:
        raise ValueError("it ends too early")
    return found
