from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from koffkit.masks.sliced_reader import SlicedReader


def test_what_is_read_is_what_is_left(tmp_path: Path) -> None:
    """Rows, columns, both, zeroed rows, and pieces smaller than the tensor."""
    tensors = {name: torch.randn(10, 6).bfloat16() for name in ("rows", "columns", "both", "zeros", "whole")}
    save_file(tensors, tmp_path / "model.safetensors")
    rows, columns, gone = np.array([0, 3, 4, 9]), np.array([1, 5]), np.array([2, 8])
    reader = SlicedReader(
        tmp_path, {"rows": {0: rows}, "columns": {1: columns}, "both": {0: rows, 1: columns}}, {"zeros": gone}
    )
    expected = {
        "rows": tensors["rows"][rows],
        "columns": tensors["columns"][:, columns],
        "both": tensors["both"][rows][:, columns],
    }
    expected |= {
        "zeros": tensors["zeros"].index_fill(0, torch.from_numpy(gone), 0),
        "whole": tensors["whole"],
    }
    for name, value in expected.items():
        assert reader.tensors[name].shape == tuple(value.shape)
        assert torch.equal(reader.read(name), value.float())
        assert (
            b"".join(map(bytes, list(reader.read_pieces(name, 30))))
            == value.contiguous().view(torch.uint8).numpy().tobytes()
        )
        parts = [(first, part.clone()) for first, part in reader.read_float_rows(name, 30, torch.float64)]
        assert [first for first, _ in parts] == list(np.cumsum([0, *(len(part) for _, part in parts[:-1])]))
        assert torch.equal(torch.cat([part for _, part in parts]), value.double())
