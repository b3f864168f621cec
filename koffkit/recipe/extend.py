"""`extends`: a recipe that states only how it differs from another one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from .stages import STAGES


def merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`parent` with the fields of `child` in their place.

    Mappings merge field by field, anything else replaces. `stages` may be a mapping in the child: its options
    then merge into the parent's stages by name, and new stages are inserted in order. `domains` replace the
    parent's as a whole: they are a choice, not a default.
    """
    result: dict[str, Any] = deepcopy(dict(parent))
    for key, value in child.items():
        if key == "stages" and isinstance(value, Mapping) and isinstance(result.get(key), list):
            result[key] = _merged_stages(result[key], value)
        elif key != "domains" and isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = deepcopy(value)
    return result


def _merged_stages(stages: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    left = dict(changes)
    result = []
    for stage in stages:
        name = next(iter(stage), None) if isinstance(stage, Mapping) else None
        options = left.pop(name, None) if name is not None else None
        before = (stage[name] or {}) if name is not None else None
        if isinstance(before, Mapping) and isinstance(options, Mapping):
            stage = {name: merged(before, options)}
        result.append(stage)
    result += [{name: options} for name, options in left.items()]
    order = list(STAGES)

    def place(stage: Any) -> int:
        names = stage if isinstance(stage, Mapping) else ()  # anything else is left to validation
        return next((order.index(name) for name in names if name in order), len(order))

    return sorted(result, key=place)
