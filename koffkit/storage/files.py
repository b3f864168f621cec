"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError
from .partial import partial_of, remove


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make system errors inside the block name the file, which a failed write does not do by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file to write into; it replaces `path` when the block ends without an error, and is deleted
    otherwise."""
    partial = partial_of(path)
    try:
        with naming(path), open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise
    fsync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a temporary file, sync it and rename it: `path` appears whole or stays as it was.

    Args:
        path: the file.
        content: text (UTF-8) or bytes.
    """
    with replacing_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of an indented JSON document."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably.

    Raises:
        UsageError: a file or a dangling link stands in the way.
    """
    if folder.is_dir():
        return
    require_place(folder)
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:  # another process has just removed the parent
        make_folder(folder)
        return
    fsync_folder(folder.parent)


def require_place(folder: Path) -> None:
    """Check that a folder exists or can be made.

    Raises:
        UsageError: a file or a dangling link stands in the way.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if os.path.lexists(place) and not place.is_dir():  # nobody made it between the two questions
            what = "a link that leads nowhere" if place.is_symlink() and not place.exists() else "a file"
            raise UsageError(f"{folder}: {place} is {what}, not a folder; choose another --output.")


def fsync_folder(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
