from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit.checkpoint.files import INDEX, checkpoint_files
from koffkit.checkpoint.reader import CheckpointReader
from koffkit.errors import IntegrityError, UsageError
from koffkit.storage.tensors_file import read_header, write_header

from ...common import make_checkpoint


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("sharded"), shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def test_rows_and_bytes_are_those_of_the_library(sharded: Path) -> None:
    reader = CheckpointReader(sharded)
    for path in reader.files:
        for name, expected in load_file(path).items():
            assert torch.equal(reader.read(name), expected)
            assert b"".join(reader.read_bytes(name, 1000)) == expected.numpy().tobytes()
            parts = [rows.copy() for _, rows in reader.read_rows(name, 500)]
            assert np.array_equal(np.concatenate(parts).view(np.float32), expected.numpy())
    rows = reader.gather_rows("model.embed_tokens.weight", [5, 0, 5])
    assert torch.equal(rows, reader.read("model.embed_tokens.weight")[[5, 0, 5]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.randn(5, 3).to(dtype)
    save_file({"w": value}, tmp_path / "model.safetensors")
    assert torch.equal(CheckpointReader(tmp_path).read("w"), value.float())


def test_a_written_header_is_read_by_the_library(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    (tmp_path / "x.safetensors").write_bytes(
        write_header({"a": ("F32", (2, 2)), "b": ("F32", (2,))}) + data.tobytes()
    )
    found = load_file(tmp_path / "x.safetensors")
    assert found["a"].tolist() == [[0, 1], [2, 3]] and found["b"].tolist() == [4, 5]
    assert list(read_header(tmp_path / "x.safetensors")[0]) == ["a", "b"]


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def truncate(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:-100])


def empty(folder: Path) -> None:
    first_shard(folder).write_bytes(b"")


def long_header(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(struct.pack("<Q", 1 << 50) + path.read_bytes()[8:])


def flipped_offset(folder: Path) -> None:
    path = first_shard(folder)
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"][1] -= 4
    text = json.dumps(header).encode().ljust(length)[:length]
    path.write_bytes(raw[:8] + text + raw[8 + length :])


def change_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def escape(target: str) -> Callable[[Path], None]:
    return change_index(lambda weights: weights.update({next(iter(weights)): target}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated or damaged"),
        (empty, "truncated or not a safetensors file"),
        (long_header, "truncated or not a safetensors file"),
        (flipped_offset, "does not lie where its header says|damaged safetensors header"),
        (lambda folder: first_shard(folder).unlink(), "which is missing"),
        (lambda folder: (folder / INDEX).write_text("{"), "index.json: not valid JSON"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": []}'), "not a valid checkpoint index"),
        (escape("../evil.safetensors"), r"'\.\./evil\.safetensors' leads out of the folder; refused"),
        (escape("/etc/passwd"), "'/etc/passwd' leads out of the folder; refused"),
        (change_index(lambda weights: weights.pop("model.norm.weight")), "does not list model.norm.weight"),
        (
            change_index(lambda weights: weights.update(extra=next(iter(weights.values())))),
            "says extra is in",
        ),
    ],
)
def test_damage_is_named(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(IntegrityError, match=message):
        CheckpointReader(copy)


def test_a_missing_or_misshapen_weight_is_named(sharded: Path) -> None:
    reader = CheckpointReader(sharded)
    with pytest.raises(IntegrityError, match=r"lacks model\.nothing"):
        reader.require("model.nothing", (1,))
    with pytest.raises(IntegrityError, match=r"model.norm.weight has shape \[32\], config.json needs \[31\]"):
        reader.require("model.norm.weight", (31,))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="only pickled weights"):
        checkpoint_files(tmp_path)
