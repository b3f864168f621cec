"""`koffkit restore`: the unpruned base again, from the backbone and all that was removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ..artefact.check import require_sound
from ..artefact.digests import backbone_digest
from ..artefact.export import Export, open_export
from ..artefact.manifest import KeptRemoved
from ..artefact.names import MASKS, REMOVED, REMOVED_WEIGHTS
from ..checkpoint.files import CONFIG, INDEX, tokenizer_files
from ..checkpoint.fingerprint import digest_of
from ..checkpoint.license import license_files
from ..checkpoint.reader import CheckpointReader, fsync_file
from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError, UsageError
from ..masks.file import load_masks
from ..masks.removed import WHOLE, Gone
from ..masks.slicing import backbone_slices, zero_rows
from ..progress import Progress, Silent
from ..storage.files import write_json
from ..storage.publish import require_space, staged
from ..storage.tensors_file import read_header, write_header

PIECE = 1 << 24
MARGIN = 1 << 26


def restore_base(
    path: Path, output: Path, *, base: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the unpruned base that an export was made from; the base itself is not needed.

    Args:
        path: an export that was made with `keep_removed`.
        output: the folder to make; it appears whole or not at all.
        base: the base, to compare the result with, tensor by tensor.
        progress: where to report; by default nowhere.

    Returns:
        What `koffkit restore --json` prints.

    Raises:
        UsageError: the export does not hold what was removed, or `output` exists.
        IntegrityError: a file of the export is damaged, or the result is not the base.
        ResourceError: the disk is too full.
    """
    progress, export = progress or Silent(), open_export(path)
    kept = export.manifest.kept_removed
    if kept is None:
        raise UsageError(
            f"{path}: this export does not hold what was removed; make it again with `koffkit export "
            f"--keep-removed`, or use the base itself ({export.manifest.base.public_name})."
        )
    require_space(output, export.manifest.base.bytes + MARGIN)
    progress.message("checking the export")
    require_sound(export, whole=True)
    with staged(output) as partial:
        tensors = _write_weights(_Parts(export, kept), partial, progress)
        shutil.copyfile(export.path / REMOVED / CONFIG, partial / CONFIG)
        for file in (*tokenizer_files(export.backbone), *license_files(export.backbone)):
            shutil.copyfile(file, partial / file.name)
        progress.message("checking what was restored")
        _require_equal(export, kept, partial, base)
    recorded = export.manifest.base
    return {
        "output": str(output),
        "base": recorded.public_name,
        "digest": recorded.fingerprint,
        "digest_kind": recorded.digest_kind,
        "tensors": tensors,
        "compared_with": None if base is None else str(base),
    }


class _Parts:
    """The base's tensors, put together one at a time."""

    def __init__(self, export: Export, kept: KeptRemoved) -> None:
        folder = export.path / REMOVED
        spec = ModelSpec.open(folder, family=export.manifest.base.architecture)
        masks = load_masks(export.path / MASKS, spec)
        self.copies = kept.copies
        self.backbone = CheckpointReader(export.backbone)
        self._slices, self._zeroed = backbone_slices(spec, masks), zero_rows(spec, masks)
        self._path = folder / REMOVED_WEIGHTS
        self._removed, _ = read_header(self._path, remedy="copy the export again")
        self._shapes = spec.weight_shapes

    def files(self) -> dict[str, dict[str, str]]:
        """What to write: by file, as the backbone is divided, each tensor and the one that it is a copy of
        (mostly itself).

        Raises:
            IntegrityError: a tensor of the base is nowhere.
        """
        place = {name: path.name for path, names in self.backbone.by_file.items() for name in names}
        last = next(reversed(self.backbone.by_file)).name
        files: dict[str, dict[str, str]] = {path.name: {} for path in self.backbone.by_file}
        order = [name for name in place if name in self._shapes]
        for name in (*order, *(name for name in self._shapes if name not in place)):
            if name not in place and name + WHOLE not in self._removed:
                raise IntegrityError(f"{self._path}: {name + WHOLE} is missing; copy the export again.")
            files[place.get(name, last)][name] = name
        for name, source in self.copies.items():
            files[place.get(source, last)][name] = source
        return {file: tensors for file, tensors in files.items() if tensors}

    def header(self, source: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor of the base."""
        info = self._removed.get(source + WHOLE) or self.backbone.tensors[source]
        return info.dtype, self._shapes[source]

    def pieces(self, name: str) -> Iterator[Any]:
        """The bytes of a tensor of the base."""
        if name in self._slices or name in self._zeroed or name + WHOLE in self._removed:
            yield np.ascontiguousarray(self._read(name)).reshape(-1).view(np.uint8).data
        else:
            yield from self.backbone.read_bytes(name, PIECE)

    def _read(self, name: str) -> NDArray[Any]:
        """A tensor of the base as raw numbers.

        Raises:
            IntegrityError: a part of it is missing.
        """
        if name + WHOLE in self._removed:
            return self._part(name + WHOLE)
        rows = [piece.copy() for _, piece in self.backbone.read_rows(name, PIECE)]
        gone = Gone.of(self._shapes[name], self._slices.get(name, {}), self._zeroed.get(name))
        parts = {}
        for ending, cuts in gone.cuts().items():
            parts[ending] = self._part(name + ending)
            size = tuple(len(indices) for indices in cuts.values())
            if parts[ending].shape[: len(size)] != size:
                raise IntegrityError(
                    f"{self._path}: {name + ending} has shape {list(parts[ending].shape)}, the masks need "
                    f"{list(size)}; copy the export again."
                )
        return gone.put_back(np.concatenate(rows), parts)

    def _part(self, name: str) -> NDArray[Any]:
        import torch

        if name not in self._removed:
            raise IntegrityError(f"{self._path}: {name} is missing; copy the export again.")
        with safe_open(self._path, framework="pt") as file:
            value = file.get_tensor(name)
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        size: int = value.element_size()
        raw: NDArray[Any] = value.contiguous().view(kinds[size]).numpy()
        return raw.view(f"u{size}")


def _write_weights(parts: _Parts, output: Path, progress: Progress) -> int:
    """Write the base's files, divided as those of the backbone are; returns the number of tensors."""
    files = parts.files()
    progress.start("restore", sum(len(tensors) for tensors in files.values()), 0)
    weight_map: dict[str, str] = {}
    total = 0
    for file_name, tensors in files.items():
        with open(output / file_name, "wb") as file:
            file.write(write_header({name: parts.header(source) for name, source in tensors.items()}))
            start = file.tell()
            for name, source in tensors.items():
                for piece in parts.pieces(source):
                    file.write(piece)
                weight_map[name] = file_name
                progress.advance("restore", len(weight_map), {})
            total += file.tell() - start
            fsync_file(file)
    if len(files) > 1:
        write_json(
            output / INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
    return len(weight_map)


def _require_equal(export: Export, kept: KeptRemoved, restored: Path, base: Path | None) -> None:
    """Refuse a result that is not the base.

    Raises:
        IntegrityError: it is not.
    """
    digest, recorded = backbone_digest(restored), export.manifest.base
    if digest != kept.tensors:
        raise IntegrityError(
            f"{export.path}: backbone and removed parts do not make the base (digest {digest[:12]}, not "
            f"{kept.tensors[:12]}); nothing was written. Copy the export again."
        )
    if recorded.digest_kind == "full" and digest_of(restored, "full") != recorded.fingerprint:
        raise IntegrityError(
            f"{export.path}: the tensors are the base's, its config or tokenizer is not; nothing was written."
            " Copy the export again."
        )
    if base is not None and backbone_digest(base) != digest:
        raise IntegrityError(
            f"{base}: its tensors are not those of the base that {export.path} was made from; give that one "
            "with --base, or leave it out."
        )
