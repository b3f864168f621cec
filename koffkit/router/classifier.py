"""The default router: a linear classifier on hashed n-grams.

Legend: C labels, F buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import Array, softmax
from .features import features
from .linear import LinearRouter


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
