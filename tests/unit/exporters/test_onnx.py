"""Format `onnx`: the graph and its adapters in ONNX Runtime against koffkit's own runtime, and what is
refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.artefact.bundle import open_bundle
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import IntegrityError, UsageError
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from ...conftest import Koffkit, Shipped

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
generate = pytest.importorskip("koffkit.exporters.onnx.generate")
IDS = [5, 9, 17, 4, 88, 12, 230, 61, 118, 9]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def made(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "out"
    export(shipped.run, out, "onnx", {"layout": "genai"})
    return out


def logits_of(folder: Path, memory: str | None) -> Any:
    """Logits of ONNX Runtime [T, V], read in three pieces."""
    model = generate.Backbone(folder, threads=1)
    model.attach(None if memory is None else folder / "memories" / f"{memory}.onnx_adapter")
    parts, cache = [], model.empty()
    for piece in (IDS[:6], IDS[6:7], IDS[7:]):
        logits, cache = model.step(piece, cache)
        parts.append(logits)
    return np.concatenate(parts)


def koffkit_logits(folder: Path, memory: str | None) -> Any:
    model = KoffModel.from_pretrained(folder, dtype=torch.float32)
    return model.logits(torch.tensor([IDS]), memory)[0].numpy()


def _run(tmp_path: Path, **changes: Any) -> Path:
    tree = recipe_dict(make_checkpoint(tmp_path / "base"), tmp_path / "data")
    tree["stages"] = tree["stages"][:2]
    for part, own in changes.items():
        tree[part].update(own)
    run_recipe(load_recipe(write_recipe(tmp_path / "r.yaml", tree)), tmp_path / "run")
    return tmp_path / "run"


def test_without_a_memory_it_is_the_backbone(shipped: Shipped, made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped.export / "backbone").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(logits_of(made, None) - expected).max() < TOLERANCE


@pytest.mark.parametrize("memory", ["north", "south"])
def test_an_adapter_is_the_whole_memory(shipped: Shipped, made: Path, memory: str) -> None:
    found, expected = logits_of(made, memory), koffkit_logits(shipped.export, memory)
    assert np.abs(found - expected).max() < TOLERANCE
    assert np.abs(expected - koffkit_logits(shipped.export, None)).max() > 0.01, "a memory without effect"


def test_a_session_puts_memories_on_and_off(made: Path) -> None:
    model, found = generate.Backbone(made, threads=1), []
    for memory in (None, "north", "south", None):
        model.attach(None if memory is None else made / "memories" / f"{memory}.onnx_adapter")
        found.append(model.step(IDS, model.empty())[0])
    assert np.array_equal(found[0], found[3])
    assert np.abs(found[1] - found[2]).max() > 0.01


def test_rows_of_a_batch_are_padded_on_the_left(shipped: Shipped, made: Path) -> None:
    model = generate.Backbone(made, threads=1)
    model.attach(made / "memories" / "north.onnx_adapter")
    mask = np.array([[0, 0, *[1] * len(IDS)], [1] * (len(IDS) + 2)])
    feed = {
        "input_ids": np.array([[0, 0, *IDS], [7, 7, *IDS]]),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(-1) - 1, 0),
        **model.empty(rows=2),
    }
    found = model.session.run(["logits"], feed, model.run_options)[0]
    assert np.abs(found[0, 2:] - koffkit_logits(shipped.export, "north")).max() < TOLERANCE


def test_lora_b_has_its_scaling_in_it(shipped: Shipped, tmp_path: Path) -> None:
    from koffkit.exporters.onnx.parameters import parameters_of

    folder = Path(shutil.copytree(shipped.export / "memories" / "north", tmp_path / "north"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"model.layers.1.mlp.up_proj": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = parameters_of(open_bundle(folder), ModelSpec.open(shipped.export / "backbone"))
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer, scaling in ((0, 1.0), (1, 1.5)):
        module = f"model.layers.{layer}.mlp.up_proj"
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert torch.allclose(found[f"{module}.lora_B"], b * scaling, rtol=1e-6)


def test_memories_in_upper_layers_of_a_ragged_backbone(tmp_path: Path) -> None:
    ragged = {"layout": "ragged", "structures": "paper", "global_sparsity": 0.3, "multiple_of": 1}
    run = _run(tmp_path, mask=ragged, memory={"layers": [2]})
    with pytest.raises(UsageError, match=r"layout: genai: .*heads differ; export with -o layout=plain"):
        export(run, tmp_path / "out", "onnx", {"layout": "genai"})
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out", "onnx")
    export(run, tmp_path / "hf")
    for memory in (None, "north"):
        difference = np.abs(logits_of(tmp_path / "out", memory) - koffkit_logits(tmp_path / "hf", memory))
        assert difference.max() < TOLERANCE


def test_restored_neurons_come_with_the_adapter(restored: Shipped, tmp_path: Path) -> None:
    export(restored.run, tmp_path / "out", "onnx")
    expected = koffkit_logits(restored.export, "south")
    assert np.abs(logits_of(tmp_path / "out", "south") - expected).max() < TOLERANCE
    names = generate.onnxruntime.AdapterFormat.read_adapter(
        str(tmp_path / "out" / "memories" / "south.onnx_adapter")
    ).get_parameters()
    assert any(name.endswith(".neurons_gate") for name in names)


def test_a_merged_memory_is_one_graph_without_more_inputs(restored: Shipped, tmp_path: Path) -> None:
    export(restored.run, tmp_path / "out", "onnx", {"merge": "north"})
    export(restored.run, tmp_path / "hf", "hf", {"merge": "north"})
    assert not (tmp_path / "out" / "memories").exists()
    inputs = [value.name for value in generate.Backbone(tmp_path / "out").session.get_inputs()]
    assert [name for name in inputs if not name.startswith("past_key_values.")] == [
        "input_ids",
        "attention_mask",
        "position_ids",
    ]
    found, expected = logits_of(tmp_path / "out", None), koffkit_logits(tmp_path / "hf", None)
    assert np.abs(found - expected).max() < TOLERANCE


def test_weights_of_any_size_lie_beside_the_graph(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir
    from koffkit.exporters.onnx import graph

    monkeypatch.setattr(graph, "INLINE_BYTES", 0)
    (tmp_path / "backbone").mkdir()
    path = tmp_path / "backbone" / "backbone.onnx"
    graph.save(onnx_ir.load(made / "backbone" / "backbone.onnx"), path)
    assert path.stat().st_size < (made / "backbone" / "backbone.onnx").stat().st_size / 2
    assert path.with_name("backbone.onnx.data").is_file()
    shutil.copytree(made / "memories", tmp_path / "memories")
    assert np.array_equal(logits_of(tmp_path, "north"), logits_of(made, "north"))


def test_the_graph_says_nothing_of_the_machine(made: Path) -> None:
    data = (made / "backbone" / "backbone.onnx").read_bytes()
    assert b"site-packages" not in data and str(Path.home()).encode() not in data
    assert b"stack_trace" not in data and b"modeling_" not in data


def test_what_computes_something_else_is_not_published(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.exporters.onnx import files

    right = files.parameters_of

    def wrong(*given: Any) -> dict[str, torch.Tensor]:
        found = right(*given)
        name = next(name for name in found if name.endswith("memory_key"))
        return found | {name: found[name] * 1.01}

    monkeypatch.setattr(files, "parameters_of", wrong)
    with pytest.raises(IntegrityError, match=r"memory north: in ONNX Runtime its logits differ by"):
        export(shipped.run, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_error_names_it(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript: .*pip install 'koffkit\[onnx\]'"):
        export(shipped.run, tmp_path / "out", "onnx")


def test_the_commands_of_the_readme_run(made: Path) -> None:
    text = (made / "README.md").read_text()
    consoles = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [line for block in consoles for line in block.splitlines()]
    assert commands == [f'python generate.py {name} "A prompt"' for name in ("none", "north", "south")]
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 2
    for words in [["bash", "-ec", "\n".join(commands).replace("python", sys.executable)]] + [
        [sys.executable, "-c", program]
        for program in programs
        if "onnxruntime_genai" not in program or _has_genai()
    ]:
        done = subprocess.run(words, cwd=made, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    unknown = subprocess.run(
        [sys.executable, "generate.py", "east", "x"], cwd=made, capture_output=True, text=True
    )
    assert unknown.returncode == 1 and "no such memory" in unknown.stderr


def _has_genai() -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime_genai") is not None


def test_genai_is_told_the_sizes_and_names(shipped: Shipped, made: Path) -> None:
    config = json.loads((shipped.export / "backbone" / "config.json").read_text())
    told = json.loads((made / "backbone" / "genai_config.json").read_text())["model"]
    decoder = told["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (3, 2, 8)
    assert told["vocab_size"] == config["vocab_size"] and told["context_length"] == 128
    session = generate.Backbone(made).session
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    given = [*decoder["inputs"].values(), *decoder["outputs"].values()]
    assert {name % 2 if "%d" in name else name for name in given} <= inputs | outputs


def test_the_command_line_prints_json_and_verify_and_inspect_take_it(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    found = koffkit("export", shipped.run, "--format", "onnx", "--output", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    assert found.json["format"] == "onnx" and set(found.json["domains"]) == {"north", "south"}
    assert "torch.onnx" not in found.err and "experimental" not in found.err
    assert koffkit("verify", tmp_path / "out").code == 0
    shown = koffkit("inspect", tmp_path / "out", "--json")
    assert shown.code == 0 and "onnx" in shown.json["loads_in"]
    routes = koffkit("inspect", shipped.export, "--json").json["routes"]
    assert routes["onnx"].startswith("ONNX Runtime")
    adapter = tmp_path / "out" / "memories" / "south.onnx_adapter"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x01")
    assert koffkit("verify", tmp_path / "out").code == 4
