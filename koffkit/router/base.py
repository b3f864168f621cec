"""The base class of routers: labels, probabilities, and a decision. Kinds differ in how they read a text.

Legend: N texts, C labels, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..storage.read_json import read_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from typing_extensions import Self

FORMAT = 1
CONFIG = "config.json"
NONE = "none"
Array = NDArray[np.float32]
Features = Callable[[Sequence[str]], Array]
"""From texts to the backbone's mean hidden states [N, D]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a router needs for fitting, beside its options.

    Args:
        root: the folder that relative paths of the recipe start from.
        seed: the recipe's seed.
        device: the torch device to fit on.
        num_layers: layers of the backbone.
        features: given a layer (0: the embeddings), the tokens to read of a text and the texts at a time, a
            function from texts to the backbone's mean hidden states.
        check_interrupt: to be called often; it raises when the user wants to stop.
    """

    root: Path
    seed: int
    device: Any
    num_layers: int
    features: Callable[[int, int, int], Features]
    check_interrupt: Callable[[], None] = lambda: None


class Router(ABC):
    """Which memory fits a text. An entry point of `koffkit.routers` names a class like this one.

    Attributes:
        kind: its name in recipes and in its `config.json`.
        options: the fields of stage `route` that belong to this kind.

    Args:
        labels: the domains, and `none` if general text was seen in training.
        min_confidence: a text whose most likely domain is less likely than this gets no memory.
    """

    kind: ClassVar[str]
    options: ClassVar[type[BaseModel] | None] = None

    def __init__(self, labels: Sequence[str], min_confidence: float = 0.0) -> None:
        self.labels = tuple(labels)
        self.min_confidence = min_confidence

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> Array:
        """[N, C], rows sum to one."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the router into a folder; `load_router` reads it."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            IntegrityError: a file is missing or damaged.
        """

    @classmethod
    @abstractmethod
    def fit(cls, texts: Mapping[str, Sequence[str]], options: Any, setting: Setting) -> Self:
        """Learn from documents by label.

        Args:
            texts: documents by label.
            options: options of stage `route`: `min_confidence`, and those of this kind.
            setting: see `Setting`.
        """

    @classmethod  # noqa: B027  # most kinds always work
    def check(cls, options: Any, setting: Setting) -> None:
        """Refuse options that would fail only after everything else is learned.

        Args:
            options: as in `fit`.
            setting: as in `fit`, but without features.

        Raises:
            DataError: a file that the kind needs is missing or unfit.
            UsageError: an option does not fit the model.
        """

    def read_backbone(self, features: Callable[[int, int], Features]) -> None:  # noqa: B027  # most kinds do not
        """Give the router access to the backbone beside which it is loaded.

        Args:
            features: given a layer and the tokens to read of a text, a function from texts to the backbone's
                mean hidden states.
        """

    def require_backbone(self, num_layers: int, hidden: int) -> None:  # noqa: B027  # most kinds fit any backbone
        """Refuse a backbone that this router cannot read; only routers that look at hidden states care.

        Raises:
            IntegrityError: it does not fit.
        """

    def describe(self) -> dict[str, Any]:
        """A description as a JSON object, which `config.json` holds."""
        return {"kind": self.kind, "labels": list(self.labels), "min_confidence": self.min_confidence}

    def route(
        self, texts: Sequence[str], allowed: Sequence[str] | None = None
    ) -> list[tuple[str | None, float]]:
        """Choose a domain for each text.

        Args:
            texts: texts.
            allowed: choose among these domains only, for example those whose memories are loaded.

        Returns:
            `(domain, probability)` of each text; the domain is None if it fits none.
        """
        if not texts:
            return []
        probabilities = self.probabilities(texts)
        if allowed is not None:
            probabilities = probabilities * np.array(
                [label in allowed or label == NONE for label in self.labels], dtype=np.float32
            )
        best = probabilities.argmax(-1)
        return [
            self._decide(self.labels[label], float(row[label]))
            for label, row in zip(best, probabilities, strict=True)
        ]

    def _decide(self, label: str, probability: float) -> tuple[str | None, float]:
        return (None if label == NONE or probability < self.min_confidence else label), probability


def softmax(logits: Array) -> Array:
    """Probabilities [N, C] from logits [N, C]."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(-1, keepdims=True)
    return probabilities


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a router.

    Raises:
        IntegrityError: it is missing, damaged or of another format.
    """
    config = read_json(folder / CONFIG)
    if config.get("koffkit") != FORMAT:
        raise IntegrityError(
            f"{folder / CONFIG}: router format {config.get('koffkit')!r} is not known here; this koffkit "
            f"reads {FORMAT}."
        )
    return config


def unreadable(folder: Path, error: Exception) -> IntegrityError:
    """The error for a router whose files contradict each other."""
    return IntegrityError(
        f"{folder}: the router cannot be read ({type(error).__name__}: {error}); export again."
    )
