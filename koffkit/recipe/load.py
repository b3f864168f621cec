"""Reading recipes: YAML with line numbers, `--set` overrides, and every error at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UsageError, near_name
from .builtin import shipped
from .extend import merged
from .schema import STAGES, Recipe

Location = tuple[str | int, ...]
Lines = dict[Location, tuple[Path, int]]


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and the folder that its relative paths start from."""

    recipe: Recipe
    path: Path
    root: Path


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file, or a shipped recipe by name, and apply `a.b=VALUE` overrides.

    Raises:
        UsageError: with one line per finding, `file:line: field: what is wrong`.
    """
    path = _find(name)
    tree, lines = _read_extended(path, ())
    for override in overrides:
        apply_override(tree, override)
    return LoadedRecipe(recipe=validated(tree, path, lines), path=path, root=path.resolve().parent)


def validated(tree: dict[str, Any], source: Path | str, lines: Lines, model: type[Recipe] = Recipe) -> Recipe:
    """The recipe that a tree of plain values describes.

    Args:
        source: what the findings are said to be in.
        lines: line numbers by place, as far as there are any.

    Raises:
        UsageError: with one line per finding.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(_findings(error, source, lines))) from None


def _find(name: str | Path, beside: Path | None = None) -> Path:
    """A recipe file, relative to the recipe that extends it or to the working folder, or a shipped recipe by
    name."""
    for path in ([beside.parent / name] if beside is not None else []) + [Path(name)]:
        if path.is_file():
            return path
    if str(name) in shipped():
        return shipped()[str(name)]
    where = f"{beside}: extends: " if beside is not None else ""
    raise UsageError(
        f"{where}{name}: no such recipe file; among the shipped ones, {near_name(str(name), shipped())}"
    )


def _read_extended(path: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], Lines]:
    """A recipe merged into the one it extends, and so on; a field's place is the last file that gives it."""
    tree, lines = _read(path)
    places: Lines = {location: (path, line) for location, line in lines.items()}
    if "extends" not in tree:
        return tree, places
    parent = tree.pop("extends")
    if not isinstance(parent, str):
        raise UsageError(
            f"{path}:{lines['extends',]}: extends: {parent!r}: name one recipe file or shipped recipe."
        )
    if path.resolve() in below:
        raise UsageError(f"{path}:{lines['extends',]}: extends: {parent}: this recipe extends itself.")
    base, earlier = _read_extended(_find(parent, path), (*below, path.resolve()))
    return merged(base, tree), earlier | places


def _read(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}."
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: a recipe is a mapping that starts with `koffkit: 1`.")
    lines: dict[Location, int] = {}
    duplicates: list[str] = []
    _walk(node, (), lines, duplicates)
    if duplicates:
        raise UsageError("\n".join(f"{path}:{finding}" for finding in duplicates))
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree, lines


def _walk(node: yaml.Node, location: Location, lines: dict[Location, int], duplicates: list[str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*location, key.value)
            line = key.start_mark.line + 1
            if place in lines:
                duplicates.append(f"{line}: {dotted(place)}: given twice (first on line {lines[place]})")
            lines[place] = line
            _walk(value, place, lines, duplicates)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            place = (*location, index)
            lines[place] = value.start_mark.line + 1
            _walk(value, place, lines, duplicates)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Change one field of a recipe's tree in place.

    Raises:
        UsageError: the override is not `a.b=VALUE`, or there is no such place.
    """
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise UsageError(
            f"--set {override}: write it as a.b=VALUE, for example --set mask.global_sparsity=0.2."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override}: the value is not valid YAML.") from None
    *parents, last = field.split(".")
    place: Any = tree
    for part in parents:
        place = _step(place, part, override)
    if isinstance(place, list):
        entry = _named(place, last)
        if entry is not None:
            entry[last] = value
        else:
            place[_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UsageError(
            f"--set {override}: {'.'.join(parents)} is a single value and has no field {last!r}."
        )


def _step(place: Any, part: str, override: str) -> Any:
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    if isinstance(place, list):
        entry = _named(place, part)
        if entry is None:
            return place[_index(place, part, override)]
        if entry[part] is None:
            entry[part] = {}
        return entry[part]
    raise UsageError(f"--set {override}: there is nothing below {part!r}.")


def _named(place: list[Any], part: str) -> Any:
    """The entry of a list that has this key: stages can be named, as in stages.learn_masks.max_steps."""
    return next(
        (entry for entry in place if isinstance(entry, dict) and part in entry and not part.isdigit()), None
    )


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise UsageError(
            f"--set {override}: {part!r} is not in a list of {len(place)} entries (counted from 0)."
        )
    return int(part)


def _findings(error: ValidationError, source: Path | str, lines: Lines) -> list[str]:
    findings: dict[str, None] = {}
    for item in error.errors():
        location = _written(item["loc"])
        place = next(
            (lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None
        )
        where = f"{place[0]}:{place[1]}" if place else f"{source}"
        findings[f"{where}: {dotted(location) or 'recipe'}: {_explain(item, location)}"] = None
    return list(findings)


def _written(location: Iterable[str | int]) -> Location:
    """Drop the names that pydantic adds for union members and constrained keys: what stays is what the user
    wrote."""
    noise = {
        "<given>",
        "<auto>",
        "Upper",
        "Learned",
        "Anneal",
        "Coverage",
        "KV",
        "Lora",
        "int",
        "float",
        "str",
        "[key]",
    }
    return tuple(
        part
        for part in location
        if not (
            isinstance(part, str) and (part in noise or part.startswith(("literal[", "list[", "constrained")))
        )
    )


def _explain(item: Any, location: Location) -> str:
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _fields_at(location[:-1]), n=1, cutoff=0.5)
        known = ", ".join(_fields_at(location[:-1]))
        return "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known here: {known}")
    if item["type"] == "missing":
        return "is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f"{value!r}: "
    return shown + message[:1].lower() + message[1:]


def _fields_at(location: Location) -> list[str]:
    """The field names the schema knows at a place, for near-name suggestions."""
    model: Any = Recipe
    for place, part in enumerate(location):
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        if part in STAGES:
            model = STAGES[part]
            continue
        field = model.model_fields.get(part)
        following = str(location[place + 1]) if place + 1 < len(location) else None
        model = _model_in(field.annotation, following) if field else model
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


def _model_in(annotation: Any, key: str | None = None) -> Any:
    """The model that an annotation holds; of several the one that has the field `key`, else the first."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for argument in get_args(annotation) if (model := _model_in(argument, key))]
    return next((model for model in found if key in model.model_fields), found[0] if found else None)


def dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
