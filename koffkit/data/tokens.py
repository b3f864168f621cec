"""Token files on disk: synced when written, and recognised by size and digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage.files import fsync_folder
from ..storage.partial import partial_of
from .packing import MASK_SUFFIX, STARTS_SUFFIX
from .places import Place, is_remote, reason_of

CHUNK = 1 << 22


class TokenFile:
    """One file of a stream, under a temporary name until it is complete."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.partial = partial_of(final)
        self._file = open(self.partial, "wb")  # noqa: SIM115 - closed by `publish` or `discard`
        self._hasher = hashlib.sha256()
        self.size = self.total = 0

    def append(self, values: np.ndarray[Any, Any]) -> None:
        data = values.tobytes()
        self._file.write(data)
        self._hasher.update(data)
        self.size += len(data)
        self.total += int(values.sum())

    def publish(self) -> dict[str, Any]:
        """Give the file its name; returns `{"size", "sha256"}`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.partial, self.final)
        fsync_folder(self.final.parent)
        return {"size": self.size, "sha256": self._hasher.hexdigest()}

    def discard(self) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)


class StreamFiles:
    """The files of one stream of documents: its tokens, the index of each document's first token and, if the
    loss is masked, one byte per token.

    Args:
        tokens: the file of the tokens; the others are named after it.
    """

    def __init__(self, tokens: Path, *, masked: bool) -> None:
        self._files: list[TokenFile] = []
        try:
            self._ids, self._starts = self._open(tokens), self._open(tokens.with_suffix(STARTS_SUFFIX))
            self._mask = self._open(tokens.with_suffix(MASK_SUFFIX)) if masked else None
        except OSError:
            self.discard()
            raise
        self.documents = self._size = 0

    def _open(self, path: Path) -> TokenFile:
        self._files.append(TokenFile(path))
        return self._files[-1]

    @property
    def learns_nothing(self) -> bool:
        """Whether there are tokens, and the mask lets the loss count none of them."""
        return self._mask is not None and self._size > 0 and not self._mask.total

    def append(self, ids: Sequence[int], mask: Sequence[bool] | None) -> None:
        self.documents += 1
        self._starts.append(np.array([self._size], dtype=np.int64))
        self._size += len(ids)
        self._ids.append(np.asarray(ids, dtype=np.int32))
        if self._mask is not None:
            self._mask.append(np.asarray(mask, dtype=np.uint8))

    def publish(self) -> dict[str, dict[str, Any]]:
        """Give the files their names; returns `{"size", "sha256"}` of each."""
        return {file.final.name: file.publish() for file in self._files}

    def discard(self) -> None:
        for file in self._files:
            file.discard()


def are_whole(folder: Path, entries: Any) -> bool:
    """Whether token files exist with the sizes and digests in their index."""
    if not isinstance(entries, Mapping) or not entries:
        return False
    for name, entry in entries.items():
        path = folder / Path(str(name)).name
        if not isinstance(entry, Mapping) or not path.is_file() or path.stat().st_size != entry.get("size"):
            return False
        if _sha256(path) != entry.get("sha256"):
            return False
    return True


def read_index(path: Path) -> dict[str, Any]:
    """The index of a stream; empty if there is none or it is damaged."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def source_facts(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Path, size, time and digest of every source file; for an address, what its server reports.

    Raises:
        DataError: a file cannot be read.
    """
    return [_remote_facts(str(place)) if is_remote(str(place)) else _facts(Path(place)) for place in places]


def same_sources(places: Sequence[Place], recorded: Any) -> bool:
    """Whether the files are unchanged since they were recorded: by size and time, else by digest."""
    if not isinstance(recorded, list) or len(recorded) != len(places):
        return False
    for place, before in zip(places, recorded, strict=True):
        if not isinstance(before, Mapping):
            return False
        if is_remote(str(place)):
            if dict(before) != _remote_facts(str(place)):
                return False
            continue
        path = Path(place)
        now = path.stat()
        if (str(path), now.st_size, now.st_mtime_ns) == tuple(
            before.get(key) for key in ("path", "size", "mtime_ns")
        ):
            continue
        if now.st_size != before.get("size") or _sha256(path) != before.get("sha256"):
            return False
    return True


def _facts(path: Path) -> dict[str, Any]:
    try:
        now = path.stat()
        return {
            "path": str(path),
            "size": now.st_size,
            "mtime_ns": now.st_mtime_ns,
            "sha256": _sha256(path),
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _remote_facts(address: str) -> dict[str, Any]:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
        info = system.info(path)
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{address}: cannot be opened ({reason_of(error)}).") from None
    kept = ("size", "ETag", "etag", "LastModified", "mtime", "sha256")
    return {"path": address} | {key: str(info[key]) for key in kept if info.get(key) is not None}


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(CHUNK):
            hasher.update(part)
    return hasher.hexdigest()
