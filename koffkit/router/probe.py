"""A linear probe on the backbone's own hidden states: no model beside the one that answers anyway.

Legend: N texts, C labels, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IntegrityError, UsageError
from ..files import write_atomically, write_json
from .base import CONFIG, FORMAT, Array, Features, Router, read_config, softmax, unreadable

WEIGHTS = "model.safetensors"
DECAY = 1e-3
ROUNDS = 100


class ProbeRouter(Router):
    """Multinomial logistic regression on mean-pooled hidden states of one layer, standardised.

    Args:
        layer: whose hidden states (0: the embeddings, i: after layer i - 1). max_tokens: of a text that count.
        weight: [D, C]. bias: [C]. features: the backbone, without memory; who loads the router sets it.
    """

    kind = "probe"

    def __init__(self, labels: Sequence[str], layer: int, max_tokens: int, weight: Array, bias: Array, min_confidence: float = 0.0) -> None:
        super().__init__(labels, min_confidence)
        self.layer, self.max_tokens, self.weight, self.bias = layer, max_tokens, weight, bias
        self.features: Features | None = None

    def probabilities(self, texts: Sequence[str]) -> Array:
        if self.features is None:
            raise UsageError("this router reads the backbone's hidden states: load it with its export (KoffModel.from_pretrained).")
        return softmax(self.features(texts) @ self.weight + self.bias)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, save({"weight": self.weight, "bias": self.bias}))
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"layer": self.layer, "max_tokens": self.max_tokens}

    @classmethod
    def load(cls, folder: Path) -> ProbeRouter:
        """Raises:
        IntegrityError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        config = read_config(folder)
        try:
            tensors = load_file(folder / WEIGHTS)
            sizes = int(config["layer"]), int(config["max_tokens"])
            router = cls(config["labels"], *sizes, tensors["weight"], tensors["bias"], float(config["min_confidence"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise unreadable(folder, error) from None
        if router.weight.ndim != 2 or router.weight.shape[1:] != router.bias.shape or len(router.labels) != len(router.bias):
            raise IntegrityError(f"{folder / WEIGHTS}: its shapes do not fit the {len(router.labels)} labels of {CONFIG}; export again.")
        return router


def fit_probe(texts: Mapping[str, Sequence[str]], features: Features, *, layer: int, max_tokens: int, min_confidence: float) -> ProbeRouter:
    """Fit on whole documents; labels count alike however many documents they have."""
    import torch
    from torch.nn import functional as F

    labels = tuple(texts)
    inputs = torch.from_numpy(np.concatenate([features(texts[label]) for label in labels]))
    targets = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor([len(texts[label]) for label in labels]))
    share = torch.tensor([len(targets) / (len(labels) * max(1, len(texts[label]))) for label in labels])
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    points = (inputs - mean) / spread
    weight, bias = torch.zeros(points.shape[1], len(labels), requires_grad=True), torch.zeros(len(labels), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(points @ weight + bias, targets, weight=share) + DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # the standardisation goes into the weights
        scaled = weight / spread[:, None]
        shifted = bias - mean @ scaled
    router = ProbeRouter(labels, layer, max_tokens, scaled.numpy(), shifted.numpy(), min_confidence)
    router.features = features
    return router
