"""Format `vllm`: a folder that `vllm serve` loads: backbone, LoRA adapters of ranks that it serves, and KV
memories for the connector that ships with koffkit (`koffkit.serving.vllm_connector`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from ...artefact.bundle import Bundle
from ...artefact.manifest import Manifest
from ...artefact.names import MEMORIES
from ...artefact.routes import Carries, Facts
from ...errors import UsageError
from ...masks.slicing import widths_of
from ...progress import Progress
from ...recipe.servable import VLLM_RANKS
from ...run.finished import FinishedRun
from ...storage.files import write_atomically, write_json
from ...strict import StrictModel
from ..toolkit import (
    Draft,
    MergePlan,
    ShardSize,
    plan_merge,
    publishing,
    require_carried,
    write_cartridge,
    write_checkpoint,
)
from ..toolkit.quantised import DESCRIPTION, Weights, require_torchao, write_quantised
from .adapters import write_adapter
from .config import write_config
from .readme import write_readme
from .sentinels import chat_template, choose_sentinels

ADAPTERS, CARTRIDGES = "adapters", "cartridges"
SERVING = "serving.json"
CHAT_TEMPLATE = "chat_template.jinja"


class VllmOptions(StrictModel):
    """Options of the format."""

    merge: str | None = Field(
        None,
        description="Domain whose memory becomes part of the backbone's weights; none is served beside it.",
    )
    max_shard_size: ShardSize = None
    weights: Weights = Field("auto", description=DESCRIPTION)


class VllmExporter:
    """Writes what `vllm serve` loads."""

    Options = VllmOptions
    checks_base = True
    quantized = MappingProxyType({"int8": {"weights": "int8"}})
    carries = Carries(
        what="vllm serve --enable-lora: backbone, LoRA, KV memory through koffkit's connector",
        families=frozenset({"llama", "mistral", "qwen2", "qwen3", "seed_oss"}),
        ragged_neurons=frozenset({"llama"}),
        largest_rank=VLLM_RANKS[-1],
        kv="all",
    )

    def export(
        self, run: FinishedRun, output: Path, options: VllmOptions, progress: Progress
    ) -> dict[str, Any]:
        """Slice, write, check parity, convert, publish.

        Args:
            run: the run to export.
            output: the folder to make.
            options: what to write.
            progress: where messages and the progress of slicing go.

        Returns:
            what `koffkit export --json` prints.

        Raises:
            UsageError: `output` exists, vLLM cannot express the backbone or the memories, `options.merge`
                names no memory that weights can hold, or torchao is needed and not installed.
            IntegrityError: a file of the run or of its base is damaged, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        require_torchao("vllm", options.weights)
        plan = None if options.merge is None else plan_merge(run, options.merge)
        facts = require_carried(
            self.carries, run if plan is None else plan.run, "vllm", merged=plan is not None
        )
        if options.weights != "auto" and facts.own_class:
            raise UsageError(
                f"--format vllm: weights: {options.weights}: layers that keep different numbers of neurons "
                "were not run there in int8; export with weights: auto, or learn with mask.layout: uniform."
            )
        with publishing(run if plan is None else plan.run, output, progress) as draft:
            manifest, serving = _write(draft, facts, plan, options)
            write_json(draft.folder / SERVING, serving)
            write_readme(draft.folder, manifest, serving)
        shown = {key: value for key, value in manifest.to_json().items() if key not in ("files", "golden")}
        return {"output": str(output), **shown, **serving, "seconds": draft.seconds}


def _write(
    draft: Draft, facts: Facts, plan: MergePlan | None, options: VllmOptions
) -> tuple[Manifest, dict[str, Any]]:
    """Everything but the README; returns the manifest of what was written, and what the connector reads."""
    if options.weights == "auto":
        checkpoint = write_checkpoint(draft, plan, max_shard_size=options.max_shard_size)
        manifest = checkpoint.manifest("vllm")
    else:
        checkpoint, measured = write_quantised(draft, plan, max_shard_size=options.max_shard_size)
        manifest = checkpoint.manifest("vllm").evolve(consumer=measured)
    bundles = checkpoint.bundles
    names = [bundle.domain for bundle in bundles] if facts.kv == "all" else []
    sentinels = choose_sentinels(draft.backbone, names, int(draft.run.sliced_config["vocab_size"]))
    memories = {bundle.domain: _write_memory(draft, bundle, sentinels) for bundle in bundles}
    tokens = {
        name: (entry["kv"]["sentinel"], entry["kv"]["tokens"]) for name, entry in memories.items() if names
    }
    template = chat_template(draft.backbone, tokens)
    if template is not None:
        write_atomically(draft.folder / CHAT_TEMPLATE, template)
    write_config(draft, facts)
    shutil.rmtree(draft.folder / MEMORIES, ignore_errors=True)
    serving = {
        "koffkit": 1,
        "chat_template": None if template is None else CHAT_TEMPLATE,
        "memories": memories,
    }
    return manifest, serving


def _write_memory(draft: Draft, bundle: Bundle, sentinels: dict[str, int]) -> dict[str, Any]:
    """The entry of a memory in `serving.json`."""
    name = bundle.domain
    entry: dict[str, Any] = {"lora": None, "kv": None}
    if bundle.info.lora is not None:
        rank = write_adapter(bundle, draft.folder / ADAPTERS / name)
        entry["lora"] = {"path": f"{ADAPTERS}/{name}", "rank": rank}
    if bundle.info.kv is not None:
        write_cartridge(bundle, draft.backbone, draft.folder / CARTRIDGES / name)
        entry["kv"] = {
            "path": f"{CARTRIDGES}/{name}",
            "tokens": bundle.info.kv.tokens,
            "sentinel": sentinels[name],
            "kv_heads": widths_of(draft.run.spec, draft.run.masks)[0].kv_heads,
        }
    return entry
