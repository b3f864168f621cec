"""Describing a folder: sizes, widths, digests, and what can load it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arch.widths import SLICED_LAYERS
from ..artefact.bundle import Bundle, is_bundle, open_bundle
from ..artefact.check import require_sound
from ..artefact.digests import backbone_digest, weight_bytes
from ..artefact.export import Export, is_export, open_export, removed_memories
from ..artefact.manifest import Manifest
from ..checkpoint.spec import ModelSpec
from ..errors import KoffkitError, UsageError
from ..router.routed import routed
from ..run.folder import RunFolder
from ..run.live import live_state
from ..storage.record import Record
from .routes import routes
from .shared_neurons import shared_neurons

OWN_CLASS = (
    "after `import koffkit.sliced`, or without koffkit with trust_remote_code=True (the code lies in the "
    "folder)"
)
SHOWN_OF_RUN = (
    "state",
    "base",
    "budget",
    "memory_layers",
    "stages",
    "versions",
    "seed",
    "started",
    "finished",
)


def describe(path: Path) -> dict[str, Any]:
    """Describe a folder as a JSON object, with `kind`: run, export, bundle or checkpoint.

    Raises:
        UsageError: it is none of these.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder.")
    if is_export(path):
        return _export(path)
    if RunFolder(path).exists:
        return _run(path)
    if is_bundle(path):
        return _bundle(path)
    if (path / "config.json").is_file():
        return _checkpoint(path)
    raise UsageError(f"{path}: neither a run, an export, a memory bundle nor a checkpoint folder.")


def _bundle(path: Path) -> dict[str, Any]:
    info = open_bundle(path).info
    loads = {"koffkit": "all of it"}
    if info.lora is not None and not info.is_packed:
        loads["peft"] = "LoRA half"
    return {"kind": "bundle", **info.to_json(), "loads_in": loads}


def _export(path: Path) -> dict[str, Any]:
    export = open_export(path, any_format=True)
    require_sound(export)
    if not export.is_checkpoint:
        return _other_format(export)
    spec = ModelSpec.open(export.backbone)
    bundles = export.bundles()
    router = routed(export, bundles)
    return {
        "kind": "export",
        **_without(export.manifest, "files", "golden", "results", "recipe"),
        "widths": _widths(spec),
        "memories": {
            bundle.domain: _without(bundle.info, "golden", "files", "figures") for bundle in bundles
        },
        "removed_memories": removed_memories(export),
        "neurons": shared_neurons(bundles),
        "net": _net(
            export.manifest.base.bytes,
            weight_bytes(export.backbone),
            [bundle.bytes for bundle in bundles],
            0 if export.router is None else _folder_bytes(export.router),
        ),
        "router": None if router is None else router.describe(),
        "loads_in": _loads_in(export.manifest, bundles, spec),
        "routes": routes(spec, export.manifest.base.architecture, bundles),
    }


def _other_format(export: Export) -> dict[str, Any]:
    """An export that other software runs."""
    manifest = export.manifest
    sizes = {name: entry.bytes for name, entry in manifest.domains.items()}
    return {
        "kind": "export",
        **_without(manifest, "files", "golden", "results", "recipe"),
        "memories": {name: {"bytes": size} for name, size in sizes.items()},
        "removed_memories": [],
        "neurons": None,
        "net": _net(manifest.base.bytes, manifest.backbone.bytes, list(sizes.values()), 0),
        "router": None,
        "loads_in": {manifest.format: f"{manifest.backbone.model_class}; README.md says how"},
    }


def _without(record: Record, *names: str) -> dict[str, Any]:
    return {key: value for key, value in record.to_json().items() if key not in names}


def _net(base: int, backbone: int, sizes: list[int], router: int) -> dict[str, Any]:
    """Bytes on disk against the base: weights and what they need to load, without cards and tokenizers.

    `break_even`: the number of memories, of the mean size of the present ones, that the removed bytes can
    hold; with more, the export is larger than the base.
    """
    memories = sum(sizes)
    net: dict[str, Any] = {"base": base, "backbone": backbone, "memories": memories, "router": router}
    for suffix, more in (("", 0), ("_with_router", router)):
        total = backbone + memories + more
        net |= {f"total{suffix}": total, f"saved{suffix}": base - total}
        net[f"break_even{suffix}"] = (
            max(0, base - backbone - more) * len(sizes) // memories if sizes else None
        )
    return net


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _loads_in(manifest: Manifest, bundles: list[Bundle], spec: ModelSpec) -> dict[str, str]:
    packed = [bundle.domain for bundle in bundles if bundle.info.is_packed]
    plain = [bundle.info for bundle in bundles if not bundle.info.is_packed]
    kv_layers = [len(info.layers) for info in plain if info.kv is not None]
    own = SLICED_LAYERS in spec.config
    loads = {
        "transformers": f"backbone: {manifest.backbone.model_class}, "
        + (OWN_CLASS if own else "no koffkit needed")
    }
    if any(info.lora is not None for info in plain):
        loads["peft"] = "LoRA half of every memory" + (f" but {', '.join(packed)}" if packed else "")
    if kv_layers:
        everywhere = all(count == int(spec.config["num_hidden_layers"]) for count in kv_layers)
        loads["kv memory"] = "koffkit" + (
            ", or a prefilled cache in transformers (keys rotated)"
            if everywhere
            else " only: not in all layers"
        )
    if packed:
        loads["koffkit"] = f"only: {', '.join(packed)} (packed weights)"
    return loads


def _widths(spec: ModelSpec) -> dict[str, Any]:
    keys = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )
    widths: dict[str, Any] = {key: spec.config.get(key) for key in keys}
    if SLICED_LAYERS in spec.config:
        layers = [asdict(layer) for layer in spec.widths]
        widths["layers"] = {key: [layer[key] for layer in layers] for key in layers[0]}
    return widths


def _run(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    state = folder.read()
    tree = state.to_json()
    shown = {
        "kind": "run",
        "name": state.recipe["name"],
        "domains": list(state.recipe.get("domains", {})),
        **{key: tree[key] for key in SHOWN_OF_RUN if key in tree},
    }
    return shown if state.is_finished else shown | {"live": live_state(folder, state)}


def _checkpoint(path: Path) -> dict[str, Any]:
    spec = ModelSpec.open(path)
    checkpoint: dict[str, Any] = {
        "kind": "checkpoint",
        "model_type": spec.config.get("model_type"),
        "widths": _widths(spec),
    }
    try:
        checkpoint |= {"parameters": spec.num_parameters, "compressible": True}
    except KoffkitError:
        checkpoint |= {"compressible": False}
    return checkpoint | {"bytes": weight_bytes(path), "digest": backbone_digest(path)}
