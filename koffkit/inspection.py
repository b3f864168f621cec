"""What is this folder? Sizes, widths, digests, and what can load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .arch import Shape, architecture_of
from .artefact import backbone_digest, is_bundle, is_export, open_bundle, open_export, weight_bytes
from .base import read_config
from .errors import KoffkitError, UsageError
from .method.budget import count_parameters
from .recipe.plan import VLLM_RANKS
from .router.classifier import TextRouter
from .run.folder import RunFolder


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
        return {"kind": "bundle", **open_bundle(path).info}
    if (path / "config.json").is_file():
        return _checkpoint(path)
    raise UsageError(f"{path}: neither a run, an export, a memory bundle nor a checkpoint folder.")


def _export(path: Path) -> dict[str, Any]:
    export = open_export(path)
    manifest = {key: value for key, value in export.manifest.items() if key not in ("files", "golden", "results", "recipe")}
    config = read_config(export.backbone)
    memories = {bundle.domain: dict(bundle.info) for bundle in export.bundles()}
    for info in memories.values():
        for key in ("golden", "files", "figures"):
            info.pop(key, None)
    return {
        "kind": "export",
        **manifest,
        "widths": _widths(config),
        "memories": memories,
        "router": None if export.router is None else TextRouter.load(export.router).describe(),
        "loads_in": _loads_in(export.manifest, memories, int(config["num_hidden_layers"])),
    }


def _loads_in(manifest: Any, memories: dict[str, Any], num_layers: int) -> dict[str, str]:
    ranks = {info["lora"]["rank"] for info in memories.values() if info.get("lora")}
    kv_layers = [len(info["layers"]) for info in memories.values() if info.get("kv")]
    found = {"transformers": f"backbone: {manifest['backbone']['class']}, no koffkit needed"}
    if ranks:
        found["peft"] = "LoRA half of every memory"
        served = all(rank in VLLM_RANKS for rank in ranks)
        found["vllm"] = "backbone and LoRA (not run by koffkit)" if served else f"backbone; LoRA ranks {sorted(ranks)} are not served"
    if kv_layers:
        everywhere = all(count == num_layers for count in kv_layers)
        found["kv memory"] = "koffkit" + (
            ", or a prefilled cache in transformers (keys rotated)" if everywhere else " only: not in all layers"
        )
    return found


def _widths(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    return {key: config.get(key) for key in keys}


def _run(path: Path) -> dict[str, Any]:
    state = RunFolder(path).read()
    kept = ("state", "base", "budget", "memory_layers", "stages", "versions", "seed", "started", "finished")
    return {"kind": "run", "name": state["recipe"]["name"], **{key: state[key] for key in kept if key in state}}


def _checkpoint(path: Path) -> dict[str, Any]:
    config = read_config(path)
    found: dict[str, Any] = {"kind": "checkpoint", "model_type": config.get("model_type"), "widths": _widths(config)}
    try:
        arch = architecture_of(config, source=str(path / "config.json"))
        found |= {"parameters": count_parameters(arch, Shape.of(config), config), "compressible": True}
    except KoffkitError:
        found |= {"compressible": False}
    return found | {"bytes": weight_bytes(path), "digest": backbone_digest(path)}
