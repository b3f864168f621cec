"""Format `hf`: a dense backbone for stock transformers, and one standalone bundle for each memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ...strict import StrictModel
from ..toolkit import (
    ShardSize,
    check_merged,
    check_parity,
    finish,
    plan_merge,
    publishing,
    tell_what_is_left_out,
    write_backbone,
    write_bundles,
    write_removed,
    write_router,
)


class HfOptions(StrictModel):
    """Options of the format."""

    merge: str | None = Field(
        None, description="Domain whose memory becomes part of the backbone's weights; none ships beside it."
    )
    max_shard_size: ShardSize = None
    keep_removed: bool = Field(
        False, description="Keep all that the backbone lacks beside it, for `koffkit restore`."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> HfOptions:
        if self.merge is not None and self.keep_removed:
            raise ValueError("merge and keep_removed exclude each other; export twice")
        return self


class HfExporter:
    """Writes a backbone that `AutoModelForCausalLM` loads, PEFT adapters with KV memories, and the router."""

    Options = HfOptions
    carries = Carries(
        what="koffkit and transformers; PEFT for the LoRA half",
        own_class=True,
        kv="any",
        kv_in_ragged_heads=True,
        neurons=True,
    )

    def export(
        self, run: FinishedRun, output: Path, options: HfOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, write, check parity, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress of slicing go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, or `options.merge` names no memory that weights can hold.
            IntegrityError: a file of the run or of its base is damaged, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        if options.merge is not None:
            return self._merged(run, output, options, progress)
        with publishing(run, output, progress) as draft:
            write_router(draft)
            sliced = write_backbone(draft, max_shard_size=options.max_shard_size)
            bundles = write_bundles(draft, sliced.digest)
            figures = check_parity(draft, bundles)
            removed = write_removed(draft) if options.keep_removed else None
            return finish(draft, "hf", sliced, bundles, figures, kept_removed=removed)

    def _merged(
        self, run: FinishedRun, output: Path, options: HfOptions, progress: Progress
    ) -> dict[str, Any]:
        plan = plan_merge(run, str(options.merge))
        with publishing(plan.run, output, progress) as draft:
            tell_what_is_left_out(draft, plan)
            sliced = write_backbone(draft, plan.reader, max_shard_size=options.max_shard_size)
            figures, entry = check_merged(draft, plan, sliced)
            return finish(draft, "hf", sliced, [], figures, merged=entry)
