"""Format `gguf`: backbone and memories as files of llama.cpp."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...artefact.bundle import Bundle
from ...checkpoint.reader import CheckpointReader
from ...errors import UsageError
from ...progress import Progress
from ...run.finished import FinishedRun
from ...strict import StrictModel
from ..toolkit import check_parity, publishing, write_backbone, write_bundles
from ..toolkit.publishing import Draft


class GgufOptions(StrictModel):
    """Options of the format."""

    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        "auto", description="Type of the matrices; auto: the one that the base's weights are stored in."
    )
    pre_tokenizer: str = Field(
        "auto", description="llama.cpp's name for how text is split before BPE; auto: recognise it."
    )


SCRATCH = ".checkpoint"
"""The sliced checkpoint that the GGUF file is made from; it does not ship."""
MODEL = "model.gguf"


class GgufExporter:
    """Writes a GGUF model, one GGUF adapter for each LoRA, and a README with llama-server's commands."""

    Options = GgufOptions

    def export(
        self, run: FinishedRun, output: Path, options: GgufOptions, progress: Progress
    ) -> dict[str, Any]:
        """Check that llama.cpp can compute it, slice, check parity, convert, publish."""
        if find_spec("gguf") is None:
            raise UsageError("--format gguf needs the extra: pip install 'koffkit[gguf]'.")
        from .metadata import write_metadata
        from .target import target_of
        from .tokenizer import read_vocabulary
        from .weights import check_written, plan_tensors, smallest_type, write_tensors
        from .adapter import write_adapter
        from gguf import GGUFWriter

        target = target_of(run)
        vocabulary = read_vocabulary(run.spec.folder, int(target.config["vocab_size"]), options.pre_tokenizer)
        with publishing(run, output, progress) as draft:
            inner = Draft(run, draft.folder / SCRATCH, output, progress)
            inner.folder.mkdir()
            sliced = write_backbone(inner)
            bundles = write_bundles(inner, sliced.digest)
            figures = check_parity(inner, bundles)
            reader = CheckpointReader(inner.backbone)
            kind = smallest_type(reader) if options.type == "auto" else options.type
            draft.backbone.mkdir()
            path = draft.backbone / MODEL
            writer = GGUFWriter(None, target.arch.name)
            write_metadata(writer, target, run.name, kind)
            vocabulary.write(writer)
            planned = plan_tensors(reader, target, kind)
            digests = write_tensors(writer, path, reader, target, planned, progress)
            check_written(path, planned, digests)
            (draft.folder / "memories").mkdir()
            for b in bundles:
                write_adapter(draft.folder / "memories" / f"{b.domain}.gguf", b, target)
            shutil.rmtree(inner.folder)
        return {"output": str(output)}
