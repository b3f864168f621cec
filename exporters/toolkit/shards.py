"""Which tensor goes into which file of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ...masks.sliced_reader import SlicedReader
from ...storage.tensors_file import TensorInfo

PATTERN = "model{suffix}.safetensors"
"""As `save_pretrained` names the files."""


def _size(value: Any) -> Any:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) ?[KMGT]B", str(value).strip().upper())
    if number is None or not float(number[1]):
        raise ValueError(f"{value!r} is no size; write a number and KB, MB, GB or TB, such as 5GB")
    return str(value).strip()


ShardSize = Annotated[
    str | None,
    BeforeValidator(lambda value: value if value is None else _size(value)),
    Field(
        None,
        description="Most bytes of a file of weights, such as 5GB; a larger tensor has a file of its own. "
        "Without it, the files are those of the base.",
    ),
]
"""An option of formats that write a checkpoint."""


def files_of(reader: SlicedReader, skip: set[str], max_shard_size: str | None) -> dict[str, list[str]]:
    """The tensors of every file, by its name, in the order in which they are written.

    Args:
        reader: what is written.
        skip: tensors that are not.
        max_shard_size: most bytes of a file; None: the files of the source.
    """
    if max_shard_size is None:
        return {
            path.name: [name for name in tensors if name not in skip]
            for path, tensors in reader.by_file.items()
        }
    from huggingface_hub import split_state_dict_into_shards_factory

    tensors: Mapping[str, TensorInfo] = {
        name: reader.tensors[name] for names in reader.by_file.values() for name in names if name not in skip
    }
    split = split_state_dict_into_shards_factory(
        dict(tensors), get_storage_size=_bytes_of, filename_pattern=PATTERN, max_shard_size=max_shard_size
    )
    return dict(split.filename_to_tensors)


def _bytes_of(info: TensorInfo) -> int:
    return info.itemsize * prod(info.shape)  # `size` is that in the base


def index_of_files(files: Mapping[str, list[str]], total: int, parameters: int) -> dict[str, Any]:
    """The content of the index that is beside several files.

    Args:
        files: the tensors of every file.
        total: bytes of all tensors.
        parameters: how many there are.
    """
    places = {name: file for file, names in files.items() for name in names}
    return {
        "metadata": {"total_size": total, "total_parameters": parameters},
        "weight_map": dict(sorted(places.items())),
    }
