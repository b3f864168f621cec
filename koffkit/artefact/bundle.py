"""One domain's memory on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import IntegrityError, UsageError
from ..storage.read_json import parse_json_object, read_limited
from .bundle_info import BundleInfo
from .manifest import BundleEntry
from .names import (
    ADAPTER_PACKED,
    ADAPTER_WEIGHTS,
    KV_MEMORY,
    KV_MEMORY_PACKED,
    MEMORIES,
    MEMORY_FILE,
    NEURONS,
    ROUTER_COLUMN,
)


@dataclass(frozen=True)
class MemoryFolder:
    """The weights of one domain's memory: in a run, at the widths of the base, or in a bundle.

    Args:
        domain: the memory's name, which may differ from the one it was learned under.
    """

    path: Path
    domain: str

    @property
    def adapter_file(self) -> Path | None:
        """The weights of the LoRA half, packed or not; None if it has none."""
        return self._first(ADAPTER_WEIGHTS, ADAPTER_PACKED)

    @property
    def kv_file(self) -> Path | None:
        """The KV half."""
        return self._first(KV_MEMORY, KV_MEMORY_PACKED)

    @property
    def neurons_file(self) -> Path | None:
        """The restored neurons."""
        return self._first(NEURONS)

    @property
    def column_file(self) -> Path | None:
        """The router column of a memory that was added after the router was trained; None if it has none."""
        return self._first(ROUTER_COLUMN)

    def _first(self, *names: str) -> Path | None:
        return next((self.path / name for name in names if (self.path / name).is_file()), None)


@dataclass(frozen=True)
class Bundle(MemoryFolder):
    """A memory for a sliced backbone, with its `memory.json`."""

    info: BundleInfo

    @property
    def bytes(self) -> int:
        """Size of the weights and their configuration, without the card and `memory.json`."""
        return self.info.bytes

    def require_backbone(self, digest: str, where: Path) -> None:
        """Refuse a backbone that this memory was not learned for.

        Raises:
            IntegrityError: the digests differ.
        """
        if self.info.backbone_digest != digest:
            raise IntegrityError(
                f"{self.path / MEMORY_FILE}: this memory ({self.domain}) belongs to backbone "
                f"{self.info.backbone_digest[:12]}, "
                f"but {where} is {digest[:12]}; use the backbone it was exported with."
            )


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a `memory.json`."""
    return (path / MEMORY_FILE).is_file()


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle's `memory.json`.

    Raises:
        UsageError: this is not a bundle, or it has a later format.
        IntegrityError: it is damaged; the text names the field.
    """
    path = Path(path)
    if not is_bundle(path):
        raise UsageError(f"{path}: not a memory bundle (no {MEMORY_FILE}).")
    data = read_limited(path / MEMORY_FILE, remedy=BundleInfo.remedy)
    tree = parse_json_object(data, str(path / MEMORY_FILE), remedy=BundleInfo.remedy)
    if tree.keys() == {"koffkit", "domain", "layers"}:
        raise UsageError(
            f"{path}: a memory inside a run, at the widths of the base; `koffkit export` makes bundles."
        )
    info = BundleInfo.parse(data, path / MEMORY_FILE)
    return Bundle(path, info.domain, info)


def bundle_entry(bundle: Bundle) -> BundleEntry:
    """The entry of a bundle in `koffkit.json`."""
    return BundleEntry(
        path=f"{MEMORIES}/{bundle.path.name}", parameters=bundle.info.parameters, bytes=bundle.bytes
    )
