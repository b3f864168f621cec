"""Checks of a run before it begins; all problems are reported at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, KoffkitError, ResourceError, UsageError, did_you_mean

if TYPE_CHECKING:
    from ..planning.plan import Plan
    from ..recipe.load import LoadedRecipe

# Trackers of accelerate, each with a package that it needs.
TRACKERS = {
    "aim": "aim",
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_recipe(loaded: LoadedRecipe) -> None:
    """Raise every problem of a valid recipe that can be found without training and without the network, one
    line each.

    Raises:
        UsageError: exports, trackers or the base's shape do not fit.
        DataError: text, a base or an encoder is missing or damaged, and nothing else is wrong.
        KoffkitError: the only problem is of another kind, such as a base in a truncated GGUF file.
    """
    from ..data.preflight import data_problems

    problems: list[KoffkitError] = []
    for check in (_check_base, _check_exports, _check_trackers, _check_encoder):
        problems += _caught(check, loaded)
    problems += [DataError(text) for text in data_problems(loaded)]
    if problems:
        text = "\n".join(dict.fromkeys(str(problem) for problem in problems))
        if len(problems) == 1:
            raise type(problems[0])(text)
        kind = next((type(problem) for problem in problems if isinstance(problem, UsageError)), DataError)
        raise kind(text)


def check_disk(plan: Plan, output: Path) -> None:
    """Refuse a disk without room for two checkpoints and the memories of a run.

    Raises:
        ResourceError: there is too little space.
    """
    needed = plan.memory_params_training * len(plan.domains) * 4 * (3 * 2 + 1)
    _require_room(
        output, needed, "the run needs", "checkpoints and memories; free some, or choose another --output"
    )


def check_cache_disk(needed: int, loaded: LoadedRecipe, output: Path) -> None:
    """Refuse a disk without room for the teacher cache.

    Args:
        needed: its bytes. loaded: the recipe. output: the run folder.

    Raises:
        ResourceError: there is too little space.
    """
    named = loaded.recipe.distill.cache_dir
    folder = output if named is None else loaded.root / Path(named).expanduser()
    remedy = "free some, name a folder elsewhere in distill.cache_dir, or set distill.cache: false"
    _require_room(folder, needed, "the teacher cache needs", f"what the teacher says; {remedy}")


def _require_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(f"{folder}: {free:,} bytes free, {what} about {needed:,} for {remedy}.")


def _caught(check: Callable[[LoadedRecipe], None], loaded: LoadedRecipe) -> list[KoffkitError]:
    try:
        check(loaded)
    except KoffkitError as error:
        return [error]
    return []


def _check_base(loaded: LoadedRecipe) -> None:
    from ..hub import is_hub_id
    from ..planning.plan import plan_of
    from .console import RichProgress

    if not is_hub_id(loaded.recipe.base.model, loaded.root):
        plan_of(loaded, progress=RichProgress())


def _check_exports(loaded: LoadedRecipe) -> None:
    from .. import exporters
    from ..planning.routes import facts_of_recipe

    problems, facts = [], facts_of_recipe(loaded.recipe)
    for index, spec in enumerate(loaded.recipe.export):
        where, options = f"export.{index}", spec.model_extra or {}
        names = list(exporters.available())
        if spec.format not in names:
            place = loaded.place("export", index, "format")
            known = f"installed: {', '.join(names) or 'none'}.{did_you_mean(spec.format, names)}"
            problems.append(f"{place}: {where}.format: {spec.format!r}: no such exporter; {known}")
            continue
        exporter = exporters.find(spec.format)
        carries = getattr(exporter, "carries", None)
        if carries is not None and (spec.model_extra or {}).get("merge") is None:
            place = loaded.place("export", index, "format")
            problems += [
                f"{place}: {where}: format {spec.format}: {text}." for text in carries.obstacles(facts)
            ]
        try:
            exporters.check_options(spec.format, exporter, options)
        except UsageError as error:
            unknown = next((name for name in options if name in str(error)), "format")
            place, text = loaded.place("export", index, unknown), str(error).removeprefix("export: ")
            problems.append(f"{place}: {where}: {text}")
    _raise_all(problems)


def _check_trackers(loaded: LoadedRecipe) -> None:
    problems = []
    for index, name in enumerate(loaded.recipe.train.trackers):
        where = f"{loaded.place('train', 'trackers', index)}: train.trackers: {name!r}"
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            problems.append(f"{where}: no tracker of accelerate; there is {', '.join(TRACKERS)}.{hint}")
        elif find_spec(TRACKERS[name]) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            problems.append(f"{where} is not installed; pip install it, or remove it.")
    _raise_all(problems)


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise UsageError("\n".join(problems))


def _check_encoder(loaded: LoadedRecipe) -> None:
    from ..hub import is_hub_id

    for stage in loaded.recipe.stages:
        name = str(getattr(stage.options, "encoder", ""))
        if getattr(stage.options, "kind", None) != "encoder" or is_hub_id(name, loaded.root):
            continue
        folders = [loaded.root / Path(name).expanduser(), Path(name).expanduser()]
        if not any((folder / "config.json").is_file() for folder in folders):
            raise DataError(f"stages.route.encoder: no folder {name!r} with a config.json in {loaded.root}.")
