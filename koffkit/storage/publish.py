"""Publishing a folder: it appears whole under its name, or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ResourceError, UsageError
from ..interrupts import interruptible
from .files import fsync_folder


def discard(folder: Path) -> None:
    """Delete a folder so that it is whole under its name until it is gone: renamed to a name that nobody
    reads, then deleted."""
    grave = folder.with_name(f".{folder.name}{MARK}-{os.getpid()}")
    shutil.rmtree(grave, ignore_errors=True)
    os.rename(folder, grave)
    fsync_folder(folder.parent)
    shutil.rmtree(grave)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A hidden folder to write into, exchanged with `target` when the block ends without an error; the old
    one is deleted."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with staged(fresh) as partial:
        yield partial
    exchange(fresh, target)
    shutil.rmtree(fresh)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders: at once where the system can (Linux), else by three renames."""
    at_fdcwd, swap = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), swap) != 0:
        aside = one.with_name(f"{one.name}.aside")
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)
    fsync_folder(one.parent)


MARK = ".koffkit-partial"


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` to write into; renamed to `output` when the block ends without an
    error.

    Raises:
        UsageError: `output` exists.
    """
    if output.exists():
        raise UsageError(f"{output}: exists already; choose another --output, or remove it first.")
    output.parent.mkdir(parents=True, exist_ok=True)
    for stale in output.parent.glob(f".{output.name}{MARK}-*"):
        if not _alive(stale):
            shutil.rmtree(stale, ignore_errors=True)
    partial = output.parent / f".{output.name}{MARK}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with interruptible(at_once=True) as interrupted:
            yield partial
            _sync(partial)
            if interrupted():
                raise KeyboardInterrupt
            if output.exists():
                raise UsageError(f"{output}: appeared in the meantime; nothing was published.")
            os.rename(partial, output)
            fsync_folder(output.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, needed: int) -> None:
    """Fail before writing, not in the middle of it.

    Raises:
        ResourceError: less than `needed` bytes are free where `folder` will be.
    """
    place = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{folder}: the export needs {needed:,} bytes, {place} has {free:,} free; choose another "
            "--output."
        )


def _alive(partial: Path) -> bool:
    try:
        os.kill(int(partial.name.rpartition("-")[2]), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def _sync(folder: Path) -> None:
    """Small files were not synced one by one; weights were."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)
