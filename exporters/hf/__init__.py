"""Format `hf`: a dense backbone for stock transformers, and one standalone bundle for each memory."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, model_validator

from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ...strict import StrictModel
from ..toolkit import (
    MergePlan,
    ShardSize,
    finish,
    plan_merge,
    publishing,
    write_checkpoint,
    write_removed,
    write_router,
)
from ..toolkit.quantised import (
    DESCRIPTION,
    Weights,
    readme_section,
    require_torchao,
    write_quantised,
)


class HfOptions(StrictModel):
    """Options of the format."""

    merge: str | None = Field(
        None, description="Domain whose memory becomes part of the backbone's weights; none ships beside it."
    )
    keep_removed: bool = Field(
        False, description="Keep all that the backbone lacks beside it, for `koffkit restore`."
    )
    max_shard_size: ShardSize = None
    weights: Weights = Field("auto", description=DESCRIPTION)

    @model_validator(mode="after")
    def _one_of_two(self) -> HfOptions:
        if self.keep_removed and (self.merge is not None or self.weights != "auto"):
            other = "merge" if self.merge is not None else "weights"
            raise ValueError(f"{other} and keep_removed exclude each other; export twice")
        return self


class HfExporter:
    """Writes a backbone that `AutoModelForCausalLM` loads, PEFT adapters with KV memories, and the router."""

    Options = HfOptions
    checks_base = True
    quantized = MappingProxyType({"int8": {"weights": "int8"}})
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
            UsageError: `output` exists, `options.merge` names no memory that weights can hold, or torchao is
                needed and not installed.
            IntegrityError: a file of the run or of its base is damaged, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        require_torchao("hf", options.weights)
        plan = None if options.merge is None else plan_merge(run, options.merge)
        if options.weights != "auto":
            return _quantised(run if plan is None else plan.run, plan, output, options, progress)
        if plan is not None:
            return _merged(plan, output, options, progress)
        with publishing(run, output, progress) as draft:
            write_router(draft)
            made = write_checkpoint(draft, None, max_shard_size=options.max_shard_size)
            removed = write_removed(draft) if options.keep_removed else None
            return finish(draft, "hf", made.sliced, made.bundles, made.figures, kept_removed=removed)


def _merged(plan: MergePlan, output: Path, options: HfOptions, progress: Progress) -> dict[str, Any]:
    with publishing(plan.run, output, progress) as draft:
        made = write_checkpoint(draft, plan, max_shard_size=options.max_shard_size)
        return finish(draft, "hf", made.sliced, [], made.figures, merged=made.merged)


def _quantised(
    run: FinishedRun, plan: MergePlan | None, output: Path, options: HfOptions, progress: Progress
) -> dict[str, Any]:
    with publishing(run, output, progress) as draft:
        if plan is None:
            write_router(draft)
        made, measured = write_quantised(draft, plan, max_shard_size=options.max_shard_size)
        return finish(
            draft,
            "hf",
            made.sliced,
            made.bundles,
            made.figures,
            merged=made.merged,
            consumer=measured,
            section=readme_section(measured),
        )
