"""What linear routers share: a matrix, a bias, and their file format.

Legend: C labels, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import IntegrityError
from ..storage.files import make_folder, write_atomically, write_json
from ..storage.tensors_file import read_arrays
from .base import CONFIG, FORMAT, Array, Router, read_config, unreadable

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS = "model.safetensors"


class LinearRouter(Router):
    """A router with logits `features @ weight + bias`.

    Args:
        weight: [D, C].
        bias: [C].
    """

    stored: ClassVar[type[np.floating[Any]]] = np.float32
    """Dtype of the weight on disk."""

    def __init__(
        self, labels: Sequence[str], weight: Array, bias: Array, min_confidence: float = 0.0
    ) -> None:
        super().__init__(labels, min_confidence)
        # Rounded as on disk, so that the router that is measured is the router that ships.
        self.weight, self.bias = weight.astype(self.stored).astype(np.float32), bias

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        make_folder(folder)
        write_atomically(
            folder / WEIGHTS, save({"weight": self.weight.astype(self.stored), "bias": self.bias})
        )
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    @classmethod
    @abstractmethod
    def from_parts(cls, config: Mapping[str, Any], weight: Array, bias: Array) -> Self:
        """Build the router from what `describe` returned and its weights."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            IntegrityError: a file is missing or damaged.
        """
        config = read_config(folder)
        arrays, _ = read_arrays(folder / WEIGHTS, remedy="export again")
        try:
            router = cls.from_parts(config, arrays["weight"], arrays["bias"])
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable(folder, error) from None
        if (
            router.weight.ndim != 2
            or router.weight.shape[1:] != router.bias.shape
            or len(router.labels) != len(router.bias)
        ):
            raise IntegrityError(
                f"{folder / WEIGHTS}: its shapes do not fit the {len(router.labels)} labels of {CONFIG}; "
                "export again."
            )
        return router
