"""What every router is: labels, probabilities, and a decision. Kinds differ in how they read a text.

Legend: N texts, C labels, D features.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError

FORMAT = 1
CONFIG = "config.json"
NONE = "none"
Array = NDArray[np.float32]
Features = Callable[[Sequence[str]], Array]
"""Texts to [N, D]: for routers that look at the backbone's hidden states."""


class Router(ABC):
    """Which memory fits a text.

    Args:
        labels: the domains, and `none` if general text was seen in training.
        min_confidence: a text whose most likely domain is less likely than this gets no memory.
    """

    kind: ClassVar[str]

    def __init__(self, labels: Sequence[str], min_confidence: float = 0.0) -> None:
        self.labels = tuple(labels)
        self.min_confidence = min_confidence

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> Array:
        """[N, C], rows sum to one."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the router into a folder; `load_router` reads it."""

    def require_backbone(self, num_layers: int, hidden: int) -> None:  # noqa: B027  # most kinds fit any backbone
        """Refuse a backbone that this router cannot read; only routers that look at hidden states care.

        Raises:
            IntegrityError: it does not fit.
        """

    def describe(self) -> dict[str, Any]:
        """What it is, as a JSON object."""
        return {"kind": self.kind, "labels": list(self.labels), "min_confidence": self.min_confidence}

    def route(
        self, texts: Sequence[str], allowed: Sequence[str] | None = None
    ) -> list[tuple[str | None, float]]:
        """`(domain, probability)` of each text; None when it fits no domain.

        Args:
            allowed: choose among these domains only, for example those whose memories are loaded.
        """
        if not texts:
            return []
        found = self.probabilities(texts)
        if allowed is not None:
            found = found * np.array(
                [label in allowed or label == NONE for label in self.labels], dtype=np.float32
            )
        best = found.argmax(-1)
        return [
            self._decide(self.labels[label], float(row[label]))
            for label, row in zip(best, found, strict=True)
        ]

    def _decide(self, label: str, probability: float) -> tuple[str | None, float]:
        return (None if label == NONE or probability < self.min_confidence else label), probability


def softmax(logits: Array) -> Array:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    found: Array = odds / odds.sum(-1, keepdims=True)
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a router.

    Raises:
        IntegrityError: it is missing, damaged or of another format.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from None
    if not isinstance(config, dict) or config.get("koffkit") != FORMAT:
        found = config.get("koffkit") if isinstance(config, dict) else None
        raise IntegrityError(
            f"{folder / CONFIG}: router format {found!r} is not known here; this koffkit reads {FORMAT}."
        )
    return config


def unreadable(folder: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{folder}: the router cannot be read ({type(error).__name__}: {error}); export again."
    )
