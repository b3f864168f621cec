"""Which memories an export has, and taking one away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..artefact.check import require_sound
from ..artefact.export import Export, open_export, removed_memories
from ..artefact.names import MEMORIES
from ..errors import UsageError, near_name
from ..router.routed import routed
from ..storage.lock import claim, tidy
from ..storage.publish import discard


def list_memories(path: Path) -> dict[str, Any]:
    """`{"memories": {name: {...}}, "removed": [names], "router": labels or None}`.

    Raises:
        UsageError: this is no export.
        IntegrityError: a `memory.json` or the router is damaged.
    """
    export = open_export(path)
    require_sound(export)
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
    figures = {name: values for name, values in info.figures.items() if name != "swap"}
    return {
        "parameters": info.parameters,
        "bytes": bundle.bytes,
        "layers": info.layers,
        "rank": None if info.lora is None else info.lora.rank,
        "kv_tokens": None if info.kv is None else info.kv.tokens,
        "dtype": info.dtype,
        "in_router": bundle.domain in labels,
        "routing": None if info.routing is None else info.routing.to_json(),
        "origin": _origin(bundle, export),
        "compacted": info.compacted is not None,
        "figures": figures,
    }


def _origin(bundle: Bundle, export: Export) -> str:
    if bundle.info.added is not None:
        return "added"
    return "shipped" if bundle.domain in export.manifest.domains else "copied"


def remove_memory(path: Path, name: str) -> dict[str, Any]:
    """Take one memory away; no other byte of the export changes.

    Raises:
        UsageError: there is no such export or memory.
    """
    export = open_export(path)
    names = {bundle.domain: bundle.path for bundle in export.bundles()}
    if name not in names:
        tidy(export.path / MEMORIES)  # an earlier command may have been killed while it deleted
        raise UsageError(f"{path}: no memory {name!r}; {near_name(name, names)}")
    folder = names[name]
    with claim(folder):
        if not folder.is_dir():
            raise UsageError(f"{folder}: removed by another command in the meantime.")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        discard(folder)
    return {
        "path": str(path),
        "removed": name,
        "bytes": size,
        "memories": [other for other in names if other != name],
    }
