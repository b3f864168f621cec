"""Operations on files below a folder: counted, and one of them broken.

Works in a process of its own: it replaces functions of `os` and `io`, and `SIGKILL` ends the process.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILL = "SIGKILL"
FAULTS = ("ENOSPC", "EIO", "EINTR", KILL)
NEED_NO_SPACE = ("unlink",)  # ENOSPC cannot happen there
CALLS = {
    "fsync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "unlink",
    "mkdir": "mkdir",
    "pwrite": "write",
}


@dataclass
class Faults:
    """Counts operations below `root`; at the one with the number `at` (from 0) the fault happens.

    Args:
        at: None: only count.
    """

    root: Path
    at: int | None = None
    fault: str = KILL
    seen: list[tuple[str, str]] = field(default_factory=list)

    def hit(self, kind: str, path: Any, done: Callable[[], Any] | None = None) -> None:
        """One operation of this kind; `done` happens before it fails."""
        place = self._below(path)
        if place is None:
            return
        self.seen.append((kind, place))
        if len(self.seen) - 1 != self.at:
            return
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if done is not None:
            done()
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code), str(self.root / place))

    def _below(self, path: Any) -> str | None:
        """A path below the root, relative to it."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links stay as they are
        return os.path.relpath(path, self.root) if path.startswith(f"{self.root}{os.sep}") else None

    def install(self) -> None:
        """Replace the functions, for the rest of this process."""
        for name, kind in CALLS.items():
            setattr(os, name, self._watched(getattr(os, name), kind))
        os.open = self._watched(os.open, "open")
        builtins.open = io.open = self._open_file  # type: ignore[assignment]
        self._watch_exchange()

    def _watched(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def watched(path: Any, *arguments: Any, **named: Any) -> Any:
            place, folder = path, named.get("dir_fd")
            if folder is not None:
                place = Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)
            if not (kind == "open" and arguments and not arguments[0] & (os.O_WRONLY | os.O_RDWR)):
                self.hit(kind, place)
            return call(path, *arguments, **named)

        return watched

    def _watch_exchange(self) -> None:
        """The exchange of two folders is a call of the system's own."""
        from koffkit.storage import publish

        publish.exchange = self._watched(publish.exchange, "rename")

    def _open_file(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if isinstance(file, int) or self._below(file) is None:
            return _OPEN(file, mode, *arguments, **named)
        self.hit("open", file)
        if not set(mode) & set("wax+"):
            return _OPEN(file, mode, *arguments, **named)
        raw = _WatchedFile(file, mode.replace("b", "").replace("t", ""))
        raw.faults = self
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding=named.get("encoding"), newline=named.get("newline"))


class _WatchedFile(io.FileIO):
    faults: Faults | None = None

    def write(self, data: Any) -> int:
        if self.faults is not None:
            self.faults.hit("write", self.name)
        return super().write(data)

    def close(self) -> None:
        if self.faults is None or self.closed:
            super().close()
            return
        faults, self.faults = self.faults, None
        faults.hit("close", self.name, super().close)
        super().close()


_OPEN = io.open
