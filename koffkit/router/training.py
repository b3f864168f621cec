"""Fitting the router: multinomial logistic regression on whole documents and on their beginnings, because prompts are beginnings."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .base import NONE, Router
from .classifier import TextRouter
from .features import features

BATCH = 64
RATE = 0.05
DECAY = 1e-4
LEAST_WORDS = 3
BINS = 10


def fit(
    texts: Mapping[str, Sequence[str]],
    *,
    num_buckets: int,
    epochs: int,
    min_confidence: float,
    seed: int,
    pulse: Callable[[], None] = lambda: None,
) -> TextRouter:
    """Train on documents by label. Every epoch sees each document once, whole or (every second time) cut short.

    Args:
        pulse: called before every batch; it may raise.
    """
    labels = tuple(texts)
    documents = [(text, index) for index, label in enumerate(labels) for text in texts[label]]
    # A label with few documents counts as much as one with many.
    share = torch.tensor([len(documents) / (len(labels) * max(1, len(texts[label]))) for label in labels])
    draw = random.Random(seed)
    weight = torch.zeros(num_buckets, len(labels), requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=DECAY)
    for _ in range(epochs):
        draw.shuffle(documents)
        for start in range(0, len(documents), BATCH):
            pulse()
            part = documents[start : start + BATCH]
            logits = bucket_logits(weight, bias, [beginning(text, draw) for text, _ in part])
            loss = F.cross_entropy(logits, torch.tensor([index for _, index in part]), weight=share)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return TextRouter(labels, weight.detach().numpy(), bias.detach().numpy(), min_confidence)


def bucket_logits(weight: Tensor, bias: Tensor, texts: Sequence[str]) -> Tensor:
    """[N, C] from [F, C] and [C], differentiable."""
    rows = [features(text, len(weight)) for text in texts]
    flat = torch.from_numpy(np.concatenate(rows))
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])[:-1]])
    scale = torch.from_numpy(np.concatenate([np.full(len(row), len(row) ** -0.5, dtype=np.float32) for row in rows]))
    return F.embedding_bag(flat, weight, offsets, mode="sum", per_sample_weights=scale) + bias


def beginning(text: str, draw: random.Random) -> str:
    """A text, every second time cut short."""
    words = text.split(" ")
    if len(words) <= LEAST_WORDS or draw.random() < 0.5:
        return text
    return " ".join(words[: draw.randint(LEAST_WORDS, len(words))])


def assess(router: Router, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Accuracy, confusion, calibration and latency on held-out documents.

    Returns:
        `accuracy`; `confusion`: label -> {chosen: count}; `calibration_error`: expected |confidence - accuracy| over ten bins;
        `milliseconds`: median time to route one text.
    """
    confusion: dict[str, dict[str, int]] = {}
    outcomes, seconds = [], []
    for label, documents in texts.items():
        counts = confusion.setdefault(label, {})
        for text in documents:
            begin = time.perf_counter()
            ((chosen, probability),) = router.route([text])
            seconds.append(time.perf_counter() - begin)
            counts[chosen or NONE] = counts.get(chosen or NONE, 0) + 1
            outcomes.append((probability, (chosen or NONE) == label))
    confidence, right = (np.array(column, dtype=float) for column in zip(*outcomes, strict=True))
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[places == i].mean() - right[places == i].mean()) * (places == i).mean() for i in set(places.tolist())]
    return {
        "accuracy": float(right.mean()),
        "documents": len(outcomes),
        "confusion": confusion,
        "calibration_error": float(sum(gaps)),
        "milliseconds": float(np.median(seconds) * 1000),
    }
