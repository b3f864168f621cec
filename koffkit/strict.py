"""The base of every format of ours that is read from a file: unknown fields are errors, values never change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
