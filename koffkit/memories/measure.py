"""What a memory loses when it shrinks: KL in nats per token, on the same tokens before and after.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..artefact.bundle import Bundle
from ..artefact.export import Export
from ..runtime.model import KoffModel

LogProbabilities = Callable[[Tensor], Tensor]
BEFORE, AFTER = "before", "after"


def kl_before_and_after(
    export: Export, before: Bundle, after: Bundle, base: Path | None, batches: Iterable[Tensor]
) -> dict[str, Any]:
    """`{"reference", "before", "after", "tokens"}`: KL(reference || backbone with the memory).

    Args:
        base: the unpruned model, which is then the reference; None: the memory before.
        batches: token ids [B, T].
    """
    model = KoffModel.from_pretrained(export.backbone, dtype=torch.float32)
    for bundle, alias in (
        (before, BEFORE),
        (after, AFTER),
    ):  # of the same domain, so under names of their own
        model.load_memory(replace(bundle, domain=alias))
    reference = _memory(model, BEFORE) if base is None else _base(base)
    sums = {BEFORE: 0.0, AFTER: 0.0}
    tokens = 0
    for ids in batches:
        expected = reference(ids)
        tokens += ids.numel()
        for alias in sums:
            sums[alias] += F.kl_div(
                _memory(model, alias)(ids), expected, reduction="sum", log_target=True
            ).item()
    named = "memory before compaction" if base is None else "unpruned model"
    return {"reference": named, **{alias: total / tokens for alias, total in sums.items()}, "tokens": tokens}


def _memory(model: KoffModel, alias: str) -> LogProbabilities:
    def of(ids: Tensor) -> Tensor:
        return model.logits(ids, alias).log_softmax(-1)

    return of


def _base(folder: Path) -> LogProbabilities:
    """[B, T] -> [B, T, V] in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def of(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.log_softmax(-1)

    return of
