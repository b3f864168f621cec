"""Checkpoints inside a stage: safetensors and JSON only, written whole or not at all.

Noise and data order are pure functions of (seed, step), so a checkpoint holds tensors, optimiser moments and
a step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artefact.digests import file_entry
from ..errors import IntegrityError
from ..parallel import ranks
from ..storage.files import naming, write_json
from ..storage.publish import whole_folder
from ..storage.read_json import read_json
from ..storage.tensors_file import read_tensors, write_header

STATE, TENSORS = "state.json", "state.safetensors"
UNUSABLE = "it cannot be resumed from"
KEPT = 2
"""Checkpoints kept: the last one and the one before, in case the last is damaged."""
STORED = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stage after a step.

    Attributes:
        stage: the stage's name.
        step: steps done.
        tensors: trainable tensors by name.
        moments: the optimiser's state by the same names.
        extra: further state, as JSON.
    """

    stage: str
    step: int
    tensors: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    extra: dict[str, Any]

    def without(self, prefix: str) -> Checkpoint:
        """The same without the tensors whose names begin so."""
        kept = {name: value for name, value in self.tensors.items() if not name.startswith(prefix)}
        return replace(self, tensors=kept)


def save_checkpoint(folder: Path, order: int, checkpoint: Checkpoint) -> None:
    """Write `folder/<order>-<stage>-<step>/`, then remove all but the one before. Of several processes the
    leader writes, and the others wait for it.

    Args:
        order: the stage's place in the recipe, so that names sort by time.
    """
    with ranks.leader_first():
        if ranks.leads():
            _save(folder, order, checkpoint)


def _save(folder: Path, order: int, checkpoint: Checkpoint) -> None:
    name = f"{order:02d}-{checkpoint.stage}-{checkpoint.step:08d}"
    flat = {f"value/{key}": value for key, value in checkpoint.tensors.items()}
    for key, state in checkpoint.moments.items():
        flat |= {f"{kind}/{key}": value for kind, value in state.items()}
    with whole_folder(folder / name) as partial:
        digest = _write_tensors(partial / TENSORS, flat)
        facts = {
            "stage": checkpoint.stage,
            "step": checkpoint.step,
            "extra": checkpoint.extra,
            "files": {TENSORS: digest},
        }
        write_json(partial / STATE, facts | {"digest": _digest(facts)})
    earlier = [path for path in _checkpoints(folder) if path.name < name]
    for path in [*earlier[: 1 - KEPT], *(path for path in folder.iterdir() if path.name.startswith("."))]:
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*-*") if path.is_dir())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors one by one, so that none is copied as a whole; returns the file's sha256."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = {name: (STORED[tensors[name].dtype], tuple(tensors[name].shape)) for name in order}
    hasher = hashlib.sha256()
    with naming(path), open(path, "wb") as file:
        for data in (write_header(header), *map(_bytes_of, map(tensors.__getitem__, order))):
            file.write(data)
            hasher.update(data)
    return hasher.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _digest(state: Mapping[str, Any]) -> str:
    """The digest of everything in `state.json` except the digest itself."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_latest(folder: Path, warn: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """Load the newest intact checkpoint; None if there is no checkpoint.

    Args:
        warn: called with a message for each damaged one that is skipped.

    Raises:
        IntegrityError: all checkpoints are damaged.
    """
    damaged = []
    for path in reversed(_checkpoints(folder) if folder.is_dir() else []):
        try:
            checkpoint = _load(path)
        except (IntegrityError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append(f"{path}: this checkpoint is damaged ({str(error).rstrip('.')})")
            continue
        for message in damaged:
            warn(f"{message}; resuming from the one before, {path.name}.")
        return checkpoint
    if damaged:
        raise IntegrityError(f"{damaged[0]}, and there is none before it; start anew with another --output.")
    return None


def _load(path: Path) -> Checkpoint:
    state = read_json(path / STATE, remedy=UNUSABLE)
    digest = state.pop("digest", None)  # checkpoints of earlier versions have none
    if digest is not None and digest != _digest(state):
        raise ValueError(f"{STATE} is not what was written")
    expected = state.get("files", {}).get(TENSORS)
    if expected is not None and file_entry(path / TENSORS).sha256 != expected:
        raise ValueError(f"the sha256 of {TENSORS} is not the one in {STATE}")
    tensors: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(path / TENSORS, remedy=UNUSABLE).items():
        kind, _, name = key.partition("/")
        if kind == "value":
            tensors[name] = value
        else:
            moments.setdefault(name, {})[kind] = value
    return Checkpoint(state["stage"], state["step"], tensors, moments, state["extra"])


def restore(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy the values back into live parameters.

    Args:
        checkpoint: the checkpoint.
        tensors: live parameters by name.
        where: the folder of checkpoints, for the error.

    Raises:
        IntegrityError: the checkpoint belongs to another recipe.
    """
    if {key: value.shape for key, value in tensors.items()} != {
        key: value.shape for key, value in checkpoint.tensors.items()
    }:
        raise IntegrityError(
            f"{where}: the checkpoint does not fit this recipe's gates and memories; resume with the recipe "
            "it was made with."
        )
    with torch.no_grad():
        for key, value in tensors.items():
            value.copy_(checkpoint.tensors[key])


def optimizer_moments(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by parameter name."""
    return {
        names[parameter]: {kind: torch.as_tensor(value) for kind, value in state.items()}
        for parameter, state in optimizer.state.items()
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], checkpoint: Checkpoint
) -> None:
    """The inverse of `optimizer_moments`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = checkpoint.moments.get(names[parameter])
            if state is not None:
                optimizer.state[parameter] = {
                    kind: value.to(parameter.device) if kind != "step" else value
                    for kind, value in state.items()
                }
