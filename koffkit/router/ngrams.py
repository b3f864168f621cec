"""The default router: a linear classifier on hashed n-grams of characters and words. No vocabulary, no
download, the same on every machine.

Legend: N texts, C labels, F buckets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..strict import Positive, StrictModel
from .base import Array, Setting, softmax
from .linear import LinearRouter
from .training import BATCH, class_weights, labelled, minimise, random_prefix

if TYPE_CHECKING:
    from torch import Tensor


class Options(StrictModel):
    num_buckets: Annotated[int, Field(ge=1, le=2**26)] = Field(
        65536, description="Hash buckets; the router's size is this times the number of domains."
    )
    epochs: Positive = Field(4, description="Passes over the documents.")


class TextRouter(LinearRouter):
    """The router of kind `ngrams`.

    Args:
        weight: [F, C].
        bias: [C].
    """

    kind = "ngrams"
    options = Options
    stored = np.float16

    def probabilities(self, texts: Sequence[str]) -> Array:
        return softmax(self.logits(texts))

    def logits(self, texts: Sequence[str]) -> Array:
        """[N, C]."""
        rows = [features(text, len(self.weight)) for text in texts]
        logits: Array = np.stack([self.weight[row].sum(0) / np.sqrt(len(row)) for row in rows]) + self.bias
        return logits

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_buckets": len(self.weight)}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], weight: Array, bias: Array) -> TextRouter:
        return cls(config["labels"], weight, bias, float(config["min_confidence"]))

    @classmethod
    def fit(cls, texts: Mapping[str, Sequence[str]], options: Any, setting: Setting) -> TextRouter:
        return fit_ngrams(
            texts,
            num_buckets=options.num_buckets,
            epochs=options.epochs,
            min_confidence=options.min_confidence,
            seed=setting.seed,
            check_interrupt=setting.check_interrupt,
        )


CHARACTER_SIZES = (2, 3, 4)
MAX_CHARACTERS = 4096
_WORD = re.compile(r"\w+")
_PRIME = np.uint64(1_099_511_628_211)  # of the FNV hash


def features(text: str, num_buckets: int) -> NDArray[np.int64]:
    """Buckets of all n-grams of a text, repeated as often as they occur; a text without n-grams has a bucket
    of its own.

    Only the first 4,096 characters are read. Case matters in n-grams of characters, not of words.

    Args:
        text: the whole text.
        num_buckets: size of the hash table.
    """
    text = text[:MAX_CHARACTERS]
    codes = np.frombuffer(f" {text} ".encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    buckets = []
    for size in CHARACTER_SIZES:
        if len(codes) >= size:
            count = len(codes) - size + 1
            hashed = np.full(count, size, dtype=np.uint64)
            for offset in range(size):
                hashed = (hashed ^ codes[offset : offset + count]) * _PRIME
            buckets.append(_bucket(hashed, num_buckets))
    words = _WORD.findall(text.lower())
    grams = words + [f"{first} {second}" for first, second in pairwise(words)]
    if grams:
        hashed = np.array([crc32(gram.encode()) for gram in grams], dtype=np.uint64) * _PRIME
        buckets.append(_bucket(hashed, num_buckets))
    return np.concatenate(buckets) if buckets else np.zeros(1, dtype=np.int64)


def _bucket(hashed: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    buckets: NDArray[np.int64] = ((hashed ^ (hashed >> np.uint64(29))) % np.uint64(num_buckets)).astype(
        np.int64
    )
    return buckets


RATE = 0.05
DECAY = 1e-4


def fit_ngrams(
    texts: Mapping[str, Sequence[str]],
    *,
    num_buckets: int,
    epochs: int,
    min_confidence: float,
    seed: int,
    check_interrupt: Callable[[], None] = lambda: None,
) -> TextRouter:
    """Train on documents by label. Every epoch sees each document once, whole or (half of the time) cut
    short.

    Args:
        texts: documents by label.
        num_buckets: hash buckets, F.
        epochs: passes over the documents.
        min_confidence: see `Router`.
        seed: of the order of the documents and of their prefixes.
        check_interrupt: called before every batch; it may raise.
    """
    import torch
    from torch.nn import functional as F

    labels, weights, rng = tuple(texts), class_weights(texts), random.Random(seed)
    weight = torch.zeros(num_buckets, len(labels), requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)

    def loss_of(batch: list[tuple[str, int]]) -> Tensor:
        logits = bucket_logits(weight, bias, [random_prefix(text, rng) for text, _ in batch])
        return F.cross_entropy(logits, torch.tensor([index for _, index in batch]), weight=weights)

    minimise(
        torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY),
        labelled(texts),
        loss_of,
        epochs=epochs,
        batch_size=BATCH,
        rng=rng,
        check_interrupt=check_interrupt,
    )
    return TextRouter(labels, weight.detach().numpy(), bias.detach().numpy(), min_confidence)


def bucket_logits(weight: Tensor, bias: Tensor, texts: Sequence[str]) -> Tensor:
    """[N, C] from [F, C] and [C], differentiable.

    Args:
        weight: [F, C].
        bias: [C].
        texts: N of them.
    """
    import torch
    from torch.nn import functional as F

    rows = [features(text, len(weight)) for text in texts]
    flat = torch.from_numpy(np.concatenate(rows))
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])[:-1]])
    scale = torch.from_numpy(
        np.concatenate([np.full(len(row), len(row) ** -0.5, dtype=np.float32) for row in rows])
    )
    return F.embedding_bag(flat, weight, offsets, mode="sum", per_sample_weights=scale) + bias
