from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from koffkit.exporters import export
from transformers import AutoModelForCausalLM

from koffkit.artefact.export import open_export
from koffkit.runtime.verify import verify_export
from koffkit.storage.tensors_file import read_header

from ...conftest import Koffkit, Shipped

LIMIT = 20_000


@pytest.mark.parametrize("more", [{}, {"merge": "north"}], ids=["with memories", "merged"])
def test_weights_are_written_in_files_of_any_size(
    shipped: Shipped, tmp_path: Path, more: dict[str, str]
) -> None:
    export(shipped.run, tmp_path / "whole", options=more)
    export(shipped.run, tmp_path / "parts", options=more | {"max_shard_size": "20KB"})
    whole, parts = (open_export(tmp_path / name) for name in ("whole", "parts"))
    assert parts.backbone_digest == whole.backbone_digest
    files = sorted(parts.backbone.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    sizes = {path.name: [info.size for info in read_header(path)[0].values()] for path in files}
    assert len(files) > 3
    assert all(sum(own) <= LIMIT or len(own) == 1 for own in sizes.values())
    assert any(len(own) > 1 for own in sizes.values())
    index = json.loads((parts.backbone / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert index["metadata"]["total_parameters"] == parts.manifest.backbone.parameters
    assert index["weight_map"] == {
        name: path.name for path in files for name in sorted(read_header(path)[0])
    } and len(index["weight_map"]) == sum(map(len, sizes.values()))
    one, other = (AutoModelForCausalLM.from_pretrained(found.backbone) for found in (whole, parts))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert verify_export(parts.path)["ok"]


def test_one_file_needs_no_index(shipped: Shipped, tmp_path: Path) -> None:
    export(shipped.run, tmp_path / "out", options={"max_shard_size": "1gb"})
    assert sorted(path.name for path in (tmp_path / "out/backbone").glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize("size", ["5", "5GiB", "0GB", "-1GB", "nanGB", "", "1e3MB", "five GB"])
def test_what_is_no_size_is_refused(
    size: str, shipped: Shipped, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = koffkit("export", shipped.run, f"--max-shard-size={size}")
    assert refused.code == 2
    assert "max_shard_size" in refused.err
    assert "such as 5GB" in refused.err
    assert not list(tmp_path.iterdir())


def test_the_option_reaches_the_formats_that_have_it(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hf", "peft"):
        made = koffkit("export", shipped.run, "--format", name, "--max-shard-size", "20KB", "--output", name)
        assert made.code == 0, made.err
        assert len(list((tmp_path / name / "backbone").glob("*.safetensors"))) > 3
    refused = koffkit("export", shipped.run, "--format", "gguf", "--max-shard-size", "20KB")
    assert refused.code == 2
    assert "no option max_shard_size" in refused.err
