"""`memory.json`: the description of a bundle."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..storage.record import Count, FolderName, InnerPath, Record, RecordPart, Sha256
from .names import FORMAT
from .parts import FileEntry, Golden


class LoraHalf(RecordPart):
    """The LoRA half."""

    rank: int = Field(ge=1, description="Of a module, unless adapter_config.json says otherwise for it.")
    alpha: float = Field(description="LoRA's scaling is alpha / rank.")
    targets: list[str] = Field(description="Modules that have an adapter.")


class KVHalf(RecordPart):
    """The KV half."""

    tokens: int = Field(ge=1, description="Memory tokens in every layer that has any.")
    init_std: float = Field(0.02, description="As in the recipe: what learning began with.")


class NeuronHalf(RecordPart):
    """Neurons of the base that the memory gives back to the backbone."""

    count: int = Field(ge=1, description="How many, over all layers.")
    layout: str = Field(description="uniform: as many in every layer; ragged: not.")
    tuned: bool = Field(False, description="Their weights were trained; false: gate and up are the base's.")
    fitted: bool = Field(False, description="Their down columns were fitted by least squares.")


class CompactedFrom(RecordPart):
    """The memory before it was compacted."""

    parameters: Count = Field(description="How many it had.")
    bytes: Count = Field(description="Of its files.")
    dtype: str = Field(description="Type of its weights.")


class CompactedLoss(RecordPart):
    """What compacting cost: KL in nats per token to a reference, on the same text before and after."""

    reference: str = Field(description="What both are compared with.")
    before: float = Field(description="KL of the memory as it was.")
    after: float = Field(description="KL of the compacted memory.")
    tokens: int = Field(description="How many were read.")
    text: str | list[str] = Field(description="Files, or `probe tokens`.")


class Compacted(RecordPart):
    """How a memory was compacted."""

    created: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    options: dict[str, Any] | None = Field(None, description="What was asked for; older bundles do not say.")
    rank_before: int | None = Field(None, description="LoRA rank before.")
    ranks: list[int] | None = Field(None, description="Smallest and largest rank.")
    energy: float | None = Field(None, description="Least share of the squared norm that a module keeps.")
    original: CompactedFrom = Field(alias="from", description="The memory before.")
    kl: CompactedLoss | None = Field(None, description="What it cost.")


class Added(RecordPart):
    """How a memory that was added after the export was learned."""

    created: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    base: Sha256 = Field(description="Fingerprint of the unpruned model.")
    recipe: dict[str, Any] = Field(description="The resolved recipe that it was learned with.")
    versions: dict[str, str] = Field(description="Of koffkit, Python and the packages below it.")


class Routing(RecordPart):
    """How well the router recognises the text of a memory that was added later."""

    recognised: float = Field(description="Share of its own held-out documents that get it.")
    mistaken: float = Field(description="Share of other documents that get it.")
    documents: int = Field(description="How many of its own were held out.")
    other_documents: int = Field(description="How many others were held out.")
    against: list[str] = Field(description="Where the other documents came from.")


class BundleInfo(Record):
    """The object in a bundle's `memory.json`."""

    newest = FORMAT
    remedy = "copy the bundle again"

    domain: FolderName = Field(description="The domain that it was learned on.")
    backbone_digest: Sha256 = Field(description="The one backbone that it belongs to.")
    layers: list[Count] = Field(min_length=1, description="Layers that carry memory.")
    lora: LoraHalf | None = Field(description="null: this half is off.")
    kv: KVHalf | None = Field(description="null: this half is off.")
    neurons: NeuronHalf | None = Field(None, description="null: there are none.")
    parameters: Count = Field(description="Of all halves.")
    parameters_by_half: dict[str, Count] = Field(description="Under `lora`, `kv` and `neurons`.")
    figures: dict[str, Any] = Field(description="Of this domain, by condition, from `evaluate`.")
    dtype: str = Field("float32", description="Type of the weights; int8 and int6 are packed.")
    compacted: Compacted | None = Field(None, description="Present after `memory compact`.")
    added: Added | None = Field(None, description="Present in memories that came after the export.")
    replaces: Sha256 | None = Field(
        None, description="sha256 of the memory.json that this one stands in for."
    )
    routing: Routing | None = Field(None, description="Present where router_column.safetensors is.")
    golden: Golden | None = Field(None, description="Logits with this memory attached.")
    files: dict[InnerPath, FileEntry] = Field(description="Weights and their configuration.")

    @property
    def is_packed(self) -> bool:
        """Whether the weights are koffkit's own packed integers, which no other software reads."""
        return self.dtype.startswith("int")

    @property
    def bytes(self) -> int:
        """Size of the weights and their configuration, without the card and `memory.json`."""
        return sum(entry.size for entry in self.files.values())
