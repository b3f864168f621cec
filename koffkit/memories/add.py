"""A new domain on an existing backbone: its memory is learned from the unpruned base and published beside the
others.

No other byte of the export changes. Training state is kept in a run folder, so that an interrupted command
can be resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..artefact.bundle import bundle_entry, open_bundle
from ..artefact.bundle_info import Added, Routing
from ..artefact.check import require_sound
from ..artefact.export import Export, open_export, replaces
from ..artefact.names import MEMORIES, ROUTER_COLUMN
from ..artefact.public import Around, public_place, public_recipe
from ..errors import UsageError, near_name
from ..progress import Progress, Silent
from ..recipe.load import LoadedRecipe
from ..report.verdict import verdict_of
from ..router.routed import routed
from ..run.folder import RunFolder
from ..run.state import RunState
from ..storage.clock import timestamp
from ..storage.lock import claim, tidy
from ..storage.publish import discard, replacing, require_free, staged
from .bundle import record_golden, write_bundle, write_bundle_card
from .manage import claim_memory, require_outside
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
    replace: bool = False,
    output: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn a memory and publish it as `memories/NAME` of an export.

    Args:
        path, name, source: the export, the new domain, and the fields of its `Source`.
        base: the unpruned model, if it is not where the manifest says.
        against: text that the router must not take for the domain; by default that of the others.
        overrides: settings of the recipe to change, as `a.b=VALUE`.
        resume: continue an interrupted command.
        replace: there is a memory of that name; the new one takes its place in one step, once it is whole.
        output: publish it as NAME in this folder instead, and write nothing into the export.
        device, progress: where to train (None: the accelerator, or the CPU), and where to report.

    Returns:
        What `koffkit memory add --json` and `memory replace --json` print.

    Raises:
        UsageError: the name is taken or not valid (`replace`: not there), a setting is wrong, `resume` lacks.
        DataError: base or text is missing, or there is too little text.
        IntegrityError: base or backbone are not those of the export.
        ResourceError, Interrupted: the device is not available; stopped, with all steps saved.
    """
    progress, export = progress or Silent(), open_export(path)
    work = work_folder(export, name, replace=replace)

    place = partial(taken_place, export, name) if replace else partial(free_place, export, name, work, output)
    target, held = place(), claim if output else partial(claim_memory, export)
    require_text(against)
    loaded = memory_recipe(export, name, source, _checked_base(export, base, progress), overrides)
    with held(target):
        place()  # another command may have changed it before the claim
        state = _learn(loaded, export, work, resume, device, progress)
        with (replacing if replace else staged)(target, claimed=True) as hidden:
            routing = _teach(loaded, export, name, against, hidden, progress)
            _write(export, name, work, state, hidden, routing, progress)
        discard(work.path)
    return _summary(export, name, target, state, routing)


def _checked_base(export: Export, base: Path | None, progress: Progress) -> Path:
    """The unpruned base, once it and the backbone are known to be those of the export."""
    progress.message("checking the base and the backbone")
    base = find_base(export, base, progress)
    require_sound(export, whole=True, progress=progress)
    return base


def _summary(
    export: Export, name: str, target: Path, state: RunState, routing: Routing | None
) -> dict[str, Any]:
    bundle = open_bundle(target)
    router = routed(export, [*(other for other in export.bundles() if other.domain != name), bundle])
    known = None if routing is None else routing.to_json()
    inside = target.parent == export.path / MEMORIES
    return {
        "memory": name,
        **bundle_entry(bundle).to_json(),
        **({} if inside else {"path": str(target)}),
        "figures": state.results["domains"][name],
        "in_router": router is not None and name in router.labels,
        "routing": known,
        "verdict": verdict_of(state.results, known).to_json(),
    }


def work_folder(export: Export, name: str, *, replace: bool = False) -> RunFolder:
    """The run folder of `memory add` or `replace`, from which an interrupted one is resumed."""
    ending = ".replace" if replace else ""  # no domain has a dot in its name
    return RunFolder(Path("runs") / f"{export.path.resolve().name}-{name}{ending}")


def free_place(export: Export, name: str, work: RunFolder, output: Path | None = None) -> Path:
    """The folder that the new bundle will be published as.

    Args:
        export: the export.
        name: the new domain.
        work: its run folder.
        output: the folder around it; None: that of the export's memories.

    Raises:
        UsageError: the name is taken, or cannot be one; or `output` is in the export.
    """
    check_name(name)
    target = (export.path / MEMORIES if output is None else output) / name
    if target.exists() and work.exists and work.read().is_finished:
        with claim(target):  # an earlier command was killed just after publishing
            discard(work.path)
    if output is not None:
        require_outside(export, output, "--output")
        require_free(target)
    if target.exists() or any(bundle.domain == name for bundle in export.bundles()):
        # The command that made it may have been killed at its end.
        tidy(target.parent)
        tidy(work.path.parent)
        target = export.path / MEMORIES / name
        raise UsageError(
            f"{target}: there is a memory {name!r} already; choose another name, or learn it anew with "
            "`koffkit memory replace`."
        )
    return target


def taken_place(export: Export, name: str) -> Path:
    """The folder of the memory that a new one will take the place of.

    Raises:
        UsageError: there is no such memory.
    """
    places = {bundle.domain: bundle.path for bundle in export.bundles()}
    if name not in places:
        raise UsageError(f"{export.path}: no memory {name!r} to replace; {near_name(name, places)}")
    return places[name]


def _learn(
    loaded: LoadedRecipe,
    export: Export,
    work: RunFolder,
    resume: bool,
    device: str | None,
    progress: Progress,
) -> RunState:
    from ..stages.engine import learn_memory

    if work.exists and not resume:
        raise UsageError(
            f"{work.path}: an interrupted command for a memory of this name; go on with --resume, or remove "
            "the folder."
        )
    masks = None if loaded.recipe.memory.neurons is None else export.masks
    return learn_memory(
        loaded,
        export.backbone,
        work.path,
        masks=masks,
        resume=resume,
        device=device,
        progress=progress,
    )


def _teach(
    loaded: LoadedRecipe, export: Export, name: str, against: Sequence[str], target: Path, progress: Progress
) -> Routing | None:
    """Teach the router the new domain; returns how well it knows it, or None if it does not learn it."""
    recipe = loaded.recipe
    source, seed = recipe.sources[name], recipe.split_seed
    taught = teach_router(export, name, source, against, seed, recipe.holdout, progress)
    if taught is None:
        return None
    column, figures = taught
    column.save(target / ROUTER_COLUMN)
    return figures


def _public_recipe(export: Export, state: RunState) -> dict[str, Any]:
    """The recipe without places on this machine."""
    base = export.manifest.base
    recipe = public_recipe(state.recipe, base.is_on_hub, Around(export.path, Path(state.recipe_root)))
    model = public_place(base.model, Around(export.path, export.path.parent))
    return recipe | {"base": recipe["base"] | {"model": model}}


def _write(
    export: Export,
    name: str,
    work: RunFolder,
    state: RunState,
    target: Path,
    routing: Routing | None,
    progress: Progress,
) -> None:
    """Write the bundle with its golden logits and its card."""
    extra: dict[str, Any] = {
        "added": Added(
            created=timestamp(),
            base=state.base.fingerprint,
            recipe=_public_recipe(export, state),
            versions=state.versions,
        )
    }
    shipped = replaces(export, name)
    if shipped is not None:
        extra["replaces"] = shipped
    if routing is not None:
        extra["routing"] = routing
    figures = state.results["domains"][name]
    progress.message("recording golden logits")
    write_bundle(
        work.memory_dir(name), target, name, None, export.backbone_digest, figures, state, extra=extra
    )
    record_golden(target, export.backbone, progress)
    write_bundle_card(target, export.manifest)
