"""One writer at a time: a lock that the system releases when its holder ends, however it ends.

The lock is the system's (`flock`), not the existence of a file, so a dead holder never blocks. The content of
the lock file (process, machine, command) is for the error message of the next writer.
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
PATIENCE = 0.5  # seconds; a lock held only to clear leftovers is free again by then
_WRITING = "{what}: {holder} is writing it; wait until that has ended, or stop it."
_held: set[int] = set()


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Lock `folder` while the block writes into it. A missing folder is made, and removed if nothing was
    written; leftovers of killed writers are deleted first.

    Raises:
        UsageError: another process is writing there, or there can be no folder at the path.
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
def claim(target: Path, *, patience: float | None = None) -> Iterator[None]:
    """Lock the name `target`, which need not exist, while the block makes, replaces or removes it; the lock
    file is beside it. Leftovers of killed writers are deleted first.

    Args:
        patience: seconds to wait for another writer; None: hardly any.

    Raises:
        UsageError: another process is writing it, or there can be no folder at the path.
    """
    with _locked(lock_beside(target), target, patience):
        recover(target)
        tidy(target.parent, but=target.name)
        yield


def writer_in(folder: Path) -> str | None:
    """Who holds `folder` (`writing_in`), as in `process 12 on host (koffkit compress ...)`; None: nobody."""
    return _holder_of(folder / LOCK)


def require_unclaimed(target: Path) -> None:
    """Refuse a name that another process holds (`claim`).

    Raises:
        UsageError: with that process.
    """
    _refuse_holder(lock_beside(target), target)


def require_none_claimed(folder: Path) -> None:
    """`require_unclaimed` for every name in a folder."""
    for lock in sorted(folder.glob(f".*{LOCK}")):
        _refuse_holder(lock, folder / lock.name.removeprefix(".").removesuffix(LOCK))


def _refuse_holder(lock: Path, what: Path) -> None:
    holder = _holder_of(lock)
    if holder is not None:
        raise UsageError(_WRITING.format(what=what, holder=holder))


def _holder_of(lock: Path) -> str | None:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
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
    """Whether a file is a lock of koffkit, not a file of the user."""
    return path.name.endswith(LOCK)


def tidy(folder: Path, *, but: str = "") -> None:
    """Delete leftovers of dead writers in `folder`; live ones are not disturbed.

    Args:
        but: a name to leave alone.
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
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its text
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _self_description(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_the_same(descriptor, lock):  # else the folder was moved or recreated
                lock.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(lock: Path, what: Path, patience: float) -> int:
    """Open and lock a file, again if its former holder deleted it between opening and locking."""
    while True:
        make_folder(lock.parent)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if not os.path.lexists(lock.parent) or lock.parent.is_dir():
                continue  # another writer has just removed the folder that it had made
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
            raise UsageError(_WRITING.format(what=what, holder=_holder(descriptor))) from None
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
    except (OSError, ValueError, KeyError, TypeError):  # the holder has not written its text yet
        return "another process"


def _let_go_in_child() -> None:
    """Release the locks in a forked child, which must not keep those of a killed parent."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
