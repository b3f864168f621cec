"""Format `hf`: a dense backbone for stock transformers, and one standalone bundle for each memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...arch import Architecture
from ...artefact.bundle import bundle_summary
from ...artefact.digests import file_entry, list_files, weight_bytes
from ...artefact.names import BACKBONE, FORMAT, MANIFEST, MEMORIES, ROUTER
from ...checkpoint.fingerprint import fingerprint
from ...checkpoint.spec import ModelSpec
from ...errors import IntegrityError, UsageError
from ...hub import locate_again
from ...masks.container import open_complete, sliced_config
from ...masks.file import load_masks
from ...masks.masks import Masks, kept_counts, masked_counts
from ...masks.memory_cuts import MemoryCuts
from ...masks.sliced_reader import SlicedReader
from ...masks.slicing import backbone_slices, zero_rows
from ...memories.bundle import write_bundle, write_bundle_card
from ...progress import Progress
from ...router import load_router
from ...run.folder import RunFolder
from ...storage.files import write_json
from ...storage.publish import require_space, staged
from . import card
from .parity import check_parity
from .stream import Sliced, slice_checkpoint

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "generation_config.json",
)
MARGIN = 1 << 26


class HfExporter:
    """Writes the folder described in the contract, section "Export, format `hf`"."""

    def export(
        self, run: RunFolder, output: Path, options: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """Slice, write, check parity, publish.

        Args:
            options: none are known.

        Raises:
            UsageError: the run is not finished, `output` exists, or no stock class holds the result.
            IntegrityError: the base is damaged or not the run's, or the parity check fails; nothing is
                published.
            ResourceError: the disk is too full.
        """
        if options:
            raise UsageError(f"export: format hf has no option {', '.join(sorted(options))}; remove it.")
        began = time.perf_counter()
        state = run.require_finished()
        base = _find_base(run, state)
        spec = open_complete(base)
        masks = load_masks(run.masks_file, spec)
        new_config = sliced_config(spec, masks)
        spec.reader()
        require_space(output, weight_bytes(base) + MARGIN)
        with staged(output) as partial:
            backbone = partial / BACKBONE
            backbone.mkdir()
            skip = {f"{spec.arch.head}.weight"} if new_config["tie_word_embeddings"] else set()
            if run.router_dir.is_dir():
                load_router(run.router_dir).save(partial / ROUTER)
            ready = time.perf_counter()
            reader = SlicedReader(base, backbone_slices(spec, masks), zero_rows(spec, masks))
            sliced = slice_checkpoint(reader, skip, backbone, progress)
            seconds = {"prepare": ready - began, "slice": time.perf_counter() - ready}
            write_json(backbone / "config.json", new_config)
            if "auto_map" in new_config:
                from ...sliced import CODE

                shutil.copyfile(CODE, backbone / CODE.name)
            _copy_tokenizer(base, backbone)
            bundles = _write_bundles(run, state, partial, spec, masks, sliced.digest)
            progress.message("checking parity")
            checking = time.perf_counter()
            parity, golden = check_parity(base, masks, run, backbone, bundles)
            seconds["parity"] = time.perf_counter() - checking
            manifest = _manifest(
                state,
                masks,
                spec.arch,
                new_config,
                sliced,
                bundles,
                parity,
                weight_bytes(base),
                weight_bytes(backbone),
            )
            manifest["golden"] = golden
            card.write_card(partial, manifest, state)
            for path in bundles:
                write_bundle_card(path, manifest["name"])
            manifest["files"] = _entries(partial, sliced)
            write_json(partial / MANIFEST, manifest)
        shown = {key: value for key, value in manifest.items() if key not in ("files", "golden")}
        return {"output": str(output), **shown, "seconds": seconds | {"total": time.perf_counter() - began}}


def _find_base(run: RunFolder, state: Mapping[str, Any]) -> Path:
    """The base the run was made from, where it was then or where the recipe now finds it.

    Raises:
        IntegrityError: it has changed since.
    """
    settings = state["recipe"]["base"]
    found = locate_again(
        Path(state["base"]["path"]),
        settings["model"],
        Path(state["recipe_root"]),
        run.path,
        revision=settings["revision"],
        given=run.base,
    )
    if fingerprint(found) != state["base"]["digest"]:
        raise IntegrityError(
            f"{found}: this is not the base that {run.path} was made from (its files changed since); restore "
            "it, or compress again."
        )
    return found


def _copy_tokenizer(base: Path, backbone: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for path in base.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, backbone / path.name)


def _write_bundles(
    run: RunFolder,
    state: Mapping[str, Any],
    partial: Path,
    spec: ModelSpec,
    masks: Masks,
    backbone: str,
) -> list[Path]:
    cuts = MemoryCuts(spec, masks)
    written = []
    for domain in state["recipe"]["domains"]:
        if any(state["recipe"]["memory"][half] for half in ("lora", "kv")):
            target = partial / MEMORIES / domain
            target.mkdir(parents=True)
            figures = state["results"].get("domains", {}).get(domain, {})
            write_bundle(run.memory_dir(domain), target, domain, cuts, backbone, figures, state)
            written.append(target)
    return written


def _manifest(
    state: Mapping[str, Any],
    masks: Masks,
    arch: Architecture,
    config: Mapping[str, Any],
    sliced: Sliced,
    bundles: list[Path],
    parity: Mapping[str, Any],
    base_bytes: int,
    size: int,
) -> dict[str, Any]:
    budget = state["budget"]
    removed = budget["base_params"] - sliced.parameters
    if removed != budget["removed_params"]:
        raise IntegrityError(
            f"export: {removed:,} parameters are gone, the plan said {budget['removed_params']:,}; "
            "the base's config.json does not describe its weights."
        )
    return {
        "koffkit": FORMAT,
        "format": "hf",
        "name": state["recipe"]["name"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": state["versions"],
        "base": {
            "model": state["base"]["model"],
            "digest": state["base"]["digest"],
            "architecture": arch.model_type,
            "parameters": budget["base_params"],
            "bytes": base_bytes,
        },
        "backbone": {
            "path": BACKBONE,
            "digest": sliced.digest,
            "class": config["architectures"][0],
            "parameters": sliced.parameters,
            "bytes": size,
        },
        "removed": {
            "parameters": removed,
            "target": budget["target_params"],
            "global_sparsity": removed / budget["base_params"],
        },
        "kept": kept_counts(masks),
        "masked": masked_counts(arch, masks),
        "domains": {path.name: bundle_summary(path) for path in bundles},
        "parity": dict(parity),
        "results": state["results"],
        "recipe": state["recipe"],
    }


def _entries(partial: Path, sliced: Sliced) -> dict[str, Any]:
    """sha256 and size of every file; weights were hashed while they were written."""
    known = {f"{BACKBONE}/{name}": entry for name, entry in sliced.files.items()}
    names = [path.relative_to(partial).as_posix() for path in list_files(partial)]
    return {name: known.get(name) or file_entry(partial / name) for name in names}


__all__ = ["HfExporter"]
