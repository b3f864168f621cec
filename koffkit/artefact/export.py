"""An exported backbone with its memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KoffkitError, UsageError
from ..storage.files import _read_json
from .bundle import Bundle, is_bundle, open_bundle
from .names import BACKBONE, FORMAT, MANIFEST, MEMORIES, MEMORY_FILE, ROUTER


@dataclass(frozen=True)
class Export:
    """An exported backbone with its memories."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def backbone(self) -> Path:
        return self.path / BACKBONE

    @property
    def backbone_digest(self) -> str:
        return str(self.manifest["backbone"]["digest"])

    @property
    def router(self) -> Path | None:
        """The router's folder, if there is one."""
        folder = self.path / ROUTER
        return folder if folder.is_dir() else None

    def bundles(self) -> list[Bundle]:
        """Every memory beside the backbone, whether it came with the export or later."""
        folder = self.path / MEMORIES
        found = sorted(path.parent for path in folder.glob(f"*/{MEMORY_FILE}"))
        return [
            open_bundle(path) for path in found if not path.name.startswith(".")
        ]  # a dot: one that is just being written

    def is_replaced(self, domain: str) -> bool:
        """Whether the memory of a domain was replaced on purpose since: its `memory.json` says what it stands
        in for (`replaces`)."""
        path, listed = self.path / MEMORIES / domain, replaces(self, domain)
        if not listed or not is_bundle(path):
            return False
        try:
            return open_bundle(path).info.get("replaces") == listed["replaces"]
        except KoffkitError:  # damaged, and so not what anybody put there
            return False


def replaces(export: Export, domain: str) -> dict[str, str]:
    """What `memory.json` must say of a memory that takes the place of one that shipped: the sha256 of the one
    the manifest lists."""
    entry = export.manifest["files"].get(f"{MEMORIES}/{domain}/{MEMORY_FILE}")
    return {} if entry is None else {"replaces": str(entry["sha256"])}


def is_export(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def open_export(path: Path | str) -> Export:
    """Read the manifest of an export.

    Raises:
        UsageError: this is no export, or one of a later format.
        IntegrityError: its manifest is damaged.
    """
    path = Path(path)
    if not is_export(path):
        raise UsageError(f"{path}: not an export (no {MANIFEST}); make one with `koffkit export`.")
    manifest = _read_json(path / MANIFEST)
    if manifest.get("koffkit") != FORMAT:
        raise UsageError(
            f"{path / MANIFEST}: format {manifest.get('koffkit')!r}; this koffkit reads {FORMAT}."
        )
    return Export(path, manifest)


def removed_memories(export: Export) -> list[str]:
    """Domains that shipped with the export and whose folder is gone as a whole, as `remove_memory` leaves
    it."""
    return [name for name in export.manifest["domains"] if not (export.path / MEMORIES / name).exists()]
