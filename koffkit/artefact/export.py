"""An exported backbone with its memories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import CONFIG
from ..errors import KoffkitError, UsageError
from .bundle import Bundle, is_bundle, open_bundle
from .manifest import Manifest
from .names import BACKBONE, MANIFEST, MASKS, MEMORIES, MEMORY_FILE, ROUTER, SERVING


@dataclass(frozen=True)
class Export:
    """An exported backbone with its memories."""

    path: Path
    manifest: Manifest

    @property
    def backbone(self) -> Path:
        return self.path / BACKBONE

    @property
    def backbone_digest(self) -> str:
        return self.manifest.backbone.digest

    @property
    def is_checkpoint(self) -> bool:
        """Whether the backbone is a checkpoint of transformers, which koffkit runs; other formats, folders
        for a server of other software among them, and quantised weights are for other software."""
        if self.is_quantised or SERVING in self.manifest.files:
            return False
        files = [name for name in self.manifest.files if name.startswith(f"{BACKBONE}/")]
        return f"{BACKBONE}/{CONFIG}" in files and any(name.endswith(".safetensors") for name in files)

    @property
    def is_quantised(self) -> bool:
        """Whether the backbone's weights are int8 or int4."""
        consumer = self.manifest.consumer
        return consumer is not None and consumer.weights != "auto"

    @property
    def router(self) -> Path | None:
        """The router's folder, if there is one."""
        folder = self.path / ROUTER
        return folder if folder.is_dir() else None

    @property
    def masks(self) -> Path | None:
        """What the backbone was sliced by; None in exports that do not say."""
        path = self.path / MASKS
        return path if path.is_file() else None

    def bundles(self) -> list[Bundle]:
        """Every memory of the export, shipped with it or added later."""
        folder = self.path / MEMORIES
        memories = sorted(path.parent for path in folder.glob(f"*/{MEMORY_FILE}"))
        # Names with a dot are bundles that are being written.
        return [open_bundle(path) for path in memories if not path.name.startswith(".")]

    def is_replaced(self, domain: str) -> bool:
        """Whether the memory of a domain was replaced on purpose after the export: its `memory.json` names
        the one that it replaces (`replaces`)."""
        path, listed = self.path / MEMORIES / domain, replaces(self, domain)
        if listed is None or not is_bundle(path):
            return False
        try:
            return open_bundle(path).info.replaces == listed
        except KoffkitError:  # damaged, so not replaced on purpose
            return False


def replaces(export: Export, domain: str) -> str | None:
    """The field `replaces` for a memory that takes the place of a shipped one: the sha256 of the
    `memory.json` that the manifest lists; None: no memory of that domain shipped."""
    entry = export.manifest.files.get(f"{MEMORIES}/{domain}/{MEMORY_FILE}")
    return None if entry is None else entry.sha256


def is_export(path: Path) -> bool:
    """Whether a folder holds a `koffkit.json`."""
    return (path / MANIFEST).is_file()


def is_merged(path: Path) -> bool:
    """Whether a folder is an export with a memory in its weights, so that there is none to choose."""
    return is_export(path) and open_export(path, any_format=True).manifest.merged is not None


def open_export(path: Path | str, *, any_format: bool = False) -> Export:
    """Read the manifest of an export.

    Args:
        path: its folder.
        any_format: take exports that only other software runs, too.

    Raises:
        UsageError: this is not an export, it has a later format, or other software runs it.
        IntegrityError: the manifest is damaged; the text names the field.
    """
    path = Path(path)
    if not is_export(path):
        raise UsageError(f"{path}: not an export (no {MANIFEST}); make one with `koffkit export`.")
    export = Export(path, Manifest.read(path / MANIFEST))
    if not any_format and not export.is_checkpoint:
        what = f"format {export.manifest.format}" + ", quantised" * export.is_quantised
        raise UsageError(
            f"{path}: an export of {what}, for other software (its README says which); koffkit runs exports "
            "of format hf that are not quantised. `koffkit verify` and `koffkit inspect` take all."
        )
    return export


def removed_memories(export: Export) -> list[str]:
    """Domains that shipped with the export and whose whole folder is gone, as after `remove_memory`."""
    return [name for name in export.manifest.domains if not (export.path / MEMORIES / name).exists()]
