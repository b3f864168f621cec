"""The default router: a linear classifier on hashed n-grams of characters and words. No vocabulary, no
download, the same on every machine.

Legend: N texts, C labels, F buckets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .base import Array, softmax
from .linear import LinearRouter
from .training import BATCH, beginning

if TYPE_CHECKING:
    from torch import Tensor


class TextRouter(LinearRouter):
    """Args: weight: [F, C]. bias: [C]."""

    kind = "ngrams"
    stored = np.float16

    def probabilities(self, texts: Sequence[str]) -> Array:
        return softmax(self.logits(texts))

    def logits(self, texts: Sequence[str]) -> Array:
        """[N, C]."""
        rows = [features(text, len(self.weight)) for text in texts]
        found: Array = np.stack([self.weight[row].sum(0) / np.sqrt(len(row)) for row in rows]) + self.bias
        return found

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_buckets": len(self.weight)}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], weight: Array, bias: Array) -> TextRouter:
        return cls(config["labels"], weight, bias, float(config["min_confidence"]))


CHARACTER_SIZES = (2, 3, 4)
MAX_CHARACTERS = 4096
_WORD = re.compile(r"\w+")
_PRIME = np.uint64(1_099_511_628_211)  # of the FNV hash


def features(text: str, num_buckets: int) -> NDArray[np.int64]:
    """Buckets of all n-grams of a text, repeated as often as they occur; a text without any gives one bucket
    of its own.

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
    buckets: NDArray[np.int64] = ((hashed ^ (hashed >> np.uint64(29))) % np.uint64(num_buckets)).astype(
        np.int64
    )
    return buckets


RATE = 0.05
DECAY = 1e-4


def fit(
    texts: Mapping[str, Sequence[str]],
    *,
    num_buckets: int,
    epochs: int,
    min_confidence: float,
    seed: int,
    pulse: Callable[[], None] = lambda: None,
) -> TextRouter:
    """Train on documents by label. Every epoch sees each document once, whole or (every second time) cut
    short.

    Args:
        pulse: called before every batch; it may raise.
    """
    import torch
    from torch.nn import functional as F

    labels = tuple(texts)
    documents = [(text, index) for index, label in enumerate(labels) for text in texts[label]]
    # A label with few documents counts as much as one with many.
    share = torch.tensor([len(documents) / (len(labels) * max(1, len(texts[label]))) for label in labels])
    draw = random.Random(seed)
    weight = torch.zeros(num_buckets, len(labels), requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    for _ in range(epochs):
        draw.shuffle(documents)
        for start in range(0, len(documents), BATCH):
            pulse()
            part = documents[start : start + BATCH]
            logits = bucket_logits(weight, bias, [beginning(text, draw) for text, _ in part])
            loss = F.cross_entropy(logits, torch.tensor([index for _, index in part]), weight=share)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return TextRouter(labels, weight.detach().numpy(), bias.detach().numpy(), min_confidence)


def bucket_logits(weight: Tensor, bias: Tensor, texts: Sequence[str]) -> Tensor:
    """[N, C] from [F, C] and [C], differentiable."""
    import torch
    from torch.nn import functional as F

    rows = [features(text, len(weight)) for text in texts]
    flat = torch.from_numpy(np.concatenate(rows))
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])[:-1]])
    scale = torch.from_numpy(
        np.concatenate([np.full(len(row), len(row) ** -0.5, dtype=np.float32) for row in rows])
    )
    return F.embedding_bag(flat, weight, offsets, mode="sum", per_sample_weights=scale) + bias
