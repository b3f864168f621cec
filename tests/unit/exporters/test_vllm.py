"""Format `vllm`: padding, sentinels, DeciLM's config, and refusals. vLLM itself runs in `make consumers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from koffkit.exporters.vllm.adapters import served_rank
from koffkit.exporters.vllm.sentinels import chat_template, choose_sentinels
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from koffkit.errors import UsageError
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, make_tokenizer, recipe_dict, write_recipe
from ...conftest import Koffkit, Shipped
from ...parity import conformance

IDS = torch.tensor([[5, 9, 17, 4, 88, 12]])


@pytest.fixture(scope="module")
def made(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vllm") / "out"
    export(shipped.run, out, "vllm")
    return out


def _run(tmp_path: Path, **changes: Any) -> Path:
    base = make_checkpoint(tmp_path / "base", changes.pop("family", "llama"))
    tree = recipe_dict(base, tmp_path / "data")
    tree["stages"] = tree["stages"][:2]
    for part, own in changes.items():
        tree[part].update(own)
    run_recipe(load_recipe(write_recipe(tmp_path / "r.yaml", tree)), tmp_path / "run")
    return tmp_path / "run"


def _with(backbone: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(backbone)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_ranks_that_vllm_serves(rank: int, served: int) -> None:
    assert served_rank(rank) == served


def test_a_padded_adapter_computes_the_same(made: Path, shipped: Shipped) -> None:
    config = json.loads((made / "adapters" / "north" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)  # the run's are 4 and 4
    plain = _with(made / "backbone", shipped.export / "memories" / "north")
    assert torch.allclose(_with(made / "backbone", made / "adapters" / "north"), plain, atol=1e-6)


def test_the_folder_says_how_to_serve_it_and_holds_nothing_else(made: Path) -> None:
    names = sorted(path.name for path in made.iterdir())
    assert names == ["README.md", "adapters", "backbone", "cartridges", "koffkit.json", "serving.json"]
    text = (made / "README.md").read_text()
    assert "vllm serve backbone --served-model-name tiny --dtype float32" in text
    assert "--enable-lora --max-loras 3 --max-lora-rank 8" in text
    assert "--lora-modules north=adapters/north south=adapters/south" in text
    memories = json.loads((made / "serving.json").read_text())["memories"]
    assert memories["north"]["kv"]["tokens"] == 3
    assert memories["north"]["kv"]["sentinel"] != memories["south"]["kv"]["sentinel"]
    assert f"prompt=[{memories['north']['kv']['sentinel']}] * 3 + ids" in text


def test_sentinels_are_special_tokens_that_a_chat_template_can_write(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<one>", "<two>", "<user>"]})
    tokenizer.chat_template = "{{ bos_token }}<user>{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    ids = choose_sentinels(tmp_path, ["north", "south", "east"], len(tokenizer))
    names = {name: tokenizer.convert_ids_to_tokens(index) for name, index in ids.items()}
    assert names["north"] == "<two>" and names["south"] == "<one>"
    assert ids["east"] not in tokenizer.all_special_ids
    tokenizer.chat_template = chat_template(tmp_path, {name: (ids[name], 2) for name in ("north", "south")})
    chat = [{"role": "user", "content": "river"}]
    with_memory = tokenizer.apply_chat_template(chat, tokenize=False, memory="south")
    assert with_memory == "<one><one><s><user>river"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s><user>river"


def test_an_export_for_vllm_is_verified_inspected_and_pushed(
    made: Path, shipped: Shipped, koffkit: Koffkit
) -> None:
    checked, shown = koffkit("verify", made, "--json").json, koffkit("inspect", made, "--json").json
    assert checked["ok"] and checked["memories"] == ["north", "south"]
    assert shown["loads_in"] == {"vllm": "vLLM LlamaForCausalLM; README.md says how"}
    assert shown["domains"]["north"]["path"] == "adapters/north"
    folders = made / "adapters" / "north", made / "cartridges" / "north"
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert shown["memories"]["north"]["bytes"] == shown["domains"]["north"]["bytes"] == size
    plain = json.loads((shipped.export / "koffkit.json").read_text())
    assert shown["backbone"]["digest"] == plain["backbone"]["digest"]
    files = koffkit("push", made, "acme/lean", "--dry-run", "--json").json["would_upload"]["acme/lean"]
    assert {*files} == {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    refused = koffkit("generate", made, "--prompt", "river")
    assert refused.code == 2 and "an export of format vllm, for other software" in refused.err


@pytest.mark.parametrize("name", ["adapters/north/adapter_model.safetensors", "serving.json"])
def test_damage_is_noticed(made: Path, tmp_path: Path, koffkit: Koffkit, name: str) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    data = bytearray((out / name).read_bytes())
    data[-9] ^= 1
    (out / name).write_bytes(data)
    done = koffkit("verify", out)
    assert done.code == 4 and name in done.err


@pytest.mark.parametrize("folder", ["adapters/north", "cartridges/south"])
def test_a_file_that_nobody_lists_is_noticed(
    made: Path, tmp_path: Path, koffkit: Koffkit, folder: str
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / folder / "adapter_model.bin").write_bytes(b"x")
    done = koffkit("verify", out)
    assert done.code == 4 and "nobody lists this file" in done.err


def test_ragged_neurons_become_a_decilm(tmp_path: Path, koffkit: Koffkit) -> None:
    export(_run(tmp_path, mask={"layout": "ragged"}), tmp_path / "out", "vllm")
    backbone = tmp_path / "out" / "backbone"
    config = AutoConfig.from_pretrained(backbone, trust_remote_code=True)
    model = json.loads((backbone / "config.json").read_text())
    assert config.architectures == ["DeciLMForCausalLM"] and "sliced_layers" not in model
    widths = [block.ffn.intermediate_size for block in config.block_configs]
    assert len(set(widths)) > 1 and config.block_configs[0].attention.n_heads_in_group == 2
    assert json.loads(config.to_json_string(use_diff=False))["block_configs"][0]["ffn"]["no_op"] is False
    assert "--trust-remote-code" in (tmp_path / "out" / "README.md").read_text()
    assert not (backbone / "modeling_koffkit.py").exists()
    assert koffkit("verify", tmp_path / "out").code == 0
    shown = koffkit("inspect", tmp_path / "out", "--json").json
    assert shown["loads_in"] == {"vllm": "vLLM DeciLMForCausalLM; README.md says how"}


def test_a_decilm_has_the_heads_that_are_left(tmp_path: Path) -> None:
    """Layers differ in their neurons; every one lost a KV head of two, with its two queries."""
    case = conformance.Case("llama", "neurons+groups", "ragged", False, plain=True, wide=True)
    conformance.build(case, tmp_path)
    export(tmp_path / "run", tmp_path / "vllm", "vllm")
    backbone, serving = (
        json.loads((tmp_path / "vllm" / name).read_text())
        for name in ("backbone/config.json", "serving.json")
    )
    assert backbone["num_attention_heads"] == 2
    assert [entry["kv"]["kv_heads"] for entry in serving["memories"].values()] == [1]


def test_ragged_heads_and_restored_neurons_are_refused(restored: Shipped, tmp_path: Path) -> None:
    ragged = {"layout": "ragged", "structures": ["kv_group"], "global_sparsity": 0.03}
    run = _run(tmp_path, mask=ragged)
    with pytest.raises(UsageError, match=r"different numbers of heads.*mask\.layout: uniform"):
        export(run, tmp_path / "out", "vllm")
    with pytest.raises(UsageError, match=r"format vllm: memories give neurons back.*--merge NAME"):
        export(restored.run, tmp_path / "out", "vllm")
    assert not (tmp_path / "out").exists()


def test_a_merged_memory_is_served_as_an_ordinary_model(
    restored: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    export(restored.run, tmp_path / "out", "vllm", {"merge": "north"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "backbone",
        "koffkit.json",
        "serving.json",
    ]
    assert koffkit("inspect", tmp_path / "out", "--json").json["merged"]["domain"] == "north"
    text = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve backbone" in text and "--enable-lora" not in text and "kv-transfer" not in text


def test_a_family_that_was_not_run_in_vllm_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, family="smollm3")
    with pytest.raises(UsageError, match="format vllm: a backbone of smollm3, which was not run there"):
        export(run, tmp_path / "out", "vllm")
