"""Hashed n-grams of characters and words: no vocabulary, no download, the same on every machine."""

from __future__ import annotations

import re
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

CHARACTER_SIZES = (2, 3, 4)
MAX_CHARACTERS = 4096
_WORD = re.compile(r"\w+")
_PRIME = np.uint64(1_099_511_628_211)  # of the FNV hash


def features(text: str, num_buckets: int) -> NDArray[np.int64]:
    """Buckets of all n-grams of a text, repeated as often as they occur; a text without any gives one bucket of its own.

    Only the first 4,096 characters count. Case matters for characters, not for words.
    """
    text = text[:MAX_CHARACTERS]
    codes = np.frombuffer(f" {text} ".encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    found = []
    for size in CHARACTER_SIZES:
        if len(codes) >= size:
            count = len(codes) - size + 1
            hashed = np.full(count, size, dtype=np.uint64)
            for offset in range(size):
                hashed = (hashed ^ codes[offset : offset + count]) * _PRIME
            found.append(_bucket(hashed, num_buckets))
    words = _WORD.findall(text.lower())
    grams = words + [f"{first} {second}" for first, second in pairwise(words)]
    if grams:
        hashed = np.array([crc32(gram.encode()) for gram in grams], dtype=np.uint64) * _PRIME
        found.append(_bucket(hashed, num_buckets))
    return np.concatenate(found) if found else np.zeros(1, dtype=np.int64)


def _bucket(hashed: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    buckets: NDArray[np.int64] = ((hashed ^ (hashed >> np.uint64(29))) % np.uint64(num_buckets)).astype(np.int64)
    return buckets
