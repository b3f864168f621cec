"""One writer at a time: a lock file that the system releases when its holder ends, however it ends.

The lock is the system's (`flock`), not the file's existence, so that a dead holder never blocks. What the
file says (process, machine, command) is for the message of whoever is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UsageError
from .files import make_folder
from .partial import ASIDE, MARK, recover, sweep

LOCK = ".koffkit-lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that cannot lock
LONGEST_COMMAND = 160
PATIENCE = 0.5  # seconds: a lock that is only held to clear leftovers away is free again by then
_held: set[int] = set()


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Hold `folder` while the block writes into it. It is made where it is missing, and goes again where
    nothing was written; what killed writers left half done is swept away first.

    Raises:
        UsageError: another process is writing there, or the path is no place for a folder.
    """
    made = not folder.is_dir()
    try:
        with _locked(folder / LOCK, folder):
            sweep(folder)
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: something was written
                folder.rmdir()


@contextmanager
def claim(target: Path) -> Iterator[None]:
    """Hold the name `target`, whether it is there or not, while the block makes, replaces or removes it; the
    lock lies beside it. What killed writers left there is swept away first.

    Raises:
        UsageError: another process is writing it, or the path is no place for a folder.
    """
    with _locked(lock_beside(target), target):
        recover(target)
        tidy(target.parent, but=target.name)
        yield


def writer_in(folder: Path) -> str | None:
    """Who holds `folder` (`writing_in`), as in `process 12 on host (koffkit compress ...)`; None: nobody."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:  # a file system that cannot lock
        return None
    finally:
        os.close(descriptor)  # and lets go
    return None


def lock_beside(target: Path) -> Path:
    """The lock file of a folder that appears whole or not at all."""
    return target.with_name(f".{target.name}{LOCK}")


def is_own(path: Path) -> bool:
    """Whether a file is a lock of ours, and so nothing that a user put there."""
    return path.name.endswith(LOCK)


def tidy(folder: Path, *, but: str = "") -> None:
    """Clear away what dead writers of the names in `folder` left there; live ones are not disturbed.

    Args:
        but: a name that is left as it is.
    """
    names = set()
    for path in folder.glob(".*.koffkit-*"):
        for mark in (MARK, ASIDE, LOCK):
            name, _, rest = path.name.removeprefix(".").rpartition(mark)
            if name and rest.removeprefix("-").isdigit() == (mark != LOCK):
                names.add(name)
    for name in names - {but}:
        other = folder / name
        with contextlib.suppress(UsageError, OSError), _locked(lock_beside(other), other, patience=0):
            recover(other)


@contextmanager
def _locked(lock: Path, what: Path, patience: float | None = None) -> Iterator[None]:
    descriptor = _acquire(lock, what, PATIENCE if patience is None else patience)
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _self_description(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_the_same(descriptor, lock):  # else the folder was moved or made anew
                lock.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(lock: Path, what: Path, patience: float) -> int:
    """An open and locked file. Its holder may have deleted it between our opening and locking; then again."""
    while True:
        make_folder(lock.parent)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if not os.path.lexists(lock.parent) or lock.parent.is_dir():
                continue  # a refused writer has just removed the folder that it had made
            raise
        try:
            _flock(descriptor, what, patience)
            same = _is_the_same(descriptor, lock)
        except BaseException:
            os.close(descriptor)
            raise
        if same:
            return descriptor
        os.close(descriptor)


def _flock(descriptor: int, what: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(PATIENCE / 20)
                continue
            holder = _holder(descriptor)
            raise UsageError(
                f"{what}: {holder} is writing it; wait until that has ended, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return


def _is_the_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _self_description() -> bytes:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:LONGEST_COMMAND]
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command})
    return text.encode()


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(said['pid'])} on {said['host']} ({said['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"


def _let_go_in_child() -> None:
    """A forked child must not keep the lock of a parent that was killed."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
