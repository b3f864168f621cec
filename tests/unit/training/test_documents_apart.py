"""`attend_across_documents: false` reaches every pass over packed text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from koffkit.stages.evaluate import EvaluateOptions, evaluate_domains
from koffkit.training.context import Context
from koffkit.training.layerwise import walking
from koffkit.training.loop import DistillationLoop
from koffkit.training.restoring import _sums_by_domain
from koffkit.training.saliency import warm_start

from .test_loop import loop_for


def watch(loop: DistillationLoop) -> list[Tensor | None]:
    """The position ids of every pass through the model from now on."""
    seen: list[Tensor | None] = []

    def note(_: Any, inputs: Any, named: dict[str, Any]) -> None:
        seen.append(named.get("position_ids"))

    loop.student.model.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def _walk(context: Context) -> None:
    with walking(context, {}):
        pass


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("init", ["activation", "taylor", "fisher", "depth"])
def test_every_pass_over_packed_text(llama: Path, tmp_path: Path, across: bool, init: str) -> None:
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.12, "multiple_of": 4, "init": init}
    changes = {"mask": mask, "train": {"evaluate_every": 1}, "sequence_length": 64}
    loop = loop_for(llama, tmp_path, attend_across_documents=across, **changes)
    seen = watch(loop)
    passes = {
        "warm start": lambda: warm_start(loop.context, loop.options),
        "step": lambda: loop._step(0),
        "held-out": lambda: {"heldout_kl": loop.watch.measured()},
        "repair": lambda: _walk(loop.context),
        "restore": lambda: _sums_by_domain(loop.context, 1, 2),
        "evaluate": lambda: evaluate_domains(loop.context, EvaluateOptions(max_tokens=256)),
    }
    loop.context.set_masks()
    for name, run in passes.items():
        seen.clear()
        run()
        assert seen, name
        for positions in seen:
            assert (positions is None) is across, name
            if positions is not None:
                assert (positions[:, 1:] == 0).any(), name


def test_the_loss_is_that_of_each_document_by_itself(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, attend_across_documents=False, distill={"loss": "cross_entropy"})
    batch = loop.batch_of("north", 0)
    assert batch.positions is not None
    _, figures = loop.distillation(batch, "north", None)
    total = 0.0
    with torch.no_grad():
        for ids, positions in zip(batch.ids, batch.positions, strict=True):
            starts = (positions == 0).nonzero()[:, 0].tolist()
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                following = ids[start + 1 : end + 1]
                hidden = loop.student(ids[None, start:end], None, "north")[0, : len(following)]
                total += F.cross_entropy(hidden @ loop.student.head.T, following, reduction="sum").item()
    assert figures["ce"] == pytest.approx(total / (batch.ids.numel() - len(batch.ids)), rel=1e-5)
