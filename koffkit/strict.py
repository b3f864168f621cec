"""The base of every format of ours that is read from a file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count."""
Rate = Annotated[float, Field(gt=0, le=1)]
"""A learning rate."""


class StrictModel(BaseModel):
    """A pydantic model that never changes, and refuses fields it does not know and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def with_new_name(data: Any, old: str, new: str) -> Any:
    """A file's fields, one of them under its present name; for `model_validator(mode="before")`.

    Args:
        old: the name that earlier versions read. new: the present one.

    Raises:
        ValueError: the file gives both.
    """
    if not isinstance(data, dict) or old not in data:
        return data
    if new in data:
        raise ValueError(f"{old} is the former name of {new}; give {new} alone")
    return {new if key == old else key: value for key, value in data.items()}
