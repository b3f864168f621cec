"""Listing and removing the memories of an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..artefact.check import require_sound
from ..artefact.export import Export, open_export, removed_memories
from ..artefact.names import MEMORIES
from ..errors import UsageError, near_name
from ..router.routed import routed
from ..storage.lock import claim, require_unclaimed, tidy
from ..storage.publish import discard, move_folder, require_free


def list_memories(path: Path) -> dict[str, Any]:
    """`{"memories": {name: {...}}, "removed": [names], "router": labels or None}`.

    Raises:
        UsageError: this is not an export.
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
        "neurons": None if info.neurons is None else info.neurons.count,
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


def remove_memory(path: Path, name: str, keep: Path | None = None) -> dict[str, Any]:
    """Remove one memory; no other byte of the export changes.

    Args:
        path: an export.
        name: the memory's domain.
        keep: a folder that the bundle is moved into, as `keep/NAME`; None: it is deleted.

    Returns:
        What `koffkit memory remove --json` prints.

    Raises:
        UsageError: there is no such export or memory, or `keep` has something of that name, or is in the
            export.
        ResourceError: the disk that holds `keep` is too full.
    """
    export = open_export(path)
    names = {bundle.domain: bundle.path for bundle in export.bundles()}
    if name not in names:
        tidy(export.path / MEMORIES)  # an earlier command may have been killed while it deleted
        raise UsageError(f"{path}: no memory {name!r}; {near_name(name, names)}")
    folder = names[name]
    kept = None if keep is None else _place_outside(export, keep / name)
    with claim_memory(export, folder):
        if not folder.is_dir():
            raise UsageError(f"{folder}: removed by another command in the meantime.")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        discard(folder) if kept is None else move_folder(folder, kept)
    return {
        "path": str(path),
        "removed": name,
        "kept": None if kept is None else str(kept),
        "bytes": size,
        "memories": [other for other in names if other != name],
    }


def _place_outside(export: Export, place: Path) -> Path:
    """Where a memory can be kept: a free name, and no part of an export, which lists all its files."""
    require_outside(export, place.parent, "--keep")
    require_free(place)
    return place


def require_outside(export: Export, folder: Path, option: str) -> None:
    """Refuse a folder that is a part of an export.

    Args:
        option: how the folder was given, for the message.

    Raises:
        UsageError: it is.
    """
    if folder.resolve().is_relative_to(export.path.resolve()):
        raise UsageError(f"{option} {folder}: a folder of the export itself; name one outside.")


@contextmanager
def claim_memory(export: Export, folder: Path) -> Iterator[None]:
    """Hold the name of a memory (`claim`) while it is made, replaced or removed.

    Raises:
        UsageError: another process holds it, or the whole export (`memory collect`).
    """
    with claim(folder):
        # Who holds the whole export looks for held names only then: one of the two sees the other.
        require_unclaimed(export.path.resolve())
        yield
