"""Checkpoints inside a stage: safetensors and JSON only, written whole or not at all.

Noise and data order are pure functions of (seed, step), so a checkpoint holds tensors, optimiser moments and
a step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import IntegrityError
from ..storage.files import fsync_folder, write_json


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` are the trainables, `moments` the optimiser's state by the same names."""

    stage: str
    step: int
    tensors: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    extra: dict[str, Any]


def save_checkpoint(folder: Path, order: int, checkpoint: Checkpoint) -> None:
    """Write `folder/<order>-<stage>-<step>/` and then remove the older ones.

    Args:
        order: the stage's place in the recipe, so that names sort by time.
    """
    name = f"{order:02d}-{checkpoint.stage}-{checkpoint.step:08d}"
    partial = folder / f".{name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    flat = {f"value/{key}": value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
    for key, state in checkpoint.moments.items():
        flat |= {f"{kind}/{key}": value.detach().cpu().contiguous() for kind, value in state.items()}
    save_file({key: value.clone() for key, value in flat.items()}, partial / "state.safetensors")
    with open(partial / "state.safetensors", "rb") as file:
        os.fsync(file.fileno())
    write_json(
        partial / "state.json",
        {"stage": checkpoint.stage, "step": checkpoint.step, "extra": checkpoint.extra},
    )
    final = folder / name
    if final.exists():  # an earlier attempt at the same step, equal by construction
        shutil.rmtree(final)
    os.rename(partial, final)
    fsync_folder(folder)
    for other in folder.iterdir():
        if other.name != name and (other.name < name or other.name.startswith(".")):
            shutil.rmtree(other, ignore_errors=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None.

    Raises:
        IntegrityError: it is damaged.
    """
    complete = sorted(path for path in folder.glob("[0-9]*-*") if path.is_dir()) if folder.is_dir() else []
    if not complete:
        return None
    path = complete[-1]
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        flat = load_file(path / "state.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise IntegrityError(
            f"{path}: this checkpoint is damaged ({error}); remove it to resume from the one before, or "
            "start the run again."
        ) from None
    tensors: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, name = key.partition("/")
        if kind == "value":
            tensors[name] = value
        else:
            moments.setdefault(name, {})[kind] = value
    return Checkpoint(state["stage"], state["step"], tensors, moments, state["extra"])


def restore(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy the values back into live parameters.

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
