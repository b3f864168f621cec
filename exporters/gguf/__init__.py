"""Format `gguf`: backbone and memories as files of llama.cpp, with the commands that serve them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...artefact.manifest import Consumer, Manifest
from ...artefact.names import MEMORIES
from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ...storage.publish import require_space
from ..toolkit import (
    Checkpoint,
    Draft,
    Sliced,
    copy_license,
    publishing,
    scratch_checkpoint,
    with_files,
    write_manifest,
)
from .options import GgufOptions
from .target import CANDIDATES, RAGGED

if TYPE_CHECKING:
    from .serving import Serving

WIDEST = 4
"""Bytes of a number in the largest type."""


class GgufExporter:
    """Writes a GGUF model, a GGUF adapter and state files for each memory, and how to serve them."""

    Options = GgufOptions
    quantized = MappingProxyType({"int8": {"type": "q8_0"}})
    carries = Carries(
        what="llama.cpp: backbone, LoRA by request, KV memory as state of a slot",
        families=frozenset(CANDIDATES),
        ragged_neurons=RAGGED,
        ragged_heads=RAGGED,
        kv="all",
        kv_in_ragged_heads=True,
    )

    def export(
        self, run: FinishedRun, output: Path, options: GgufOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, check parity, convert, read back, run llama-server if it is here, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, llama.cpp cannot express what the run learned, or the extra is not
                installed; nothing is written.
            IntegrityError: a file is damaged, or a check fails; nothing is published.
            ResourceError: the disk is too full.
        """
        from .convert import convert
        from .plan import plan_gguf

        plan = plan_gguf(run, options, progress)
        require_space(output, WIDEST * plan.target.spec.num_parameters)
        with publishing(plan.run, output, progress) as draft:
            with scratch_checkpoint(draft, plan.merge, kv_ships=plan.has_kv) as checkpoint:
                draft.backbone.mkdir()
                (draft.folder / MEMORIES).mkdir()
                with draft.timed("convert"):
                    serving = convert(plan, checkpoint.folder, checkpoint.bundles, draft.folder, progress)
                copy_license(draft)
                manifest = checkpoint.manifest("gguf")
                with draft.timed("llama-server"):
                    consumer = _run(draft, checkpoint, serving, options)
                if consumer is not None:
                    manifest = manifest.evolve(consumer=consumer)
            manifest = _of_files(draft, manifest, serving)
            return _finish(draft, manifest, serving, checkpoint.sliced)


def _run(draft: Draft, checkpoint: Checkpoint, serving: Serving, options: GgufOptions) -> Consumer | None:
    """What llama-server computes with what was written, where it can be run here."""
    from .gate import check_export

    whole = [bundle for bundle in checkpoint.bundles if options.kv or bundle.kv_file is None]
    return check_export(draft, checkpoint.folder, whole, serving, options.type, checkpoint.figures)


def _of_files(draft: Draft, manifest: Manifest, serving: Serving) -> Manifest:
    """The manifest of the checkpoint, with the sizes of the files that were made from it."""
    size = (draft.folder / serving.model).stat().st_size
    memories = {
        name: sum((draft.folder / path).stat().st_size for path in serving.memories[name].paths())
        for name in manifest.domains
    }
    return with_files(manifest, f"llama.cpp {serving.architecture}", size, memories)


def _finish(draft: Draft, manifest: Manifest, serving: Serving, sliced: Sliced) -> dict[str, Any]:
    from . import ask
    from .readme import ASK, write_modelfiles, write_readme

    manifest = _with_states(manifest, serving)
    assert ask.__file__ is not None
    shutil.copyfile(ask.__file__, draft.folder / ASK)
    if not any((draft.folder / MEMORIES).iterdir()):
        (draft.folder / MEMORIES).rmdir()
    write_readme(draft.folder, manifest, serving)
    write_modelfiles(draft.folder, manifest, serving)
    return write_manifest(draft, manifest, sliced)


def _with_states(manifest: Manifest, serving: Serving) -> Manifest:
    """The manifest of a merged memory, which says that its KV half lies beside the weights if it does."""
    merged = manifest.merged
    if merged is None or merged.domain not in serving.memories:
        return manifest
    left = [half for half in merged.left_out if half != "kv"]
    return manifest.evolve(merged=merged.model_copy(update={"left_out": left, "beside": ["kv"]}))
