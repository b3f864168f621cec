"""LoRA of memories in generation: each call, and each row of its batch, has its own.

PEFT's own way (`adapter_names`) puts hooks on the shared model for the duration of a call, so that threads
get each other's adapters, and multiplies once for each adapter in turn. Here a linear layer finds in the
state of the call what to add, and several memories are one batched product.

Legend: B rows, M memories, T tokens, R rank, D channels of a layer's input, D' of its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..artefact.bundle import MemoryFolder
from ..artefact.names import ADAPTER_CONFIG
from ..errors import IntegrityError
from ..masks.slicing import ADAPTER_PREFIX
from .groups import Groups
from .per_call import of_this_call

_READY = "koffkit_lora_ready"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """LoRA of one linear layer.

    Args:
        down: [R, D]. up: [D', R].
        scaling: alpha / R.
    """

    down: Tensor
    up: Tensor
    scaling: float

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """`output` [..., D'] plus up(down(x)) * scaling, as PEFT computes it; x: [..., D]."""
        change = F.linear(F.linear(x.to(self.down.dtype), self.down), self.up) * self.scaling
        return output + change.to(output.dtype)


Modules = Mapping[str, nn.Module]
"""Of a model, by name."""
LoraMemory = Mapping[str, LowRank]
"""LoRA by the name of the linear layer in the backbone."""


@dataclass(frozen=True)
class Stacked:
    """LoRA of one linear layer for M memories, padded with zeros to one rank.

    Args:
        down: [M, D, R]. up: [M, R, D'], with alpha / R in it.
    """

    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, parts: Sequence[LowRank | None]) -> Stacked:
        """Stack memories; None: one without LoRA in this layer."""
        given = [part for part in parts if part is not None]
        rank, like = max(len(part.down) for part in given), given[0]
        down = like.down.new_zeros(len(parts), like.down.shape[1], rank)
        up = like.up.new_zeros(len(parts), rank, len(like.up))
        for place, part in enumerate(parts):
            if part is not None:
                down[place, :, : len(part.down)] = part.down.T
                up[place, : len(part.down)] = part.up.T * part.scaling
        return cls(down, up)


@dataclass(frozen=True)
class LoraRows:
    """What a linear layer adds to the rows of one batch."""

    stacked: Stacked
    groups: Groups

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """`output` [B, T, D'] plus what the memory of each row adds; x: [B, T, D]."""
        grouped = self.groups.gather(x).to(self.stacked.down.dtype)
        return self.groups.add_product(output, torch.bmm(grouped, self.stacked.down), self.stacked.up)


def use_lora(layers: Iterable[nn.Module]) -> None:
    """Make linear layers add the LoRA that the state of a call has for them; those that do so already are
    left as they are."""
    for module in layers:
        if not getattr(module, _READY, False):
            module.register_forward_hook(_add)
            setattr(module, _READY, True)


def _add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    state: LowRank | LoraRows | None = of_this_call(module)
    return None if state is None else state.add(inputs[0], output)


def lora_of_call(
    modules: Modules, memories: Mapping[str, LoraMemory], rows: Sequence[str | None]
) -> dict[nn.Module, LowRank | LoraRows]:
    """The LoRA of a batch as the state of a call (`for_this_call`).

    Args:
        modules: of the backbone, whose linear layers `use_lora` made ready.
        memories: LoRA by domain.
        rows: a domain, or None, for each of the B rows.
    """
    wanted = [name for name in dict.fromkeys(rows) if name is not None and memories.get(name)]
    if not wanted:
        return {}
    if len(set(rows)) == 1:
        return {modules[name]: pair for name, pair in memories[wanted[0]].items()}
    groups, order = Groups.of(rows, wanted)
    names = dict.fromkeys(name for domain in wanted for name in memories[domain])
    return {
        modules[name]: LoraRows(
            Stacked.of([None if domain is None else memories[domain].get(name) for domain in order]), groups
        )
        for name in names
    }


def lora_of(
    bundle: MemoryFolder, tensors: Mapping[str, Tensor], config: Mapping[str, Any], modules: Modules
) -> dict[str, LowRank]:
    """The LoRA of a bundle by linear layer.

    Args:
        bundle: the memory's folder.
        tensors: of its `adapter_file`, by PEFT's names.
        config: what its `adapter_config.json` says.
        modules: of the backbone.

    Raises:
        IntegrityError: the weights are not for this backbone.
    """
    found = {}
    for name in (name for name in tensors if name.endswith(DOWN)):
        module = name.removeprefix(ADAPTER_PREFIX).removesuffix(DOWN)
        other = name.removesuffix(DOWN) + UP
        if other not in tensors:
            raise _unfit(bundle, f"lacks {other}")
        scaling = scaling_of(config, module, bundle.path / ADAPTER_CONFIG)
        pair = LowRank(tensors[name], tensors[other], scaling)
        layer = modules.get(module)
        if not isinstance(layer, nn.Linear) or not _fits(pair, layer):
            raise _unfit(bundle, f"{name}: {list(pair.down.shape)} and {list(pair.up.shape)}")
        found[module] = pair
    extra = next((name for name in tensors if not name.endswith((DOWN, UP))), None)
    if extra is not None or 2 * len(found) != len(tensors):
        raise _unfit(bundle, f"has {extra or 'halves of pairs'}")
    return found


def scaling_of(config: Mapping[str, Any], module: str, path: Path) -> float:
    """alpha / rank of a module, from the `adapter_config.json` at `path`.

    Raises:
        IntegrityError: it says neither, or no numbers.
    """
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    try:
        scaling = float(alphas.get(module, config["lora_alpha"]) / ranks.get(module, config["r"]))
    except (AttributeError, KeyError, TypeError, ZeroDivisionError):
        scaling = math.nan
    if not math.isfinite(scaling):
        raise IntegrityError(f"{path}: no lora_alpha and r for {module}; copy the bundle again.")
    return scaling


def _fits(pair: LowRank, layer: nn.Linear) -> bool:
    if pair.down.dim() != 2 or pair.up.dim() != 2:
        return False
    wanted = (layer.in_features, layer.out_features, pair.down.shape[0])
    return (pair.down.shape[1], pair.up.shape[0], pair.up.shape[1]) == wanted


def _unfit(bundle: MemoryFolder, problem: str) -> IntegrityError:
    return IntegrityError(
        f"{bundle.adapter_file}: {problem}, which does not go with this backbone and "
        f"{bundle.path / ADAPTER_CONFIG}; copy the bundle again."
    )
