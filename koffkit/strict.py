"""The base class of every file format of koffkit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count."""
Rate = Annotated[float, Field(gt=0, le=1)]
"""A learning rate."""


class StrictModel(BaseModel):
    """An immutable pydantic model that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def with_new_name(data: Any, old: str, new: str) -> Any:
    """Rename a field of older files; for `model_validator(mode="before")`.

    Args:
        data: the fields of a file.
        old: the former name.
        new: the present name.

    Raises:
        ValueError: the file gives both.
    """
    if not isinstance(data, dict) or old not in data:
        return data
    if new in data:
        raise ValueError(f"{old} is the former name of {new}; give {new} alone")
    return {new if key == old else key: value for key, value in data.items()}
