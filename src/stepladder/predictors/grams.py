"""A text as hashed n-grams: what the learned classifier and the logistic predictor read."""

from __future__ import annotations

import re
from math import log1p, sqrt
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

READ_CHARS = 1000
BUCKET_BITS = 14
BUCKETS = 1 << BUCKET_BITS
DENSE = 2
"""Rows of the weights: hashed n-grams in [0, BUCKETS), then log length in characters and in words."""

_TOKEN = re.compile(rb"[\w\x80-\xff]+|[^\w\s\x80-\xff]")
_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"abcdefghijklmnopqrstuvwxyz000000000")
_GOLDEN = np.uint32(2654435761)
_SHIFT = np.uint32(32 - BUCKET_BITS)
_LITTLE = np.dtype("<u4")
_NO_GRAMS = np.zeros(0, dtype=np.uint32)
_SALT_PAIR, _SALT_CHARS = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)


def hashed_grams(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the weights that a text touches, and by how much; the same function in training and in serving.

    Words, pairs of words and 4-grams of bytes are hashed (words by CRC-32) into ``BUCKETS``, each counting
    1/√(number of grams); digits fold into 0 and capitals into small letters. Two dense rows for length follow.
    """
    read = excerpt(text)
    data = read.encode("utf-8", "replace").translate(_FOLD)
    words = np.fromiter(map(crc32, _TOKEN.findall(data)), dtype=np.uint32)
    pairs = words[:-1] * _SALT_PAIR + words[1:]
    hashes = np.concatenate((words, pairs, _byte_grams(data)))
    count = len(hashes)
    rows = np.empty(count + DENSE, dtype=np.int64)
    rows[:count] = (hashes * _GOLDEN) >> _SHIFT
    rows[count], rows[count + 1] = BUCKETS, BUCKETS + 1
    amounts = np.full(count + DENSE, 1 / sqrt(count) if count else 0.0, dtype=np.float32)
    amounts[count], amounts[count + 1] = log1p(len(text)) / 8, log1p(len(words)) / 8
    return rows, amounts


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
