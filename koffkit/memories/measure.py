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

from ..artefact.bundle import Bundle
from ..artefact.export import Export
from ..method.likelihood import TokenSums, add_tokens, given
from ..model.batch import Batch
from ..runtime.model import KoffModel

Logits = Callable[[Batch], Tensor]
"""Sequences [B, T] -> [B, T, V] in float32."""
BEFORE, AFTER = "before", "after"


def kl_before_and_after(
    export: Export,
    before: Bundle,
    after: Bundle,
    base: Path | None,
    batches: Iterable[Batch],
    device: torch.device | None = None,
    measured: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`{"reference", "before", "after", "tokens"}`: KL(reference || backbone with the memory).

    Args:
        base: the unpruned model, which is the reference; None: the memory before is.
        batches: sequences.
        device: where the models run; None: the CPU.
        measured: called after every batch.
    """
    model = KoffModel.from_pretrained(export.backbone, device=device, dtype=torch.float32)
    for bundle, alias in (
        (before, BEFORE),
        (after, AFTER),
    ):  # of the same domain, so under names of their own
        model.load_memory(replace(bundle, domain=alias))
    reference = _memory(model, BEFORE) if base is None else _base(base, model.device)
    sums = {BEFORE: TokenSums(), AFTER: TokenSums()}
    for batch in batches:
        batch = batch.to(model.device)
        expected = given(reference(batch).flatten(0, 1))
        for alias, total in sums.items():
            logits = given(model.logits(batch.ids, alias, position_ids=batch.positions).flatten(0, 1))
            add_tokens(total, batch.ids.numel(), logits, reference=expected)
        measured()
    named = "memory before compaction" if base is None else "unpruned model"
    means = {alias: total.mean_kl for alias, total in sums.items()}
    return {"reference": named, **means, "tokens": sums[BEFORE].tokens}


def _memory(model: KoffModel, alias: str) -> Logits:
    return lambda batch: model.logits(batch.ids, alias, position_ids=batch.positions)


def _base(folder: Path, device: torch.device) -> Logits:
    """The logits of a model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model.to(device).eval()

    def of(batch: Batch) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits
        return logits

    return of
