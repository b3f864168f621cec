"""The base again, from backbone and all that was removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters.toolkit import Draft, write_removed
from safetensors.torch import load_file, save_file

import koffkit
from koffkit.artefact.digests import backbone_digest
from koffkit.errors import IntegrityError, UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.finished import FinishedRun
from koffkit.runtime.restore import restore_base
from koffkit.stages.engine import run_recipe

from ...common import list_anew, make_checkpoint, recipe_dict, write_recipe, write_record
from ...conftest import Koffkit, Shipped

DOWN = "model.layers.1.mlp.down_proj.weight"
WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def run_of(base: Path, root: Path, **mask: Any) -> Path:
    tree = recipe_dict(base, root / "data")
    tree["memory"] |= {"lora": None, "kv": None}
    tree["mask"] |= mask
    tree["stages"] = [{"learn_masks": {"max_steps": 2, "batch_size": 2}}]
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", tree)), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def kept(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "out"
    koffkit.export(shipped.run, out, options={"keep_removed": True})
    return out


@pytest.fixture
def copied(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copied"))


def test_the_commands_make_the_base_again(
    shipped: Shipped, llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    told = koffkit("export", shipped.run, "--keep-removed", "--output", out, "--json")
    assert told.json["kept_removed"]["path"] == "removed"
    assert koffkit("verify", out, "--json").json["ok"] is True
    done = koffkit("restore", out, "--output", again, "--base", llama, "--json")
    assert done.code == 0, done.err
    assert done.json["compared_with"] == str(llama)
    assert done.json["digest"] == told.json["base"]["digest"]
    assert {path.name for path in again.iterdir()} == {path.name for path in llama.iterdir()}
    for path in llama.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("family", "shard", "mask"),
    [
        ("llama", "60KB", {"structures": "paper", "global_sparsity": 0.3, "layout": "ragged"}),
        ("qwen2", None, {"structures": ["mlp_neuron", "mlp_output"], "global_sparsity": 0.1}),
        ("gemma3_text", None, {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.2}),
    ],
    ids=["llama", "qwen2", "gemma3_text"],
)
def test_whatever_was_removed_comes_back(
    family: str, shard: str | None, mask: dict[str, Any], tmp_path: Path
) -> None:
    base = make_checkpoint(
        tmp_path / "base", family, shard=shard, **({} if family == "qwen2" else WIDE | {"mlp_bias": True})
    )
    tensors, files = backbone_digest(base), {path.name for path in base.glob("*.safetensors")}
    koffkit.export(run_of(base, tmp_path, **mask), tmp_path / "out", options={"keep_removed": True})
    shutil.rmtree(base)
    restore_base(tmp_path / "out", tmp_path / "again")
    assert backbone_digest(tmp_path / "again") == tensors
    assert {path.name for path in (tmp_path / "again").glob("*.safetensors")} == files
    assert (len(files) > 1) == (shard is not None)


def test_a_tied_head_that_is_stored_twice_is_stored_twice_again(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, base / "model.safetensors", metadata={"format": "pt"})
    told = koffkit.export(run_of(base, tmp_path), tmp_path / "out", options={"keep_removed": True})
    assert told["kept_removed"]["copies"] == {"lm_head.weight": "model.embed_tokens.weight"}
    restore_base(tmp_path / "out", tmp_path / "again", base=base)
    assert "lm_head.weight" in load_file(tmp_path / "again" / "model.safetensors")


def test_a_tensor_that_was_repaired_is_kept_whole(shipped: Shipped, copied: Path, tmp_path: Path) -> None:
    """As a backbone whose columns of down were fitted again, with a bias that the base does not have."""
    weights = copied / "backbone" / "model.safetensors"
    tensors = load_file(weights)
    tensors[DOWN] *= 1.5
    tensors[DOWN.replace("weight", "bias")] = torch.ones(tensors[DOWN].shape[0])
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.rmtree(copied / "removed")
    draft = Draft(FinishedRun.open(shipped.run), copied, copied, Silent())
    kept = write_removed(draft)
    names = set(load_file(copied / "removed" / "removed.safetensors"))
    assert f"{DOWN}.whole" in names
    assert f"{DOWN}.columns" not in names
    manifest = json.loads((copied / "koffkit.json").read_text())
    manifest["kept_removed"] = kept.to_json()
    manifest["files"]["backbone/model.safetensors"].pop("sampled")
    manifest["backbone"]["digest"] = digest = backbone_digest(copied / "backbone")
    shutil.rmtree(copied / "memories")
    write_record(copied / "koffkit.json", manifest)
    list_anew(copied, "backbone/model.safetensors", "removed/removed.safetensors", "removed/config.json")
    restore_base(copied, tmp_path / "again", base=Path(draft.run.spec.folder))
    assert backbone_digest(tmp_path / "again") == kept.tensors != digest


def test_an_export_that_kept_nothing_says_how_to_keep_it(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    done = koffkit("restore", shipped.export, "--output", tmp_path / "again")
    assert done.code == 2
    assert "does not hold what was removed; make it again with `koffkit export --keep-removed`" in done.err
    assert not (tmp_path / "again").exists()


def test_damage_is_found_before_anything_is_written(copied: Path, tmp_path: Path) -> None:
    path = copied / "removed" / "removed.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"removed\.safetensors: its sha256 is not"):
        restore_base(copied, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_parts_that_do_not_make_the_base_are_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / "removed" / "removed.safetensors"
    tensors = load_file(path)
    tensors[f"{DOWN}.columns"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    list_anew(copied, "removed/removed.safetensors")
    with pytest.raises(IntegrityError, match=r"do not make the base .* nothing was written"):
        restore_base(copied, tmp_path / "again")
    del tensors[f"{DOWN}.columns"]
    save_file(tensors, path, metadata={"format": "pt"})
    list_anew(copied, "removed/removed.safetensors")
    with pytest.raises(IntegrityError, match=r"down_proj\.weight\.columns is missing; copy the export again"):
        restore_base(copied, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_another_base_is_not_the_base(kept: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=9)
    with pytest.raises(IntegrityError, match=r"its tensors are not those of the base that"):
        restore_base(kept, tmp_path / "again", base=other)


def test_merged_exports_keep_nothing(shipped: Shipped, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"merge and keep_removed exclude each other"):
        koffkit.export(shipped.run, tmp_path / "out", merge="north", options={"keep_removed": True})
