"""Merging memories that independent jobs learned (`memory add --output`) into their export.

The export is made anew beside itself, of hard links and the new bundles, and exchanged with the old one in
one step: whoever reads it sees all of them or none, and a process that is killed leaves it as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle, bundle_entry, is_bundle, open_bundle
from ..artefact.check import require_sound, require_sound_bundle
from ..artefact.digests import file_entry, list_files
from ..artefact.export import Export, open_export
from ..artefact.names import CARD, MANIFEST, MEMORIES, MEMORY_FILE
from ..errors import IntegrityError, KoffkitError, UsageError
from ..progress import Progress, Silent, StepCounter
from ..router.routed import routed
from ..storage.lock import LOCK, claim, require_none_claimed
from ..storage.publish import replacing
from .manage import require_outside
from .recipe import check_name

NO_LINKS = (errno.EPERM, errno.EACCES, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
OURS = shutil.ignore_patterns(".*.koffkit-*", LOCK)
"""Locks and leftovers of killed writers."""


def collect_memories(path: Path, folders: Sequence[Path], progress: Progress | None = None) -> dict[str, Any]:
    """Put bundles into an export and its manifest: all of them, or none.

    Args:
        path: the export.
        folders: bundles, or folders of bundles.
        progress: told of every bundle; by default nobody is.

    Returns:
        What `koffkit memory collect --json` prints.

    Raises:
        UsageError: there is no export or bundle; a name is taken by another memory, or given twice; another
            process changes the export.
        IntegrityError: a bundle is damaged or for another backbone, or the export is damaged. Every bundle
            that is refused is named, and nothing has changed.
    """
    place = path.resolve()
    open_export(path)
    with claim(place):
        require_none_claimed(place / MEMORIES)
        export = open_export(path)
        require_sound(export)
        given = _bundles_in(export, folders)
        new = _new(export, given, StepCounter(progress or Silent(), "reading bundles", len(given)))
        if new:
            with replacing(place, claimed=True) as hidden:
                _fill(export, new, hidden)
    return _summary(path, given, new)


def _bundles_in(export: Export, folders: Iterable[Path]) -> list[Path]:
    """The folders of bundles that are meant.

    Raises:
        UsageError: a folder holds none, or is in the export.
    """
    found: list[Path] = []
    for folder in folders:
        require_outside(export, folder, "FOLDER")
        if is_bundle(folder):
            found.append(folder)
            continue
        inside = sorted(file.parent for file in folder.glob(f"*/{MEMORY_FILE}"))
        inside = [place for place in inside if not place.name.startswith(".")]  # those are being written
        if not inside:
            raise UsageError(
                f"{folder}: no memory bundle (NAME/{MEMORY_FILE}) in it; `koffkit memory add --output` makes "
                "them."
            )
        found += inside
    return list(dict.fromkeys(found))


def _new(export: Export, given: Sequence[Path], step: Callable[[], None]) -> dict[str, Bundle]:
    """The bundles that the export does not have yet, by name, in the order given.

    Raises:
        KoffkitError: some cannot be taken, one line each.
    """
    there = {bundle.domain: _digest(bundle) for bundle in export.bundles()}
    new: dict[str, Bundle] = {}
    problems: list[KoffkitError] = []
    for folder in given:
        try:
            bundle = open_bundle(folder)
            check_name(bundle.domain)
            bundle.require_backbone(export.backbone_digest, export.backbone)
            require_sound_bundle(bundle)
            if not _is_there(bundle, there, export) and not _is_twice(bundle, new):
                new[bundle.domain] = bundle
        except KoffkitError as error:
            problems.append(error)
        step()
    if problems:
        kind = next((type(one) for one in problems if isinstance(one, IntegrityError)), type(problems[0]))
        raise kind("\n".join(str(problem) for problem in problems))
    return new


def _digest(bundle: Bundle) -> str:
    """Of its `memory.json`, which has the digests of all other files."""
    return file_entry(bundle.path / MEMORY_FILE).sha256


def _is_there(bundle: Bundle, there: dict[str, str], export: Export) -> bool:
    if bundle.domain in there and there[bundle.domain] != _digest(bundle):
        raise UsageError(
            f"{bundle.path}: {export.path} has another memory {bundle.domain!r}; remove that one with "
            "`koffkit memory remove`, or learn this one under another name."
        )
    return bundle.domain in there


def _is_twice(bundle: Bundle, new: dict[str, Bundle]) -> bool:
    other = new.get(bundle.domain)
    if other is not None and _digest(other) != _digest(bundle):
        raise UsageError(
            f"{bundle.path}: another memory {bundle.domain!r} is in {other.path}; give one of them."
        )
    return other is not None


def _fill(export: Export, new: dict[str, Bundle], hidden: Path) -> None:
    """Make the export with its new memories in the folder `hidden`."""
    shutil.copytree(export.path, hidden, symlinks=True, ignore=OURS, copy_function=_link, dirs_exist_ok=True)
    manifest = export.manifest
    domains, files = dict(manifest.domains), dict(manifest.files)
    for name, bundle in new.items():
        target = hidden / MEMORIES / name
        shutil.rmtree(target, ignore_errors=True)  # what is left of a removed one: its card
        for file in (*bundle.info.files, MEMORY_FILE, CARD):
            if (bundle.path / file).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path / file, target / file)
        copied = open_bundle(target)
        require_sound_bundle(copied)
        domains[name] = bundle_entry(copied)
        files = {file: entry for file, entry in files.items() if not file.startswith(f"{MEMORIES}/{name}/")}
        files |= {
            f"{MEMORIES}/{name}/{_below(file, target)}": file_entry(file) for file in list_files(target)
        }
    manifest.evolve(domains=domains, files=files).write(hidden / MANIFEST)


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where there can be none; no file of an export is ever written into."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target)


def _summary(path: Path, given: Sequence[Path], new: dict[str, Bundle]) -> dict[str, Any]:
    export = open_export(path)
    bundles = {bundle.domain: bundle for bundle in export.bundles()}
    router = routed(export, list(bundles.values()))
    names = dict.fromkeys(open_bundle(folder).domain for folder in given)
    known = () if router is None else router.labels
    return {
        "path": str(path),
        "collected": list(new),
        "already": [name for name in names if name not in new],
        "bytes": sum(bundles[name].bytes for name in new),
        "not_in_router": [name for name in names if name not in known],
        "memories": list(bundles),
    }
