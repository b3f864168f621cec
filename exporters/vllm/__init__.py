"""Format `vllm`: a folder that `vllm serve` loads: backbone, LoRA adapters of ranks that it serves, and KV
memories for the connector that ships with koffkit (`koffkit.serving.vllm_connector`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from ...artefact.bundle import Bundle
from ...artefact.digests import list_files
from ...artefact.manifest import Manifest
from ...artefact.names import FORMAT, MEMORIES, SERVING
from ...artefact.routes import Carries, Facts
from ...checkpoint.files import CONFIG
from ...errors import UsageError
from ...masks.slicing import widths_of
from ...progress import Progress
from ...recipe.servable import VLLM_RANKS
from ...run.finished import FinishedRun
from ...storage.files import write_atomically, write_json
from ...storage.read_json import read_json
from ...strict import StrictModel
from ..toolkit import (
    Checkpoint,
    Draft,
    MergePlan,
    ShardSize,
    plan_merge,
    publishing,
    require_carried,
    with_files,
    write_cartridge,
    write_checkpoint,
    write_manifest,
)
from ..toolkit.quantised import DESCRIPTION, Weights, require_torchao, write_quantised
from .adapters import write_adapter
from .config import write_config
from .engine import EngineCheck, cpu_build
from .gate import check_config, check_memories
from .readme import write_readme
from .sentinels import chat_template, choose_sentinels

ADAPTERS, CARTRIDGES = "adapters", "cartridges"
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
        """Slice, write, check parity, convert, check what was converted, publish.

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
            IntegrityError: a file of the run or of its base is damaged, the parity check fails, or what was
                converted is not what it was made from; nothing is published.
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
            checkpoint, manifest = _write_backbone(draft, plan, options)
            serving = _write_memories(draft, facts, checkpoint.bundles)
            quantised = options.weights != "auto"
            check_memories(draft, serving, checkpoint.bundles, checkpoint.figures, quantised=quantised)
            engine = _engine(draft, checkpoint) if options.weights == "auto" else None
            write_config(draft, facts)
            check_config(draft.backbone)
            if engine is not None:
                engine.run()
            shutil.rmtree(draft.folder / MEMORIES, ignore_errors=True)
            manifest = _of_files(draft, manifest, serving["memories"])
            write_readme(draft.folder, manifest, serving)
            return write_manifest(draft, manifest, checkpoint.sliced) | serving


def _write_backbone(
    draft: Draft, plan: MergePlan | None, options: VllmOptions
) -> tuple[Checkpoint, Manifest]:
    """The backbone and its bundles, which other files are made from, with the manifest of both."""
    if options.weights == "auto":
        checkpoint = write_checkpoint(draft, plan, max_shard_size=options.max_shard_size)
        return checkpoint, checkpoint.manifest("vllm")
    checkpoint, measured = write_quantised(draft, plan, max_shard_size=options.max_shard_size)
    return checkpoint, checkpoint.manifest("vllm").evolve(consumer=measured)


def _engine(draft: Draft, checkpoint: Checkpoint) -> EngineCheck | None:
    """What runs vLLM on the export once it is written; None: it is not here."""
    build = cpu_build()
    return None if build is None else EngineCheck(draft, checkpoint.bundles, checkpoint.figures, build)


def _write_memories(draft: Draft, facts: Facts, bundles: Sequence[Bundle]) -> dict[str, Any]:
    """What vLLM reads of every memory, the chat template, and `serving.json`; returns its content."""
    names = [bundle.domain for bundle in bundles] if facts.kv == "all" else []
    sentinels = choose_sentinels(draft.backbone, names, int(draft.run.sliced_config["vocab_size"]))
    memories = {bundle.domain: _write_memory(draft, bundle, sentinels) for bundle in bundles}
    tokens = {
        name: (entry["kv"]["sentinel"], entry["kv"]["tokens"]) for name, entry in memories.items() if names
    }
    template = chat_template(draft.backbone, tokens)
    if template is not None:
        write_atomically(draft.folder / CHAT_TEMPLATE, template)
    serving = {
        "koffkit": FORMAT,
        "chat_template": None if template is None else CHAT_TEMPLATE,
        "memories": memories,
    }
    write_json(draft.folder / SERVING, serving)
    return serving


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


def _of_files(draft: Draft, manifest: Manifest, memories: Mapping[str, dict[str, Any]]) -> Manifest:
    """The manifest of the checkpoint, with the class that vLLM loads, and the folders of the memories.

    Args:
        memories: of `serving.json`.
    """
    config = read_json(draft.backbone / CONFIG, remedy="export again")
    folders = {
        name: [half["path"] for half in entry.values() if half is not None]
        for name, entry in memories.items()
    }
    sizes = {
        name: sum(path.stat().st_size for place in places for path in list_files(draft.folder / place))
        for name, places in folders.items()
    }
    first = {name: places[0] for name, places in folders.items()}
    what = f"vLLM {config['architectures'][0]}"
    return with_files(manifest, what, manifest.backbone.bytes, sizes, first)
