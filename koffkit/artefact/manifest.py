"""`koffkit.json`: the manifest of an export."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..checkpoint.fingerprint import DigestKind
from ..storage.record import Count, FolderName, InnerPath, Record, RecordPart, Sha256
from .names import FORMAT
from .parts import FileEntry, Golden
from .public import public_name


class BaseModelEntry(RecordPart):
    """The unpruned model that an export was made from."""

    model: str = Field(
        description="Hub id, `embedded:NAME`, or a folder or GGUF file: the path from the folder that "
        "holds the export, or from further away the name alone."
    )
    fingerprint: Sha256 = Field(alias="digest", description="What the folder is known again by.")
    digest_kind: DigestKind = Field(
        "sampled", description="`full`: of every byte; `sampled` (or absent): of samples, as before."
    )
    architecture: str = Field(description="`model_type` of its family.")
    parameters: int = Field(ge=1, description="Embeddings included, tied weights counted once.")
    bytes: int = Field(ge=1, description="Of its weight files.")
    revision: str | None = Field(None, description="Commit on the hub; absent: it is no hub model.")
    license: dict[str, str] | None = Field(
        None, description="As model cards have it: `license`, `license_name`, `license_link`."
    )

    @property
    def is_on_hub(self) -> bool:
        """Whether `model` is the id of a hub model."""
        return self.revision is not None

    @property
    def public_name(self) -> str:
        """What to call it where others read: never the path of a folder."""
        return public_name(self.model, self.is_on_hub)


class BackboneEntry(RecordPart):
    """The sliced model."""

    path: InnerPath = Field(description="Its folder.")
    digest: Sha256 = Field(description="Of its tensors: names, types, shapes, bytes; not of its files.")
    model_class: str = Field(alias="class", description="The transformers class that loads it.")
    parameters: int = Field(ge=1, description="Embeddings included, tied weights counted once.")
    bytes: int = Field(ge=1, description="Of its weight files.")


class Removed(RecordPart):
    """What is physically gone."""

    parameters: Count = Field(description="How many are gone.")
    target: Count = Field(description="The least number that the recipe asked for.")
    global_sparsity: float = Field(ge=0, le=1, description="parameters / parameters of the base.")
    added: Count = Field(0, description="Parameters that a repair added: biases that the base does not have.")


class BundleEntry(RecordPart):
    """A memory that shipped with the export."""

    path: InnerPath = Field(description="Its folder.")
    parameters: Count = Field(description="Of all halves.")
    bytes: Count = Field(description="Of the files that its memory.json lists.")


class Merged(RecordPart):
    """The memory that the weights of a merged checkpoint contain."""

    domain: FolderName = Field(description="Whose memory it is.")
    halves: list[str] = Field(min_length=1, description="Which halves are in the weights: lora, neurons.")
    left_out: list[str] = Field(description="Halves that weights cannot hold, and that are gone: kv.")
    beside: list[str] = Field(
        [], description="Halves that ship beside the weights, in files of the format. Absent: none."
    )
    neurons: Count = Field(description="Restored neurons, over all layers; each layer's come after its own.")
    parameters: Count = Field(description="By how many they make the backbone larger.")
    rounding: dict[str, float] = Field(
        description="What rounding the sum of weights and LoRA to the stored type does to the logits: "
        "`max_abs`, and `kl` in nats per token."
    )


class KeptRemoved(RecordPart):
    """All that the backbone lacks of the base (`export --keep-removed`)."""

    path: InnerPath = Field(description="Its folder.")
    bytes: Count = Field(description="Of its file of weights.")
    tensors: Sha256 = Field(description="Of the base's tensors, computed as `backbone.digest` is.")
    copies: dict[str, str] = Field(
        description="Tensors of the base that are copies of another one, as a tied head that is stored twice."
    )


class NoiseFloor(RecordPart):
    """How far the logits move when the backbone is computed in a smaller dtype, by condition."""

    dtype: str = Field(description="The smaller type.")
    max_abs: dict[str, float] = Field(description="Largest |difference| of a logit to float64.")
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
    noise_floor: NoiseFloor | None = Field(
        None, description="What rounding alone does; exports of earlier versions do not say."
    )


class Consumer(RecordPart):
    """The export, run by the software that it is for before it was published, against koffkit in float64; a
    condition is `none` or a domain."""

    versions: dict[str, str] = Field(description="Of that software.")
    weights: str = Field(description="How it stores weights: `auto` (as the base does), `int8`, `q8_0`, ...")
    max_abs: dict[str, float] = Field(
        description="Largest |difference| of a logit on the tokens of parity; of llama-server, of a "
        "log-probability of the likeliest tokens on what it wrote."
    )
    kl: dict[str, float] = Field(description="Nats per token, of the same.")
    greedy: dict[str, Count] = Field(description="Of `tokens` that it wrote, how many float64 would choose.")
    tokens: int = Field(ge=1, description="How many tokens it wrote with each condition.")


class Manifest(Record):
    """The object in `koffkit.json`."""

    newest = FORMAT

    format: str = Field(description="Name of the exporter.")
    name: str = Field(description="The recipe's name.")
    created: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    versions: dict[str, str] = Field(description="Of koffkit, Python and the packages below it.")
    base: BaseModelEntry = Field(description="The unpruned model.")
    backbone: BackboneEntry = Field(description="The sliced model.")
    removed: Removed = Field(description="What is physically gone.")
    kept: dict[str, list[Count]] = Field(description="Units that stay, by structure and layer.")
    masked: dict[str, Count] = Field(description="Units that are zero but still there, by structure.")
    domains: dict[FolderName, BundleEntry] = Field(description="The memories that shipped.")
    merged: Merged | None = Field(
        None, description="Present where one memory is part of the backbone's weights (`export --merge`)."
    )
    kept_removed: KeptRemoved | None = Field(
        None, description="Present where `koffkit restore` can make the base again."
    )
    parity: Parity = Field(description="The comparison of masked and sliced model.")
    consumer: Consumer | None = Field(
        None, description="Present where other software ran the export before it was published."
    )
    results: dict[str, Any] = Field(description="Figures of the run's stages, as in run.json.")
    recipe: dict[str, Any] = Field(
        description="The resolved recipe; its files and folders are named as `base.model` is."
    )
    golden: Golden = Field(description="Without a memory.")
    files: dict[InnerPath, FileEntry] = Field(description="Every file of the export but this one and cards.")
