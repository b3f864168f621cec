"""Opening a run folder for the stages: a new run, or one to continue."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..artefact.digests import backbone_digest
from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError, UsageError
from ..parallel import ranks
from ..planning.plan import budget_of, check_layers
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe
from ..run.folder import RunFolder
from ..run.state import FORMAT, RunBase, RunBudget, RunState, StageState
from ..storage.clock import timestamp
from ..storage.files import make_folder
from ..storage.lock import is_own
from ..storage.publish import discard

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def open_run(
    run: RunFolder,
    loaded: LoadedRecipe,
    base: ModelSpec,
    backbone: Path | None,
    resume: bool,
    progress: Progress | None = None,
) -> RunState:
    """The state of a run: a new one, or with `resume` the one that is there.

    Args:
        run: its folder.
        loaded: the recipe.
        base: the unpruned base.
        backbone: a sliced backbone that memories are learned for; None: there is none yet.
        resume: continue a run that is there.
        progress: told how far the reading of the base is.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
        IntegrityError: the run began with another base or backbone.
    """
    sliced = None if backbone is None else backbone_digest(backbone)
    if run.exists:
        state = run.read()
        if not resume:
            raise UsageError(
                f"{run.path}: there is a run already ({state.state}); add --resume to continue it, or "
                "choose another --output."
            )
        _require_same_run(run, state, loaded.recipe, base, progress)
        if state.backbone != sliced:
            raise IntegrityError(
                f"{run.path}: cannot resume, the run began with another backbone than {backbone}; remove the "
                "run."
            )
        return state
    if run.path.is_dir() and not all(is_own(path) or path == run.data_dir for path in run.path.iterdir()):
        raise UsageError(f"{run.path}: the folder exists and is not a run; choose another --output.")
    make_folder(run.path)
    return run.write(_new_state(loaded, base, sliced, progress))


def _require_same_run(
    run: RunFolder, state: RunState, recipe: Recipe, base: ModelSpec, progress: Progress | None = None
) -> None:
    """Refuse to continue a run with a recipe or base other than its own."""
    changed = changed_fields(state, recipe)
    if changed:
        raise UsageError(
            f"{run.path}: cannot resume, the recipe changed in {', '.join(changed)}; use the recipe of "
            "the run, or another --output."
        )
    if state.base.fingerprint != base.digest(state.base.digest_kind, progress):
        raise IntegrityError(
            f"{run.path}: cannot resume, the base at {base.folder} is not the one the run began with."
        )


def changed_fields(state: RunState, recipe: Recipe) -> list[str]:
    """Where a recipe differs from that of a run, which an earlier version of koffkit may have begun.

    Returns:
        The outermost fields that differ; none: it is the same recipe.
    """
    resolved = recipe.model_dump(mode="json")
    requested = _in_present_names(state.requested_recipe, recipe)
    return [
        key for key in (resolved | requested) if key not in requested or requested[key] != resolved.get(key)
    ]


def _in_present_names(requested: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe with the field names of this version; earlier ones had other names for some."""
    try:
        said = {"begin_sequences": False} | requested  # as it was before there was the field
        return type(recipe).model_validate(said).model_dump(mode="json")
    except ValidationError:
        return requested


def _new_state(
    loaded: LoadedRecipe, base: ModelSpec, sliced: str | None, progress: Progress | None
) -> RunState:
    """`run.json` of a run that is about to begin.

    Args:
        sliced: digest of the sliced backbone that memories are learned for; None: there is none yet.
    """
    recipe = loaded.recipe
    resolved = recipe.model_dump(mode="json")
    return RunState(
        koffkit=FORMAT,
        requested_recipe=resolved,
        recipe=resolved,  # with the domains of `auto`, once they are known
        recipe_path=str(loaded.path),
        recipe_root=str(loaded.root),
        versions={name: version(name) for name in ("koffkit", *PACKAGES)}
        | {"python": platform.python_version()},
        seed=recipe.seed,
        base=RunBase(
            model=recipe.base.model,
            path=str(base.folder),
            fingerprint=base.digest(progress=progress),
            digest_kind="full",
            config=dict(base.config),
        ),
        budget=RunBudget.model_validate(budget_of(recipe, base).to_json()),
        backbone=sliced,
        memory_layers=check_layers(recipe, base.num_layers),
        stages=[StageState(name=stage.name, state="pending") for stage in recipe.stages],
        state="running",
        started=timestamp(),
        results={},
    )


def led_run(run: RunFolder) -> RunState:
    """The run that the leader has just opened.

    Raises:
        UsageError: it is not to be seen from here.
    """
    if not run.exists:
        raise UsageError(
            f"{run.path}: process {ranks.rank()} does not see the run that process 0 made; give an --output "
            "on a file system that all machines share, under the same path."
        )
    return run.read()


def clear(run: RunFolder, *, keep_tokens: bool) -> None:
    """Remove a refused run; `keep_tokens` keeps token files, which may have taken hours."""
    if not keep_tokens or not run.data_dir.is_dir():
        discard(run.path)
        return
    for path in sorted(run.path.iterdir(), key=lambda path: path == run.run_file):  # run.json last
        if path != run.data_dir and not is_own(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
