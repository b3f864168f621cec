"""Format `vllm`: a folder that `vllm serve` loads: backbone, LoRA adapters of ranks that it serves, and KV
memories for the connector that ships with koffkit (`koffkit.serving.vllm_connector`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from ...artefact.bundle import Bundle
from ...artefact.names import MEMORIES
from ...artefact.routes import Carries, Facts
from ...progress import Progress
from ...recipe.servable import VLLM_RANKS
from ...run.finished import FinishedRun
from ...storage.files import write_atomically, write_json
from ...strict import StrictModel
from ..toolkit import (
    Draft,
    MergePlan,
    ShardSize,
    check_merged,
    check_parity,
    manifest_of,
    plan_merge,
    publishing,
    require_carried,
    tell_what_is_left_out,
    write_backbone,
    write_bundles,
    write_cartridge,
)
from .adapters import write_adapter
from .config import write_config
from .readme import write_readme
from .sentinels import chat_template, choose_sentinels

ADAPTERS, CARTRIDGES = "adapters", "cartridges"
SERVING = "serving.json"
CHAT_TEMPLATE = "chat_template.jinja"


class VllmOptions(StrictModel):
    """Options of the format."""

    max_shard_size: ShardSize = None
    merge: str | None = Field(
        None,
        description="Domain whose memory becomes part of the backbone's weights; none is served beside it.",
    )


class VllmExporter:
    """Writes what `vllm serve` loads."""

    Options = VllmOptions
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
            UsageError: `output` exists, vLLM cannot express the backbone or the memories, or `options.merge`
                names no memory that weights can hold.
            IntegrityError: a file of the run or of its base is damaged, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        plan = None if options.merge is None else plan_merge(run, options.merge)
        facts = require_carried(
            self.carries, run if plan is None else plan.run, "vllm", merged=plan is not None
        )
        with publishing(run if plan is None else plan.run, output, progress) as draft:
            manifest, serving = _write(draft, facts, plan, options.max_shard_size)
            write_json(draft.folder / SERVING, serving)
            write_readme(draft.folder, manifest, serving)
        shown = {key: value for key, value in manifest.to_json().items() if key not in ("files", "golden")}
        return {"output": str(output), **shown, **serving, "seconds": draft.seconds}


def _write(
    draft: Draft, facts: Facts, plan: MergePlan | None, max_shard_size: str | None
) -> tuple[Any, dict[str, Any]]:
    """Everything but the README; returns the manifest of what was written, and what the connector reads."""
    merged, bundles = None, []
    if plan is None:
        sliced = write_backbone(draft, max_shard_size=max_shard_size)
        bundles = write_bundles(draft, sliced.digest)
        figures = check_parity(draft, bundles)
    else:
        tell_what_is_left_out(draft, plan)
        sliced = write_backbone(draft, plan.reader, max_shard_size=max_shard_size)
        figures, merged = check_merged(draft, plan, sliced)
    manifest = manifest_of(draft, "vllm", sliced, bundles, figures, merged=merged)
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
            "kv_heads": draft.run.sliced_config["num_key_value_heads"],
        }
    return entry
