from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit.artefact.bundle import open_bundle
from koffkit.artefact.digests import backbone_digest
from koffkit.artefact.export import open_export
from koffkit.artefact.names import MANIFEST, MEMORY_FILE
from koffkit.errors import IntegrityError, UsageError

from ...common import make_checkpoint


def test_the_digest_knows_a_backbone_however_it_is_sharded(tmp_path: Path) -> None:
    whole, parts = make_checkpoint(tmp_path / "a"), make_checkpoint(tmp_path / "b", shard="60KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    assert backbone_digest(whole) == backbone_digest(parts)


def test_one_changed_weight_changes_the_digest(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    before = backbone_digest(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nextafter(tensors["model.norm.weight"][3], torch.tensor(9.0))
    save_file(tensors, folder / "model.safetensors")
    assert backbone_digest(folder) != before


def test_a_bundle_refuses_another_backbone(shipped) -> None:  # type: ignore[no-untyped-def]
    bundle = open_bundle(shipped.export / "memories" / "north")
    bundle.require_backbone(open_export(shipped.export).backbone_digest, shipped.export)
    with pytest.raises(
        IntegrityError,
        match=r"memory\.json: this memory \(north\) belongs to backbone \w{12}, but here is 0000",
    ):
        bundle.require_backbone("0" * 64, Path("here"))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", IntegrityError, "not valid JSON"),
        ("[]", IntegrityError, "not a JSON object"),
        ('{"koffkit": 99}', UsageError, "format 99"),
    ],
)
def test_damaged_manifests(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    (tmp_path / MEMORY_FILE).write_text(content)
    for read in (open_export, open_bundle):
        with pytest.raises(error, match=message):
            read(tmp_path)


def test_not_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not an export \(no koffkit\.json\)"):
        open_export(tmp_path)
    with pytest.raises(UsageError, match=r"not a memory bundle \(no memory\.json\)"):
        open_bundle(tmp_path)


def test_the_manifest_is_what_the_contract_says(shipped) -> None:  # type: ignore[no-untyped-def]
    manifest = json.loads((shipped.export / MANIFEST).read_text())
    listed = set(manifest["files"])
    there = {
        path.relative_to(shipped.export).as_posix() for path in shipped.export.rglob("*") if path.is_file()
    }
    assert listed == {name for name in there - {MANIFEST} if not name.endswith("README.md")}
    assert manifest["koffkit"] == 1
    assert manifest["base"]["digest"]
    assert set(manifest["domains"]) == {"north", "south"}
    assert (
        manifest["backbone"]["parameters"]
        == manifest["base"]["parameters"] - manifest["removed"]["parameters"]
    )
    assert len(manifest["kept"]["mlp_neuron"]) == 3
    for domain in ("north", "south"):
        info = json.loads((shipped.export / "memories" / domain / MEMORY_FILE).read_text())
        assert info["domain"] == domain and info["backbone_digest"] == manifest["backbone"]["digest"]
        assert info["layers"] == [0, 1, 2]
        assert info["lora"]["rank"] == 4
        assert info["kv"]["tokens"] == 3
        assert info["figures"]["matched"]["perplexity"] > 1


def test_a_bundle_stands_alone(shipped, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from koffkit import KoffModel

    backbone = shutil.copytree(shipped.export / "backbone", tmp_path / "elsewhere")
    bundle = shutil.copytree(shipped.export / "memories" / "south", tmp_path / "memory")
    ids = torch.arange(12).reshape(1, 12) + 5
    alone = KoffModel.from_pretrained(backbone, [bundle]).logits(ids, "south")
    together = KoffModel.from_pretrained(shipped.export).logits(ids, "south")
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
