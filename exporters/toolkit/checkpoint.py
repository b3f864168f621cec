"""The sliced checkpoint, checked: what ships, or what the files of another format are made from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ...artefact.bundle import Bundle
from ...artefact.manifest import BundleEntry, Manifest, Merged
from ...artefact.names import MEMORIES
from .backbone import write_backbone
from .bundles import write_bundles
from .finish import manifest_of
from .merging import MergePlan, check_merged, tell_what_is_left_out
from .parity import ParityFigures, check_parity
from .publishing import Draft
from .stream import Sliced

SCRATCH = ".checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A sliced checkpoint that passed the parity gate.

    Attributes:
        draft: where it lies.
        sliced: what was written of the backbone.
        bundles: its memories; none where one is in the weights.
        figures: of the parity gate.
        merged: the memory in the weights; None: there is none.
    """

    draft: Draft
    sliced: Sliced
    bundles: list[Bundle]
    figures: ParityFigures
    merged: Merged | None

    @property
    def folder(self) -> Path:
        """The backbone's."""
        return self.draft.backbone

    def manifest(self, format_name: str) -> Manifest:
        """The manifest, without its list of files; errors as of `finish`."""
        return manifest_of(
            self.draft, format_name, self.sliced, self.bundles, self.figures, merged=self.merged
        )


def write_checkpoint(
    draft: Draft, merge: MergePlan | None, *, kv_ships: bool = False, max_shard_size: str | None = None
) -> Checkpoint:
    """Write the backbone with its memories, or with one in its weights, and check it.

    Args:
        draft: the export; of a merged memory, of `merge.run`.
        merge: the memory that goes into the weights; None: there is none.
        kv_ships: the KV half of a merged memory ships in a way of the format's own.
        max_shard_size: see `write_backbone`.

    Raises:
        IntegrityError: a file of the run or of its base is damaged, or the parity check fails.
    """
    if merge is None:
        sliced = write_backbone(draft, max_shard_size=max_shard_size)
        bundles = write_bundles(draft, sliced.digest)
        return Checkpoint(draft, sliced, bundles, check_parity(draft, bundles), None)
    if not kv_ships:
        tell_what_is_left_out(draft, merge)
    sliced = write_backbone(draft, merge.reader, max_shard_size=max_shard_size)
    figures, entry = check_merged(draft, merge, sliced)
    return Checkpoint(draft, sliced, [], figures, entry)


@contextmanager
def scratch_checkpoint(
    draft: Draft, merge: MergePlan | None, *, kv_ships: bool = False
) -> Iterator[Checkpoint]:
    """A checkpoint to make other files from; it is gone when the block ends, and does not ship. Arguments and
    errors as of `write_checkpoint`."""
    inner = Draft(draft.run, draft.folder / SCRATCH, draft.output, draft.progress, draft.seconds)
    inner.folder.mkdir()
    yield write_checkpoint(inner, merge, kv_ships=kv_ships)
    shutil.rmtree(inner.folder)


def with_files(
    manifest: Manifest,
    what: str,
    model_bytes: int,
    memory_bytes: Mapping[str, int],
    memory_folders: Mapping[str, str] = MappingProxyType({}),
) -> Manifest:
    """The manifest of a checkpoint, with what was made from it.

    Args:
        what: the backbone is now.
        model_bytes: its size.
        memory_bytes: the size of each memory's files.
        memory_folders: where they lie, where that is not the folder of memories.
    """
    backbone = manifest.backbone.model_copy(update={"model_class": what, "bytes": model_bytes})
    domains = {
        name: BundleEntry(
            path=memory_folders.get(name, MEMORIES), parameters=entry.parameters, bytes=memory_bytes[name]
        )
        for name, entry in manifest.domains.items()
    }
    return manifest.evolve(backbone=backbone, domains=domains)
