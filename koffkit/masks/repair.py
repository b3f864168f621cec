"""The repair of a pruned model: tensors that stand in for the base's while it is pruned, at the widths of the
base, on disk `repair.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.widths import linear_shapes
from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError, UsageError
from ..storage.tensors_file import read_header, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "koffkit-repair-1"
REMEDY = "run `koffkit compress` again"


@dataclass(frozen=True)
class Repair:
    """Tensors by the name of the base's tensor that they replace; biases may be new."""

    path: Path
    spec: ModelSpec

    @classmethod
    def open(cls, path: Path, spec: ModelSpec) -> Repair:
        """Open a file and check it against the base.

        Raises:
            IntegrityError: it is missing or damaged, or its tensors do not fit this base.
        """
        repair = cls(path, spec)
        tensors, metadata = read_header(path, remedy=REMEDY)
        if metadata.get("format") != FORMAT:
            raise IntegrityError(
                f"{path}: format {metadata.get('format')!r}, this koffkit reads {FORMAT!r}; {REMEDY}."
            )
        shapes = repair.repaired_spec.weight_shapes
        for name, info in tensors.items():
            if shapes.get(name) != info.shape:
                raise IntegrityError(
                    f"{path}: {name} of shape {list(info.shape)} does not fit the base; {REMEDY}."
                )
        return repair

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name, in the type of the base's file."""
        return read_tensors(self.path, remedy=REMEDY)

    @property
    def config(self) -> dict[str, Any]:
        """Keys of `config.json` that switch the new biases on."""
        names, _ = read_header(self.path, remedy=REMEDY)
        return bias_keys(self.spec, names)

    @property
    def repaired_spec(self) -> ModelSpec:
        """The base with room for the new biases."""
        return replace(self.spec, config={**self.spec.config, **self.config})


def bias_keys(spec: ModelSpec, names: Iterable[str]) -> dict[str, Any]:
    """The keys of `config.json` that must be true for these tensors to have a place."""
    keys = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        key = spec.arch.biases.get(".".join(module.split(".")[-2:]))
        if kind == "bias" and name not in spec.weight_shapes and key is not None:
            keys[key] = True
    return keys


def new_biases(spec: ModelSpec, modules: Iterable[str]) -> dict[str, int]:
    """Every bias that the base gets when these modules of a layer get one, with its size: config keys switch
    on several at once."""
    arch = spec.arch
    keys = {arch.biases[module] for module in modules if not arch.has_bias(module, spec.config)}
    return {
        f"{arch.layer(index)}{module}.bias": size
        for index in range(spec.num_layers)
        for module, (size, _) in linear_shapes(spec.shape).items()
        if module in arch.biases and arch.biases[module] in keys
    }


def readers(spec: ModelSpec, structures: Iterable[str]) -> list[str]:
    """The modules of a layer that read units of these structures: what can be repaired."""
    cuts = [cut for name in structures for cut in spec.arch.structures[name].cuts]
    return sorted({cut.module for cut in cuts if cut.side == "in"})


def check_repair(spec: ModelSpec, structures: Iterable[str], kind: str) -> None:
    """Refuse biases that the family's class in transformers has no place for.

    Raises:
        UsageError: with the module and the remedy.
    """
    if kind != "bias":
        return
    for module in readers(spec, structures):
        if module not in spec.arch.biases:
            raise UsageError(
                f"mask.repair: bias: {module} of {spec.arch.model_type} has no bias in stock software; use "
                "least_squares or none, or leave out the structures that it reads."
            )
