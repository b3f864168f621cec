"""Format `onnx`: the backbone as one graph for ONNX Runtime, and each memory whole as one adapter file that a
session puts on and off."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.manifest import Manifest
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
from .options import OnnxOptions
from .plan import OnnxPlan, plan_onnx

if TYPE_CHECKING:
    from .gate import Measured

FLOAT = 4
"""Bytes of a number in the graph."""


class OnnxExporter:
    """Writes a graph of ONNX, and an adapter of ONNX Runtime for each memory."""

    Options = OnnxOptions
    carries = Carries(
        what="ONNX Runtime: backbone, and each memory whole as one adapter file",
        own_class=True,
        kv="any",
        kv_in_ragged_heads=True,
        neurons=True,
    )

    def export(
        self, run: FinishedRun, output: Path, options: OnnxOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, check parity, trace, run the graph in ONNX Runtime, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, the extra is not installed, the layout cannot hold the backbone, or
                `options.merge` names no memory that weights can hold; nothing is written.
            IntegrityError: a file is damaged, or what was written does not compute what the run learned;
                nothing is published.
            ResourceError: the disk is too full.
        """
        plan = plan_onnx(self.carries, run, options)
        require_space(output, 2 * FLOAT * run.spec.num_parameters)
        with publishing(plan.run, output, progress) as draft:
            with scratch_checkpoint(draft, plan.merge) as checkpoint:
                measured = _convert(draft, checkpoint, plan)
                manifest = checkpoint.manifest("onnx")
            return _finish(draft, manifest, plan, measured, checkpoint.sliced)


def _convert(draft: Draft, checkpoint: Checkpoint, plan: OnnxPlan) -> dict[str, Measured]:
    """Write graph, adapters, tokenizer and license; run them, and return the comparison."""
    from .files import write_files
    from .gate import check_consumer

    with draft.timed("convert"):
        draft.progress.message("tracing the graph")
        write_files(draft.folder, checkpoint.folder, checkpoint.bundles, plan)
    shutil.copyfile(generate_file(), draft.folder / generate_file().name)
    copy_license(draft)
    draft.progress.message("running ONNX Runtime on what was written")
    with draft.timed("onnxruntime"):
        return check_consumer(draft.folder, checkpoint.folder, checkpoint.bundles)


def generate_file() -> Path:
    """The program that ships with an export."""
    return Path(__file__).with_name("generate.py")


def _finish(
    draft: Draft, manifest: Manifest, plan: OnnxPlan, measured: dict[str, Measured], sliced: Sliced
) -> dict[str, Any]:
    """Cards and manifest, with the sizes of the files that were made from the checkpoint."""
    from .files import adapter_path, graph_bytes
    from .readme import write_readme

    memories = {name: adapter_path(draft.folder, name).stat().st_size for name in manifest.domains}
    what = f"ONNX, {manifest.backbone.model_class}"
    manifest = with_files(manifest, what, graph_bytes(draft.folder), memories)
    write_readme(draft.folder, manifest, plan.options, measured)
    return write_manifest(draft, manifest, sliced)
