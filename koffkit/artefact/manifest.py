"""`koffkit.json`: what an export says of itself."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..checkpoint.fingerprint import DigestKind
from ..storage.record import Count, FolderName, InnerPath, Record, RecordPart, Sha256
from .names import FORMAT
from .parts import FileEntry, Golden


class BaseModelEntry(RecordPart):
    """The unpruned model that an export was made from."""

    model: str = Field(description="Hub id, folder, or `embedded:NAME`.")
    fingerprint: Sha256 = Field(alias="digest", description="What the folder is known again by.")
    digest_kind: DigestKind = Field(
        "sampled", description="`full`: of every byte; `sampled` (or absent): of samples, as before."
    )
    architecture: str = Field(description="`model_type` of its family.")
    parameters: int = Field(ge=1, description="Embeddings included, tied weights counted once.")
    bytes: int = Field(ge=1, description="Of its weight files.")


class BackboneEntry(RecordPart):
    """The sliced model."""

    path: InnerPath = Field(description="Its folder.")
    digest: Sha256 = Field(description="Of its tensors: names, types, shapes, bytes; not of its files.")
    model_class: str = Field(alias="class", description="The transformers class that loads it.")
    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1, description="Of its weight files.")


class Removed(RecordPart):
    """What is physically gone."""

    parameters: Count
    target: Count = Field(description="The least number that the recipe asked for.")
    global_sparsity: float = Field(ge=0, le=1, description="parameters / parameters of the base.")


class BundleEntry(RecordPart):
    """A memory that shipped with the export."""

    path: InnerPath = Field(description="Its folder.")
    parameters: Count
    bytes: Count = Field(description="Of the files that its memory.json lists.")


class NoiseFloor(RecordPart):
    """What computing the backbone in a smaller type does to its logits, by condition."""

    dtype: str
    max_abs: dict[str, float]
    kl: dict[str, float] = Field(description="Nats per token.")


class Parity(RecordPart):
    """The comparison of masked and sliced model before publishing; a condition is `none` or a domain."""

    dtype: str = Field("float32", description="Type of the computation. Absent: float32.")
    tokens: int = Field(ge=1, description="How many tokens were read.")
    tolerance: float = Field(
        gt=0,
        description="Limit for max_abs; where max_logit is given, as a share of it.",
    )
    max_logit: dict[str, float] = Field({}, description="Largest |logit|.")
    max_abs: dict[str, float] = Field(description="Largest |difference| of a logit.")
    noise_floor: NoiseFloor | None = None


class Manifest(Record):
    """The object in `koffkit.json`."""

    newest = FORMAT

    format: str = Field(description="Name of the exporter.")
    name: str = Field(description="The recipe's name.")
    created: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    versions: dict[str, str] = Field(description="Of koffkit, Python and the packages below it.")
    base: BaseModelEntry
    backbone: BackboneEntry
    removed: Removed
    kept: dict[str, list[Count]] = Field(description="Units that stay, by structure and layer.")
    masked: dict[str, Count] = Field(description="Units that are zero but still there, by structure.")
    domains: dict[FolderName, BundleEntry] = Field(description="The memories that shipped.")
    parity: Parity
    results: dict[str, Any] = Field(description="Figures of the run's stages, as in run.json.")
    recipe: dict[str, Any] = Field(description="The resolved recipe.")
    golden: Golden = Field(description="Without a memory.")
    files: dict[InnerPath, FileEntry] = Field(description="Every file of the export but this one and cards.")
