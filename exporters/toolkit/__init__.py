"""Tools for exporters, so that a new one is a few lines; `koffkit.exporters.hf` is the shortest.

An exporter calls, in this order: `publishing` for a folder that appears whole or not at all, `write_backbone`
(or writes its own), `write_router`, `write_bundles`, `check_parity`, and `finish`, which writes cards and
manifest.
"""

from __future__ import annotations

from .backbone import copy_license, copy_tokenizer, write_backbone
from .bundles import write_bundles, write_router
from .carried import facts_of_run, require_carried
from .cartridge import add_cartridge, prompt_embeddings, write_cartridge
from .checkpoint import Checkpoint, scratch_checkpoint, with_files, write_checkpoint
from .finish import finish, manifest_of, write_manifest
from .merging import MergePlan, check_merged, plan_merge, tell_what_is_left_out
from .parity import ParityFigures, check_parity
from .publishing import Draft, publishing
from .removed import write_removed
from .shards import ShardSize
from .stream import Sliced, slice_checkpoint

__all__ = [
    "Checkpoint",
    "Draft",
    "MergePlan",
    "ParityFigures",
    "ShardSize",
    "Sliced",
    "add_cartridge",
    "check_merged",
    "check_parity",
    "copy_license",
    "copy_tokenizer",
    "facts_of_run",
    "finish",
    "manifest_of",
    "plan_merge",
    "prompt_embeddings",
    "publishing",
    "require_carried",
    "scratch_checkpoint",
    "slice_checkpoint",
    "tell_what_is_left_out",
    "with_files",
    "write_backbone",
    "write_bundles",
    "write_cartridge",
    "write_checkpoint",
    "write_manifest",
    "write_removed",
    "write_router",
]
