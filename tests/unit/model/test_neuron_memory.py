from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from koffkit.checkpoint.spec import ModelSpec
from koffkit.model.gating import register_gates
from koffkit.model.neuron_memory import (
    NeuronMemory,
    neurons_of_call,
    set_neuron_memory,
    set_neuron_rows,
    use_neuron_memory,
)
from koffkit.model.per_call import for_this_call
from koffkit.training.restoring import take_neurons

from ...common import make_checkpoint

IDS = torch.arange(24).reshape(3, 8) + 5
PLACES = {"a": {0: torch.tensor([1, 6]), 1: torch.tensor([3])}, "b": {1: torch.tensor([0, 2, 9])}}


class Masked:
    """A model whose first twelve neurons of every layer are gone, with memories that give some back."""

    def __init__(self, base: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
        self.spec = ModelSpec.open(base)
        self.memories: dict[str, NeuronMemory] = {
            name: take_neurons(self.model, places, torch.float32) for name, places in PLACES.items()
        }
        self.gates = torch.ones(self.spec.num_layers, self.spec.shape.intermediate)
        self.gates[:, :12] = 0
        register_gates(self.model, self.spec, lambda: {"mlp_neuron": self.gates})
        use_neuron_memory(self.model)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor = IDS) -> torch.Tensor:
        logits: torch.Tensor = self.model(ids, use_cache=False).logits
        return logits

    def with_open_gates(self, name: str | None, ids: torch.Tensor = IDS) -> torch.Tensor:
        """What the neurons of a memory compute where they came from."""
        before = self.gates.clone()
        for layer, places in PLACES.get(name or "", {}).items():
            self.gates[layer, places] = 1
        logits = self.logits(ids)
        self.gates = before
        return logits


@pytest.fixture
def masked(llama: Path) -> Masked:
    return Masked(llama)


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite", "gemma3_text"])
def test_restored_neurons_compute_what_they_did_in_their_place(family: str, tmp_path: Path) -> None:
    more = {"head_dim": 8} if family == "gemma3_text" else {"mlp_bias": True} if family == "llama" else {}
    masked = Masked(make_checkpoint(tmp_path / "base", family, **more))
    bare = masked.logits()
    set_neuron_memory(masked.model, masked.memories["a"])
    assert (masked.logits() - bare).abs().max() > 1e-2
    restored = masked.logits()
    set_neuron_memory(masked.model, None)
    assert torch.allclose(restored, masked.with_open_gates("a"), atol=1e-5)


def test_every_row_of_a_batch_has_its_own(masked: Masked) -> None:
    rows = ["b", None, "a"]
    set_neuron_rows(masked.model, masked.memories, rows)
    mixed = masked.logits()
    set_neuron_memory(masked.model, None)
    for row, name in enumerate(rows):
        alone = masked.with_open_gates(name, IDS[row : row + 1])[0]
        assert torch.allclose(mixed[row], alone, atol=1e-5), name


def test_rows_repeated_by_generation_keep_their_memory(masked: Masked) -> None:
    state = neurons_of_call(masked.model, masked.memories, ["a", "b"])
    with for_this_call(state):
        repeated = masked.logits(IDS[:1].repeat(4, 1))  # two samples of each prompt
    for rows, name in ((slice(0, 2), "a"), (slice(2, 4), "b")):
        assert torch.allclose(repeated[rows], masked.with_open_gates(name, IDS[:1]), atol=1e-5), name


def test_a_call_without_memory_is_the_bare_backbone(masked: Masked) -> None:
    bare = masked.logits()
    assert neurons_of_call(masked.model, masked.memories, [None, None, None]) == {}
    set_neuron_memory(masked.model, masked.memories["a"])
    set_neuron_memory(masked.model, None)
    assert masked.logits().equal(bare)
