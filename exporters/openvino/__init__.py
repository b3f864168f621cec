"""Format `openvino`: a model for OpenVINO GenAI, and every memory, KV half included, as one file that its
pipeline switches at run time as it switches LoRA adapters."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...artefact.digests import weight_bytes
from ...artefact.manifest import Manifest
from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ...storage.publish import require_space
from ..toolkit import Draft, publishing, scratch_checkpoint, with_files, write_manifest
from .options import OpenvinoOptions

if TYPE_CHECKING:
    from .files import Written

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "seed_oss", "granite", "smollm3", "gemma3_text"})
"""That were run."""
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
            with scratch_checkpoint(draft, plan.merge) as checkpoint:
                manifest = checkpoint.manifest("openvino")
                written = write_files(draft, checkpoint, plan)
            manifest = _of_files(draft, manifest, written)
            write_texts(draft.folder, manifest, written)
            return write_manifest(draft, manifest, checkpoint.sliced)


def _of_files(draft: Draft, manifest: Manifest, written: Written) -> Manifest:
    """The manifest of the checkpoint, with the sizes of the files that were made from it, and what OpenVINO
    computes with them."""
    size = (draft.backbone / "openvino_model.bin").stat().st_size
    memories = {name: path.stat().st_size for name, path in written.memories.items()}
    manifest = with_files(manifest, "OpenVINO IR", size, memories)
    return manifest if written.consumer is None else manifest.evolve(consumer=written.consumer)
