"""Names of files and folders that are being written, and deleting the leftovers of killed programs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

MARK = ".koffkit-partial"
ASIDE = ".koffkit-aside"
_PARTIAL = re.compile(r".+(\.koffkit-partial|\.partial)-\d+")  # the second form is that of earlier versions


def partial_of(path: Path) -> Path:
    """The hidden name beside `path` under which this process writes it."""
    return path.with_name(f".{path.name}{MARK}-{os.getpid()}")


def is_partial(path: Path) -> bool:
    """Whether this is a name under which koffkit writes."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove(path: Path) -> None:
    """Delete a file, link or whole folder; it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path) -> None:
    """Delete leftovers of interrupted writers below `folder`. The caller must hold its lock, so that nobody
    else is writing there."""
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if is_partial(Path(place, name)):
                remove(Path(place, name))
        folders[:] = [name for name in folders if not is_partial(Path(name))]


def leftovers(target: Path) -> Iterator[Path]:
    """Leftovers of interrupted writers of `target`, beside it."""
    for path in sorted(target.parent.glob(f".{_literally(target.name)}*")):
        if re.fullmatch(rf"\.{re.escape(target.name)}(\.new)?({MARK}|{ASIDE})-\d+", path.name):
            yield path


def recover(target: Path) -> None:
    """Delete leftovers of interrupted writers of `target`, and restore a folder that was only moved aside.
    The caller must hold the lock of `target`."""
    for path in leftovers(target):
        if ASIDE in path.name and not os.path.lexists(target):
            os.rename(path, target)
        else:
            remove(path)


def _literally(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
