from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.artefact.export import open_export
from koffkit.memories.measure import kl_before_and_after
from koffkit.model.batch import Batch

from ...conftest import Shipped

IDS = torch.arange(24).reshape(2, 12) * 7 % 280 + 5


def test_kl_is_that_of_whole_models(shipped: Shipped, llama: Path) -> None:
    """Two bundles stand for the memory before and after; both references."""
    export = open_export(shipped.export)
    north, south = export.bundles()
    model = KoffModel.from_pretrained(shipped.export)
    logs = {name: model.logits(IDS, name).log_softmax(-1) for name in model.domains}
    base = (
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        .eval()(IDS)
        .logits.detach()
        .log_softmax(-1)
    )

    def kl(name: str, reference: torch.Tensor) -> float:
        return F.kl_div(logs[name], reference, reduction="sum", log_target=True).item() / IDS.numel()

    calls: list[int] = []
    found = kl_before_and_after(
        export, north, south, llama, [Batch(IDS[:1]), Batch(IDS[1:])], measured=lambda: calls.append(1)
    )
    assert len(calls) == 2
    assert found["tokens"] == 24 and found["reference"] == "unpruned model"
    assert (found["before"], found["after"]) == pytest.approx(
        (kl("north", base), kl("south", base)), rel=1e-4
    )
    found = kl_before_and_after(export, north, south, None, [Batch(IDS)])
    assert found["reference"] == "memory before compaction" and found["before"] == pytest.approx(0, abs=1e-6)
    assert found["after"] == pytest.approx(kl("south", logs["north"]), rel=1e-4)
