"""Format `hf`: a dense backbone for stock transformers, and one standalone bundle for each memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...progress import Progress
from ...run.finished import FinishedRun
from ...strict import StrictModel
from ..toolkit import check_parity, finish, publishing, write_backbone, write_bundles, write_router


class HfOptions(StrictModel):
    """The format has no options."""


class HfExporter:
    """Writes a backbone that `AutoModelForCausalLM` loads, PEFT adapters with KV memories, and the router."""

    Options = HfOptions

    def export(
        self, run: FinishedRun, output: Path, options: HfOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, write, check parity, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: none.
            progress: where messages and the progress of slicing go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, or no stock class holds the result.
            IntegrityError: a file of the run or of its base is damaged, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        with publishing(run, output, progress) as draft:
            write_router(draft)
            sliced = write_backbone(draft)
            bundles = write_bundles(draft, sliced.digest)
            figures = check_parity(draft, bundles)
            return finish(draft, "hf", sliced, bundles, figures)
