"""A linear probe on the backbone's own hidden states: no model beside the one that answers anyway.

Legend: C labels, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import IntegrityError, UsageError
from .base import Array, Features, softmax
from .linear import LinearRouter

DECAY = 1e-3
ROUNDS = 100
AT_ONCE = 256  # documents between two looks at whether to stop


class ProbeRouter(LinearRouter):
    """Multinomial logistic regression on mean-pooled hidden states of one layer, standardised.

    Args:
        layer: whose hidden states (0: the embeddings, i: after layer i - 1). max_tokens: of a text that
            count.
        weight: [D, C]. bias: [C].

    Attributes:
        features: the backbone, without memory; who loads the router sets it.
    """

    kind = "probe"

    def __init__(
        self,
        labels: Sequence[str],
        layer: int,
        max_tokens: int,
        weight: Array,
        bias: Array,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__(labels, weight, bias, min_confidence)
        self.layer, self.max_tokens = layer, max_tokens
        self.features: Features | None = None

    def probabilities(self, texts: Sequence[str]) -> Array:
        if self.features is None:
            raise UsageError(
                "this router reads the backbone's hidden states: load it with its export "
                "(KoffModel.from_pretrained)."
            )
        return softmax(self.features(texts) @ self.weight + self.bias)

    def require_backbone(self, num_layers: int, hidden: int) -> None:
        if self.layer > num_layers or len(self.weight) != hidden:
            raise IntegrityError(
                f"router: it reads layer {self.layer} of a model of width {len(self.weight)}, this backbone "
                f"has {num_layers} layers of "
                f"width {hidden}; use the router that was exported with it."
            )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"layer": self.layer, "max_tokens": self.max_tokens}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], weight: Array, bias: Array) -> ProbeRouter:
        return cls(
            config["labels"],
            int(config["layer"]),
            int(config["max_tokens"]),
            weight,
            bias,
            float(config["min_confidence"]),
        )


def fit_probe(
    texts: Mapping[str, Sequence[str]],
    features: Features,
    *,
    layer: int,
    max_tokens: int,
    min_confidence: float,
    pulse: Callable[[], None],
) -> ProbeRouter:
    """Fit on whole documents; labels count alike however many documents they have. `pulse` is called often
    and may raise."""
    import torch
    from torch.nn import functional as F

    labels = tuple(texts)
    parts = []
    for label in labels:
        for start in range(0, len(texts[label]), AT_ONCE):
            pulse()
            parts.append(features(texts[label][start : start + AT_ONCE]))
    inputs = torch.from_numpy(np.concatenate(parts))
    targets = torch.repeat_interleave(
        torch.arange(len(labels)), torch.tensor([len(texts[label]) for label in labels])
    )
    share = torch.tensor([len(targets) / (len(labels) * max(1, len(texts[label]))) for label in labels])
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    points = (inputs - mean) / spread
    weight, bias = (
        torch.zeros(points.shape[1], len(labels), requires_grad=True),
        torch.zeros(len(labels), requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        pulse()
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
