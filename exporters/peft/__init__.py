"""Format `peft`: what `hf` writes, made ready for PEFT and plain transformers without koffkit: adapters whose
base is found from the export's folder, KV memories as CARTRIDGE adapters, and an example that was run."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from ...artefact.names import BACKBONE
from ...artefact.routes import Carries, Facts
from ...progress import Progress
from ...run.finished import FinishedRun
from ...strict import StrictModel
from ..toolkit import (
    ShardSize,
    add_cartridge,
    check_parity,
    finish,
    publishing,
    require_carried,
    write_backbone,
    write_bundles,
    write_router,
)
from ..toolkit.quantised import (
    DESCRIPTION,
    Weights,
    require_torchao,
    write_quantised,
)
from ..toolkit.quantised import readme_section as readme_of_weights
from .example import readme_section, write_example
from .gate import check_consumer


class PeftOptions(StrictModel):
    """Options of the format."""

    max_shard_size: ShardSize = None
    weights: Weights = Field("auto", description=DESCRIPTION)


class PeftExporter:
    """Writes an export of format `hf` of which PEFT and transformers load everything."""

    Options = PeftOptions
    quantized = MappingProxyType({"int8": {"weights": "int8"}})
    carries = Carries(
        what="PEFT and plain transformers: backbone, LoRA, KV memory (generate with it as example.py does)",
        own_class=True,
        kv="all",
        heads_of_config=True,
        no_kv_in=frozenset({"gemma3_text"}),  # PEFT hands it a cache of its own kind
        merges=False,
    )

    def export(
        self, run: FinishedRun, output: Path, options: PeftOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, write, check parity, run PEFT on what was written, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress of slicing go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, PEFT or a stock cache cannot hold the memories, or torchao is needed
                and not installed.
            IntegrityError: a file of the run or of its base is damaged, or what was written does not compute
                what the run learned; nothing is published.
            ResourceError: the disk is too full.
        """
        require_torchao("peft", options.weights)
        facts = require_carried(self.carries, run, "peft")
        if options.weights != "auto":
            return _quantised(run, facts, output, options, progress)
        with publishing(run, output, progress) as draft:
            write_router(draft)
            sliced = write_backbone(draft, max_shard_size=options.max_shard_size)
            bundles = write_bundles(draft, sliced.digest, base=f"./{BACKBONE}")
            figures = check_parity(draft, bundles)
            if facts.kv == "all":
                bundles = [add_cartridge(bundle, draft.backbone) for bundle in bundles]
            write_example(draft.folder, facts, bundles, draft.run.sliced_config)
            check_consumer(draft, bundles, figures)
            return finish(draft, "peft", sliced, bundles, figures, section=readme_section(facts, bundles))


def _quantised(
    run: FinishedRun, facts: Facts, output: Path, options: PeftOptions, progress: Progress
) -> dict[str, Any]:
    with publishing(run, output, progress) as draft:
        write_router(draft)
        made, measured = write_quantised(
            draft, None, base=f"./{BACKBONE}", max_shard_size=options.max_shard_size
        )
        bundles = made.bundles
        if facts.kv == "all":
            bundles = [add_cartridge(bundle, draft.backbone) for bundle in bundles]
        write_example(draft.folder, facts, bundles, draft.run.sliced_config)
        check_consumer(draft, bundles, made.figures, quantised=True)
        section = readme_of_weights(measured) + readme_section(facts, bundles)
        return finish(draft, "peft", made.sliced, bundles, made.figures, consumer=measured, section=section)
