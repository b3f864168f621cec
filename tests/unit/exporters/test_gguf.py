"""Format `gguf`: what is in the files, read back with the package `gguf`, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from ...conftest import Koffkit, Shipped

gguf = pytest.importorskip("gguf")
HEADS, HEAD_DIM, MEMORY_TOKENS = {"attn_q": 4, "attn_k": 2}, 8, 3
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@pytest.fixture(scope="module")
def made(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "out"
    export(shipped.run, out, "gguf", {"cache_type": "f32"})
    return out


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors as float32, by name."""
    read = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in read}


def fields_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def halves(name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of queries and keys in the order of transformers: neighbours (2i, 2i + 1) become (i, i + H/2)."""
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if part not in HEADS:
        return value
    order = [*range(0, HEAD_DIM, 2), *range(1, HEAD_DIM, 2)]
    rows = [head * HEAD_DIM + channel for head in range(HEADS[part]) for channel in order]
    return value[rows]


def source(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return f"{OUTER[parts[0]]}.{parts[1]}"


def test_the_tensors_are_those_of_the_checkpoint(shipped: Shipped, made: Path) -> None:
    expected = load_file(shipped.export / "backbone" / "model.safetensors")
    found = tensors_of(made / "backbone" / "model.gguf")
    assert {source(name) for name in found} == set(expected)
    for name, value in found.items():
        assert np.array_equal(halves(name, value), expected[source(name)].numpy()), name


def test_the_sizes_are_those_of_the_config(shipped: Shipped, made: Path) -> None:
    config = json.loads((shipped.export / "backbone" / "config.json").read_text())
    fields = fields_of(made / "backbone" / "model.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["llama.feed_forward_length"] == config["intermediate_size"] < 48
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.attention.key_length"] == fields["llama.rope.dimension_count"] == HEAD_DIM
    assert fields["llama.context_length"] == 128
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == fields["llama.vocab_size"] == config["vocab_size"]


def test_the_adapter_is_the_lora_half(shipped: Shipped, made: Path) -> None:
    expected = load_file(shipped.export / "memories" / "north" / "adapter_model.safetensors")
    path = made / "memories" / "north.gguf"
    found, fields = tensors_of(path), fields_of(path)
    assert len(found) == len(expected) > 0
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == 4
    for name, value in found.items():
        module, factor = name.rsplit(".weight.lora_", 1)
        key = (
            f"base_model.model.{source(module + '.weight')}"[: -len("weight")]
            + f"lora_{factor.upper()}.weight"
        )
        value = halves(name, value) if factor == "b" else value
        assert np.array_equal(value, expected[key].numpy()), name


def test_an_alpha_of_its_own_goes_into_b(shipped: Shipped, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shipped.run, tmp_path / "run")))
    path = run.memory_dir("north") / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"model.layers.1.mlp.up_proj": 6}})
    )
    run.write(run.read().evolve(files={}))
    export(run.path, tmp_path / "out", "gguf")
    expected = load_file(shipped.export / "memories" / "north" / "adapter_model.safetensors")
    found = tensors_of(tmp_path / "out" / "memories" / "north.gguf")
    for layer, factor in ((0, 1.0), (1, 1.5)):
        b = expected[f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_B.weight"].numpy()
        assert np.allclose(found[f"blk.{layer}.ffn_up.weight.lora_b"], b * factor, rtol=1e-6)


def rotated(shipped: Shipped, key: torch.Tensor) -> torch.Tensor:
    """Keys [K, P, H] turned by the angle of P, by transformers."""
    config = AutoConfig.from_pretrained(shipped.export / "backbone")
    cos, sin = LlamaRotaryEmbedding(config)(key[None], torch.tensor([[key.shape[1]]]))
    turned = torch.cat([-key[..., HEAD_DIM // 2 :], key[..., : HEAD_DIM // 2]], dim=-1)
    return key * cos[0] + turned * sin[0]


@pytest.mark.parametrize("flash", [False, True])
def test_the_state_is_the_kv_half(shipped: Shipped, made: Path, flash: bool) -> None:
    kv = json.loads((made / "serving.json").read_text())["memories"]["south"]["kv"]
    data = (made / "memories" / kv["file_flash_attention" if flash else "file"]).read_bytes()
    count, layers, width = MEMORY_TOKENS, 3, 2 * HEAD_DIM
    assert kv["tokens"] == count
    head = f"<3I{count}i2I{3 * count}i4I"
    cells = [number for position in range(count) for number in (position, 1, 0)]
    sentinels = [kv["sentinel"]] * count
    expected = (0x67677371, 4, count, *sentinels, 1, count, *cells, not flash, layers, 0, 0)
    assert struct.unpack_from(head, data) == expected
    at, memory = (
        struct.calcsize(head),
        load_file(shipped.export / "memories" / "south" / "kv_memory.safetensors"),
    )
    order = [channel for pair in range(HEAD_DIM // 2) for channel in (pair, pair + HEAD_DIM // 2)]
    for layer in range(layers):
        assert struct.unpack_from("<iQ", data, at) == (0, 4 * width)
        found = np.frombuffer(data, "<f4", count * width, at + 12).reshape(count, 2, HEAD_DIM)
        key = rotated(shipped, memory[f"layers.{layer}.key"])[..., order].transpose(0, 1)
        assert np.allclose(found, key, atol=1e-6)
        at += 12 + 4 * count * width
    for layer in range(layers):
        assert struct.unpack_from("<iQ" if flash else "<i2I", data, at) == (
            (0, 4 * width) if flash else (0, 4, width)
        )
        found = np.frombuffer(data, "<f4", count * width, at + 12)
        value = memory[f"layers.{layer}.value"].transpose(0, 1).reshape(count, width)
        assert np.array_equal(
            found.reshape(value.shape if flash else value.T.shape), value if flash else value.T
        )
        at += 12 + 4 * count * width
    assert at == len(data)


def test_an_older_state_says_nothing_of_rotations(shipped: Shipped, made: Path, tmp_path: Path) -> None:
    export(shipped.run, tmp_path / "out", "gguf", {"state_version": 3, "cache_type": "f32"})
    old, new = ((root / "memories" / "north.state").read_bytes() for root in (tmp_path / "out", made))
    at = 4 * (3 + MEMORY_TOKENS + 2 + 3 * MEMORY_TOKENS + 2)
    assert old == new[:4] + struct.pack("<I", 3) + new[8:at] + new[at + 8 :]


def test_every_memory_has_a_sentinel_of_its_own(made: Path) -> None:
    memories = json.loads((made / "serving.json").read_text())["memories"]
    assert len({memory["kv"]["sentinel"] for memory in memories.values()}) == len(memories) == 2


@pytest.mark.parametrize(("kind", "error"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 2**-7)])
def test_smaller_types_round(shipped: Shipped, made: Path, tmp_path: Path, kind: str, error: float) -> None:
    export(shipped.run, tmp_path / "out", "gguf", {"type": kind})
    path = tmp_path / "out" / "backbone" / "model.gguf"
    exact, found = tensors_of(made / "backbone" / "model.gguf"), tensors_of(path)
    for name, value in exact.items():
        assert np.abs(found[name] - value).max() <= error * np.abs(value).max(), name
        assert np.array_equal(found[name], value) == (value.ndim == 1), name
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    rows = exact["blk.0.ffn_down.weight"].shape[1]
    fits = kind != "q8_0" or rows % 32 == 0
    assert types["blk.0.ffn_up.weight"] == kind.upper()
    assert types["blk.0.ffn_down.weight"] == (kind.upper() if fits else "F16")


def test_a_merged_memory_keeps_its_kv_half_beside(restored: Shipped, tmp_path: Path) -> None:
    told = export(restored.run, tmp_path / "out", "gguf", {"merge": "north"})
    export(restored.run, tmp_path / "hf", "hf", {"merge": "north"})
    expected = load_file(tmp_path / "hf" / "backbone" / "model.safetensors")
    for name, value in tensors_of(tmp_path / "out" / "backbone" / "model.gguf").items():
        assert np.array_equal(halves(name, value), expected[source(name)].numpy()), name
    assert told["merged"]["halves"] == ["lora", "neurons"]
    assert (told["merged"]["left_out"], told["merged"]["beside"]) == ([], ["kv"])
    assert "Its kv half lies beside them" in " ".join((tmp_path / "out" / "README.md").read_text().split())
    memories = json.loads((tmp_path / "out" / "serving.json").read_text())["memories"]
    assert list(memories) == ["north"] and "lora" not in memories["north"]
    export(restored.run, tmp_path / "plain", "hf")
    state = (tmp_path / "out" / "memories" / memories["north"]["kv"]["file"]).read_bytes()
    value = load_file(tmp_path / "plain" / "memories" / "north" / "kv_memory.safetensors")["layers.2.value"]
    rows = value.transpose(0, 1).reshape(MEMORY_TOKENS, -1).T.numpy().astype(np.float16)
    assert state.endswith(rows.tobytes())


def test_the_commands_take_it(made: Path, koffkit: Koffkit, tmp_path: Path) -> None:
    assert koffkit("verify", made, "--json").json["ok"] is True
    assert "llama.cpp llama" in koffkit("inspect", made).out
    refused = koffkit("generate", made, "--prompt", "river")
    assert refused.code == 2
    assert "format gguf, for other software" in refused.err
    damaged = Path(shutil.copytree(made, tmp_path / "damaged"))
    path = damaged / "memories" / "north.state"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    wrong = koffkit("verify", damaged)
    assert wrong.code == 4 and "north.state" in wrong.err


def test_options_come_from_the_command_line(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    command = ("export", shipped.run, "--format", "gguf", "--output", tmp_path / "out")
    done = koffkit(*command, "-o", "type=bf16", "-o", "kv=false")
    assert done.code == 0, done.err
    assert "KV memories are left out" in " ".join(done.err.split())
    assert not list((tmp_path / "out" / "memories").glob("*.state*"))
    assert json.loads((tmp_path / "out" / "serving.json").read_text())["type"] == "bf16"
    for given, words in (
        (["type"], "-o type: write it as NAME=VALUE"),
        (["type=f64"], "type"),
        (["typ=f16"], "has no option typ"),
        (["kv=true", "-o", "kv=false"], "kv is given twice"),
    ):
        wrong = koffkit(*command[:-1], tmp_path / "other", "-o", *given)
        assert wrong.code == 2 and words in wrong.err, wrong.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def learned(base: Path, root: Path, **changes: Any) -> Path:
    """A run of one step."""
    tree = recipe_dict(base, root / "data", **changes)
    tree["stages"] = [{"learn_masks": {"max_steps": 1, "batch_size": 1}}]
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", tree)), root / "run")
    return root / "run"


def test_quantize_is_the_option_of_the_format(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    command = ("export", shipped.run, "--format", "gguf", "--output", tmp_path / "out", "--quantize")
    assert koffkit(*command, "int8").code == 0
    by_option = export(shipped.run, tmp_path / "other", "gguf", {"type": "q8_0"})
    assert (tmp_path / "out" / "backbone" / "model.gguf").stat().st_size == by_option["backbone"]["bytes"]
    wrong = koffkit(*command[:-2], tmp_path / "new", "--quantize", "int4")
    assert wrong.code == 2 and "--quantize int4: format gguf writes no such weights" in wrong.err
    wrong = koffkit(*command[:-2], tmp_path / "new", "--quantize", "int8", "-o", "type=f32")
    assert wrong.code == 2 and "it is type=q8_0 of format gguf, which is given, too" in wrong.err
    wrong = koffkit(*command[:3], "onnx", "--output", tmp_path / "new", "--quantize", "int8")
    assert wrong.code == 2 and "format onnx writes no such weights; formats that do: gguf, hf" in wrong.err
    assert not (tmp_path / "new").exists()


def test_ragged_layers_are_a_deci(llama: Path, tmp_path: Path) -> None:
    mask = recipe_dict(llama, tmp_path / "data")["mask"] | {"layout": "ragged"}
    run = learned(llama, tmp_path, mask=mask)
    export(run, tmp_path / "out", "gguf")
    export(run, tmp_path / "hf", "hf")
    fields = fields_of(tmp_path / "out" / "backbone" / "model.gguf")
    layers = json.loads((tmp_path / "hf" / "backbone" / "config.json").read_text())["sliced_layers"]
    widths = [layer["intermediate"] for layer in layers]
    assert len(set(widths)) > 1
    assert fields["general.architecture"] == "deci"
    assert list(fields["deci.feed_forward_length"]) == widths
    assert list(fields["deci.attention.head_count_kv"]) == [2, 2, 2]


def test_scaled_angles_are_written(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    base = make_checkpoint(tmp_path / "base", rope_parameters=rope)
    export(learned(base, tmp_path), tmp_path / "out", "gguf", {"cache_type": "f32"})
    factors = tensors_of(tmp_path / "out" / "backbone" / "model.gguf")["rope_freqs.weight"]
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = 1 / 500.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    assert np.allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert factors.max() > 1.5
