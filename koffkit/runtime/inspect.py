"""What is this folder? Sizes, widths, digests, and what can load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arch.widths import SLICED_LAYERS
from ..artefact.bundle import is_bundle, is_packed, open_bundle
from ..artefact.digests import backbone_digest, weight_bytes
from ..artefact.export import Export, is_export, open_export, removed_memories
from ..checkpoint.spec import ModelSpec
from ..errors import KoffkitError, UsageError
from ..recipe.plan import VLLM_RANKS
from ..router.routed import routed
from ..run.folder import RunFolder

OWN_CLASS = (
    "after `import koffkit.sliced`, or without koffkit with trust_remote_code=True (the code lies in the "
    "folder)"
)


def describe(path: Path) -> dict[str, Any]:
    """A JSON object with `kind`: run, export, bundle or checkpoint.

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
    if info.get("lora") and not is_packed(info):
        loads["peft"] = "LoRA half"
    return {"kind": "bundle", **info, "loads_in": loads}


def _export(path: Path) -> dict[str, Any]:
    export = open_export(path)
    manifest = {
        key: value
        for key, value in export.manifest.items()
        if key not in ("files", "golden", "results", "recipe")
    }
    spec = ModelSpec.open(export.backbone)
    config = spec.config
    bundles = export.bundles()
    router, memories = routed(export, bundles), {bundle.domain: dict(bundle.info) for bundle in bundles}
    for info in memories.values():
        for key in ("golden", "files", "figures"):
            info.pop(key, None)
    return {
        "kind": "export",
        **manifest,
        "widths": _widths(spec),
        "memories": memories,
        "removed_memories": removed_memories(export),
        "net": _net(export),
        "router": None if router is None else router.describe(),
        "loads_in": _loads_in(export.manifest, memories, config),
    }


def _net(export: Export) -> dict[str, Any]:
    """Bytes on disk against the base: weights and what they need to load, without cards and tokenizers.

    `break_even`: how many memories of the present mean size the bytes that were cut pay for; with more, the
    whole is larger than the base.
    """
    backbone = weight_bytes(export.backbone)
    sizes = [bundle.bytes for bundle in export.bundles()]
    router = (
        0
        if export.router is None
        else sum(path.stat().st_size for path in export.router.rglob("*") if path.is_file())
    )
    recorded = export.manifest["base"].get(
        "bytes"
    )  # exports of older versions lack it: slicing keeps the type of the weights
    base = (
        recorded
        or backbone * export.manifest["base"]["parameters"] // export.manifest["backbone"]["parameters"]
    )
    found: dict[str, Any] = {"base": base, "backbone": backbone, "memories": sum(sizes), "router": router}
    for suffix, more in (("", 0), ("_with_router", router)):
        total = backbone + sum(sizes) + more
        found |= {f"total{suffix}": total, f"saved{suffix}": base - total}
        found[f"break_even{suffix}"] = (
            max(0, base - backbone - more) * len(sizes) // sum(sizes) if sizes else None
        )
    return found


def _loads_in(manifest: Any, memories: dict[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    num_layers = int(config["num_hidden_layers"])
    packed = [name for name, info in memories.items() if is_packed(info)]
    open_ = [info for name, info in memories.items() if name not in packed]
    ranks = {
        rank
        for info in open_
        if info.get("lora")
        for rank in info.get("compacted", {}).get("ranks", [info["lora"]["rank"]])
    }
    kv_layers = [len(info["layers"]) for info in open_ if info.get("kv")]
    own = SLICED_LAYERS in config
    found = {
        "transformers": f"backbone: {manifest['backbone']['class']}, "
        + (OWN_CLASS if own else "no koffkit needed")
    }
    if ranks:
        found["peft"] = "LoRA half of every memory" + (f" but {', '.join(packed)}" if packed else "")
        if own:
            found["vllm"] = "not: its layers differ, or parts of heads are gone"
        elif all(rank in VLLM_RANKS for rank in ranks):
            found["vllm"] = "backbone and LoRA (not run by koffkit)"
        else:
            found["vllm"] = f"backbone; LoRA ranks {sorted(ranks)} are not served"
    if kv_layers:
        everywhere = all(count == num_layers for count in kv_layers)
        found["kv memory"] = "koffkit" + (
            ", or a prefilled cache in transformers (keys rotated)"
            if everywhere
            else " only: not in all layers"
        )
    if packed:
        found["koffkit"] = f"only: {', '.join(packed)} (packed weights)"
    return found


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
    found: dict[str, Any] = {key: spec.config.get(key) for key in keys}
    if SLICED_LAYERS in spec.config:
        layers = [asdict(widths) for widths in spec.widths]
        found["layers"] = {key: [widths[key] for widths in layers] for key in layers[0]}
    return found


def _run(path: Path) -> dict[str, Any]:
    state = RunFolder(path).read()
    kept = ("state", "base", "budget", "memory_layers", "stages", "versions", "seed", "started", "finished")
    return {
        "kind": "run",
        "name": state["recipe"]["name"],
        **{key: state[key] for key in kept if key in state},
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    spec = ModelSpec.open(path)
    found: dict[str, Any] = {
        "kind": "checkpoint",
        "model_type": spec.config.get("model_type"),
        "widths": _widths(spec),
    }
    try:
        found |= {"parameters": spec.num_parameters, "compressible": True}
    except KoffkitError:
        found |= {"compressible": False}
    return found | {"bytes": weight_bytes(path), "digest": backbone_digest(path)}
