"""The Python API: what the command line does, as functions. `koffkit` re-exports all its public names.

Heavy libraries are imported by the function that needs them: `plan` works without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import IntegrityError, UsageError
from .progress import Progress, Silent
from .run.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .planning.plan import Plan
    from .recipe.load import LoadedRecipe
    from .recipe.schema import Recipe

    AnyRecipe = str | Path | Mapping[str, Any] | Recipe | LoadedRecipe
    Changes = Mapping[str, Any] | Iterable[str]


def compress(
    recipe: AnyRecipe,
    output: str | Path,
    *,
    set: Changes = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Learn masks and memories as a recipe says, into a run folder.

    Args:
        recipe: a file, the name of a shipped recipe, the recipe as a mapping, or a `Recipe`. Relative paths
            in it start from its file's folder, or from the working folder where there is no file.
        output: the run folder to make.
        set: fields to change, as `{"mask.global_sparsity": 0.2}` or `["mask.global_sparsity=0.2"]`.
        resume: continue a run that was interrupted.
        progress: where to report how far the run is; by default nowhere.

    Returns:
        The finished run.

    Raises:
        UsageError: the recipe is not valid (with all findings), or the folder holds something else.
        DataError: a source of text or the base is missing or unreadable.
        IntegrityError: the base is damaged, or not the one the run began with.
        Interrupted: Ctrl-C or SIGTERM; everything up to the last step is saved.
    """
    from .stages.engine import run_recipe

    run_recipe(_loaded(recipe, set), Path(output), resume=resume, progress=progress or Silent())
    return Run(output)


def plan(recipe: AnyRecipe, *, set: Changes = ()) -> Plan:
    """What a run would do: exact parameter counts and bytes, estimates of memory (bytes) and time (seconds).

    Reads the recipe and the base's `config.json`, nothing else.

    Args:
        recipe: see `compress`.
        set: see `compress`.

    Raises:
        UsageError: the recipe is not valid, or its budget cannot be met on this base.
        DataError: there is no such base.
    """
    from .planning.plan import plan_of

    return plan_of(_loaded(recipe, set))


def export(
    run: Run | str | Path,
    output: str | Path,
    *,
    format: str = "hf",
    merge: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Slice a finished run into artefacts that other software loads.

    Args:
        run: a finished run.
        output: the folder to make; it appears whole or not at all.
        format: an installed exporter.
        merge: a domain whose memory becomes part of the backbone's weights, in one dense checkpoint without
            memories beside it; its KV half, which weights cannot hold, is left out with a warning.
        options: the exporter's options; by default those that the recipe gives for this format.
        progress: where to report how far the export is; by default nowhere.

    Returns:
        What `koffkit export --json` prints.

    Raises:
        UsageError: the run is not finished, `output` exists, or there is no such format or memory.
        IntegrityError: the base changed since, or the artefact does not compute what the run learned.
        ResourceError: the disk is too full.
    """
    from .exporters import export as export_run

    folder = RunFolder(run.path if isinstance(run, Run) else run)
    if options is None:
        options = _recipe_options(folder.require_finished().recipe["export"], format)
    if merge is not None:
        options = {**options, "merge": merge}
    return export_run(folder.path, Path(output), format, options, progress or Silent())


def restore(
    path: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the unpruned base again, from an export that was made with the option `keep_removed`.

    Args:
        path: the export's folder.
        output: the folder to make; it appears whole or not at all.
        base: the base, if it is at hand, to compare the result with; it is not needed.
        progress: where to report; by default nowhere.

    Returns:
        What `koffkit restore --json` prints.

    Raises:
        UsageError: the export does not hold what was removed, or `output` exists.
        IntegrityError: a file of the export is damaged, or the result is not the base.
        ResourceError: the disk is too full.
    """
    from .runtime.restore import restore_base

    return restore_base(
        Path(path), Path(output), base=None if base is None else Path(base), progress=progress
    )


def verify(path: str | Path) -> dict[str, Any]:
    """Check the digests, shapes and golden logits of an export, or the digests of a finished run.

    Args:
        path: the export's folder, or the run's.

    Returns:
        What `koffkit verify --json` prints.

    Raises:
        UsageError: this is neither an export nor a run that lists its files.
        IntegrityError: a check fails; the text names every file concerned, one per line.
    """
    from .artefact.export import is_export
    from .run.folder import RunFolder
    from .runtime.verify import verify_export, verify_run

    is_run = RunFolder(path).exists and not is_export(Path(path))
    report = verify_run(Path(path)) if is_run else verify_export(Path(path))
    if not report["ok"]:
        raise IntegrityError("\n".join(report["problems"]))
    return report


class Run:
    """A run folder, read only.

    Args:
        path: the folder.

    Raises:
        UsageError: this is not a run folder, or it has a later format.
    """

    def __init__(self, path: str | Path) -> None:
        self._folder = RunFolder(path)
        self._folder.read()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def finished(self) -> bool:
        """Whether every stage is done, so that the run can be exported."""
        return self._folder.is_finished

    def results(self) -> dict[str, Any]:
        """Figures of the stages `evaluate` and `route`; empty until they have run."""
        return dict(self._folder.read().results)

    def metrics(self) -> list[dict[str, Any]]:
        """One object for each training step, in order; `docs/run-folder.md` says what it holds."""
        file = self._folder.metrics_file
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written

    def masks(self) -> dict[tuple[int, str], NDArray[np.bool_]]:
        """The masks by layer index and structure, each of shape [units]; True = kept.

        Raises:
            UsageError: the run has not learned its masks yet.
            IntegrityError: the file is damaged.
        """
        from .checkpoint.spec import ModelSpec
        from .masks.file import load_masks

        if not self._folder.masks_file.is_file():
            raise UsageError(f"{self.path}: there are no masks yet; finish the run with resume=True.")
        return load_masks(self._folder.masks_file, ModelSpec(config=self._folder.read().base.config))


def _loaded(recipe: AnyRecipe, changes: Changes) -> LoadedRecipe:
    """A recipe of any form, with the changes applied."""
    from .recipe.load import LoadedRecipe, load_recipe, recipe_from_tree
    from .recipe.schema import Recipe

    overrides = _overrides(changes)
    if isinstance(recipe, str | Path):
        return load_recipe(recipe, overrides)
    if isinstance(recipe, LoadedRecipe):
        if not overrides:
            return recipe
        return recipe_from_tree(_written_out(recipe.recipe), overrides, recipe.root)
    tree = _written_out(recipe) if isinstance(recipe, Recipe) else recipe
    return recipe_from_tree(tree, overrides, Path.cwd())


def _written_out(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_unset=True)


def _overrides(changes: Changes) -> list[str]:
    """Changes in the form of the command line, `a.b=VALUE`."""
    import yaml

    if isinstance(changes, str):
        raise UsageError(f"set: {changes!r} is a single string; give a list of a.b=VALUE, or a mapping.")
    if not isinstance(changes, Mapping):
        return list(changes)
    return [f"{field}={yaml.safe_dump(value, default_flow_style=True)}" for field, value in changes.items()]


def _recipe_options(listed: Iterable[Mapping[str, Any]], format: str) -> dict[str, Any]:
    """The options that a recipe gives for one format."""
    for spec in listed:
        if spec["format"] == format:
            return {key: value for key, value in spec.items() if key != "format"}
    return {}


__all__ = ["Run", "compress", "export", "plan", "restore", "verify"]
