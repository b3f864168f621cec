"""The last step of an export: cards, and the manifest with the digest of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...artefact.bundle import Bundle, bundle_entry
from ...artefact.digests import file_entry, list_files, weight_bytes
from ...artefact.manifest import (
    BackboneEntry,
    BaseModelEntry,
    Consumer,
    KeptRemoved,
    Manifest,
    Merged,
    Removed,
)
from ...artefact.names import BACKBONE, FORMAT, MANIFEST, MASKS
from ...artefact.parts import FileEntry
from ...artefact.places import remember
from ...artefact.public import Around, hub_revision, public_base, public_recipe
from ...checkpoint.fingerprint import sampled_digest
from ...checkpoint.license import license_of
from ...errors import IntegrityError
from ...masks.file import save_masks
from ...masks.masks import kept_counts, masked_counts
from ...memories.bundle import write_bundle_card
from ...run.finished import FinishedRun
from ...storage.clock import timestamp
from .card import write_card
from .parity import ParityFigures
from .publishing import Draft
from .root_card import write_root_card
from .stream import Sliced


def finish(
    draft: Draft,
    format_name: str,
    sliced: Sliced,
    bundles: list[Bundle],
    figures: ParityFigures,
    *,
    merged: Merged | None = None,
    kept_removed: KeptRemoved | None = None,
    consumer: Consumer | None = None,
    section: str = "",
) -> dict[str, Any]:
    """Write the masks, the cards and `koffkit.json`.

    Args:
        format_name: the exporter's name.
        sliced: the backbone that was written.
        bundles: the memories that were written.
        figures: of the comparison with the masked model.
        merged: the memory that the backbone's weights contain; None: there is none.
        kept_removed: what was written of what the backbone lacks; None: nothing.
        consumer: what other software computes with it; None: it was not run, or agrees.
        section: of the README, beside what that of every export says.

    Returns: what `koffkit export --json` prints: the manifest without files and golden logits.

    Raises:
        IntegrityError: the number of removed parameters is not the planned one.
    """
    if merged is None:  # its neurons stand in another order
        save_masks(draft.run.masks, draft.folder / MASKS)
    more = _only(merged=merged, kept_removed=kept_removed, consumer=consumer)
    manifest = manifest_of(draft, format_name, sliced, bundles, figures, **more)
    for bundle in bundles:
        write_bundle_card(bundle.path, manifest)
    write_root_card(draft.folder, manifest, section)
    write_card(draft.folder, manifest)
    return write_manifest(draft, manifest, sliced)


def manifest_of(
    draft: Draft,
    format_name: str,
    sliced: Sliced,
    bundles: list[Bundle],
    figures: ParityFigures,
    *,
    merged: Merged | None = None,
    kept_removed: KeptRemoved | None = None,
    consumer: Consumer | None = None,
) -> Manifest:
    """The manifest of a draft that holds a checkpoint, without its list of files; arguments and errors as of
    `finish`."""
    base = _base_entry(draft)
    return Manifest(
        koffkit=FORMAT,
        format=format_name,
        name=draft.run.name,
        created=timestamp(),
        versions=draft.run.state.versions,
        base=base,
        backbone=_backbone_entry(draft, sliced),
        removed=_removed(draft.run, sliced, 0 if merged is None else merged.parameters),
        kept=kept_counts(draft.run.masks),
        masked=masked_counts(draft.run.spec.arch, draft.run.masks),
        domains={bundle.path.name: bundle_entry(bundle) for bundle in bundles},
        parity=figures.parity,
        **_only(merged=merged, kept_removed=kept_removed, consumer=consumer),
        results=dict(draft.run.results) if merged is None else _results_of_merged(draft.run, merged),
        recipe=public_recipe(draft.run.recipe, base.is_on_hub, _around(draft)),
        golden=figures.golden,
        files={},
    )


def write_manifest(draft: Draft, manifest: Manifest, sliced: Sliced) -> dict[str, Any]:
    """Write `koffkit.json`, in which every file of the draft is listed; returns what `koffkit export --json`
    prints.

    Args:
        draft: the export, with all other files written.
        manifest: what to write, without files.
        sliced: the checkpoint that was written; its digest is the backbone's.
    """
    manifest = manifest.evolve(files=_entries(draft, sliced))
    manifest.write(draft.folder / MANIFEST)
    remember(sliced.digest, draft.run.spec.folder, Path(draft.run.state.recipe_root), draft.run.recipe)
    shown = {key: value for key, value in manifest.to_json().items() if key not in ("files", "golden")}
    return {"output": str(draft.output), **shown, "seconds": draft.seconds}


def _only(**entries: Any) -> dict[str, Any]:
    """The entries that there are."""
    return {name: entry for name, entry in entries.items() if entry is not None}


def _around(draft: Draft) -> Around:
    return Around(draft.output, Path(draft.run.state.recipe_root))


def _base_entry(draft: Draft) -> BaseModelEntry:
    run, base = draft.run, draft.run.state.base
    revision, terms = hub_revision(base.model, Path(base.path)), license_of(run.spec.folder)
    return BaseModelEntry(
        **({} if revision is None else {"revision": revision}),
        **({"license": terms} if terms else {}),
        model=public_base(base.model, revision is not None, _around(draft)),
        fingerprint=base.fingerprint,
        digest_kind=base.digest_kind,
        architecture=run.spec.arch.model_type,
        parameters=run.state.budget.base_params,
        bytes=weight_bytes(run.spec.folder),
    )


def _backbone_entry(draft: Draft, sliced: Sliced) -> BackboneEntry:
    return BackboneEntry(
        path=BACKBONE,
        digest=sliced.digest,
        model_class=draft.run.sliced_config["architectures"][0],
        parameters=sliced.parameters,
        bytes=weight_bytes(draft.backbone),
    )


def _results_of_merged(run: FinishedRun, merged: Merged) -> dict[str, Any]:
    """The figures of the merged memory's domain, if they are those of the checkpoint, too."""
    figures = {name: value for name, value in run.figures(merged.domain).items() if name != "swap"}
    return {} if merged.left_out or not figures else {"domains": {merged.domain: figures}}


def _removed(run: FinishedRun, sliced: Sliced, restored: int) -> Removed:
    budget = run.state.budget
    removed, planned = (
        budget.base_params - (sliced.parameters - sliced.added),
        budget.removed_params - restored,
    )
    if removed != planned:
        raise IntegrityError(
            f"export: {removed:,} parameters are gone, the plan said {planned:,}; "
            "the base's config.json does not describe its weights."
        )
    return Removed(
        parameters=removed,
        target=budget.target_params,
        global_sparsity=removed / budget.base_params,
        added=sliced.added,
    )


def _entries(draft: Draft, sliced: Sliced) -> dict[str, FileEntry]:
    """Digest and size of every file; weights were hashed while they were written."""
    known = {
        f"{BACKBONE}/{name}": FileEntry(
            sha256=entry.sha256, size=entry.size, sampled=sampled_digest(draft.backbone / name)
        )
        for name, entry in sliced.files.items()
        if (
            draft.backbone / name
        ).is_file()  # a checkpoint that only was on the way to another format is gone
    }
    names = [path.relative_to(draft.folder).as_posix() for path in list_files(draft.folder)]
    return {name: known.get(name) or file_entry(draft.folder / name) for name in names}
