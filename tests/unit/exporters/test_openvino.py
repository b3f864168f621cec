"""Format `openvino`: what is written, run by OpenVINO and its GenAI; skipped without the extra."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from koffkit.exporters import export
from safetensors.numpy import load_file
from tokenizers.processors import TemplateProcessing

from koffkit.artefact.export import open_export
from koffkit.parity.probe import probe_tokens
from koffkit.runtime.inspect import describe
from koffkit.runtime.verify import verify_export

from ...common import make_tokenizer
from ...conftest import Shipped
from .conftest import learned, require_openvino

require_openvino()

from koffkit.exporters.openvino import runtime  # noqa: E402
from koffkit.exporters.openvino.run import Exported, Pipeline  # noqa: E402
from koffkit.exporters.openvino.tokenizer import SAMPLES, convert_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("converted_once")
PROMPT = [5, 270, 61, 118, 9, 200]


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a ragged run with memories in one of its three layers; alpha of LoRA is not its rank."""
    root = tmp_path_factory.mktemp("upper")
    lora = {"rank": 4, "alpha": 10, "targets": ["v_proj", "down_proj"]}
    mask = {"layout": "ragged", "structures": ["mlp_neuron"]}
    run = learned(root, mask=mask, memory={"layers": {"upper": 1}, "lora": lora})
    export(run, root / "out", "openvino")
    return root / "out"


def _consumer(folder: Path) -> Any:
    found = open_export(folder, any_format=True).manifest.consumer
    assert found is not None
    return found


def _pipeline(folder: Path) -> Pipeline:
    return Pipeline(folder / "backbone", {path.stem: path for path in (folder / "memories").iterdir()})


def test_logits_and_greedy_tokens_are_koffkits(openvino_export: Path) -> None:
    found, parity = _consumer(openvino_export), open_export(openvino_export, any_format=True).manifest.parity
    assert parity.noise_floor is not None and list(found.max_abs) == ["none", "north", "south"]
    for name, worst in found.max_abs.items():
        assert 0 < worst <= max(10 * parity.noise_floor.max_abs[name], 1e-5 * parity.max_logit[name])
        assert found.kl[name] <= 1e-9 and found.greedy[name] == found.tokens == 64


def test_memories_are_switched_at_run_time_and_leave_nothing_behind(openvino_export: Path) -> None:
    pipeline = _pipeline(openvino_export)
    order = (None, "north", "south", None, "north")
    texts = [pipeline.greedy(PROMPT, name, 24) for name in order]
    assert texts[0] == texts[3] and texts[1] == texts[4]
    assert len({str(ids) for ids, _ in texts}) == 3, "memories change nothing: a weak test"


def test_both_halves_are_in_the_file_and_both_count(openvino_export: Path) -> None:
    whole = load_file(openvino_export / "memories" / "north.safetensors")
    kv = {name: value for name, value in whole.items() if ".memory_" in name}
    lora = {name: value for name, value in whole.items() if name not in kv}
    assert {value.dtype for value in whole.values()} == {np.dtype(np.float32)}
    exported = Exported(openvino_export / "backbone", [whole])
    tokens = probe_tokens(300)
    logits = [exported.logits(tokens, part) for part in (None, lora, kv, whole)]
    for one in range(4):
        for other in range(one):
            assert np.abs(logits[one] - logits[other]).max() > 1e-3


def test_padded_rows_of_a_batch_read_the_memory_too(openvino_export: Path) -> None:
    import openvino_genai as genai

    pipeline = _pipeline(openvino_export)
    config = genai.GenerationConfig(max_new_tokens=8, do_sample=False, apply_chat_template=False)
    attached = genai.AdapterConfig([pipeline._adapters["north"]])
    texts = ["the river", "the river runs to the north and the"]
    batch = pipeline._pipeline.generate(texts, config, adapters=attached).texts
    assert batch == [str(pipeline._pipeline.generate(text, config, adapters=attached)) for text in texts]


def test_paged_attention_refuses_kv_memories_rather_than_forget_them(openvino_export: Path) -> None:
    import openvino_genai as genai

    with pytest.raises(RuntimeError):
        genai.LLMPipeline(openvino_export / "backbone", "CPU", ATTENTION_BACKEND="PA")


def test_kv_memories_in_the_upper_layers_of_a_ragged_backbone(upper: Path) -> None:
    manifest = open_export(upper, any_format=True).manifest
    assert len(set(manifest.kept["mlp_neuron"])) > 1
    names = load_file(upper / "memories" / "north.safetensors")
    assert "base_model.model.koffkit.layers.2.memory_key.lora_B.weight" in names
    assert not any(f"koffkit.layers.{lower}." in name for name in names for lower in (0, 1))
    assert _consumer(upper).greedy == {"none": 64, "north": 64, "south": 64}


def test_the_export_verifies_and_says_what_it_is_for(openvino_export: Path, tmp_path: Path) -> None:
    assert verify_export(openvino_export)["ok"]
    assert list(describe(openvino_export)["loads_in"]) == ["openvino"]
    assert sorted(path.name for path in openvino_export.iterdir()) == [
        "README.md",
        "backbone",
        "example.py",
        "koffkit.json",
        "memories",
    ]
    copy = Path(shutil.copytree(openvino_export, tmp_path / "copy"))
    with open(copy / "backbone" / "openvino_model.bin", "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    problems = verify_export(copy)["problems"]
    assert len(problems) == 1 and "openvino_model.bin" in problems[0]


def test_the_commands_of_the_readme_run(openvino_export: Path) -> None:
    text = (openvino_export / "README.md").read_text()
    assert "| north |" in text and "64 of 64" in text
    block = text.split("```python\n")[1].split("```")[0]
    command = text.split("```console\n")[1].split("```")[0].strip()
    outputs = {}
    for name in ("north", "none"):
        words = [sys.executable, "example.py", name, "A prompt", "--tokens", "12"]
        assert command == 'python example.py north "A prompt"'
        outputs[name] = subprocess.run(words, cwd=openvino_export, capture_output=True, check=True).stdout
    assert outputs["north"] != outputs["none"]
    subprocess.run([sys.executable, "-c", block], cwd=openvino_export, check=True, capture_output=True)
    wrong = subprocess.run(
        [sys.executable, "example.py", "nrth", "x"], cwd=openvino_export, capture_output=True, text=True
    )
    assert wrong.returncode == 1 and wrong.stderr.startswith("nrth: no such memory; there is none, north")


def test_without_kv_the_model_has_no_places_and_paged_attention_runs_it(
    shipped: Shipped, tmp_path: Path
) -> None:
    import openvino_genai as genai

    export(shipped.run, tmp_path / "out", "openvino", {"kv": False})
    names = load_file(tmp_path / "out" / "memories" / "north.safetensors")
    assert names and not any(".memory_" in name for name in names)
    assert "ATTENTION_BACKEND` the pipeline" not in (tmp_path / "out" / "README.md").read_text()
    adapter = genai.Adapter(tmp_path / "out" / "memories" / "north.safetensors")
    paged = genai.LLMPipeline(
        tmp_path / "out" / "backbone",
        "CPU",
        adapters=genai.AdapterConfig(adapter),
        ATTENTION_BACKEND="PA",
        **runtime.EXACT,
    )
    config = genai.GenerationConfig(max_new_tokens=24, ignore_eos=True, do_sample=False)
    prompt = runtime.load_openvino().Tensor(np.array([PROMPT]))
    found = paged.generate(prompt, config, adapters=genai.AdapterConfig(adapter)).tokens[0]
    assert list(found) == _pipeline(tmp_path / "out").greedy(PROMPT, "north", 24)[0]


def test_the_tokenizer_splits_text_as_the_original_does(tmp_path: Path) -> None:
    original = make_tokenizer()
    pair = original.bos_token, original.bos_token_id
    original.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{pair[0]} $A", special_tokens=[pair]
    )
    original.save_pretrained(tmp_path)
    found = convert_tokenizer(tmp_path)
    assert found.original("a river").input_ids[0] == original.bos_token_id
    assert list(found.differences()) == []
    assert list(replace(found, original=make_tokenizer()).differences()) == list(SAMPLES)
