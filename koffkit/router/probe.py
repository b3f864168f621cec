"""A linear probe on the backbone's own hidden states, which needs no second model.

Legend: C labels, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from ..errors import IntegrityError, UsageError
from ..strict import Positive, StrictModel
from .base import Array, Features, Setting, softmax
from .linear import LinearRouter
from .training import class_weights, labelled, minimise

if TYPE_CHECKING:
    from torch import Tensor

DECAY = 1e-3
ROUNDS = 100
AT_ONCE = 256  # documents between two checks for an interruption


class Options(StrictModel):
    batch_size: Positive = Field(16, description="Of kinds encoder and probe: documents at a time.")
    max_tokens: Positive = Field(256, description="Of kinds encoder and probe: tokens of a text that count.")
    layer: Annotated[int, Field(ge=0, le=10**4)] | None = Field(
        None, description="Of kind probe: whose hidden states; by default the middle one."
    )


class ProbeRouter(LinearRouter):
    """Multinomial logistic regression on mean-pooled hidden states of one layer, standardised.

    Args:
        layer: the layer whose hidden states are read (0: the embeddings, i: after layer i - 1).
        max_tokens: tokens of a text that are read.
        weight: [D, C].
        bias: [C].

    Attributes:
        features: from texts to the backbone's features, without memory; None before `read_backbone`.
    """

    kind = "probe"
    options = Options

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

    def read_backbone(self, features: Callable[[int, int], Features]) -> None:
        self.features = features(self.layer, self.max_tokens)

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

    @classmethod
    def check(cls, options: Any, setting: Setting) -> None:
        if options.layer is not None and options.layer > setting.num_layers:
            raise UsageError(
                f"stages.route.layer: {options.layer} is not a layer of this model; use 0 (embeddings) to "
                f"{setting.num_layers}."
            )

    @classmethod
    def fit(cls, texts: Mapping[str, Sequence[str]], options: Any, setting: Setting) -> ProbeRouter:
        layer = setting.num_layers // 2 if options.layer is None else options.layer
        return fit_probe(
            texts,
            setting.features(layer, options.max_tokens, options.batch_size),
            layer=layer,
            max_tokens=options.max_tokens,
            min_confidence=options.min_confidence,
            check_interrupt=setting.check_interrupt,
        )


def fit_probe(
    texts: Mapping[str, Sequence[str]],
    features: Features,
    *,
    layer: int,
    max_tokens: int,
    min_confidence: float,
    check_interrupt: Callable[[], None] = lambda: None,
) -> ProbeRouter:
    """Fit on whole documents. Every label has the same weight, however many documents it has.

    Args:
        texts: documents by label.
        features: from texts to features [N, D].
        layer: the layer that the features come from.
        max_tokens: tokens of a text that are read.
        min_confidence: see `Router`.
        check_interrupt: called before every evaluation of the loss; it may raise.
    """
    import torch
    from torch.nn import functional as F

    labels, weights = tuple(texts), class_weights(texts)
    inputs = torch.from_numpy(_features_of_all(texts, features, check_interrupt))
    targets = torch.tensor([index for _, index in labelled(texts)])
    mean, std = inputs.mean(0), inputs.std(0) + 1e-6
    weight = torch.zeros(inputs.shape[1], len(labels), requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)

    def loss_of(batch: list[tuple[Tensor, Tensor]]) -> Tensor:
        ((points, targets),) = batch
        loss = F.cross_entropy(points @ weight + bias, targets, weight=weights)
        return loss + DECAY * weight.square().sum()

    minimise(
        torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe"),
        [((inputs - mean) / std, targets)],  # all documents at once
        loss_of,
        epochs=1,
        batch_size=1,
        rng=None,
        check_interrupt=check_interrupt,
    )
    with torch.no_grad():  # the standardisation is folded into the weights
        scaled = weight / std[:, None]
        shifted = bias - mean @ scaled
    router = ProbeRouter(labels, layer, max_tokens, scaled.numpy(), shifted.numpy(), min_confidence)
    router.features = features
    return router


def _features_of_all(
    texts: Mapping[str, Sequence[str]], features: Features, check_interrupt: Callable[[], None]
) -> Array:
    """Features [N, D] of all documents, label by label."""
    rows = []
    for documents in texts.values():
        for start in range(0, len(documents), AT_ONCE):
            check_interrupt()
            rows.append(features(documents[start : start + AT_ONCE]))
    return np.concatenate(rows)
