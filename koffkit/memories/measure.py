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
from ..runtime.model import KoffModel

Logits = Callable[[Tensor], Tensor]
"""[B, T] -> [B, T, V] in float32."""
BEFORE, AFTER = "before", "after"


def kl_before_and_after(
    export: Export,
    before: Bundle,
    after: Bundle,
    base: Path | None,
    batches: Iterable[Tensor],
    device: torch.device | None = None,
    measured: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`{"reference", "before", "after", "tokens"}`: KL(reference || backbone with the memory).

    Args:
        base: the unpruned model, which is the reference; None: the memory before is.
        batches: token ids [B, T].
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
        ids = batch.to(model.device)
        expected = given(reference(ids).flatten(0, 1))
        for alias, total in sums.items():
            logits = given(model.logits(ids, alias).flatten(0, 1))
            add_tokens(total, ids.numel(), logits, reference=expected)
        measured()
    named = "memory before compaction" if base is None else "unpruned model"
    means = {alias: total.mean_kl for alias, total in sums.items()}
    return {"reference": named, **means, "tokens": sums[BEFORE].tokens}


def _memory(model: KoffModel, alias: str) -> Logits:
    return lambda ids: model.logits(ids, alias)


def _base(folder: Path, device: torch.device) -> Logits:
    """[B, T] -> [B, T, V] in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model.to(device).eval()

    def of(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    return of
