"""Recipe fields for what is learned: masks, memories, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from .. import plugins
from ..arch import paper_structures
from ..strict import Positive, StrictModel, with_new_name
from . import plugin_options

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
if TYPE_CHECKING:
    StructureName = str
    LossName = str
    InitName = str
else:  # whatever is installed
    StructureName = Literal[tuple(plugins.names(plugins.STRUCTURES))]
    LossName = Literal[tuple(plugins.names(plugins.LOSSES))]
    InitName = Literal[tuple(["cold"] + plugins.names(plugins.SELECTORS))]  # noqa: RUF005


class Anneal(StrictModel):
    """A temperature that falls geometrically over the steps of learn_masks."""

    start: float = Field(gt=0, le=100, description="Temperature of the first step.")
    end: float = Field(gt=0, le=100, description="Temperature of the last step.")


class Mask(StrictModel):
    structures: Literal["paper"] | list[StructureName] = Field(
        description="Kinds of unit that may go; paper: independent gates on the outputs of k, v, gate, up "
        "and down."
    )
    global_sparsity: float = Field(
        gt=0, lt=1, description="Fraction of all base parameters gone after slicing."
    )
    layout: Literal["uniform", "ragged"] = Field(
        "uniform",
        description="Equal keep counts in every layer: loads in stock software. ragged: free counts, "
        "koffkit's model class.",
    )
    multiple_of: Positive = Field(1, description="Kept neurons of a layer are a multiple of this.")
    init: InitName = Field(
        "activation",
        description="Gates start ranked by the saliency of a selector, such as activation norm, or (cold) "
        "equal.",
    )
    init_batches: Positive = Field(8, description="Batches per domain that the saliency is measured on.")
    init_std: float = Field(1.0, gt=0, le=100, description="Standard deviation of log_alpha in a warm start.")
    init_open: float = Field(
        0.95, gt=0, lt=1, description="P(gate active) at the start; in a warm start, of the median gate."
    )
    temperature: float | Anneal = Field(
        2 / 3, description="Temperature of the Hard Concrete distribution, or {start, end}."
    )
    controller: Literal["hinge", "progressive", "lagrangian"] = Field(
        "hinge", description="How the sparsity is brought to its target."
    )
    lambda_init: float = Field(
        1.0, gt=0, le=1e6, description="Weight of the sparsity hinge at the start; it grows while needed."
    )
    lambda_rate: float = Field(1.0, gt=0, le=1e6, description="Step size of the Lagrangian's multipliers.")
    reach_by: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the steps in which lambda may grow a thousandfold, or a moving target ends.",
    )

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, data: Any) -> Any:
        return with_new_name(data, "init_spread", "init_std")

    @model_validator(mode="after")
    def _consistent(self) -> Mask:
        if isinstance(self.structures, list) and not self.structures:
            raise ValueError("structures is empty; name at least one kind of unit")
        if len(set(self.structures)) != len(self.structures) and self.structures != "paper":
            raise ValueError(f"structures lists one kind twice: {self.structures}")
        if isinstance(self.temperature, float) and not 0 < self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0, at most 100")
        return self

    @property
    def placement(self) -> str:
        """Where gates act: at the consumer of a unit, or as in the paper."""
        return "paper" if self.structures == "paper" else "consumer"

    @property
    def start_temperature(self) -> float:
        return self.temperature.start if isinstance(self.temperature, Anneal) else self.temperature

    @property
    def structure_names(self) -> list[str]:
        return paper_structures() if self.structures == "paper" else list(self.structures)


class Upper(StrictModel):
    upper: Positive = Field(description="The last N layers.")


class Learned(StrictModel):
    """All layers carry memory in learn_masks; then those whose memory is missed least give it up, until the
    rest fits the bytes."""

    learned_bytes: Annotated[int, Field(ge=1, le=2**50)] = Field(
        description="Most bytes that one memory may take (float32, at the widths of the backbone)."
    )


class Lora(StrictModel):
    rank: Annotated[int, Field(ge=1, le=2**16)] = Field(description="Rank of each pair of matrices.")
    alpha: float = Field(gt=0, le=1e6, description="The adapter is scaled by alpha / rank.")
    targets: list[Target] = Field(min_length=1, description="Linear modules that get a pair.")


class KV(StrictModel):
    tokens: Annotated[int, Field(ge=1, le=2**20)] = Field(description="Memory tokens per layer.")
    init: Literal["text", "random"] = Field(
        "text",
        description="Memory tokens begin as keys and values of the first tokens of the domain's own text, or "
        "as random numbers.",
    )
    init_std: float = Field(
        0.02, gt=0, le=100, description="Of init random: standard deviation of the numbers."
    )
    freeze_first: bool | None = Field(
        None,
        description="The first memory token keeps its value, for attention to lean on. By default true with "
        "init text, false with random.",
    )

    @property
    def freezes_first(self) -> bool:
        return self.init == "text" if self.freeze_first is None else self.freeze_first


class RestoredNeurons(StrictModel):
    """Neurons that the mask removed and a domain's memory gives back; stage `restore` chooses them."""

    count: Positive | None = Field(
        None, description="Neurons of a layer; with layout ragged, of a layer on average."
    )
    bytes: Annotated[int, Field(ge=1, le=2**50)] | None = Field(
        None, description="Instead of count: most bytes that the neurons of one memory may take."
    )
    layout: Literal["uniform", "ragged"] = Field(
        "uniform",
        description="Equally many in every layer, so that a merged backbone is an ordinary dense model. "
        "ragged: free counts.",
    )
    tuned: bool = Field(
        False,
        description="Stage recover trains their weights; false: they stay what stage restore made them.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> RestoredNeurons:
        if (self.count is None) == (self.bytes is None):
            raise ValueError("neurons needs either count or bytes")
        return self


class Memory(StrictModel):
    layers: Literal["all"] | Upper | Learned | list[Annotated[int, Field(ge=0, le=10**4)]] = Field(
        "all",
        description="Layers that carry memory: all, {upper: N}, a list, or {learned_bytes: B}.",
    )
    lora: Lora | None = Field(description="Low-rank matrices beside the linear modules; null: none.")
    kv: KV | None = Field(description="Keys and values that attention always sees; null: none.")
    neurons: RestoredNeurons | None = Field(
        None, description="Removed neurons that come back with the memory; null: none."
    )

    @property
    def is_on(self) -> bool:
        """Whether a memory consists of anything."""
        return not (self.lora is None and self.kv is None and self.neurons is None)


@plugin_options.with_options_of(plugins.LOSSES, "distill.loss")
class Distill(StrictModel):
    """What the student is trained on; each loss brings its own options."""

    loss: LossName = Field(
        "top_k",
        description="KL on the teacher's top tokens, full KL, the text itself (SFT), or KL and text blended.",
    )
    domain_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        {}, description="How often each domain is drawn; a domain that is not named has weight 1."
    )
    chunk_tokens: Positive = Field(1024, description="Tokens whose logits exist at one time.")
    retention_every: Positive = Field(
        20, description="Every so many steps one batch of retention text updates the mask only."
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
