"""Which rows and columns stay: from masks and declarations to index arrays. Pure arithmetic, no disk, no
devices.

Everything that is physically cut (base weights, biases, LoRA factors, KV memories) is cut by what is computed
here. A channel stays when every structure that owns it keeps it.

Legend: K KV heads, P memory tokens, H head dim, R LoRA rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Cut, Shape
from ..arch.spec import Indices
from ..arch.widths import LayerWidths, full_widths
from ..checkpoint.spec import ModelSpec
from .masks import Masks

Keep = NDArray[np.bool_]
Slices = Mapping[str, Mapping[int, Indices]]
"""Tensor name -> dimension -> indices that stay. A tensor that is not listed stays whole."""

ADAPTER_PREFIX = "base_model.model."


def channels(cut: Cut, shape: Shape, keep: Keep) -> Indices:
    """The channels of a tensor dimension that belong to the kept units, ascending.

    Args:
        cut: a tensor dimension.
        shape: the base's sizes.
        keep: kept units, boolean [units].
    """
    return np.flatnonzero(keep[cut.unit_of_channel(shape)])


def _keeps(spec: ModelSpec, masks: Masks) -> Iterator[tuple[str, str, Indices]]:
    """`(module, side, channels that stay)` of every dimension that loses something."""
    keeps: dict[tuple[str, str], Keep] = {}
    for (layer, name), keep in masks.items():
        for cut in spec.arch.structures[name].cuts:
            place, kept = (
                (spec.arch.layer(layer) + cut.module, cut.side),
                keep[cut.unit_of_channel(spec.shape)],
            )
            keeps[place] = keeps[place] & kept if place in keeps else kept
    for (module, side), kept in keeps.items():
        if not kept.all():
            yield module, side, np.flatnonzero(kept)


def backbone_slices(spec: ModelSpec, masks: Masks) -> dict[str, dict[int, Indices]]:
    """Cuts of the base's weights and biases. A bias is listed whether or not this model has it."""
    slices: dict[str, dict[int, Indices]] = {}
    for module, side, indices in _keeps(spec, masks):
        slices.setdefault(f"{module}.weight", {})[0 if side == "out" else 1] = indices
        if side == "out":
            slices.setdefault(f"{module}.bias", {})[0] = indices
    return slices


def adapter_slices(spec: ModelSpec, masks: Masks) -> dict[str, dict[int, Indices]]:
    """Cuts of a PEFT adapter: rows of B [out, R] where outputs go, columns of A [R, in] where inputs go."""
    slices: dict[str, dict[int, Indices]] = {}
    for module, side, indices in _keeps(spec, masks):
        factor, dimension = ("lora_B", 0) if side == "out" else ("lora_A", 1)
        slices[f"{ADAPTER_PREFIX}{module}.{factor}.weight"] = {dimension: indices}
    return slices


def zero_rows(spec: ModelSpec, masks: Masks) -> dict[str, Indices]:
    """Rows that become zero and stay: tensor name -> indices; of weights, biases and, by PEFT's names, of
    LoRA B."""
    rows: dict[str, Indices] = {}
    for (layer, name), keep in masks.items():
        for cut in spec.arch.structures[name].masked_cuts:
            module, gone = spec.arch.layer(layer) + cut.module, channels(cut, spec.shape, ~keep)
            if len(gone):
                for tensor in (
                    f"{module}.weight",
                    f"{module}.bias",
                    f"{ADAPTER_PREFIX}{module}.lora_B.weight",
                ):
                    rows[tensor] = gone
    return rows


def kv_memory_keeps(spec: ModelSpec, masks: Masks) -> dict[str, Keep]:
    """Which channels of `layers.{i}.key` and `layers.{i}.value`, [K, P, H], stay: [K, H]."""
    keeps: dict[str, Keep] = {}
    for (layer, name), keep in masks.items():
        for half, pattern in spec.arch.structures[name].kv_memory:
            tensor, kept = (
                f"layers.{layer}.{half}",
                keep[pattern(spec.shape)].reshape(spec.shape.kv_heads, spec.shape.head_dim),
            )
            keeps[tensor] = keeps[tensor] & kept if tensor in keeps else kept
    return keeps


def widths_of(spec: ModelSpec, masks: Masks) -> list[LayerWidths]:
    """Every layer's widths after slicing."""
    cuts = {(module, side): len(indices) for module, side, indices in _keeps(spec, masks)}
    heads = kv_memory_keeps(spec, masks)
    widths, full = [], full_widths(spec.shape)
    for index in range(spec.shape.num_layers):
        kept = [heads.get(f"layers.{index}.{half}") for half in ("key", "value")]
        num_heads = min([spec.shape.kv_heads, *(int(keep.any(1).sum()) for keep in kept if keep is not None)])
        widths.append(
            LayerWidths(
                intermediate=cuts.get((spec.arch.layer(index) + "mlp.gate_proj", "out"), full.intermediate),
                kv_heads=num_heads,
                key_channels=full.key_channels if kept[0] is None else int(kept[0].sum()) // num_heads,
                value_channels=full.value_channels if kept[1] is None else int(kept[1].sum()) // num_heads,
            )
        )
    return widths


def rope_pairs(spec: ModelSpec, masks: Masks, layer: int) -> list[Keep] | None:
    """The RoPE pairs that stay, [H / 2] for each KV head that stays; None when no structure divides keys."""
    shape = spec.shape
    owners = (
        pattern(shape).reshape(shape.kv_heads, shape.head_dim)
        for index, name in masks
        if index == layer
        for half, pattern in spec.arch.structures[name].kv_memory
        if half == "key"
    )
    if not any((units != units[:, :1]).any() for units in owners):
        return None
    keep = kv_memory_keeps(spec, masks)[f"layers.{layer}.key"]
    return [pairs for pairs in keep[:, : shape.head_dim // 2] if pairs.any()]


def needs_own_class(spec: ModelSpec, masks: Masks) -> bool:
    """Whether no stock class holds the result: layers differ, or parts of heads are gone."""
    widths = widths_of(spec, masks)
    parts = any(
        w.key_channels != spec.shape.head_dim or w.value_channels != spec.shape.head_dim for w in widths
    )
    return parts or len(set(widths)) > 1


def take(array: NDArray[Any], cuts: Mapping[int, Indices] | None) -> NDArray[Any]:
    """The kept part of an array, contiguous.

    Args:
        array: of any shape.
        cuts: the indices that stay, by dimension.
    """
    for dimension, indices in (cuts or {}).items():
        array = np.take(array, indices, axis=dimension)
    return np.ascontiguousarray(array)


def take_kv(array: NDArray[Any], keep: Keep | None) -> NDArray[Any]:
    """The kept part of a KV memory [K, P, H], by `keep` [K, H]; all heads that stay keep equally many
    channels.

    Args:
        array: keys or values [K, P, H].
        keep: True where a channel stays, [K, H].
    """
    if keep is None:
        return array
    return np.stack([array[head][:, kept] for head, kept in enumerate(keep) if kept.any()])
