"""Format `openvino`: a model for OpenVINO GenAI, and every memory, KV half included, as one file that its
pipeline switches at run time as it switches LoRA adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle
from ...artefact.digests import weight_bytes
from ...artefact.manifest import BundleEntry, Manifest, Merged
from ...artefact.names import MEMORIES
from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ...storage.publish import require_space
from ..toolkit import (
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
from ..toolkit.publishing import Draft
from .options import OpenvinoOptions

if TYPE_CHECKING:
    from .files import Written
    from .plan import OpenvinoPlan

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "seed_oss", "granite", "smollm3", "gemma3_text"})
"""That were run."""
SCRATCH = ".checkpoint"
"""The sliced checkpoint that the IR is made from. It passes the parity gate, and does not ship."""
COPIES = 2
"""Of the weights on the disk while it is written: that checkpoint and the IR."""


class OpenvinoExporter:
    """Writes a model in OpenVINO's intermediate representation (IR), and a file for each memory."""

    Options = OpenvinoOptions
    quantized = MappingProxyType({kind: {"weights": kind} for kind in ("int8", "int4")})
    carries = Carries(
        what="OpenVINO GenAI: backbone, and every memory, KV half included, as an adapter that it switches",
        families=FAMILIES,
        ragged_neurons=FAMILIES,
        ragged_heads=FAMILIES,
        kv="any",
        kv_in_ragged_heads=True,
    )

    def export(
        self, run: FinishedRun, output: Path, options: OpenvinoOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, check parity, convert, run OpenVINO on what was written, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress of slicing go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, OpenVINO cannot carry what the run learned, or the extra is not
                installed; nothing is written.
            IntegrityError: a file is damaged, or what was written does not compute what the run learned;
                nothing is published.
            ResourceError: the disk is too full.
        """
        from .files import write_files
        from .plan import plan_openvino
        from .readme import write_texts

        plan = plan_openvino(run, options, self.carries, progress)
        require_space(output, COPIES * weight_bytes(run.spec.folder))
        with publishing(plan.run, output, progress) as draft:
            inner = Draft(plan.run, draft.folder / SCRATCH, output, progress, draft.seconds)
            inner.folder.mkdir()
            sliced, bundles, figures, merged = _checkpoint(inner, plan)
            manifest = manifest_of(inner, "openvino", sliced, bundles, figures, merged=merged)
            written = write_files(draft, inner.backbone, plan, bundles, figures)
            shutil.rmtree(inner.folder)
            manifest = _of_files(draft, manifest, written)
            write_texts(draft.folder, manifest, written)
            return write_manifest(draft, manifest, sliced)


def _checkpoint(
    inner: Draft, plan: OpenvinoPlan
) -> tuple[Sliced, list[Bundle], ParityFigures, Merged | None]:
    """The sliced checkpoint with its bundles, or with a memory merged into it, after the parity check."""
    if plan.merge is None:
        sliced = write_backbone(inner)
        bundles = write_bundles(inner, sliced.digest)
        return sliced, bundles, check_parity(inner, bundles), None
    tell_what_is_left_out(inner, plan.merge)
    sliced = write_backbone(inner, plan.merge.reader)
    figures, entry = check_merged(inner, plan.merge, sliced)
    return sliced, [], figures, entry


def _of_files(draft: Draft, manifest: Manifest, written: Written) -> Manifest:
    """The manifest of the checkpoint, with the sizes of the files that were made from it, and what OpenVINO
    computes with them."""
    size = (draft.backbone / "openvino_model.bin").stat().st_size
    domains = {
        name: BundleEntry(
            path=MEMORIES, parameters=entry.parameters, bytes=written.memories[name].stat().st_size
        )
        for name, entry in manifest.domains.items()
    }
    return manifest.evolve(
        backbone=manifest.backbone.model_copy(update={"model_class": "OpenVINO IR", "bytes": size}),
        domains=domains,
        **({} if written.consumer is None else {"consumer": written.consumer}),
    )
