"""Masks on disk: one small safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError
from ..storage.tensors_file import read_arrays
from .masks import Masks

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "koffkit-masks-1"
SCORES_FORMAT = "koffkit-scores-1"


def save_masks(masks: Masks, path: Path) -> None:
    """Write `layers.{i}.{structure}` as uint8 [units], atomically.

    Args:
        masks: by layer and structure, [units]; True = keep.
        path: the safetensors file.
    """
    from safetensors.numpy import save

    from ..storage.files import write_atomically

    tensors = {f"layers.{i}.{name}": keep.astype(np.uint8) for (i, name), keep in masks.items()}
    write_atomically(path, save(tensors, metadata={"format": FORMAT}))


def load_masks(path: Path, spec: ModelSpec) -> dict[tuple[int, str], NDArray[np.bool_]]:
    """Read masks and check them against the architecture.

    Args:
        path: the safetensors file.
        spec: the base, which says how many units there are.

    Raises:
        IntegrityError: the file is missing, unreadable, or its tensors do not fit this model.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: the masks are missing; run `koffkit compress` again.")
    tensors, metadata = read_arrays(path, remedy="run `koffkit compress` again")
    if metadata.get("format") != FORMAT:
        raise IntegrityError(f"{path}: format {metadata.get('format')!r}, this koffkit reads {FORMAT!r}.")
    masks = {}
    for name, values in tensors.items():
        layer, structure = _parse(path, name, spec)
        units = spec.arch.structures[structure].num_units(spec.shape)
        if values.shape != (units,):
            raise IntegrityError(
                f"{path}: {name} has shape {values.shape}, this base has {units} units a layer."
            )
        masks[layer, structure] = values.astype(bool)
    return masks


def save_scores(scores: Mapping[str, Tensor], path: Path) -> None:
    """Write the scores by which units were kept, `layers.{i}.{structure}` as float32 [units], atomically.

    Args:
        scores: [L, U] by structure; the higher, the longer a unit stays.
    """
    from safetensors.numpy import save

    from ..storage.files import write_atomically

    tensors = {
        f"layers.{i}.{name}": row.detach().float().cpu().numpy()
        for name, table in scores.items()
        for i, row in enumerate(table)
    }
    write_atomically(path, save(tensors, metadata={"format": SCORES_FORMAT}))


def load_scores(path: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The scores, [L, U] by structure; empty for a run of a version that kept none.

    Raises:
        IntegrityError: the file is unreadable, or its tensors do not fit this model.
    """
    import torch

    if not path.is_file():
        return {}
    tensors, _ = read_arrays(path, remedy="run `koffkit compress` again")
    rows: dict[str, dict[int, NDArray[Any]]] = {}
    for name, values in tensors.items():
        layer, structure = _parse(path, name, spec)
        rows.setdefault(structure, {})[layer] = values
    return {
        name: torch.from_numpy(np.stack([table[layer] for layer in sorted(table)]))
        for name, table in rows.items()
    }


def _parse(path: Path, name: str, spec: ModelSpec) -> tuple[int, str]:
    prefix, _, rest = name.partition(".")
    index, _, structure = rest.partition(".")
    if (
        prefix != "layers"
        or not index.isdigit()
        or int(index) >= spec.shape.num_layers
        or structure not in spec.arch.structures
    ):
        raise IntegrityError(
            f"{path}: unexpected tensor {name!r} for a {spec.arch.model_type} of {spec.shape.num_layers} "
            "layers."
        )
    return int(index), structure
