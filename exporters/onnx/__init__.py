"""Format `onnx`: the backbone as one graph for ONNX Runtime, and each memory whole as one adapter file that a
session puts on and off."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle
from ...artefact.manifest import BundleEntry, Manifest, Merged
from ...artefact.names import MEMORIES
from ...artefact.routes import Carries
from ...checkpoint.license import license_files
from ...progress import Progress
from ...run.finished import FinishedRun
from ...storage.publish import require_space
from ..toolkit import (
    Draft,
    ParityFigures,
    Sliced,
    check_merged,
    check_parity,
    manifest_of,
    publishing,
    tell_what_is_left_out,
    write_backbone,
    write_bundles,
    write_manifest,
)
from .options import OnnxOptions
from .plan import OnnxPlan, plan_onnx

if TYPE_CHECKING:
    from .gate import Measured

SCRATCH = ".checkpoint"
"""The sliced checkpoint that the graph is traced from. It passes the parity gate, and does not ship."""
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
            inner = Draft(plan.run, draft.folder / SCRATCH, output, progress, draft.seconds)
            inner.folder.mkdir()
            sliced, bundles, figures, merged = _checkpoint(inner, plan)
            measured = _convert(draft, inner, plan, bundles)
            manifest = manifest_of(inner, "onnx", sliced, bundles, figures, merged=merged)
            shutil.rmtree(inner.folder)
            return _finish(draft, manifest, plan, measured, sliced)


def _checkpoint(inner: Draft, plan: OnnxPlan) -> tuple[Sliced, list[Bundle], ParityFigures, Merged | None]:
    """The sliced checkpoint with its bundles, or with a memory merged into it, after the parity check."""
    if plan.merge is None:
        sliced = write_backbone(inner)
        bundles = write_bundles(inner, sliced.digest)
        return sliced, bundles, check_parity(inner, bundles), None
    tell_what_is_left_out(inner, plan.merge)
    sliced = write_backbone(inner, plan.merge.reader)
    figures, entry = check_merged(inner, plan.merge, sliced)
    return sliced, [], figures, entry


def _convert(draft: Draft, inner: Draft, plan: OnnxPlan, bundles: list[Bundle]) -> dict[str, Measured]:
    """Write graph, adapters, tokenizer and license; run them, and return the comparison."""
    from .files import write_files
    from .gate import check_consumer

    with draft.timed("convert"):
        draft.progress.message("tracing the graph")
        write_files(draft.folder, inner.backbone, bundles, plan)
    shutil.copyfile(generate_file(), draft.folder / generate_file().name)
    for path in license_files(plan.run.spec.folder):
        shutil.copyfile(path, draft.backbone / path.name)
    draft.progress.message("running ONNX Runtime on what was written")
    with draft.timed("onnxruntime"):
        return check_consumer(draft.folder, inner.backbone, bundles)


def generate_file() -> Path:
    """The program that ships with an export."""
    return Path(__file__).with_name("generate.py")


def _finish(
    draft: Draft, manifest: Manifest, plan: OnnxPlan, measured: dict[str, Measured], sliced: Sliced
) -> dict[str, Any]:
    """Cards and manifest, with the sizes of the files that were made from the checkpoint."""
    from .files import adapter_path, graph_bytes
    from .readme import write_readme

    backbone = manifest.backbone.model_copy(
        update={"model_class": f"ONNX, {manifest.backbone.model_class}", "bytes": graph_bytes(draft.folder)}
    )
    domains = {
        name: BundleEntry(
            path=MEMORIES,
            parameters=entry.parameters,
            bytes=adapter_path(draft.folder, name).stat().st_size,
        )
        for name, entry in manifest.domains.items()
    }
    manifest = manifest.evolve(backbone=backbone, domains=domains)
    write_readme(draft.folder, manifest, plan.options, measured)
    return write_manifest(draft, manifest, sliced)
