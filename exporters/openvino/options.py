"""Options of format `openvino`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...strict import StrictModel


class OpenvinoOptions(StrictModel):
    """Options of the format."""

    weights: Literal["auto", "int8", "int4"] = Field(
        "auto",
        description="Type of the matrices; auto: the one that the base's weights are stored in; int8 and "
        "int4: compressed by nncf.",
    )
    merge: str | None = Field(
        None, description="Domain whose LoRA and neurons become part of the backbone's weights."
    )
    kv: bool = Field(True, description="Carry KV memories; false: leave them out.")
