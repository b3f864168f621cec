"""Parts that `koffkit.json` and `memory.json` share."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from ..storage.record import Count, RecordPart, Sha256


class FileEntry(RecordPart):
    """Digest and size of one file."""

    sha256: Sha256 = Field(description="Digest of its bytes.")
    size: Count = Field(description="Bytes.")
    sampled: Sha256 | None = Field(
        None, description="Of weights of the backbone: digest of the header and of samples of the bytes."
    )


class Golden(RecordPart):
    """Logits that a loader of the weights must reproduce: the largest ones after the last token."""

    tokens: list[Count] = Field(min_length=1, description="Token ids that the model reads.")
    ids: list[Count] = Field(min_length=1, description="The tokens with the largest logits after the last.")
    logits: list[float] = Field(description="Their logits, rounded to nine decimals.")
    dtype: str = Field("float32", description="Type of the computation. Absent: float32.")

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.ids) != len(self.logits):
            raise ValueError(f"{len(self.ids)} ids and {len(self.logits)} logits")
        return self
