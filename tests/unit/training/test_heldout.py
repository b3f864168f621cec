from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from koffkit.training.heldout import heldout_kl

from .test_loop import loop_for


def test_it_is_the_kl_to_the_unpruned_model_on_held_out_text(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    context, gates = loop.context, loop.student.gates
    assert gates is not None
    masks = gates.hard(context.budget)
    expected = []
    with torch.no_grad():
        for domain in context.corpus.domains:
            batches = context.corpus.heldout[domain].sequences(16, 2, 2048)
            ids = torch.cat([batch.ids for batch in batches])
            teacher = F.linear(context.unpruned(ids), loop.student.head).log_softmax(-1)
            student = F.linear(loop.student(ids, masks, domain), loop.student.head).log_softmax(-1)
            kl = F.kl_div(student, teacher, reduction="sum", log_target=True) / ids.numel()
            expected.append(kl.item())
    found = heldout_kl(context, masks, 2, with_memory=True)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found > 0
    assert heldout_kl(context, None, 2, with_memory=False) == pytest.approx(0, abs=1e-6)


def rows_and_weights(llama: Path, root: Path, **train: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    root.mkdir()
    loop = loop_for(llama, root, train={"checkpoint_every": 100, **train})
    loop.run(None)
    run = loop.context.run
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return rows, {name: value.detach().clone() for name, value in loop.context.tensors().items()}


def test_training_is_the_same_with_it(llama: Path, tmp_path: Path) -> None:
    plain, weights = rows_and_weights(llama, tmp_path / "a")
    watched, same_weights = rows_and_weights(llama, tmp_path / "b", evaluate_every=2)
    assert [row["step"] for row in watched if "heldout_kl" in row] == [2, 4, 6]
    assert not any("heldout_kl" in row for row in plain)
    assert [row["loss"] for row in watched] == [row["loss"] for row in plain]
    assert set(same_weights) == set(weights)
    for name, value in weights.items():
        assert torch.equal(same_weights[name], value), name


def test_recover_uses_the_masks_that_were_learned(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, train_gates=False, train={"evaluate_every": 1})
    assert loop.context.masks is None
    kl = loop._heldout(1)["heldout_kl"]
    assert kl >= 0
    assert loop._heldout(1)["heldout_kl"] == kl
