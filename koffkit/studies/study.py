"""Running a study: one run folder for each row and seed, finished ones kept, interrupted ones continued."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.spec import ModelSpec
from ..errors import Interrupted, UsageError
from ..hub import locate
from ..planning.plan import make_plan
from ..progress import Progress
from ..recipe.load import LoadedRecipe, recipe_from_tree, validated
from ..run.folder import RunFolder
from ..run.state import RunState
from .changes import RowRefused, Setting, Tree
from .rows import DEFAULT, find_row

SHARED = "shared"
"""The folder, beside the runs, of what they compute alike: scores of units on the same text, for one."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a study.

    Attributes:
        row: the row's or the point's name.
        seed: the recipe's seed.
        loaded: its recipe.
        folder: its run folder.
        unpruned: memories are learned for the unpruned base.
    """

    row: str
    seed: int
    loaded: LoadedRecipe
    folder: Path
    unpruned: bool = False


def ablation(
    loaded: LoadedRecipe, rows: Sequence[str] | None, seeds: Sequence[int], output: Path, progress: Progress
) -> list[Entry]:
    """The runs of an ablation, every recipe checked.

    Args:
        loaded: the recipe that rows change.
        rows: names of rows; None: the default ones, as far as they make sense for this recipe.
        seeds: a run of every row for each.
        output: the folder of the run folders.
        progress: is told when a base must be prepared first, and which default rows are left out.

    Raises:
        UsageError: a row is unknown, or makes no sense for this recipe.
    """
    spec = _base(loaded, progress)
    setting, tree = Setting(loaded.recipe, spec), _written_out(loaded)

    def entries_of(name: str) -> list[Entry]:
        row = find_row(name)
        changed = row.of(tree, setting)
        recipes = [_recipe(changed | {"seed": seed}, loaded, row.unpruned) for seed in seeds]
        return [
            _entry(name, seed, recipe, output, spec, unpruned=row.unpruned)
            for seed, recipe in zip(seeds, recipes, strict=True)
        ]

    if rows is None:
        return _default_entries(entries_of, progress)
    return [entry for name in rows for entry in entries_of(name)]


def _default_entries(entries_of: Callable[[str], list[Entry]], progress: Progress) -> list[Entry]:
    """The runs of the default rows, but for those that are refused or that another row is already.

    Raises:
        UsageError: the recipe itself, the first row, cannot be run.
    """
    first, *others = DEFAULT
    entries = entries_of(first)
    known = {_content(entries[0]): first}
    for name in others:
        try:
            made = entries_of(name)
        except UsageError as reason:
            why = reason.why if isinstance(reason, RowRefused) else " ".join(str(reason).split())
            progress.message(f"row {name} is left out: {why.removesuffix('.')}.")
            continue
        twin = known.setdefault(_content(made[0]), name)
        if twin != name:
            progress.message(f"row {name} is left out: for this recipe it is the same as {twin}.")
            continue
        entries += made
    return entries


def _content(entry: Entry) -> str:
    return entry.loaded.recipe.model_dump_json()


def sweep(
    loaded: LoadedRecipe,
    places: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    output: Path,
    progress: Progress,
) -> list[Entry]:
    """The runs of a sweep, every recipe checked.

    Args:
        loaded: the recipe.
        places: overrides of every point, by its name; see `points`.
        seeds: a run of every point for each.
        output: the folder of the run folders.
        progress: is told when a base must be prepared first.

    Raises:
        UsageError: a value is not valid.
    """
    entries = []
    for name, overrides in places.items():
        for seed in seeds:
            recipe = recipe_from_tree(_written_out(loaded), [*overrides, f"seed={seed}"], loaded.root)
            entries.append(_entry(name, seed, recipe, output, _base(recipe, progress)))
    return entries


def run_study(entries: Sequence[Entry], progress: Progress) -> Iterator[tuple[Entry, RunState]]:
    """Run what is not finished, and give every run's final state.

    Args:
        entries: the runs.
        progress: where to report.

    Raises:
        Interrupted: the user asked to stop; the same call continues.
    """
    for number, entry in enumerate(entries, 1):
        known = _finished(entry)
        if known is None:
            progress.message(f"{entry.row}, seed {entry.seed} ({number} of {len(entries)})")
        try:
            yield entry, known or _run(entry, progress)
        except Interrupted as reason:
            raise Interrupted(
                f"interrupted in {entry.row}, seed {entry.seed}; the same command goes on from there."
            ) from reason


def _run(entry: Entry, progress: Progress) -> RunState:
    from ..stages.engine import learn_memory, run_recipe

    resume = RunFolder(entry.folder).exists
    if not entry.unpruned:
        shared = entry.folder.parent / SHARED
        return run_recipe(entry.loaded, entry.folder, resume=resume, progress=progress, shared=shared)
    base = _base(entry.loaded, progress).folder
    return learn_memory(entry.loaded, base, entry.folder, resume=resume, progress=progress)


def _finished(entry: Entry) -> RunState | None:
    """The state of a run that is done.

    Raises:
        UsageError: it was another recipe.
    """
    folder = RunFolder(entry.folder)
    if not folder.exists:
        return None
    from ..stages.opening import changed_fields

    state = folder.read()
    changed = changed_fields(state, entry.loaded.recipe)
    if changed:
        raise UsageError(
            f"{entry.folder}: a run of another recipe, which differs in {', '.join(changed)}; remove the "
            "folder, or choose another --output."
        )
    return state if state.is_finished else None


def _base(loaded: LoadedRecipe, progress: Progress) -> ModelSpec:
    base = loaded.recipe.base
    return ModelSpec.open(locate(base.model, loaded.root, revision=base.revision, progress=progress))


def _written_out(loaded: LoadedRecipe) -> Tree:
    return loaded.recipe.model_dump(mode="json", exclude_unset=True)


def _recipe(tree: Tree, loaded: LoadedRecipe, unpruned: bool) -> LoadedRecipe:
    if not unpruned:
        return recipe_from_tree(tree, [], loaded.root)
    from ..memories.recipe import MemoryRecipe

    recipe = validated(tree, "recipe", {}, MemoryRecipe)
    return LoadedRecipe(recipe=recipe, path=loaded.root / "recipe", root=loaded.root)


def _entry(
    name: str, seed: int, loaded: LoadedRecipe, output: Path, spec: ModelSpec, *, unpruned: bool = False
) -> Entry:
    stages = [stage.name for stage in loaded.recipe.stages]
    if "evaluate" not in stages:
        raise UsageError(f"{loaded.path}: stages: a study needs the figures of stage evaluate; add it.")
    make_plan(loaded.recipe, spec)
    return Entry(row=name, seed=seed, loaded=loaded, folder=output / f"{name}-{seed}", unpruned=unpruned)
