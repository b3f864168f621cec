"""The default router: a linear classifier on hashed n-grams.

Legend: N texts, C labels, F buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IntegrityError
from ..files import write_atomically, write_json
from .base import CONFIG, FORMAT, Array, Router, read_config, softmax, unreadable
from .features import features

WEIGHTS = "model.safetensors"


class TextRouter(Router):
    """Args: weight: [F, C]. bias: [C]."""

    kind = "ngrams"

    def __init__(self, labels: Sequence[str], weight: Array, bias: Array, min_confidence: float = 0.0) -> None:
        super().__init__(labels, min_confidence)
        self.weight, self.bias = weight, bias

    def probabilities(self, texts: Sequence[str]) -> Array:
        rows = [features(text, len(self.weight)) for text in texts]
        return softmax(np.stack([self.weight[row].sum(0) / np.sqrt(len(row)) for row in rows]) + self.bias)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, save({"weight": self.weight, "bias": self.bias}))
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_buckets": len(self.weight)}

    @classmethod
    def load(cls, folder: Path) -> TextRouter:
        """Raises:
        IntegrityError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        config = read_config(folder)
        try:
            tensors = load_file(folder / WEIGHTS)
            router = cls(config["labels"], tensors["weight"], tensors["bias"], float(config["min_confidence"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise unreadable(folder, error) from None
        if router.weight.ndim != 2 or router.weight.shape[1:] != router.bias.shape or len(router.labels) != len(router.bias):
            raise IntegrityError(f"{folder / WEIGHTS}: its shapes do not fit the {len(router.labels)} labels of {CONFIG}; export again.")
        return router
