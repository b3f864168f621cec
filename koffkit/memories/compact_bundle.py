"""Shrinking bundles: LoRA of a lower rank, packed or float16 weights, and what that costs.

A compacted memory is a bundle like any other, for the same backbone. The field `compacted` of its
`memory.json` says how it was compacted and what was lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.bundle_info import BundleInfo, Compacted, CompactedFrom, CompactedLoss
from ..artefact.digests import file_entry
from ..artefact.export import Export, replaces
from ..artefact.names import (
    ADAPTER_CONFIG,
    ADAPTER_PACKED,
    ADAPTER_WEIGHTS,
    BACKBONE_OF_BUNDLE,
    KV_MEMORY,
    KV_MEMORY_PACKED,
    MEMORY_FILE,
    NEURONS,
    NEURONS_PACKED,
    ROUTER_COLUMN,
)
from ..artefact.quantise import LEVELS, Factors, pack
from ..errors import UsageError
from ..masks.slicing import ADAPTER_PREFIX
from ..model.bundles import load_adapter, load_tensors
from ..storage.clock import timestamp
from ..storage.files import write_atomically, write_json
from ..storage.read_json import read_json
from .bundle import record_golden, write_bundle_card

DTYPES = ("int6", "int8", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to shrink.

    Args:
        rank: LoRA rank of every module; None: the smallest that keeps `energy`, module by module.
        energy: share of the squared norm that a module keeps, in (0, 1].
        dtype: one of `DTYPES`; only koffkit reads the packed ones.
    """

    rank: int | None = None
    energy: float = 1.0
    dtype: str = "int6"


def write_compact(bundle: Bundle, export: Export, options: Options, target: Path) -> Bundle:
    """Write the compacted bundle, with golden logits of its own, into the folder `target`.

    Args:
        bundle: the memory as it is.
        export: that it belongs to.
        options: rank and type of the result.
        target: an empty folder.

    Raises:
        UsageError: the requested rank is higher than the memory's.
        IntegrityError: the bundle is damaged.
    """
    info = bundle.info
    lora = info.lora
    files, counts = [], {}
    done: dict[str, Any] = {"created": timestamp(), "options": asdict(options)}
    if bundle.adapter_file is not None:
        tensors, config, cut = _cut(bundle, options)
        done |= cut
        counts["lora"] = sum(values.numel() for values in tensors.values())
        files += [_write(target, ADAPTER_WEIGHTS, ADAPTER_PACKED, tensors, options.dtype), ADAPTER_CONFIG]
        write_json(target / ADAPTER_CONFIG, config)
        if lora is not None:
            lora = lora.model_copy(update={"rank": config["r"], "alpha": config["lora_alpha"]})
    if bundle.kv_file is not None:
        tensors = load_tensors(bundle.kv_file)
        counts["kv"] = sum(values.numel() for values in tensors.values())
        files.append(_write(target, KV_MEMORY, KV_MEMORY_PACKED, tensors, options.dtype))
    if bundle.neurons_file is not None:
        name, counts["neurons"] = _write_neurons(target, bundle.neurons_file, options.dtype)
        files.append(name)
    if bundle.column_file is not None:
        shutil.copyfile(bundle.column_file, target / ROUTER_COLUMN)
        files.append(ROUTER_COLUMN)
    done["original"] = CompactedFrom(parameters=info.parameters, bytes=bundle.bytes, dtype=info.dtype)
    changes: dict[str, Any] = {
        "lora": lora,
        "parameters": sum(counts.values()),
        "parameters_by_half": counts,
        "dtype": options.dtype,
        "compacted": Compacted(**done),
        "files": {name: file_entry(target / name) for name in files},
    }
    shipped = replaces(export, bundle.domain)
    if shipped is not None:
        changes["replaces"] = shipped
    _without_golden(info).evolve(**changes).write(target / MEMORY_FILE)
    return _finished(target, export)


def _finished(target: Path, export: Export) -> Bundle:
    """Add golden logits and a card."""
    record_golden(target, export.backbone)
    write_bundle_card(target, export.manifest)
    return open_bundle(target)


def _without_golden(info: BundleInfo) -> BundleInfo:
    """The info without golden logits, which belong to the old weights."""
    return BundleInfo(**{name: getattr(info, name) for name in info.model_fields_set - {"golden"}})


def is_compacted(bundle: Bundle, options: Options) -> bool:
    """Whether a bundle was made by `write_compact` with these options; compacting it again would lose
    more."""
    compacted = bundle.info.compacted
    return compacted is not None and compacted.options == asdict(options)


def record_loss(bundle: Bundle, loss: Mapping[str, Any]) -> Bundle:
    """Add the loss from compacting to `memory.json`, whose `figures` stay those of the memory before."""
    assert bundle.info.compacted is not None
    compacted = bundle.info.compacted.model_copy(update={"kl": CompactedLoss(**loss)})
    bundle.info.evolve(compacted=compacted).write(bundle.path / MEMORY_FILE)
    return open_bundle(bundle.path)


def _cut(bundle: Bundle, options: Options) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, PEFT configuration and a summary of the adapter at its new ranks; every module keeps its
    scaling alpha / rank."""
    tensors, config = load_adapter(bundle), _adapter_config(bundle)
    before = config["r"]
    if options.rank is not None and options.rank > before:
        raise UsageError(
            f"--rank {options.rank}: memory {bundle.domain} has rank {before}; give a lower one."
        )
    cut: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    kept = []
    for name in (name for name in tensors if ".lora_A." in name):
        module = name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        other = name.replace(".lora_A.", ".lora_B.")
        factors = Factors(tensors[name].float(), tensors[other].float())
        full = len(factors.singular)
        rank = factors.rank_for(options.energy) if options.rank is None else min(options.rank, full)
        cut[name], cut[other] = factors.cut(rank)
        alphas[module] = config["alpha_pattern"].get(module, config["lora_alpha"]) / full * rank
        ranks[module] = rank
        kept.append(factors.energy_at(rank))
    most = max(ranks, key=lambda module: ranks[module])
    config |= {"r": ranks[most], "lora_alpha": alphas[most]}
    config["rank_pattern"] = {module: rank for module, rank in ranks.items() if rank != config["r"]}
    config["alpha_pattern"] = {module: alphas[module] for module in config["rank_pattern"]}
    return (
        cut,
        config,
        {"rank_before": before, "ranks": [min(ranks.values()), max(ranks.values())], "energy": min(kept)},
    )


def _adapter_config(bundle: Bundle) -> dict[str, Any]:
    config = read_json(bundle.path / ADAPTER_CONFIG, remedy="copy the bundle again")
    defaults: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    return defaults | config | {"base_model_name_or_path": BACKBONE_OF_BUNDLE}


def _write_neurons(target: Path, path: Path, dtype: str) -> tuple[str, int]:
    """Write the restored neurons; returns the file's name, and how many weights they have.

    They are weights of the base, so no type makes them larger, and the packed types make them int8: six bits
    are for what was learned to be small.
    """
    tensors = load_tensors(path)
    weights = {name: values for name, values in tensors.items() if name.endswith(".weight")}
    others = {name: values for name, values in tensors.items() if name not in weights}
    count = sum(values.numel() for name, values in tensors.items() if not name.endswith(".neurons"))
    if dtype in LEVELS:
        stored = others | pack({name: values.float() for name, values in weights.items()}, "int8")
        write_atomically(target / NEURONS_PACKED, save(stored, metadata={"format": "pt"}))
        return NEURONS_PACKED, count
    wanted = getattr(torch, dtype)
    if all(values.element_size() <= wanted.itemsize for values in weights.values()):
        wanted = None  # as they are
    stored = {
        name: values if wanted is None or name.endswith(".neurons") else values.to(wanted)
        for name, values in tensors.items()
    }
    write_atomically(target / NEURONS, save(stored, metadata={"format": "pt"}))
    return NEURONS, count


def _write(target: Path, plain: str, packed: str, tensors: Mapping[str, Tensor], dtype: str) -> str:
    """Write one half; returns the file's name."""
    if dtype in LEVELS:
        name, stored = packed, pack(tensors, dtype)
    else:
        name, stored = plain, {key: values.to(getattr(torch, dtype)) for key, values in tensors.items()}
    write_atomically(target / name, save(stored, metadata={"format": "pt"}))
    return name
