"""The format of what ships: names of files, `koffkit.json`, `memory.json`, digests. No other module knows them.

A backbone is known by the digest of its tensors (names, types, shapes, bytes), not of its files: a copy that was sharded
anew is still the same backbone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import checkpoint_files
from .errors import IntegrityError, KoffkitError, UsageError

FORMAT = 1
MANIFEST = "koffkit.json"
BACKBONE = "backbone"
MEMORIES = "memories"
# What a bundle's PEFT configuration calls its base model: where an export has it, seen from the bundle, and never the name of a
# repository on a hub. PEFT looks from the working folder: `AutoPeftModelForCausalLM.from_pretrained(".")` works inside the bundle.
BACKBONE_OF_BUNDLE = f"../../{BACKBONE}"
ROUTER = "router"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
KV_MEMORY = "kv_memory.safetensors"
# Names that PEFT does not look for: it would take the integers for weights.
ADAPTER_PACKED = "adapter_packed.safetensors"
KV_MEMORY_PACKED = "kv_memory_packed.safetensors"
MEMORY_FILE = "memory.json"
ROUTER_COLUMN = "router_column.safetensors"
CARD = "README.md"

CHUNK = 1 << 22


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
                f"{self.path / MEMORY_FILE}: this memory ({self.domain}) belongs to backbone {str(self.info.get('backbone_digest'))[:12]}, "
                f"but {where} is {digest[:12]}; use the backbone it was exported with."
            )


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
        return [open_bundle(path) for path in found if not path.name.startswith(".")]  # a dot: one that is just being written

    def is_replaced(self, domain: str) -> bool:
        """Whether the memory of a domain was replaced on purpose since: its `memory.json` says what it stands in for (`replaces`)."""
        path, listed = self.path / MEMORIES / domain, replaces(self, domain)
        if not listed or not is_bundle(path):
            return False
        try:
            return open_bundle(path).info.get("replaces") == listed["replaces"]
        except KoffkitError:  # damaged, and so not what anybody put there
            return False


def replaces(export: Export, domain: str) -> dict[str, str]:
    """What `memory.json` must say of a memory that takes the place of one that shipped: the sha256 of the one the manifest lists."""
    entry = export.manifest["files"].get(f"{MEMORIES}/{domain}/{MEMORY_FILE}")
    return {} if entry is None else {"replaces": str(entry["sha256"])}


def is_export(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def is_bundle(path: Path) -> bool:
    return (path / MEMORY_FILE).is_file()


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
        raise UsageError(f"{path / MANIFEST}: format {manifest.get('koffkit')!r}; this koffkit reads {FORMAT}.")
    return Export(path, manifest)


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
        raise UsageError(f"{path / MEMORY_FILE}: format {info.get('koffkit')!r}; this koffkit reads {FORMAT}.")
    if not isinstance(info.get("domain"), str):
        raise IntegrityError(f"{path / MEMORY_FILE}: no domain is named; export the memory again.")
    return Bundle(path, info)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: not valid JSON ({error}); export again.") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: not a JSON object; export again.")
    return value


def combine_tensor_digests(digests: Mapping[str, str]) -> str:
    """The backbone's digest from `{tensor name: tensor_digest}`."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def tensor_hasher(dtype: str, shape: tuple[int, ...]) -> Any:
    """A sha256 that has seen the tensor's type and shape; feed it the bytes."""
    return hashlib.sha256(f"{dtype} {list(shape)}\n".encode())


def backbone_digest(folder: Path) -> str:
    """The digest of a backbone folder, computed from every byte of its tensors.

    Raises:
        IntegrityError: a file is missing or damaged.
    """
    from .tensors import CheckpointReader

    reader = CheckpointReader(folder)
    digests = {}
    for name, info in reader.tensors.items():
        hasher = tensor_hasher(info.dtype, info.shape)
        for part in reader.read_bytes(name, CHUNK):
            hasher.update(part)
        digests[name] = hasher.hexdigest()
    return combine_tensor_digests(digests)


def list_files(root: Path) -> Iterator[Path]:
    """Every file that the manifest covers."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.relative_to(root).as_posix() != MANIFEST:
            yield path


def file_entry(path: Path) -> dict[str, Any]:
    """`{"sha256", "size"}` of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _file_digest(file)
    return {"sha256": digest.hexdigest(), "size": path.stat().st_size}


def _file_digest(file: Any) -> Any:  # Python 3.10
    hasher = hashlib.sha256()
    while part := file.read(CHUNK):
        hasher.update(part)
    return hasher


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in checkpoint_files(folder))
