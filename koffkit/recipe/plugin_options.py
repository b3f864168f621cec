"""Recipe fields of plug-ins: a loss or a router kind is one file, options included."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, TypeVar

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from .. import plugins
from ..errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def options_of(group: str, where: str) -> dict[str, dict[str, FieldInfo]]:
    """The recipe fields of every plug-in of a group, by its name: the fields of its attribute `options`, a
    pydantic model or None.

    Args:
        group: a constant of `koffkit.plugins`.
        where: the recipe field that chooses one of them.

    Raises:
        UsageError: a package cannot be imported.
    """
    models = {name: plugins.load(group, name, where).options for name in plugins.names(group)}
    return {name: {} if model is None else dict(model.model_fields) for name, model in models.items()}


def with_options_of(group: str, where: str) -> Callable[[type[Model]], type[Model]]:
    """Decorate a recipe model with the fields of all plug-ins of a group, side by side.

    Raises:
        UsageError: two packages give one field different meanings, or one cannot be imported.
    """

    def decorate(model: type[Model]) -> type[Model]:
        fields: dict[str, FieldInfo] = {}
        for name, options in options_of(group, where).items():
            for key, field in options.items():
                if key in model.model_fields or _differ(fields.setdefault(key, field), field):
                    raise UsageError(
                        f"{where}: {name} has an option {key}, which already means something else; uninstall "
                        f"{name}, or ask its author for another name."
                    )
        made: Any = {key: (field.annotation, copy(field)) for key, field in fields.items()}
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **made
        )

    return decorate


def _differ(first: FieldInfo, second: FieldInfo) -> bool:
    return (first.annotation, first.default, first.metadata) != (
        second.annotation,
        second.default,
        second.metadata,
    )
