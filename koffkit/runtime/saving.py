"""`KoffModel.save_pretrained`: an export of what a model has loaded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle, bundle_entry, open_bundle
from ..artefact.check import listed_files, require_sound
from ..artefact.digests import file_entry
from ..artefact.export import Export, is_export, open_export
from ..artefact.manifest import Manifest
from ..artefact.names import BACKBONE, CARD, MANIFEST, MEMORIES, MEMORY_FILE
from ..artefact.parts import FileEntry
from ..checkpoint.reader import CheckpointReader
from ..errors import IntegrityError, UsageError
from ..model.loaded import require_same_tensor
from ..storage.clock import timestamp
from ..storage.files import make_folder, write_atomically
from ..storage.publish import require_space, staged

MARGIN = 1 << 20
"""Bytes to allow beside what is copied."""


def save_export(model: Any, digest: str, backbone: Path, bundles: Sequence[Bundle], output: Path) -> None:
    """See `KoffModel.save_pretrained`.

    Args:
        model: the transformers model.
        digest: of the backbone.
        backbone: the folder that it was loaded from.
        bundles: its memories.
        output: the folder to make.
    """
    export = _export_of(backbone, digest)
    _require_unchanged(model, backbone)
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()  # as temporary folders are when one is asked for
    make_folder(output.parent)
    others = {name: entry for name, entry in listed_files(export).items() if not _is_of_memory(name)}
    sizes = [entry.size for entry in others.values()] + [bundle.bytes for bundle in bundles]
    require_space(output, sum(sizes) + MARGIN)
    with staged(output) as folder:
        for name in (*others, *_cards(export)):
            _copy(export.path / name, folder / name)
        saved = [_save_bundle(export, bundle, folder / MEMORIES / bundle.domain) for bundle in bundles]
        files = dict(others)
        for own, listed in saved:
            files |= {f"{MEMORIES}/{own.domain}/{name}": entry for name, entry in listed.items()}
        manifest = export.manifest.evolve(
            domains={own.domain: bundle_entry(own) for own, _ in saved}, files=files
        )
        _say_which_memories(folder / CARD, export.manifest, manifest)
        manifest.write(folder / MANIFEST)
        require_sound(open_export(folder), whole=True)


def _export_of(backbone: Path, digest: str) -> Export:
    """The export that a backbone's folder lies in.

    Raises:
        UsageError: it lies in none.
    """
    root = backbone.parent
    if backbone.name == BACKBONE and is_export(root):
        export = open_export(root)
        if export.backbone_digest == digest:
            return export
    raise UsageError(
        f"{backbone}: the backbone was not loaded from an export, so there is no {MANIFEST} to save with it; "
        "load the export's folder, or copy backbone and bundles as they are."
    )


def _require_unchanged(model: Any, backbone: Path) -> None:
    """Compare the weights in memory with the files, which are what is saved.

    Raises:
        UsageError: one was changed.
    """
    reader, loaded = CheckpointReader(backbone), dict(model.named_parameters(remove_duplicate=False))
    for name in reader.tensors:
        if name not in loaded or loaded[name].is_meta:  # what does not fit in memory stays on disk
            continue
        try:
            require_same_tensor(name, loaded[name], reader)
        except IntegrityError:
            raise UsageError(
                f"{name}: not what {backbone} holds. With other weights a backbone is another one, to which "
                "no memory belongs; `model.model.save_pretrained` saves it by itself."
            ) from None


def _is_of_memory(name: str) -> bool:
    return name.startswith(f"{MEMORIES}/")


def _cards(export: Export) -> list[str]:
    return [name for name in (CARD, f"{BACKBONE}/{CARD}") if (export.path / name).is_file()]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _save_bundle(export: Export, bundle: Bundle, folder: Path) -> tuple[Bundle, Mapping[str, FileEntry]]:
    """Copy a memory; returns it, and what the manifest lists of it.

    Raises:
        IntegrityError: its folder holds another one than was loaded.
    """
    if not bundle.path.is_dir() or open_bundle(bundle.path).info != bundle.info:
        raise IntegrityError(
            f"{bundle.path / MEMORY_FILE}: not the memory {bundle.domain!r} that was loaded; load it again "
            "with `load_memory(..., replace=True)`, or `unload_memory` it."
        )
    entries = dict(bundle.info.files)
    if bundle.path == export.path / MEMORIES / bundle.domain:  # with what its format adds to it
        prefix = f"{MEMORIES}/{bundle.domain}/"
        listed = listed_files(export)
        entries |= {name.removeprefix(prefix): own for name, own in listed.items() if name.startswith(prefix)}
    for name in (*entries, MEMORY_FILE, CARD):
        if (bundle.path / name).is_file():
            _copy(bundle.path / name, folder / name)
    if bundle.info.domain != bundle.domain:
        bundle.info.evolve(domain=bundle.domain).write(folder / MEMORY_FILE)
    return open_bundle(folder), entries | {MEMORY_FILE: file_entry(folder / MEMORY_FILE)}


def _say_which_memories(card: Path, before: Manifest, now: Manifest) -> None:
    """Add to a card which memories there are, where that has changed."""
    if not card.is_file() or before.domains == now.domains:
        return
    names = ", ".join(f"`{name}`" for name in now.domains) or "none"
    text = card.read_text(encoding="utf-8").rstrip("\n")
    told = (
        f"Saved by `KoffModel.save_pretrained` on {timestamp()[:10]} with other memories than above: {names}."
    )
    write_atomically(card, f"{text}\n\n## Memories\n\n{told}\n")
