"""The base is read once: its digest is computed while it is sliced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from koffkit.exporters import export, find
from koffkit.exporters.toolkit import backbone, stream
from safetensors.torch import save_file

from koffkit.checkpoint.fingerprint import FullDigest, full_digest
from koffkit.errors import IntegrityError
from koffkit.masks.repair import Repair
from koffkit.masks.sliced_reader import SlicedReader
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.finished import FinishedRun
from koffkit.stages.engine import run_recipe
from koffkit.storage.tensors_file import read_header

from ...common import make_checkpoint, recipe_dict, write_recipe

UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
ROWS = np.arange(0, 48, 3)


def cut(folder: Path, repair: Path | None = None) -> SlicedReader:
    """Of a matrix rows are gone, of another columns; of a third rows are zero."""
    slices = {UP: {0: ROWS}, DOWN: {1: ROWS}}
    zero = {"model.layers.0.mlp.up_proj.weight": ROWS}
    return SlicedReader(folder, slices, zero, None if repair is None else Repair(repair, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("repaired", [False, True])
def test_the_digest_in_passing_is_that_of_the_base(
    tmp_path: Path, shard: str | None, repaired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 500)
    base = make_checkpoint(tmp_path / "base", shard=shard)
    repair = tmp_path / "repair.safetensors" if repaired else None
    if repair is not None:
        save_file({DOWN: torch.randn(32, 48)}, repair)
    found, digests = {}, FullDigest(base)
    for name, digest in (("apart", None), ("passing", digests)):
        reader = cut(base, repair)
        assert stream.can_hash(reader, {NORM}, None)
        (tmp_path / name).mkdir()
        found[name] = stream.slice_checkpoint(reader, {NORM}, tmp_path / name, Silent(), None, digest)
    assert digests.end() == full_digest(base)
    assert found["passing"] == found["apart"]
    for path in (tmp_path / "apart").iterdir():
        assert path.read_bytes() == (tmp_path / "passing" / path.name).read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    recipe = recipe_dict(make_checkpoint(root / "base", tie_word_embeddings=False), root / "data")
    recipe["stages"] = [{"learn_masks": {"max_steps": 1, "batch_size": 2}}]
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", recipe)), root / "run")
    return root / "run"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", NORM, UP, DOWN])
def test_one_bit_of_the_base_publishes_nothing(run: Path, tmp_path: Path, name: str) -> None:
    path = run.parent / "base" / "model.safetensors"
    whole, info = path.read_bytes(), read_header(path)[0][name]
    place = info.start + info.size - 4
    try:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            IntegrityError, match=r"this is not the base that .*; restore it, or compress again"
        ):
            export(run, tmp_path / "out")
        with pytest.raises(IntegrityError, match="this is not the base that"):
            FinishedRun.open(run)
    finally:
        path.write_bytes(whole)
    assert not list(tmp_path.iterdir())


def count_digests(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    from koffkit.run import base_check

    asked: list[Path] = []
    real = base_check.digest_of
    monkeypatch.setattr(
        base_check, "digest_of", lambda folder, *more: (asked.append(folder), real(folder, *more))[1]
    )
    return asked


def test_only_an_exporter_that_compares_gets_a_base_that_was_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_digests(monkeypatch)
    export(run, tmp_path / "one")
    assert not asked
    monkeypatch.setattr(type(find("hf")), "checks_base", False)
    export(run, tmp_path / "two")
    assert len(asked) == 1
    digests = [
        json.loads((tmp_path / name / "koffkit.json").read_text())["backbone"]["digest"]
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]


def test_files_in_another_order_are_read_once_more(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_digests(monkeypatch)
    monkeypatch.setattr(backbone, "can_hash", lambda *_: False)
    export(run, tmp_path / "out")
    assert len(asked) == 1


def test_the_order_within_files_decides(tmp_path: Path) -> None:
    reader = cut(make_checkpoint(tmp_path, shard="20KB"))
    assert stream.can_hash(reader, set(), None)
    path, tensors = next(item for item in reader.by_file.items() if len(item[1]) > 1)
    reader.by_file[path] = dict(reversed(tensors.items()))
    assert not stream.can_hash(reader, set(), None)
