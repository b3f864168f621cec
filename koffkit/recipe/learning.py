"""Recipe fields for what is learned: masks and memories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from .. import plugins
from ..arch import paper_structures
from ..strict import Positive, StrictModel, with_new_name

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
if TYPE_CHECKING:
    StructureName = str
    InitName = str
else:  # whatever is installed
    StructureName = Literal[tuple(plugins.names(plugins.STRUCTURES))]
    InitName = Literal[tuple(["cold"] + plugins.names(plugins.SELECTORS))]  # noqa: RUF005


DAMPINGS = (0.01, 0.1, 1.0, 10.0)


class Anneal(StrictModel):
    """A temperature that falls geometrically over the steps of learn_masks."""

    start: float = Field(gt=0, le=100, description="Temperature of the first step.")
    end: float = Field(gt=0, le=100, description="Temperature of the last step.")


class Upper(StrictModel):
    upper: Positive = Field(description="The last N layers.")


Layers = list[Annotated[int, Field(ge=0, le=10**4)]]


def layers_of(choice: Literal["all"] | Upper | list[int], num_layers: int, where: str) -> list[int]:
    """The layers that a field names, ascending.

    Args:
        choice: the field's value. num_layers: of the model. where: the field.

    Raises:
        ValueError: a layer that the model does not have.
    """
    if choice == "all":
        return list(range(num_layers))
    wanted = range(num_layers - choice.upper, num_layers) if isinstance(choice, Upper) else sorted({*choice})
    if any(not 0 <= int(index) < num_layers for index in wanted):
        raise ValueError(f"{where}: {choice!r} does not fit a model of {num_layers} layers")
    return [int(index) for index in wanted]


class Mask(StrictModel):
    structures: Literal["paper", "paper_mlp", "paper_qkv"] | list[StructureName] = Field(
        description="Kinds of unit that may go; paper: independent gates on the outputs of k, v, gate, up "
        "and down; paper_mlp: of gate, up and down; paper_qkv: of q, k and v."
    )
    layers: Literal["all"] | Upper | Layers = Field(
        "all", description="Layers that have gates: all, {upper: N} or a list; the others stay whole."
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
    gates: Literal["hard_concrete", "top_k"] = Field(
        "hard_concrete",
        description="Gates of learn_masks: random ones, which a penalty brings to the budget, or (top_k) in "
        "every step exactly those open that would be kept, with learned scales that end in the weights.",
    )
    init: InitName = Field(
        "activation",
        description="Gates start ranked by the saliency of a selector, such as activation norm, or (cold) "
        "equal.",
    )
    init_batches: Positive = Field(8, description="Batches per domain that the saliency is measured on.")
    init_std: float = Field(1.0, gt=0, le=100, description="Standard deviation of log_alpha in a warm start.")
    init_open: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Mean of a gate at the start, E[gate]; in a warm start, of the median gate.",
    )
    temperature: float | Anneal = Field(
        2 / 3, description="Temperature of the Hard Concrete distribution, or {start, end}."
    )
    local_sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Steer every kind of gate to this share of its gates shut, as the paper does, instead "
        "of all to global_sparsity together. The final masks meet global_sparsity either way: the units with "
        "the lowest scores go, whatever their kind.",
    )
    controller: Literal["hinge", "progressive", "progressive_two_sided", "lagrangian"] = Field(
        "hinge", description="How the sparsity is brought to its target."
    )
    lambda_init: float = Field(1.0, gt=0, le=1e6, description="Weight of the sparsity hinge at the start.")
    lambda_scaling: Literal["paced", "auto", "fixed"] = Field(
        "paced",
        description="How the weight of the hinge follows. paced: one for each target, held to a straight way "
        "there until reach_by, then from both sides; auto: one for all, growing while any is missed; fixed.",
    )
    lambda_rate: float = Field(1.0, gt=0, le=1e6, description="Step size of the Lagrangian's multipliers.")
    reach_by: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the steps in which the target is to be reached: the way of paced and moving "
        "targets end there, and with auto lambda may grow a thousandfold until then.",
    )

    repair: Literal["none", "bias", "least_squares"] = Field(
        "none",
        description="What the final mask is made up for with, without training: a bias with the mean of what "
        "is gone (FLAP), or new down and output projections by ridge regression.",
    )
    repair_tokens: Positive = Field(
        65536, description="Tokens of calibration text for the repair, of all domains and retention text."
    )
    repair_damping: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Of least_squares: ridge, as a share of the median squared activation. By default the "
        "best of .01, .1, 1 and 10 for each module, on text that is held out of the fit.",
    )

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, data: Any) -> Any:
        return with_new_name(data, "init_spread", "init_std")

    @model_validator(mode="after")
    def _consistent(self) -> Mask:
        if isinstance(self.structures, list) and not self.structures:
            raise ValueError("structures is empty; name at least one kind of unit")
        if isinstance(self.structures, list) and len(set(self.structures)) != len(self.structures):
            raise ValueError(f"structures lists one kind twice: {self.structures}")
        if self.layout == "uniform" and self.layers != "all":
            raise ValueError(
                "layout uniform keeps as many units in every layer, but layers leaves some whole; use "
                "layout: ragged, or layers: all"
            )
        if isinstance(self.temperature, float) and not 0 < self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0, at most 100")
        return self

    @model_validator(mode="after")
    def _scales_have_one_place(self) -> Mask:
        if self.gates == "top_k" and self.placement == "paper":
            raise ValueError(
                "gates: top_k needs one gate for each unit, and structures: paper has two; name the "
                "structures"
            )
        if self.gates == "top_k" and self.repair != "none":
            raise ValueError(
                f"repair: {self.repair} would undo the scales that gates: top_k learns; choose one of the two"
            )
        return self

    @property
    def dampings(self) -> tuple[float, ...]:
        """What least squares try."""
        return DAMPINGS if self.repair_damping is None else (self.repair_damping,)

    @property
    def placement(self) -> str:
        """Where gates act: at the consumer of a unit, or as in the paper."""
        return "consumer" if isinstance(self.structures, list) else "paper"

    @property
    def start_temperature(self) -> float:
        return self.temperature.start if isinstance(self.temperature, Anneal) else self.temperature

    @property
    def structure_names(self) -> list[str]:
        if isinstance(self.structures, list):
            return list(self.structures)
        return paper_structures(self.structures)


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
    layers: Literal["all"] | Upper | Learned | Layers = Field(
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
