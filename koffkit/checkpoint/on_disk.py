"""The tensors of one file, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..storage.tensors_file import read_header, require_numpy
from .reader import VIEWS, as_tensor, fill

if TYPE_CHECKING:
    from torch import Tensor


class TensorsOnDisk(Mapping[str, "Tensor"]):
    """What `read_tensors` gives, without any of it staying in memory.

    Args:
        path: a safetensors file of floating-point tensors.
        remedy: what the user can do about a damaged file, as the end of a sentence.
        numpy: refuse types that NumPy does not have.

    Raises:
        IntegrityError: the file is missing or damaged, or of another type; later also where a tensor is read.

    Attributes:
        infos: type, shape and place of each.
    """

    def __init__(self, path: Path, *, remedy: str, numpy: bool = False) -> None:
        self.infos, _ = read_header(path, remedy=remedy)
        if numpy:
            require_numpy(path, self.infos, remedy=remedy)

    def __getitem__(self, name: str) -> Tensor:
        info = self.infos[name]
        values = np.empty(info.shape, dtype=VIEWS[info.itemsize])
        with open(info.path, "rb") as file:
            file.seek(info.start)
            fill(values, file, info)
        return as_tensor(values, info.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)
