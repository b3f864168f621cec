"""Restored neurons in generation: each row of a batch has its own, however often generation repeats it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from koffkit import KoffModel
from koffkit.model.neuron_memory import Neurons

from ...conftest import Shipped

PROMPTS = ["river stone", "quiet house sings over", "lamp", "seven"]
ROWS = ["north", "south", None, "south"]


def louder(neurons: Neurons) -> Neurons:
    return replace(neurons, down=40 * neurons.down)


@pytest.fixture(scope="module")
def model(restored: Shipped) -> KoffModel:
    """A model whose memories are neurons alone, loud enough for every completion to depend on them."""
    model = KoffModel.from_pretrained(restored.export)
    loaded = model.store._loaded
    for seed, (domain, memory) in enumerate(loaded.items()):
        neurons = {
            layer: replace(louder(own), gate=own.gate.roll(seed, 1)) for layer, own in memory.neurons.items()
        }
        loaded[domain] = replace(memory, lora={}, kv={}, neurons=neurons)
    return model


def test_a_mixed_batch_generates_what_each_prompt_does_alone(model: KoffModel) -> None:
    together = model.generate(PROMPTS, memory=ROWS, max_new_tokens=6)
    alone = [
        model.complete(prompt, memory=name, max_new_tokens=6)
        for prompt, name in zip(PROMPTS, ROWS, strict=True)
    ]
    assert together == alone
    assert len({tuple(model.generate(PROMPTS, memory=name, max_new_tokens=6)) for name in set(ROWS)}) == 3


@pytest.mark.parametrize("sequences", [1, 3])
def test_beams_keep_the_neurons_of_their_row(model: KoffModel, sequences: int) -> None:
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": sequences}
    together = model.generate(PROMPTS, memory=ROWS, **options)
    alone = [
        text
        for prompt, name in zip(PROMPTS, ROWS, strict=True)
        for text in model.generate([prompt], memory=name, **options)
    ]
    assert len(together) == sequences * len(PROMPTS)
    assert together == alone


def test_several_samples_of_a_prompt_have_its_neurons(model: KoffModel) -> None:
    """With only the likeliest token to draw, every sample is what greedy decoding makes."""
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 3}
    sampled = model.generate(PROMPTS, memory=ROWS, max_new_tokens=6, **options)
    greedy = model.generate(PROMPTS, memory=ROWS, max_new_tokens=6)
    assert sampled == [text for text in greedy for _ in range(3)]


def test_a_mixed_batch_has_the_logits_of_its_rows(model: KoffModel) -> None:
    ids = torch.arange(40).reshape(4, 10) + 4
    mixed = model.logits(ids, ROWS)
    for row, name in enumerate(ROWS):
        alone = model.logits(ids[row : row + 1], name)[0]
        torch.testing.assert_close(mixed[row], alone, atol=2e-5, rtol=1e-5)
        if name is not None:
            assert (alone - model.logits(ids[row : row + 1], None)[0]).abs().max() > 0.1
