"""A text as hashed n-grams: what the learned classifier and the logistic predictor read."""

from __future__ import annotations

from array import array
from math import log1p, sqrt
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

READ_CHARS = 1000
BUCKET_BITS = 14
BUCKETS = 1 << BUCKET_BITS
DENSE = 2
"""Rows of the weights: hashed n-grams in [0, BUCKETS), then log length in characters and in words."""

_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
_NO_SIGNS = bytes(code for code in range(256) if code > 127 or chr(code).isalnum() or chr(code) in "_ \t\n\r\v\f")
_SET_APART = tuple(bytes((ord(" "), code, ord(" "))) for code in range(256))
_LITTLE = np.dtype("<u4")
_SALT_PAIR, _SALT_CHARS, _GOLDEN, _SHIFT = (
    np.array(number, dtype=np.uint32) for number in (0x9E3779B1, 0x85EBCA6B, 2654435761, 32 - BUCKET_BITS)
)  # arrays without a dimension: a scalar would be made into one at every use
_NO_GRAMS = np.zeros(0, dtype=np.uint32)
_DENSE_PLACES = np.zeros(DENSE, dtype=np.uint32)


def hashed_grams(text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Rows of the weights that a text touches, and by how much; the same function in training and in serving.

    Words, pairs of words and 4-grams of bytes are hashed (words by CRC-32) into ``BUCKETS``, each counting
    1/√(number of grams); digits fold into 0 and capitals into small letters. Two dense rows for length follow.
    """
    data = excerpt(text).encode("utf-8", "replace").translate(_FOLD)
    words = np.frombuffer(array("I", list(map(crc32, _tokens(data)))), dtype=np.uint32)
    pairs = words[:-1] * _SALT_PAIR
    pairs += words[1:]
    hashes = np.concatenate((words, pairs, _byte_grams(data), _DENSE_PLACES))
    hashes *= _GOLDEN
    hashes >>= _SHIFT
    rows = hashes.astype(np.intp)
    count = len(rows) - DENSE
    rows[count], rows[count + 1] = BUCKETS, BUCKETS + 1
    amounts = np.empty(len(rows), dtype=np.float32)
    amounts.fill(1 / sqrt(count) if count else 0.0)
    amounts[count], amounts[count + 1] = log1p(len(text)) / 8, log1p(len(words)) / 8
    return rows, amounts


def _tokens(data: bytes) -> list[bytes]:
    """Runs of letters, digits, underscores and bytes above 127, and every other sign by itself, in their order.

    Setting the few different signs of a text apart and splitting takes half as long as a pattern that finds tokens.
    """
    for sign in set(data.translate(None, _NO_SIGNS)):
        data = data.replace(_SET_APART[sign][1:2], _SET_APART[sign])
    return data.split()


def _byte_grams(data: bytes) -> NDArray[np.uint32]:
    """Every four bytes in a row as one number, the first the lowest."""
    if len(data) < 4:
        return _NO_GRAMS
    packed: NDArray[np.uint32] = np.ndarray((len(data) - 3,), dtype=_LITTLE, buffer=data, strides=(1,))
    return packed ^ _SALT_CHARS


def excerpt(text: str) -> str:
    """What a classifier reads: all of a short text, the first and last 500 characters of a long one."""
    half = READ_CHARS // 2
    return text if len(text) <= READ_CHARS else text[:half] + text[-half:]
