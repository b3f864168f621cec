"""Is what lies in a folder what was put there? Before anything is loaded from an export or a bundle, its
files are compared with what `koffkit.json` and `memory.json` list.

Weights of the backbone may be compared by size, header and samples alone, which takes milliseconds whatever
their size; everything else is always read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint.fingerprint import sampled_digest
from ..errors import IntegrityError, KoffkitError
from ..progress import Progress, Silent, StepCounter
from .bundle import Bundle, open_bundle
from .digests import file_entry
from .export import Export, removed_memories
from .names import (
    ADAPTER_CONFIG,
    ADAPTER_PACKED,
    ADAPTER_WEIGHTS,
    BACKBONE,
    CARD,
    KV_MEMORY,
    KV_MEMORY_PACKED,
    MANIFEST,
    MEMORIES,
    MEMORY_FILE,
    NEURONS,
    NEURONS_PACKED,
    REMOVED,
    ROUTER,
)
from .parts import FileEntry

PARTS = (BACKBONE, MEMORIES, ROUTER, REMOVED)
"""Folders of an export, beside those of which its manifest lists files."""
ACTED_ON = {".py", ".json", ".jinja", ".safetensors", ".model", ".bin", ".pt", ".pth", ".ckpt", ".pkl"}
"""Endings of files that other software acts on; beside the folders of an export, others do no harm."""


def require_sound(export: Export, *, whole: bool = False, progress: Progress | None = None) -> None:
    """Refuse an export whose files are not those that it lists.

    Args:
        whole: read every byte of the backbone's weights, rather than size, header and samples.
        progress: told of every file; by default nobody is.

    Raises:
        IntegrityError: with the first file that is wrong, and how many more are.
    """
    _refuse(list(export_problems(export, whole=whole, progress=progress)))


def require_sound_bundle(bundle: Bundle) -> None:
    """`require_sound` for a bundle by itself."""
    _refuse(list(bundle_problems(bundle)))


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more; `koffkit verify` names them)" if problems[1:] else ""
        raise IntegrityError(f"{problems[0]}{more}")


def export_problems(export: Export, *, whole: bool, progress: Progress | None = None) -> Iterator[str]:
    """What is wrong with the files of an export; each text begins with the file.

    Args:
        export: the export.
        whole: read every byte of the backbone's weights, rather than size, header and samples.
        progress: told of every file; by default nobody is.
    """
    root, listed = export.path, listed_files(export)
    if export.manifest.backbone.path != BACKBONE:
        yield f"{root / MANIFEST}: backbone.path: {export.manifest.backbone.path!r}; it must be {BACKBONE!r}."
    bundles, wrong = _bundles(export)
    yield from wrong
    yield from listed_problems(root, listed, MANIFEST, whole=whole, progress=progress)
    allowed = {root / name for name in listed}
    for bundle in bundles:
        allowed |= {bundle.path / MEMORY_FILE, *(bundle.path / name for name in bundle.info.files)}
        yield from _half_problems(bundle)
        if f"{MEMORIES}/{bundle.path.name}/{MEMORY_FILE}" not in listed:
            yield from listed_problems(bundle.path, bundle.info.files, MEMORY_FILE)
    parts = {*PARTS, *(name.partition("/")[0] for name in listed if "/" in name)}
    for path in _files(root):
        part = path.relative_to(root).parts[0]
        if path not in allowed and (part in parts or (path.parent == root and path.suffix in ACTED_ON)):
            yield _unlisted(path)
    yield from _escapes(root)


def _bundles(export: Export) -> tuple[list[Bundle], list[str]]:
    """The memories that can be read and are for this backbone, and what is wrong with the others."""
    bundles, wrong = [], []
    for path in sorted((export.path / MEMORIES).glob(f"*/{MEMORY_FILE}")):
        if path.parent.name.startswith("."):
            continue
        try:
            bundle = open_bundle(path.parent)
            bundle.require_backbone(export.backbone_digest, export.backbone)
            bundles.append(bundle)
        except KoffkitError as error:
            wrong.append(str(error))
    return bundles, wrong


def bundle_problems(bundle: Bundle) -> Iterator[str]:
    """`export_problems` for a bundle by itself."""
    root = bundle.path
    yield from listed_problems(root, bundle.info.files, MEMORY_FILE)
    yield from _half_problems(bundle)
    allowed = {root / MEMORY_FILE, *(root / name for name in bundle.info.files)}
    yield from (_unlisted(path) for path in _files(root) if path not in allowed)
    yield from _escapes(root)


def listed_files(export: Export) -> dict[str, FileEntry]:
    """The manifest's files, less cards, and less those of memories that were removed or replaced on purpose;
    a replaced one lists its own."""
    gone = removed_memories(export)
    gone += [name for name in export.manifest.domains if name not in gone and export.is_replaced(name)]
    prefixes = tuple(f"{MEMORIES}/{name}/" for name in gone)
    return {
        name: entry
        for name, entry in export.manifest.files.items()
        if Path(name).name != CARD and not (prefixes and name.startswith(prefixes))
    }


def listed_problems(
    root: Path,
    listed: Mapping[str, FileEntry],
    where: str,
    *,
    whole: bool = True,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Files that are missing or have changed.

    Args:
        where: the name of the file that lists them.
        whole: read every byte of files of which samples are known too.
        progress: told of every file; by default nobody is.
    """
    inside = root.resolve()
    step = StepCounter(progress or Silent(), "reading files", len(listed))
    for name, entry in listed.items():
        path = root / name
        if not _within(path, inside):
            yield f"{path}: leads out of {root}; copy the file itself there."
        elif not path.is_file():
            yield f"{path}: missing; {where} lists it. Copy the folder again."
        elif path.stat().st_size != entry.size:
            yield f"{path}: {path.stat().st_size} bytes, {entry.size} expected; copy the file again."
        elif not whole and entry.sampled is not None:
            if sampled_digest(path) != entry.sampled:
                yield f"{path}: samples of it are not those in {where}; the content has changed."
        elif file_entry(path).sha256 != entry.sha256:
            yield f"{path}: its sha256 is not the one in {where}; the content has changed."
        step()


def _half_problems(bundle: Bundle) -> Iterator[str]:
    """A bundle lists the weights of the halves that it says it has, and no others."""
    info, files = bundle.info, bundle.info.files.keys()
    halves = (
        ("lora", info.lora is not None, {ADAPTER_WEIGHTS, ADAPTER_PACKED}),
        ("kv", info.kv is not None, {KV_MEMORY, KV_MEMORY_PACKED}),
        ("neurons", info.neurons is not None, {NEURONS, NEURONS_PACKED}),
    )
    for half, there, names in halves:
        if there != bool(files & names):
            said = "lists no weights of its half" if there else "lists weights of a half that is off,"
            yield f"{bundle.path / MEMORY_FILE}: {said} {half!r}; copy the bundle again."
    if info.lora is not None and ADAPTER_CONFIG not in files:
        yield f"{bundle.path / MEMORY_FILE}: does not list {ADAPTER_CONFIG}; copy the bundle again."


def _unlisted(path: Path) -> str:
    return f"{path}: nobody lists this file, and other software may act on it; remove it."


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders of a tree with the names in them, without hidden ones: locks and what is just being written."""
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), folders, sorted(name for name in files if not name.startswith("."))


def _files(root: Path) -> Iterator[Path]:
    """Every file but cards and the manifest."""
    for place, _, names in _walk(root):
        yield from (place / name for name in names if name != CARD and place / name != root / MANIFEST)


def _escapes(root: Path) -> Iterator[str]:
    """Links that lead out, to folders too: whoever loads follows them."""
    inside = root.resolve()
    for place, folders, files in _walk(root):
        for path in (place / name for name in [*folders, *files]):
            if path.is_symlink() and not _within(path, inside):
                yield f"{path}: a link that leads out of {root}; copy what it names there."


def _within(path: Path, inside: Path) -> bool:
    """Whether a path stays in the folder, or, in a cache of the hub, in the files its snapshots share."""
    target = path.resolve()
    shared = [parent.parent / "blobs" for parent in (inside, *inside.parents) if parent.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (inside, *shared))
