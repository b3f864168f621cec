"""The memories and the router of an export."""

from __future__ import annotations

from ...artefact.bundle import Bundle, open_bundle
from ...artefact.names import BACKBONE_OF_BUNDLE, MEMORIES, ROUTER
from ...masks.memory_cuts import MemoryCuts
from ...memories.bundle import write_bundle
from ...router import load_router
from .publishing import Draft


def write_router(draft: Draft) -> None:
    """Write the run's router, if it has one.

    Raises:
        IntegrityError: it is damaged.
    """
    if draft.run.router is not None:
        load_router(draft.run.router).save(draft.folder / ROUTER)


def write_bundles(draft: Draft, backbone_digest: str, base: str = BACKBONE_OF_BUNDLE) -> list[Bundle]:
    """Slice every memory of the run into a bundle for this backbone.

    Args:
        draft: the export.
        backbone_digest: of the backbone.
        base: where the LoRA half says that the backbone is.

    Raises:
        IntegrityError: a memory of the run is missing or damaged.
    """
    run, bundles = draft.run, []
    cuts = MemoryCuts(run.spec, run.masks)
    for domain, source in run.memories.items():
        target = draft.folder / MEMORIES / domain
        target.mkdir(parents=True)
        write_bundle(source, target, domain, cuts, backbone_digest, run.figures(domain), run.state, base=base)
        bundles.append(open_bundle(target))
    return bundles
