"""The option `memory.layers: {learned_bytes: ...}`: which layers keep a memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from koffkit.arch.widths import full_widths
from koffkit.planning.plan import layer_memory_parameters
from koffkit.training.placement import layers_worth_keeping, losses_without

from ..training.test_loop import loop_for
from .test_options import finished


def test_learned_placement_keeps_as_many_layers_as_the_bytes_allow(llama: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 4, "targets": ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]}
    memory = {"lora": lora, "kv": {"tokens": 3}}
    whole = sum(
        value.nbytes for value in tensors(tmp_path / "all", llama, memory | {"layers": "all"}).values()
    )
    kept = tensors(tmp_path / "some", llama, memory | {"layers": {"learned_bytes": whole * 2 // 3}})
    state = json.loads((tmp_path / "some" / "run" / "run.json").read_text())
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in kept}
    assert sorted(layers) == state["memory_layers"] and len(layers) == 2


def tensors(root: Path, llama: Path, memory: dict[str, Any]) -> dict[str, torch.Tensor]:
    root.mkdir()
    finished(llama, root, memory=memory)
    files = (root / "run" / "memories" / "north").glob("*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


def test_the_layers_that_stay_are_those_whose_memory_is_missed(llama: Path, tmp_path: Path) -> None:
    """Only layers 0 and 2 have a memory that does anything; it makes the student the worse, the more so in
    layer 2."""
    memory = {"layers": {"learned_bytes": 10**6}, "lora": None, "kv": {"tokens": 3}}
    loop = loop_for(llama, tmp_path, memory=memory)
    masks = loop.context.set_masks()
    fixed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for pairs in loop.student.memories.kv.values():
            for layer, scale in ((0, 3.0), (1, 0.0), (2, 30.0)):
                pairs[str(layer)][1].normal_(generator=fixed).mul_(scale)
    harm = losses_without(loop, [0, 1, 2])
    assert harm[1] > harm[0] > harm[2]
    loop.student.memories.keep_layers([0, 2])  # by hand, of every domain and under the finished mask
    batches = [(domain, loop.batch_of(domain, visit)) for domain in ("north", "south") for visit in range(2)]
    with torch.no_grad():
        by_hand = [
            sum(loop.distillation(batch, domain, values)[1]["loss"] for domain, batch in batches)
            for values in (loop.context.masks, None)
        ]
    assert harm[1] == pytest.approx(by_hand[0], rel=1e-5) and by_hand[1] != pytest.approx(
        by_hand[0], rel=1e-3
    )
    one = (
        layer_memory_parameters(loop.recipe, loop.student.spec.shape, full_widths(loop.student.spec.shape))
        * 4
    )
    assert layers_worth_keeping(loop, masks, one * 3) == [0, 1, 2]
    assert layers_worth_keeping(loop, masks, one * 3 - 1) == [0, 1]
    assert layers_worth_keeping(loop, masks, one) == [1] == layers_worth_keeping(loop, masks, 1)
    loop.student.memories.keep_layers([0, 1])
    loop.student.memories.attach("north")
    assert loop.student.memories.layers == [0, 1]


def test_two_layers_that_stand_in_for_each_other_do_not_both_go(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward elimination measures anew after each layer that goes."""
    loop = loop_for(
        llama, tmp_path, memory={"layers": {"learned_bytes": 10**6}, "lora": None, "kv": {"tokens": 3}}
    )
    masks = loop.context.set_masks()
    found = []
    with_losses = {(0, 1, 2): {0: 1.0, 1: 1.1, 2: 1.2}, (1, 2): {1: 5.0, 2: 2.0}}
    monkeypatch.setattr(
        "koffkit.training.placement.losses_without",
        lambda _, kept: found.append(list(kept)) or with_losses[tuple(kept)],
    )
    assert layers_worth_keeping(loop, masks, 1) == [1] and found == [[0, 1, 2], [1, 2]]
