"""Publishing a folder: it appears whole under its name, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import ResourceError, UsageError
from ..interrupts import interruptible
from .files import fsync_folder, make_folder, require_place
from .lock import claim, tidy
from .partial import ASIDE, MARK, partial_of, remove


def discard(folder: Path) -> None:
    """Delete a folder atomically: rename it to a hidden name, then delete it."""
    tombstone = partial_of(folder)
    shutil.rmtree(tombstone, ignore_errors=True)
    os.rename(folder, tombstone)
    fsync_folder(folder.parent)
    shutil.rmtree(tombstone, ignore_errors=True)  # the next writer deletes what remains


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another place, where it appears whole or not at all; only then is it gone from its own.

    Raises:
        UsageError: there is something at `target`.
        ResourceError: `target` is on another disk, which is too full.
    """
    require_free(target)
    make_folder(target.parent)
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        require_space(target, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        with staged(target) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
        discard(folder)
        return
    fsync_folder(target.parent)
    fsync_folder(folder.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder to write into, which replaces `target` when the block ends without an error. The caller
    must hold the folder around it (`writing_in`)."""
    make_folder(target.parent)
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)
        fsync_folder(target.parent)
    finally:
        remove(partial)


@contextmanager
def replacing(target: Path, *, claimed: bool = False) -> Iterator[Path]:
    """A hidden folder to write into, exchanged with `target` when the block ends without an error; the old
    one is deleted.

    Args:
        claimed: the caller holds the name already (`claim`).

    Raises:
        UsageError: another process is writing `target`, or it is gone.
    """
    with nullcontext() if claimed else claim(target):
        if not target.is_dir():
            raise UsageError(f"{target}: removed by another command in the meantime.")
        partial = partial_of(target)
        with _written(partial, lambda: exchange(partial, target)):
            yield partial


def exchange(one: Path, other: Path) -> None:
    """Swap two folders: atomically if the system can (Linux), else by three renames."""
    at_fdcwd, swap = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), swap) != 0:
        aside = other.with_name(f".{other.name}{ASIDE}-{os.getpid()}")  # restored if the process ends here
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)
    fsync_folder(one.parent)


@contextmanager
def staged(output: Path, *, claimed: bool = False) -> Iterator[Path]:
    """A hidden folder beside `output` to write into; renamed to `output` when the block ends without an
    error.

    Args:
        output: the folder to publish.
        claimed: whether the caller holds the name already (`claim`).

    Raises:
        UsageError: `output` exists or cannot be made, or another process is making it.
    """
    require_free(output)
    make_folder(output.parent)
    partial = partial_of(output)

    def publish() -> None:
        if os.path.lexists(output):
            raise UsageError(f"{output}: appeared in the meantime; nothing was published.")
        os.rename(partial, output)
        fsync_folder(output.parent)

    with nullcontext() if claimed else claim(output):
        require_free(output)  # another process may have made it before the claim
        with _written(partial, publish):
            yield partial


@contextmanager
def _written(partial: Path, publish: Callable[[], None]) -> Iterator[None]:
    """Make a folder with this name for the block, then sync and publish it; whatever remains under the name
    is deleted."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with interruptible(at_once=True) as interrupted:
            yield
            _sync(partial)
            if interrupted():
                raise KeyboardInterrupt
            publish()
    finally:
        remove(partial)


def require_free(output: Path) -> None:
    """Check that nothing exists here and a folder can be made.

    Raises:
        UsageError: there is something already, or a file stands in the way.
    """
    if output.exists():
        tidy(output.parent)  # its maker may have been killed just after publishing
        raise UsageError(f"{output}: exists already; choose another --output, or remove it first.")
    require_place(output)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start writing without enough space.

    Args:
        folder: where it will be written; it need not exist.
        needed: bytes.

    Raises:
        ResourceError: less than `needed` bytes are free where `folder` will be.
    """
    place = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{folder}: {needed:,} bytes are needed, {place} has {free:,} free; free some, or choose another "
            "place."
        )


def _sync(folder: Path) -> None:
    """Sync everything below a folder, including files that were not synced when written."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


__all__ = [
    "MARK",
    "discard",
    "exchange",
    "move_folder",
    "replacing",
    "require_free",
    "require_space",
    "staged",
    "whole_folder",
]
