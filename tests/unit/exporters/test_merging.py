"""Backbone and one memory as one dense checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from koffkit.exporters.toolkit import stream
from safetensors.torch import load_file, save_file

import koffkit
from koffkit import KoffModel
from koffkit.errors import IntegrityError, UsageError
from koffkit.model.merging import Factor
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from ...conftest import Koffkit, Shipped

IDS = torch.arange(20).reshape(2, 10) + 4


@pytest.fixture(scope="module")
def merged(restored: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    koffkit.export(restored.run, out, merge="north")
    return out


def with_memory(export: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits of backbone and memory `north` without its KV half."""
    model = KoffModel.from_pretrained(export, dtype=torch.float32)
    loaded = model.store._loaded
    loaded["north"] = replace(loaded["north"], kv={})
    return model.logits(ids, "north")


def test_the_command_says_what_is_merged_and_what_is_left_out(
    restored: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    done = koffkit("export", restored.run, "--merge", "north", "--output", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert told["merged"]["domain"] == "north"
    assert told["merged"]["halves"] == ["lora", "neurons"]
    assert told["merged"]["left_out"] == ["kv"] and "beside" not in told["merged"]
    assert told["merged"]["neurons"] == 9
    assert told["domains"] == told["results"] == {}
    assert "KV half cannot be part of weights and is left out" in " ".join(done.err.split())
    assert not (tmp_path / "out" / "memories").exists()
    assert not (tmp_path / "out" / "router").exists()
    text = (tmp_path / "out" / "backbone" / "README.md").read_text()
    assert "The memory `north` is part of the weights: its LoRA and 9 neurons" in text
    assert "**Its kv half is not in them" in text


def test_it_computes_what_backbone_and_memory_do(restored: Shipped, merged: Path) -> None:
    expected = with_memory(restored.export)
    found = KoffModel.from_pretrained(merged, dtype=torch.float32)
    assert torch.allclose(found.logits(IDS, None), expected, atol=1e-5)
    bare = KoffModel.from_pretrained(restored.export, dtype=torch.float32).logits(IDS, None)
    assert (bare - expected).abs().max() > 1e-3


def test_its_parity_is_on_record(merged: Path) -> None:
    manifest = json.loads((merged / "koffkit.json").read_text())
    parity = manifest["parity"]
    assert parity["max_abs"]["none"] <= 1e-9 * parity["max_logit"]["none"]
    assert 0 < manifest["merged"]["rounding"]["max_abs"] < 1e-4
    assert manifest["kept"]["mlp_neuron"] == [manifest["kept"]["mlp_neuron"][0]] * 3
    config = json.loads((merged / "backbone" / "config.json").read_text())
    assert config["intermediate_size"] == manifest["kept"]["mlp_neuron"][0]
    assert (
        manifest["removed"]["parameters"] + manifest["backbone"]["parameters"]
        == (manifest["base"]["parameters"])
    )


def test_stock_transformers_load_it_without_koffkit(restored: Shipped, merged: Path, tmp_path: Path) -> None:
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    script = f"""
import sys
sys.modules["koffkit"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(merged / "backbone")!r}, trust_remote_code=False)
assert type(model).__module__.startswith("transformers."), type(model)
logits = model.eval()(load_file("ids.safetensors")["ids"]).logits.detach().contiguous()
save_file({{"logits": logits}}, "logits.safetensors")
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.allclose(found, with_memory(restored.export), atol=1e-5)


def test_every_command_works_on_it(merged: Path, restored: Shipped, koffkit: Koffkit) -> None:
    assert koffkit("verify", merged, "--json").json["ok"] is True
    assert (
        "north is in the weights (lora, neurons, 9 neurons), without its kv" in koffkit("inspect", merged).out
    )
    made = koffkit("generate", merged, "--prompt", "river", "--max-new-tokens", 3, "--json")
    assert made.json["completions"][0]["memory"] is None
    text = restored.recipe.parent / "data" / "north.txt"
    figures = koffkit("evaluate", merged, "--data", text, "--sequence-length", 16, "--json")
    assert figures.json["perplexity"] > 1


def test_pieces_do_not_matter(
    restored: Shipped, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 300)
    koffkit.export(restored.run, tmp_path / "out", merge="north")
    one, other = (
        (root / "backbone" / "model.safetensors").read_bytes() for root in (merged, tmp_path / "out")
    )
    assert one == other


@pytest.mark.parametrize(
    ("name", "message"),
    [("nort", r"has no such memory; .*north"), ("west", r"--merge west: .* has no such memory")],
)
def test_a_memory_that_is_not_there(name: str, message: str, restored: Shipped, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        koffkit.export(restored.run, tmp_path / "out", merge=name)
    assert not list(tmp_path.iterdir())


def test_a_kv_memory_alone_cannot_be_merged(shipped: Shipped, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shipped.run, tmp_path / "run")))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (run.memory_dir("north") / name).unlink()
    state = run.read()
    memory = state.recipe["memory"] | {"lora": None}
    run.write(state.evolve(recipe=state.recipe | {"memory": memory}, files={}))
    with pytest.raises(UsageError, match=r"--merge north: this memory is a KV memory only, which weights"):
        koffkit.export(run.path, tmp_path / "out", merge="north")


def test_a_wrong_sum_is_refused(restored: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Factor.rows
    monkeypatch.setattr(Factor, "rows", lambda *given: real(*given) * (1 + 1e-4))
    with pytest.raises(IntegrityError, match=r"parity: .* differs .* nothing was published"):
        koffkit.export(restored.run, tmp_path / "out", merge="north")
    assert not list(tmp_path.iterdir())


def run_of(base: Path, root: Path, neurons: dict[str, Any], **mask: Any) -> Path:
    tree = recipe_dict(base, root / "data")
    tree["memory"] |= {"lora": None, "kv": None, "neurons": neurons}
    tree["mask"] |= {"global_sparsity": 0.2} | mask
    tree["stages"] = [
        {"learn_masks": {"max_steps": 2, "batch_size": 2}},
        {"restore": {"batches": 2, "batch_size": 2}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", tree)), root / "run")
    return root / "run"


def test_neurons_alone_are_not_rounded_and_keep_their_figures(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", mlp_bias=True)
    tensors = load_file(base / "model.safetensors")
    halves = {name: value.bfloat16() for name, value in tensors.items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    told = koffkit.export(run_of(base, tmp_path, {"count": 2}), tmp_path / "out", merge="south")
    assert told["merged"]["rounding"] == {"max_abs": 0.0, "kl": 0.0}
    assert list(told["results"]["domains"]) == ["south"]
    assert "matched" in told["results"]["domains"]["south"]
    stored = load_file(tmp_path / "out" / "backbone" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_free_counts_need_koffkits_class(llama: Path, tmp_path: Path) -> None:
    run = run_of(llama, tmp_path, {"count": 3, "layout": "ragged"})
    neurons = load_file(run / "memories" / "north" / "neurons.safetensors")
    counts = [len(neurons.get(f"layers.{layer}.neurons", ())) for layer in range(3)]
    assert len(set(counts)) > 1
    told = export(run, tmp_path / "out", options={"merge": "north"})
    assert told["backbone"]["class"] == "KoffLlamaForCausalLM"
    config = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())
    widths = [layer["intermediate"] for layer in config["sliced_layers"]]
    assert [width - min(widths) for width in widths] == [count - min(counts) for count in counts]
    merged, whole = tmp_path / "out", tmp_path / "whole"
    export(run, whole)
    expected = KoffModel.from_pretrained(whole).logits(IDS, "north")
    assert torch.allclose(KoffModel.from_pretrained(merged).logits(IDS, None), expected, atol=1e-5)
