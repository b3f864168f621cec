"""Format `peft`: what it writes loads in PEFT and transformers; what they cannot hold is refused first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from koffkit.exporters import available, export, find
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.errors import IntegrityError, UsageError
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from ...conftest import Koffkit, Shipped
from ...parity import conformance

IDS = torch.tensor([[5, 9, 17, 4, 88, 12]])


@pytest.fixture(scope="module")
def made(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peft") / "out"
    export(shipped.run, out, "peft")
    return out


def test_lora_and_cartridge_together_compute_what_koffkit_does(made: Path) -> None:
    expected = KoffModel.from_pretrained(made).logits(IDS, "north")
    model = AutoModelForCausalLM.from_pretrained(made / "backbone").eval()
    model.load_adapter(str(made / "memories" / "north"))
    whole = PeftModel.from_pretrained(model, str(made / "memories" / "north" / "cartridge")).eval()
    with torch.no_grad():
        found = whole(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert float((found - expected).abs().max()) < 1e-4


def test_the_base_of_an_adapter_is_found_from_the_folder_of_the_export(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    base = PeftConfig.from_pretrained("memories/north").base_model_name_or_path
    assert base == PeftConfig.from_pretrained("memories/north/cartridge").base_model_name_or_path
    backbone = AutoModelForCausalLM.from_pretrained(base)
    assert backbone.config.intermediate_size < 48
    model = PeftModel.from_pretrained(backbone, "memories/north").eval()
    with torch.no_grad():
        with_lora = model(input_ids=IDS).logits
        with model.disable_adapter():
            bare = model(input_ids=IDS).logits
    assert float((with_lora - bare).abs().max()) > 1e-3


def test_fewer_heads_than_the_config_says_are_refused_first(tmp_path: Path) -> None:
    """PEFT takes the number of KV heads from the config, which in koffkit's class has the base's."""
    case = conformance.Case("llama", "neurons+groups", "ragged", False, plain=True, wide=True)
    conformance.build(case, tmp_path)
    heads = {
        layer["kv_heads"]
        for layer in json.loads((tmp_path / "out/backbone/config.json").read_text())["sliced_layers"]
    }
    assert heads == {1}  # of two; layers differ in their neurons alone
    with pytest.raises(UsageError, match=r"format peft: a KV memory for fewer heads than the base's"):
        export(tmp_path / "run", tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()


def test_layers_with_different_numbers_of_heads_are_refused_first(tmp_path: Path) -> None:
    case = conformance.Case("llama", "neurons+groups", "ragged", False, plain=True, wide=True, sparsity=0.2)
    conformance.build(case, tmp_path)
    layers = json.loads((tmp_path / "out/backbone/config.json").read_text())["sliced_layers"]
    assert {layer["kv_heads"] for layer in layers} == {1, 2}
    with pytest.raises(UsageError, match=r"format peft: a KV memory for heads that differ"):
        export(tmp_path / "run", tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()


def test_the_example_runs_without_koffkit_and_says_what_koffkit_says(made: Path, koffkit: Koffkit) -> None:
    text = (made / "example.py").read_text()
    assert "import koffkit" not in text
    blocked = "import runpy, sys; sys.modules['koffkit'] = None; sys.argv = ['example.py', 'north', 'river']"
    code = f"{blocked}; runpy.run_path('example.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = koffkit(
        "generate", made, "--prompt", "river", "--memory", "north", "--max-new-tokens", 64, "--json"
    )
    assert done.stdout.strip().startswith("river")
    assert said.json["completions"][0]["completion"].strip() in done.stdout


def test_generate_of_peft_as_the_readme_has_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    text = (made / "README.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")]
    load, rename = (block for block in blocks if block.startswith(("model.load_adapter", "prepare = ")))
    known = {"model": AutoModelForCausalLM.from_pretrained("backbone").eval(), "PeftModel": PeftModel}
    exec(load + rename, known)
    koff = KoffModel.from_pretrained(made)
    ids = koff.tokenizer("A prompt", return_tensors="pt").input_ids
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "do_sample": False}
    found = known["model"].generate(input_ids=ids, **options)
    assert found.tolist() == koff.generate(input_ids=ids, memory="north", **options).tolist()
    assert found.shape[1] > ids.shape[1] + 8


def test_an_export_for_peft_is_an_export_like_any_other(made: Path, koffkit: Koffkit) -> None:
    assert koffkit("verify", made, "--json").json["ok"]
    shown = koffkit("inspect", made, "--json").json
    assert shown["format"] == "peft"
    route = "PEFT and plain transformers: backbone, LoRA, KV memory (generate with it as example.py does)"
    assert shown["routes"]["peft"] == route


def test_a_damaged_cartridge_is_noticed(made: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    path = out / "memories" / "north" / "cartridge" / "adapter_model.safetensors"
    save_file({"prompt_embeddings": load_file(path)["prompt_embeddings"] * 2}, path)
    assert koffkit("verify", out).code == 4


def test_a_wrong_rotation_is_not_published(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.exporters.toolkit.rotation import Rotary

    monkeypatch.setattr(Rotary, "__call__", lambda self, key, layer: key)
    with pytest.raises(IntegrityError, match=r"memory north: in PEFT its logits differ by .* nothing was"):
        export(shipped.run, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


def test_kv_memory_in_some_layers_is_refused_before_anything_is_learned(
    llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    tree = recipe_dict(llama, tmp_path / "data", export=[{"format": "peft"}])
    tree["memory"]["layers"] = {"upper": 2}
    done = koffkit("compress", write_recipe(tmp_path / "r.yaml", tree), "--output", tmp_path / "run")
    assert done.code == 2 and not (tmp_path / "run").exists()
    assert (
        "format peft: KV memory in some layers only; export with --format hf, or learn"
        in done.err.replace("\n", " ")
    )


def test_restored_neurons_are_refused(restored: Shipped, tmp_path: Path) -> None:
    remedy = r"format peft: memories give neurons back.*with --format hf --merge NAME"
    with pytest.raises(UsageError, match=remedy):
        export(restored.run, tmp_path / "out", "peft")
    assert not list(tmp_path.iterdir())


def test_a_merged_memory_is_for_another_format(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    command = ("export", shipped.run, "--format", "peft", "--output", tmp_path / "out", "--merge", "north")
    refused = koffkit(*command)
    assert refused.code == 2 and not list(tmp_path.iterdir())
    assert "format peft: merge: north: a memory in the weights leaves no adapter" in refused.err
    remedy = "--format hf --merge north"
    assert remedy in refused.err
    command = tuple(refused.err.partition("export with ")[2].partition(",")[0].split())
    assert koffkit("export", shipped.run, "--output", tmp_path / "out", *command).code == 0


def test_formats_declare_whether_they_merge() -> None:
    for name in available():
        exporter = find(name)
        assert exporter.carries.merges == ("merge" in exporter.Options.model_fields), name


def test_ragged_neurons_and_no_rope_layers(tmp_path: Path) -> None:
    """A family with layers that do not rotate, in koffkit's own class."""
    base = make_checkpoint(tmp_path / "base", "smollm3")
    tree = recipe_dict(base, tmp_path / "data")
    tree["mask"]["layout"] = "ragged"
    tree["stages"] = tree["stages"][:2]
    run_recipe(load_recipe(write_recipe(tmp_path / "r.yaml", tree)), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "peft")  # the gate runs PEFT
    config = json.loads(
        (tmp_path / "out" / "memories" / "north" / "cartridge" / "adapter_config.json").read_text()
    )
    assert (config["num_virtual_tokens"], config["num_layers"]) == (3, 3)
