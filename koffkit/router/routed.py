"""The router of an export, with the columns of memories that were added later."""

from __future__ import annotations

from collections.abc import Sequence

from ..artefact.bundle import Bundle
from ..artefact.export import Export
from . import Router, load_router
from .column import with_column


def routed(export: Export, bundles: Sequence[Bundle] | None = None) -> Router | None:
    """The export's router with the columns of its memories; None if it has no router.

    Raises:
        IntegrityError: the router or a column is damaged.
    """
    if export.router is None:
        return None
    router = load_router(export.router)
    for bundle in export.bundles() if bundles is None else bundles:
        router = with_column(router, bundle, export.router)
    return router
