"""How a file or folder is called while it is being written, and clearing away what a killed program left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

MARK = ".koffkit-partial"
ASIDE = ".koffkit-aside"
_PARTIAL = re.compile(r".+(\.koffkit-partial|\.partial)-\d+")  # the second as earlier versions named them


def partial_of(path: Path) -> Path:
    """The hidden name beside `path` under which this process writes it."""
    return path.with_name(f".{path.name}{MARK}-{os.getpid()}")


def is_partial(path: Path) -> bool:
    """Whether this is a name under which koffkit writes."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove(path: Path) -> None:
    """Delete a file, link or whole folder; one that is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path) -> None:
    """Delete what interrupted writers left below `folder`. Only for whoever holds its lock: nobody else then
    writes there."""
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if is_partial(Path(place, name)):
                remove(Path(place, name))
        folders[:] = [name for name in folders if not is_partial(Path(name))]


def leftovers(target: Path) -> Iterator[Path]:
    """What interrupted writers of `target` left beside it."""
    for path in sorted(target.parent.glob(f".{_literally(target.name)}*")):
        if re.fullmatch(rf"\.{re.escape(target.name)}(\.new)?({MARK}|{ASIDE})-\d+", path.name):
            yield path


def recover(target: Path) -> None:
    """Clear away what interrupted writers of `target` left beside it; a folder that was only moved aside
    comes back. Only for whoever holds the lock of `target`."""
    for path in leftovers(target):
        if ASIDE in path.name and not os.path.lexists(target):
            os.rename(path, target)
        else:
            remove(path)


def _literally(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
