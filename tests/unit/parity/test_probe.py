from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.artefact.export import open_export
from koffkit.parity.compare import TOLERANCE, compare
from koffkit.parity.probe import FEW_TOKENS, Probe, _Float64, distances_to_golden, golden, probe_tokens

from ...common import make_checkpoint
from ...conftest import Shipped


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
def test_weights_read_one_by_one_give_the_logits_of_the_whole_model(
    tmp_path: Path, model_type: str, config: dict
) -> None:
    folder = make_checkpoint(tmp_path, model_type, **config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    probe, tokens = Probe(folder), probe_tokens(300)
    found = torch.cat([part for _, part in probe.logits(probe.hidden(tokens, [None]))], dim=-1).float()
    torch.testing.assert_close(found, model(torch.tensor([tokens])).logits.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # without and with biases
def test_many_pieces_give_the_same_and_do_not_pass_through_the_watch_for_float32(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation that the watch sees costs as much as a small product, and pieces name no type."""
    seen, watch = [], _Float64.__torch_function__

    def count(self: _Float64, func: Any, *more: Any) -> Any:
        seen.append(func)
        return watch(self, func, *more)

    monkeypatch.setattr(_Float64, "__torch_function__", count)
    probe, found = Probe(make_checkpoint(tmp_path, model_type)), {}
    for at_once in (1 << 20, 256):
        monkeypatch.setattr("koffkit.parity.weights.AT_ONCE", at_once)
        seen.clear()
        found[at_once] = probe.hidden(probe_tokens(300), [None]), len(seen)
    (whole, once), (pieces, often) = found.values()
    assert 0 < once == often
    torch.testing.assert_close(whole, pieces, rtol=1e-13, atol=1e-13)


def test_rows_have_their_own_memories(shipped: Shipped) -> None:
    export = open_export(shipped.export)
    probe, tokens = Probe(export.backbone, export.bundles()), probe_tokens(300)
    hidden = probe.hidden(tokens, [None, "south", "north"])
    found = torch.cat([part for _, part in probe.logits(hidden)], dim=-1).float()
    model = KoffModel.from_pretrained(shipped.export, dtype=torch.float32)
    for row, memory in enumerate([None, "south", "north"]):
        expected = model.logits(torch.tensor([tokens]), memory)[0]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_a_changed_weight_is_a_distance(tmp_path: Path) -> None:
    folder, other = make_checkpoint(tmp_path / "a"), make_checkpoint(tmp_path / "b")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5] += 0.5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    one, two, tokens = Probe(folder), Probe(other), probe_tokens(300)
    first, second = one.hidden(tokens, [None]), two.hidden(tokens, [None])
    assert compare(one, first, one, first)[0].max_abs == 0.0
    assert compare(one, first, two, second)[0].max_abs > 1e-3
    recorded = golden(one, first)[0] | {"tokens": tokens}
    assert distances_to_golden(one, {None: recorded})[None] < 1e-5
    assert distances_to_golden(two, {None: recorded})[None] > 1e-3


def test_golden_logits_are_the_largest(llama: Path) -> None:
    probe, tokens = Probe(llama), probe_tokens(300)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    expected = model(torch.tensor([tokens])).logits[0, -1].topk(8)
    found = golden(probe, probe.hidden(tokens, [None]))[0]
    assert found["ids"] == expected.indices.tolist()
    assert found["logits"] == pytest.approx(expected.values.tolist(), abs=1e-4)


WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def test_one_weight_of_any_tensor_of_a_wide_model_is_found_with_few_tokens(tmp_path: Path) -> None:
    folder, other = make_checkpoint(tmp_path / "a", **WIDE), tmp_path / "b"
    one = Probe(folder)
    tokens = one.tokens()
    assert len(tokens) == FEW_TOKENS < len(probe_tokens(300)) and len(set(tokens)) == FEW_TOKENS
    first = one.hidden(tokens, [None])
    stored = load_file(folder / "model.safetensors")
    shutil.copytree(folder, other)
    draw = torch.Generator().manual_seed(0)
    for name, value in stored.items():
        changed = value.clone()
        place = int(torch.randint(value.numel(), (), generator=draw))
        if "embed_tokens" in name:  # rows of other tokens act on nothing here; they are copied, and hashed
            place = tokens[2] * value.shape[1] + place % value.shape[1]
        changed.view(-1)[place] *= 1 + 2**-8  # the last bit in bfloat16
        save_file(stored | {name: changed}, other / "model.safetensors", metadata={"format": "pt"})
        two = Probe(other)
        found = compare(one, first, two, two.hidden(tokens, [None]))[0]
        assert found.relative > TOLERANCE, name
    assert len(stored) == 21


def test_narrow_models_are_compared_on_more_tokens(llama: Path) -> None:
    assert Probe(llama).tokens() == probe_tokens(300)
