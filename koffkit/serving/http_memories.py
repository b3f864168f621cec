"""Memories that come, change and go while the server runs."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import Self

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.export import Export
from ..artefact.names import MEMORIES, MEMORY_FILE
from ..errors import KoffkitError, UsageError, near_name
from .engine import Engine
from .engine_rows import UnknownMemory

logger = logging.getLogger(__name__)


class Memories:
    """The memories of a running server; a context manager, whose thread looks into the export's folder.

    A memory that is replaced or removed is changed between two steps: rows that use it are finished first,
    and those that want it wait until then. The rest of the batch goes on.

    Args:
        model: a `KoffModel`.
        engine: of that model.
        export: what is served; None: there is no folder to look into.
        seconds: between two looks.
        changed: told of what happened, `added`, `replaced`, `removed` or `failed`, and in words.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        export: Export | None,
        seconds: float = 5.0,
        changed: Callable[[str, str], None] = lambda what, words: None,
    ) -> None:
        self._model, self._engine, self._export = model, engine, export
        self._seconds, self._changed = seconds, changed
        self._digests = self._on_disk()
        self._problems: dict[str, tuple[str, str]] = {}  # by name: the digest, and what is wrong with it
        self._lock = threading.RLock()
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="koffkit-memories", daemon=True)

    def __enter__(self) -> Self:
        if self._export is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def look_now(self) -> None:
        """Look into the folder at once; may be called by a signal handler."""
        self._wake.set()

    @property
    def problems(self) -> dict[str, str]:
        """Memories in the folder that could not be loaded, and why."""
        return {name: text for name, (_, text) in self._problems.items()}

    def add(self, path: Path, *, replace: bool = False) -> str:
        """Load a bundle from anywhere; returns its domain.

        Raises:
            UsageError: it is no bundle, or there is a memory of that domain and `replace` is not set.
            IntegrityError: it is damaged, or belongs to another backbone.
        """
        with self._lock:
            bundle = open_bundle(path)
            if bundle.domain in self._model.domains and not replace:
                raise UsageError(
                    f"{path}: a memory {bundle.domain!r} is loaded already; pass replace, or remove it first."
                )
            return self._take(bundle)

    def remove(self, name: str) -> None:
        """Unload a memory; its files stay.

        Raises:
            UnknownMemory: there is none of that name.
        """
        with self._lock:
            if name not in self._model.domains:
                raise UnknownMemory(f"no memory {name!r}; {near_name(name, self._model.domains)}")
            with self._engine.quiet(name):
                self._model.unload_memory(name)
        self._tell("removed", name)

    def look(self) -> None:
        """Compare the folder with what is loaded, and follow it."""
        with self._lock:
            found = self._on_disk()
            for name, digest in found.items():
                known = self._digests.get(name) == digest
                if not known and self._problems.get(name, ("",))[0] != digest:
                    self._follow(name, digest)
            for name in [name for name in self._digests if name not in found]:
                del self._digests[name]
                if name in self._model.domains:
                    self.remove(name)
            self._problems = {name: entry for name, entry in self._problems.items() if name in found}

    def _follow(self, name: str, digest: str) -> None:
        """Load what is new in the folder; what cannot be loaded leaves everything as it is."""
        assert self._export is not None
        try:
            bundle = open_bundle(self._export.path / MEMORIES / name)
            self._take(bundle)
        except (KoffkitError, OSError) as error:
            self._problems[name] = digest, str(error)
            self._changed("failed", f"memory {name} is not loaded, what was there stays: {error}")
            return
        self._digests[name] = digest
        self._problems.pop(name, None)

    def _take(self, bundle: Bundle) -> str:
        name = bundle.domain
        replaced = name in self._model.domains
        if replaced:
            with self._engine.quiet(name):
                self._model.load_memory(bundle, replace=True)
        else:
            self._model.load_memory(bundle)
        self._tell("replaced" if replaced else "added", name)
        return name

    def _tell(self, what: str, name: str) -> None:
        self._changed(what, f"memory {name} {what}")

    def _on_disk(self) -> dict[str, str]:
        """The digest of every `memory.json` in the folder, which has the digests of all other files."""
        if self._export is None:
            return {}
        found = {}
        for file in sorted((self._export.path / MEMORIES).glob(f"*/{MEMORY_FILE}")):
            if not file.parent.name.startswith("."):  # a bundle that is being written
                try:
                    found[file.parent.name] = hashlib.sha256(file.read_bytes()).hexdigest()
                except OSError:  # it goes just now
                    continue
        return found

    def _watch(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._stopping:
                return
            try:
                self.look()
            except Exception:  # a fault in one look must not end all others
                logger.exception("the folder of memories cannot be looked into")
