"""A text as hashed words and pairs of words: what the projections of ``reading`` are applied to."""

from __future__ import annotations

import re
from math import sqrt
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

READ_CHARS = 4000
BUCKET_BITS = 15
BUCKETS = 1 << BUCKET_BITS
"""Rows of a projection. Words that share one count as one."""

_TOKEN = re.compile(rb"[\w\x80-\xff]+|[^\w\s\x80-\xff]")
_LOWER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz")
_GOLDEN, _SALT_PAIR = np.uint32(2654435761), np.uint32(0x9E3779B1)
_SHIFT = np.uint32(32 - BUCKET_BITS)


def hashed_words(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Different buckets that a text's words, signs and pairs of neighbours fall into, rising, and 1 + log of how often.

    The same function in training and in serving. Of a long text the first and last READ_CHARS / 2 characters are read.
    """
    half = READ_CHARS // 2
    read = text if len(text) <= READ_CHARS else text[:half] + text[-half:]
    data = read.encode("utf-8", "replace").translate(_LOWER)
    words = np.fromiter(map(crc32, _TOKEN.findall(data)), dtype=np.uint32)
    pairs = words[:-1] * _SALT_PAIR + words[1:]
    places = np.sort((np.concatenate((words, pairs)) * _GOLDEN) >> _SHIFT).astype(np.int64)
    if not len(places):
        return places, np.zeros(0, dtype=np.float32)
    first = np.flatnonzero(np.diff(places, prepend=-1))
    counts = np.diff(first, append=len(places))
    return places[first], (1 + np.log(counts)).astype(np.float32)


def weighed(
    places: NDArray[np.int64], amounts: NDArray[np.float32], idf: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The buckets whose weight is not 0, and amounts · idf brought to length 1 (TF-IDF: Salton and Buckley, 1988)."""
    found = amounts * idf.take(places)
    kept = found > 0
    places, found = places[kept], found[kept]
    length = sqrt(float(found @ found))
    return places, found / length if length else found
