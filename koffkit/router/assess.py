"""Measuring a router."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import NONE, Router

BINS = 10


def assess(router: Router, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Measure accuracy, confusion, calibration and latency on held-out documents.

    Args:
        router: the router.
        texts: documents by label.

    Returns:
        `accuracy`; `confusion`: label -> {chosen: count}; `calibration_error`: expected |confidence -
        accuracy| over ten bins; `milliseconds`: median time to route one text.
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
    gaps = [
        abs(confidence[places == i].mean() - right[places == i].mean()) * (places == i).mean()
        for i in set(places.tolist())
    ]
    return {
        "accuracy": float(right.mean()),
        "documents": len(outcomes),
        "confusion": confusion,
        "calibration_error": float(sum(gaps)),
        "milliseconds": float(np.median(seconds) * 1000),
    }
