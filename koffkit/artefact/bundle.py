"""One domain's memory on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UsageError
from ..storage.files import _read_json
from .names import (
    ADAPTER_PACKED,
    ADAPTER_WEIGHTS,
    FORMAT,
    KV_MEMORY,
    KV_MEMORY_PACKED,
    MEMORIES,
    MEMORY_FILE,
    ROUTER_COLUMN,
)


@dataclass(frozen=True)
class Bundle:
    """One domain's memory on disk."""

    path: Path
    info: Mapping[str, Any]

    @property
    def domain(self) -> str:
        return str(self.info["domain"])

    @property
    def adapter_file(self) -> Path | None:
        """The LoRA half's weights, in whatever form they are."""
        return self._first(ADAPTER_WEIGHTS, ADAPTER_PACKED)

    @property
    def kv_file(self) -> Path | None:
        """The KV half."""
        return self._first(KV_MEMORY, KV_MEMORY_PACKED)

    @property
    def column_file(self) -> Path | None:
        """What the router learned of it, for a memory that came after the router."""
        return self._first(ROUTER_COLUMN)

    def _first(self, *names: str) -> Path | None:
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    @property
    def bytes(self) -> int:
        """Of the weights and their configuration; not of card and `memory.json`."""
        return sum(int(entry["size"]) for entry in self.info.get("files", {}).values())

    def require_backbone(self, digest: str, where: Path) -> None:
        """Refuse a backbone that this memory was not learned for.

        Raises:
            IntegrityError: the digests differ.
        """
        if self.info.get("backbone_digest") != digest:
            raise IntegrityError(
                f"{self.path / MEMORY_FILE}: this memory ({self.domain}) belongs to backbone "
                f"{str(self.info.get('backbone_digest'))[:12]}, "
                f"but {where} is {digest[:12]}; use the backbone it was exported with."
            )


def is_bundle(path: Path) -> bool:
    return (path / MEMORY_FILE).is_file()


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle's `memory.json`.

    Raises:
        UsageError: this is no bundle, or one of a later format.
        IntegrityError: it is damaged.
    """
    path = Path(path)
    if not is_bundle(path):
        raise UsageError(f"{path}: not a memory bundle (no {MEMORY_FILE}).")
    info = _read_json(path / MEMORY_FILE)
    if info.get("koffkit") != FORMAT:
        raise UsageError(
            f"{path / MEMORY_FILE}: format {info.get('koffkit')!r}; this koffkit reads {FORMAT}."
        )
    if not isinstance(info.get("domain"), str):
        raise IntegrityError(f"{path / MEMORY_FILE}: no domain is named; export the memory again.")
    return Bundle(path, info)


def bundle_summary(path: Path) -> dict[str, Any]:
    """What `koffkit.json` says of a bundle."""
    bundle = open_bundle(path)
    return {"path": f"{MEMORIES}/{path.name}", "parameters": bundle.info["parameters"], "bytes": bundle.bytes}


def is_packed(info: Mapping[str, Any]) -> bool:
    """Whether a bundle's weights are koffkit's own packed integers, which no other software reads."""
    return str(info.get("dtype", "float32")).startswith("int")
