"""Routers: which memory fits a text. Each kind is one file, registered under the entry points
`koffkit.routers`."""

from __future__ import annotations

from pathlib import Path

from .. import plugins
from ..errors import IntegrityError
from .base import CONFIG, Features, Router, Setting, read_config


def load_router(folder: Path) -> Router:
    """Read a router of any installed kind.

    Raises:
        IntegrityError: a file is missing, damaged, or of a kind that is not known.
        UsageError: the package of this kind cannot be imported.
    """
    kind = read_config(folder).get("kind")
    known = plugins.names(plugins.ROUTERS)
    if kind not in known:
        raise IntegrityError(
            f"{folder / CONFIG}: router kind {kind!r} is not known here; this koffkit knows "
            f"{', '.join(known)}."
        )
    router: Router = plugins.load(plugins.ROUTERS, kind, f"{folder / CONFIG}: kind").load(folder)
    return router


__all__ = ["Features", "Router", "Setting", "load_router"]
