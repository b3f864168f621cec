"""Options of format `gguf`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...strict import StrictModel


class GgufOptions(StrictModel):
    """Options of the format."""

    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        "auto", description="Type of the matrices; auto: the one that the base's weights are stored in."
    )
    merge: str | None = Field(
        None, description="Domain whose LoRA and neurons become part of the backbone's weights."
    )
    kv: bool = Field(True, description="Write KV memories as state files; false: leave them out.")
    state_version: Literal[2, 3, 4] = Field(
        4, description="Version of state files: 2 up to August 2026, 3 in September 2026, 4 since."
    )
    cache_type: Literal["f16", "f32"] = Field(
        "f16",
        description="Type of the consumer's key-value cache, for state files; f16 is llama.cpp's default.",
    )
    pre_tokenizer: str = Field(
        "auto", description="llama.cpp's name for how text is split before BPE; auto: recognise it."
    )
