"""Which memory fits a text."""

from __future__ import annotations

from pathlib import Path

from ..errors import IntegrityError
from .base import CONFIG, Features, Router, read_config
from .encoder import EncoderRouter
from .ngrams import TextRouter
from .probe import ProbeRouter

KINDS = {"ngrams": TextRouter.load, "encoder": EncoderRouter.load, "probe": ProbeRouter.load}


def load_router(folder: Path) -> Router:
    """Read a router of any kind.

    Raises:
        IntegrityError: a file is missing, damaged, or of a kind that is not known.
    """
    kind = read_config(folder).get("kind")
    if kind not in KINDS:
        raise IntegrityError(
            f"{folder / CONFIG}: router kind {kind!r} is not known here; this koffkit knows "
            f"{', '.join(KINDS)}."
        )
    router: Router = KINDS[kind](folder)
    return router


__all__ = ["Features", "Router", "load_router"]
