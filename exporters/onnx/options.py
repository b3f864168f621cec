"""Options of format `onnx`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...strict import StrictModel


class OnnxOptions(StrictModel):
    """Options of the format."""

    merge: str | None = Field(
        None,
        description="Domain whose memory becomes part of the backbone's weights; none ships beside it.",
    )
    layout: Literal["plain", "genai"] = Field(
        "plain", description="plain: for ONNX Runtime; genai: with what onnxruntime-genai reads, too."
    )
