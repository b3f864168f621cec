"""`KoffModel.save_pretrained`: what a model has loaded, as an export again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import koffkit
from koffkit import KoffModel
from koffkit.artefact.bundle import open_bundle
from koffkit.artefact.export import open_export
from koffkit.errors import IntegrityError, UsageError

from ...conftest import Shipped

IDS = torch.arange(20).reshape(2, 10) + 4


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_is_the_same_model(shipped: Shipped, tmp_path: Path) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    out = tmp_path / "new" / "copy"
    model.save_pretrained(out)
    copy = KoffModel.from_pretrained(out, verify=True)
    assert copy.domains == model.domains == ["north", "south"]
    for memory in (None, "north", ["south", None]):
        assert torch.equal(copy.logits(IDS, memory), model.logits(IDS, memory))
    assert content(out).keys() == content(shipped.export).keys()
    koffkit.verify(out)


def test_the_memories_of_now_are_saved(shipped: Shipped, tmp_path: Path) -> None:
    before = content(shipped.export)
    model = KoffModel.from_pretrained(shipped.export, memory_budget=1)
    shutil.copytree(shipped.export / "memories" / "south", tmp_path / "elsewhere")
    other = replace(open_bundle(tmp_path / "elsewhere"), domain="north")
    model.load_memory(other, replace=True)
    model.unload_memory("south")
    model.load_memory(replace(open_bundle(tmp_path / "elsewhere"), domain="west"))
    model.to(dtype="bfloat16")  # files are saved as they are
    (tmp_path / "out").mkdir()
    model.save_pretrained(tmp_path / "out")
    saved, whole = KoffModel.from_pretrained(tmp_path / "out"), KoffModel.from_pretrained(shipped.export)
    assert saved.domains == ["north", "west"] and saved.dtype == whole.dtype
    for domain in saved.domains:
        assert torch.equal(saved.logits(IDS, domain), whole.logits(IDS, "south"))
    manifest = open_export(tmp_path / "out").manifest
    assert [entry.path for entry in manifest.domains.values()] == ["memories/north", "memories/west"]
    assert {name for name in content(tmp_path / "out") if not name.endswith("README.md")} == {
        "koffkit.json",
        *manifest.files,
    }
    assert "other memories than above: `north`, `west`." in (tmp_path / "out" / "README.md").read_text()
    koffkit.verify(tmp_path / "out")
    assert content(shipped.export) == before


def test_what_was_changed_is_not_saved_as_if_it_were_not(shipped: Shipped, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = KoffModel.from_pretrained(shipped.export)
    weight = model.model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] += 1
    with pytest.raises(UsageError, match=r"layers\.0\.mlp\.up_proj\.weight: not what .*backbone holds"):
        model.save_pretrained(out)
    with torch.no_grad():
        weight[0, 0] -= 1
    folder = shutil.copytree(shipped.export / "memories" / "south", tmp_path / "west")
    model.load_memory(replace(open_bundle(folder), domain="west"))
    shutil.rmtree(folder)
    shutil.copytree(shipped.export / "memories" / "north", folder)
    with pytest.raises(IntegrityError, match="not the memory 'west' that was loaded"):
        model.save_pretrained(out)
    shutil.rmtree(folder)
    shutil.copytree(shipped.export / "memories" / "south", folder)
    data = bytearray((folder / "kv_memory.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "kv_memory.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"kv_memory\.safetensors: its sha256 is not the one"):
        model.save_pretrained(out)
    assert [path.name for path in tmp_path.iterdir()] == ["west"]


def test_what_cannot_be_saved(shipped: Shipped, tmp_path: Path) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="out: exists already"):
        model.save_pretrained(tmp_path / "out")
    assert content(tmp_path / "out") == {"mine": b"mine"}
    shutil.copytree(shipped.export / "backbone", tmp_path / "alone")
    alone = KoffModel.from_pretrained(tmp_path / "alone")
    with pytest.raises(UsageError, match=r"alone: the backbone was not loaded from an export"):
        alone.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
