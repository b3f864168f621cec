"""int8 weights of formats hf and peft, by torchao: skipped where it is not installed, but for the refusal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from koffkit.exporters.toolkit import quantised
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ...common import recipe_dict
from ...conftest import Koffkit, Shipped
from .test_gguf import learned

IDS = torch.arange(5, 25)[None]


@pytest.fixture
def torchao() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao")


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """Of stock software."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "backbone").eval()
    model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model(input_ids=IDS).logits[0].log_softmax(-1)


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "backbone" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", ["hf", "peft", "vllm"])
def test_without_the_tool_nothing_is_written(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda module: None)
    command = ("export", shipped.run, "--format", name, "--output", tmp_path / "out", "--quantize", "int8")
    refused = koffkit(*command)
    assert refused.code == 2
    assert f"--format {name}: weights: int8: torchao is not installed" in refused.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_a_folder_for_vllm(torchao: Any, shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    out = tmp_path / "out"
    done = koffkit("export", shipped.run, "--format", "vllm", "--output", out, "--quantize", "int8", "--json")
    assert done.code == 0, done.err
    assert stored(out)["model.layers.0.mlp.up_proj._weight_qdata"].dtype == torch.int8
    assert 0 < done.json["consumer"]["kl"]["north"] < 0.01
    assert koffkit("verify", out).code == 0
    assert "`pip install torchao` beside vLLM first" in (out / "README.md").read_text()
    plain = tmp_path / "plain"
    export(shipped.run, plain, "vllm")
    for name in ("adapters/north/adapter_model.safetensors", "cartridges/south/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_what_was_not_run_in_vllm_is_refused(
    llama: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda module: module)
    mask = recipe_dict(llama, tmp_path / "data")["mask"] | {"layout": "ragged"}
    run = learned(llama, tmp_path, mask=mask)
    command = ("export", run, "--format", "vllm", "--output", tmp_path / "out", "-o", "weights=int8")
    refused = koffkit(*command)
    assert refused.code == 2 and "were not run there in int8" in refused.err
    assert not (tmp_path / "out").exists()


def test_what_keeps_the_removed_keeps_it_exactly(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    command = ("export", shipped.run, "--output", tmp_path / "out", "--quantize", "int8", "--keep-removed")
    refused = koffkit(*command)
    assert refused.code == 2 and "weights and keep_removed exclude each other" in refused.err


@pytest.mark.filterwarnings("ignore")
def test_stock_software_loads_it_with_its_memories(
    torchao: Any, shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    out = tmp_path / "out"
    done = koffkit("export", shipped.run, "--output", out, "--quantize", "int8", "--json")
    assert done.code == 0, done.err
    types = {name: value.dtype for name, value in stored(out).items()}
    assert types["model.layers.0.mlp.up_proj._weight_qdata"] == torch.int8
    assert types["model.embed_tokens.weight"] == torch.float32

    plain, memory = logits(shipped.export), shipped.export / "memories" / "north"
    assert 0 < kl(plain, logits(out)) < 0.01
    lora = logits(out, out / "memories" / "north")
    assert kl(logits(shipped.export, memory), lora) < 0.01 < kl(plain, lora)

    measured = done.json["consumer"]
    assert measured["weights"] == "int8" and measured["kl"].keys() == {"none", "north", "south"}
    assert all(0 < value < 0.01 for value in measured["kl"].values())
    assert all(count > 50 for count in measured["greedy"].values())
    assert not list(out.glob(".*"))


@pytest.mark.filterwarnings("ignore")
def test_koffkit_checks_it_and_does_not_run_it(
    torchao: Any, shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    out = tmp_path / "out"
    export(shipped.run, out, "peft", {"weights": "int8"})
    assert koffkit("verify", out).code == 0
    refused = koffkit("generate", out, "--prompt", "a")
    assert refused.code == 2 and "an export of format peft, quantised, for other software" in refused.err
    assert "KoffModel" not in (out / "README.md").read_text()
    assert koffkit("inspect", out, "--json").json["consumer"]["weights"] == "int8"
    weights = out / "backbone" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert koffkit("verify", out).code != 0


@pytest.mark.filterwarnings("ignore")
def test_a_memory_goes_in_before_the_weights_are_rounded(
    torchao: Any, shipped: Shipped, tmp_path: Path
) -> None:
    export(shipped.run, tmp_path / "merged", "hf", {"merge": "north"})
    export(shipped.run, tmp_path / "out", "hf", {"merge": "north", "weights": "int8"})
    merged, rounded = stored(tmp_path / "merged"), stored(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj"
    scale = rounded[f"{name}._weight_scale"]
    off = (rounded[f"{name}._weight_qdata"] * scale - merged[f"{name}.weight"]).abs()
    assert bool((off <= 0.51 * scale).all())
    manifest = json.loads((tmp_path / "out" / "koffkit.json").read_text())
    assert manifest["merged"]["domain"] == "north" and manifest["consumer"]["weights"] == "int8"
