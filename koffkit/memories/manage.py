"""Which memories an export has, and taking one away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..artefact.export import Export, open_export, removed_memories
from ..errors import UsageError, did_you_mean
from ..router.routed import routed
from ..storage.publish import discard


def list_memories(path: Path) -> dict[str, Any]:
    """`{"memories": {name: {...}}, "removed": [names], "router": labels or None}`.

    Raises:
        UsageError: this is no export.
        IntegrityError: a `memory.json` or the router is damaged.
    """
    export = open_export(path)
    router = routed(export)
    labels = [] if router is None else list(router.labels)
    memories = {bundle.domain: _row(bundle, export, labels) for bundle in export.bundles()}
    return {
        "path": str(path),
        "memories": memories,
        "removed": removed_memories(export),
        "router": labels or None,
    }


def _row(bundle: Bundle, export: Export, labels: list[str]) -> dict[str, Any]:
    info = bundle.info
    figures = {name: values for name, values in info.get("figures", {}).items() if name != "swap"}
    return {
        "parameters": info["parameters"],
        "bytes": bundle.bytes,
        "layers": info["layers"],
        "rank": info["lora"]["rank"] if info.get("lora") else None,
        "kv_tokens": info["kv"]["tokens"] if info.get("kv") else None,
        "dtype": info.get("dtype", "float32"),
        "in_router": bundle.domain in labels,
        "routing": info.get("routing"),
        "origin": "added"
        if "added" in info
        else "shipped"
        if bundle.domain in export.manifest["domains"]
        else "copied",
        "compacted": "compacted" in info,
        "figures": figures,
    }


def remove_memory(path: Path, name: str) -> dict[str, Any]:
    """Take one memory away; no other byte of the export changes.

    Raises:
        UsageError: there is no such export or memory.
    """
    export = open_export(path)
    names = {bundle.domain: bundle.path for bundle in export.bundles()}
    if name not in names:
        raise UsageError(
            f"{path}: no memory {name!r}; there is {', '.join(names) or 'none'}.{did_you_mean(name, names)}"
        )
    folder = names[name]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    discard(folder)
    return {
        "path": str(path),
        "removed": name,
        "bytes": size,
        "memories": [other for other in names if other != name],
    }
