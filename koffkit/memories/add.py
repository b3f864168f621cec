"""A new domain on an existing backbone: its memory is learned from the unpruned base and published beside the
others.

No other byte of the export changes. What is learned on the way lies in a run folder, so that an interrupted
command can go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artefact.bundle import bundle_entry, open_bundle
from ..artefact.bundle_info import Added, Routing
from ..artefact.check import require_sound
from ..artefact.digests import backbone_digest
from ..artefact.export import Export, open_export, replaces
from ..artefact.names import BACKBONE, MEMORIES, ROUTER_COLUMN
from ..errors import IntegrityError, UsageError
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..router.routed import routed
from ..run.folder import RunFolder
from ..run.state import RunState
from ..storage.clock import timestamp
from ..storage.lock import claim
from ..storage.publish import discard, staged
from .bundle import record_golden, write_bundle, write_bundle_card
from .recipe import check_name, find_base, memory_recipe
from .routing import require_text, teach_router


def add_memory(
    path: Path,
    name: str,
    source: Mapping[str, Any],
    *,
    base: Path | None = None,
    against: Sequence[str] = (),
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn and publish `memories/NAME`; returns what `koffkit memory add --json` prints.

    Args:
        path: an export.
        source: fields of the recipe's `Source`.
        base: the unpruned model, where it is not where the manifest says.
        against: files of text that the router must not take for the new domain; by default the text of the
            other memories.
        resume: go on with an interrupted command.

    Raises:
        UsageError: the name is taken or cannot be one, a setting is not valid, or there is earlier work and
            no `resume`.
        DataError: the base is not found, or text is missing or too short.
        IntegrityError: base or backbone are not those of the export.
        Interrupted: SIGINT; everything up to the last step is saved.
    """
    progress = progress or Silent()
    export = open_export(path)
    work = work_folder(export, name)
    target = free_place(export, name, work)
    require_text(against)
    progress.message("checking the base and the backbone")
    base = find_base(export, base)
    require_sound(export, whole=True)
    if backbone_digest(export.backbone) != export.backbone_digest:
        raise IntegrityError(
            f"{export.path / BACKBONE}: its digest is not the one of the export; `koffkit verify` says which "
            "file changed."
        )
    loaded = memory_recipe(export, name, source, base, overrides)
    with claim(target):
        free_place(export, name, work)  # still
        state = _learn(loaded, export, work, resume, progress)
        with staged(target, claimed=True) as partial:
            routing = _teach(loaded, export, name, against, partial, progress)
            progress.message("recording golden logits")
            _write(export, name, work, state, partial, routing)
            record_golden(partial, export.backbone)
            write_bundle_card(partial, export.manifest.name)
        discard(work.path)  # published; of no more use
    figures = state.results["domains"][name]
    router = routed(export)
    known = router is not None and name in router.labels
    return {
        "memory": name,
        **bundle_entry(open_bundle(target)).to_json(),
        "figures": figures,
        "in_router": known,
        "routing": None if routing is None else routing.to_json(),
    }


def work_folder(export: Export, name: str) -> RunFolder:
    """Where an interrupted `memory add` goes on."""
    return RunFolder(Path("runs") / f"{export.path.resolve().name}-{name}")


def free_place(export: Export, name: str, work: RunFolder) -> Path:
    """Where the bundle will be.

    Raises:
        UsageError: the name is taken, or cannot be one.
    """
    check_name(name)
    target = export.path / MEMORIES / name
    if target.exists() and work.exists and work.read().is_finished:
        with claim(target):  # an earlier command was killed just after publishing
            discard(work.path)
    if target.exists() or any(bundle.domain == name for bundle in export.bundles()):
        raise UsageError(
            f"{target}: there is a memory {name!r} already; choose another name, or `koffkit memory remove` "
            "it first."
        )
    return target


def _learn(
    loaded: LoadedRecipe, export: Export, work: RunFolder, resume: bool, progress: Progress
) -> RunState:
    from ..stages.engine import learn_memory

    if work.exists and not resume:
        raise UsageError(
            f"{work.path}: an interrupted `memory add` of this name; go on with --resume, or remove the "
            "folder."
        )
    return learn_memory(loaded, export.backbone, work.path, resume=resume, progress=progress)


def _teach(
    loaded: LoadedRecipe, export: Export, name: str, against: Sequence[str], target: Path, progress: Progress
) -> Routing | None:
    """Let the router learn the new domain; the figures of that, None where it cannot or need not."""
    recipe = loaded.recipe
    taught = teach_router(export, name, recipe.sources[name], against, recipe.seed, recipe.holdout, progress)
    if taught is None:
        return None
    column, figures = taught
    column.save(target / ROUTER_COLUMN)
    return figures


def _write(
    export: Export, name: str, work: RunFolder, state: RunState, target: Path, routing: Routing | None
) -> None:
    extra: dict[str, Any] = {
        "added": Added(
            created=timestamp(),
            base=state.base.fingerprint,
            recipe=state.recipe,
            versions=state.versions,
        )
    }
    shipped = replaces(export, name)
    if shipped is not None:
        extra["replaces"] = shipped
    if routing is not None:
        extra["routing"] = routing
    figures = state.results["domains"][name]
    write_bundle(
        work.memory_dir(name), target, name, None, export.backbone_digest, figures, state, extra=extra
    )
