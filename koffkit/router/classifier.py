"""The default router: a linear classifier on hashed n-grams.

Legend: N texts, C labels, F buckets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..files import write_atomically, write_json
from .features import features

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
NONE = "none"


@dataclass(frozen=True)
class TextRouter:
    """Which memory fits a text.

    Args:
        labels: the domains, and `none` if general text was seen in training.
        weight: [F, C]. bias: [C].
        min_confidence: a text whose most likely domain is less likely than this gets no memory.
    """

    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    min_confidence: float = 0.0

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, C], rows sum to one."""
        rows = [features(text, len(self.weight)) for text in texts]
        logits = np.stack([self.weight[row].sum(0) / np.sqrt(len(row)) for row in rows]) + self.bias
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        found: NDArray[np.float32] = odds / odds.sum(-1, keepdims=True)
        return found

    def route(self, texts: Sequence[str], allowed: Sequence[str] | None = None) -> list[tuple[str | None, float]]:
        """`(domain, probability)` of each text; None when it fits no domain.

        Args:
            allowed: choose among these domains only, for example those whose memories are loaded.
        """
        if not texts:
            return []
        found = self.probabilities(texts)
        if allowed is not None:
            found = found * np.array([label in allowed or label == NONE for label in self.labels], dtype=np.float32)
        best = found.argmax(-1)
        return [self._decide(self.labels[label], float(row[label])) for label, row in zip(best, found, strict=True)]

    def _decide(self, label: str, probability: float) -> tuple[str | None, float]:
        return (None if label == NONE or probability < self.min_confidence else label), probability

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, save({"weight": self.weight, "bias": self.bias}))
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    def describe(self) -> dict[str, Any]:
        """What it is, as a JSON object."""
        return {"kind": "ngrams", "labels": list(self.labels), "num_buckets": len(self.weight), "min_confidence": self.min_confidence}

    @classmethod
    def load(cls, folder: Path) -> TextRouter:
        """Read what `save` wrote.

        Raises:
            IntegrityError: a file is missing, damaged or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
            router = cls(tuple(config["labels"]), tensors["weight"], tensors["bias"], float(config["min_confidence"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise IntegrityError(f"{folder}: the router cannot be read ({type(error).__name__}: {error}); export again.") from None
        if config.get("koffkit") != FORMAT or config.get("kind") != "ngrams":
            raise IntegrityError(f"{folder / CONFIG}: format {config.get('koffkit')!r}, kind {config.get('kind')!r} are not known here.")
        if router.weight.ndim != 2 or router.weight.shape[1:] != router.bias.shape or len(router.labels) != len(router.bias):
            raise IntegrityError(f"{folder / WEIGHTS}: its shapes do not fit the {len(router.labels)} labels of {CONFIG}; export again.")
        return router
