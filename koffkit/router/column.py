"""A label that a router learns later: one more column of its matrix, in a file of its own that is stored with
the memory it belongs to.

The router's own files stay as they are, byte for byte.

Legend: C labels of the router, F buckets.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artefact.bundle import Bundle
from ..artefact.digests import file_entry
from ..errors import IntegrityError
from ..storage.files import write_atomically
from ..storage.tensors import with_sorted_metadata
from ..storage.tensors_file import read_arrays
from .base import Array, Router
from .linear import WEIGHTS
from .ngrams import TextRouter

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "koffkit-router-column-1"


@dataclass(frozen=True)
class Column:
    """A column of a router.

    Args:
        weight: [F].
        bias: [1].
        router: sha256 of the weights of the router that the column extends.
    """

    weight: Array
    bias: Array
    router: str

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        tensors = {"weight": self.weight.astype(TextRouter.stored), "bias": self.bias.astype(np.float32)}
        data = save(tensors, metadata={"format": FORMAT, "router": self.router})
        write_atomically(path, with_sorted_metadata(data))

    @classmethod
    def load(cls, path: Path) -> Column:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is damaged or has another format.
        """
        arrays, metadata = read_arrays(path, remedy="copy the bundle again")
        if metadata.get("format") != FORMAT:
            raise IntegrityError(f"{path}: format {metadata.get('format')!r}; this koffkit reads {FORMAT!r}.")
        shapes = {name: array.ndim for name, array in arrays.items()}
        if shapes != {"weight": 1, "bias": 1} or len(arrays["bias"]) != 1:
            raise IntegrityError(f"{path}: not a weight [F] and a bias [1]; copy the bundle again.")
        return cls(arrays["weight"].astype(np.float32), arrays["bias"], str(metadata.get("router")))


def weights_digest(folder: Path) -> str:
    """The sha256 of the weights of the router in `folder`, by which a column names its router."""
    return file_entry(folder / WEIGHTS).sha256


def extended(router: Router, label: str, column: Column, digest: str) -> Router:
    """The router with one more label; unchanged if it has that label already, or if the column belongs to
    another router.

    Args:
        router: the router.
        label: the new label.
        column: its column.
        digest: see `weights_digest`.
    """
    if (
        not isinstance(router, TextRouter)
        or label in router.labels
        or column.router != digest
        or len(column.weight) != len(router.weight)
    ):
        return router
    weight, bias = np.column_stack([router.weight, column.weight]), np.concatenate([router.bias, column.bias])
    return TextRouter((*router.labels, label), weight, bias, router.min_confidence)


def with_column(router: Router, bundle: Bundle, folder: Path) -> Router:
    """The router of `folder`, with the column of a bundle if the bundle has one for this router.

    Args:
        router: the router.
        bundle: a memory.
        folder: the router's folder.

    Raises:
        IntegrityError: the column is damaged.
    """
    if bundle.column_file is None or not isinstance(router, TextRouter):
        return router
    return extended(router, bundle.domain, Column.load(bundle.column_file), weights_digest(folder))


def fit_column(
    router: TextRouter,
    digest: str,
    own: Sequence[str],
    others: Mapping[str, Sequence[str]],
    *,
    epochs: int,
    seed: int,
) -> Column:
    """Learn the column from text of the new label and text of anything else; all other columns stay.

    The column learns P(new label | text) of the softmax over all labels, so text of the others needs no
    labels: it only must not be taken for the new one. Every source has the same weight, however many
    documents it has.

    Args:
        router: the router that the column is added to.
        digest: see `weights_digest`.
        own: documents of the new label.
        others: all other documents, by source.
        epochs: passes over the documents.
        seed: of the order of the documents and of their prefixes.
    """
    import torch
    from torch.nn import functional as F

    from .ngrams import DECAY, RATE, bucket_logits
    from .training import BATCH, minimise, random_prefix

    sources = [(1.0, own), *((0.0, documents) for documents in others.values())]
    examples = [(text, target, 1 / len(texts)) for target, texts in sources for text in texts]
    scale = len(examples) / len(sources)
    rng = random.Random(seed)
    weight, bias = torch.zeros(len(router.weight), 1, requires_grad=True), torch.zeros(1, requires_grad=True)

    def loss_of(batch: list[tuple[str, float, float]]) -> Tensor:
        texts = [random_prefix(text, rng) for text, _, _ in batch]
        rest = torch.from_numpy(router.logits(texts)).logsumexp(-1)
        logits = bucket_logits(weight, bias, texts)[:, 0] - rest
        target, weights = (torch.tensor([example[place] for example in batch]) for place in (1, 2))
        return F.binary_cross_entropy_with_logits(logits, target, weight=weights * scale)

    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    minimise(optimizer, examples, loss_of, epochs=epochs, batch_size=BATCH, rng=rng)
    return Column(weight.detach().numpy()[:, 0], bias.detach().numpy(), digest)
