from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from koffkit.checkpoint.on_disk import TensorsOnDisk
from koffkit.checkpoint.reader import CheckpointReader
from koffkit.errors import IntegrityError

from ...common import make_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"  # [48, 32]


def test_pieces_are_the_tensor_and_lie_in_one_buffer(tmp_path: Path) -> None:
    reader = CheckpointReader(make_checkpoint(tmp_path))
    whole, places, parts = reader.read(NAME), set(), []
    for first, rows in reader.read_float_rows(NAME, 10 * 32 * 4, torch.float64):
        assert rows.dtype == torch.float64 and first == sum(map(len, parts))
        places.add(rows.data_ptr())
        parts.append(rows.clone())
    assert [len(part) for part in parts] == [10, 10, 10, 10, 8]
    assert torch.equal(torch.cat(parts), whole.double())
    assert len(places) == 1


def test_tensors_of_a_file_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    kinds = {"a": torch.float32, "b": torch.bfloat16, "c": torch.float16}
    stored = {name: torch.randn(3, 5).to(kind) for name, kind in kinds.items()}
    save_file(stored, path)
    found = TensorsOnDisk(path, remedy="copy it again")
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert torch.equal(found[name], value)
    with pytest.raises(IntegrityError, match="b has type BF16, which does not belong here; copy it again"):
        TensorsOnDisk(path, remedy="copy it again", numpy=True)


def test_a_file_that_is_cut_off_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.randn(3, 5), "b": torch.randn(3, 5)}, path)
    found = TensorsOnDisk(path, remedy="copy it again")
    path.write_bytes(path.read_bytes()[:-4])
    assert found["a"].shape == (3, 5)
    with pytest.raises(IntegrityError, match=r"some.safetensors: ended early"):
        found["b"]
