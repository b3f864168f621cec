"""The recipe format, version 1. Every field has a meaning and a limit; unknown keys are errors.

The loader (`load.py`) turns pydantic's findings into lines a user can act on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from ..arch.structures import PAPER

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
StructureName = Literal["mlp_neuron", "kv_group", "qk_pair", "v_channel", "mlp_output"]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
DOMAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
RESERVED = {"auto", "none", "attached"}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(Part):
    model: str = Field(description="Hub id, local folder, or embedded:base for the model that ships with koffkit.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="Type the frozen weights are held in.")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    trust_remote_code: bool = Field(False, description="Allow code from the model's repository. Off unless you say so.")


class Source(Part):
    """Where text comes from: exactly one of text, jsonl, hub."""

    text: str | list[str] | None = Field(None, description="Text files or globs; a blank line separates documents.")
    jsonl: str | list[str] | None = Field(None, description="JSON-lines files or globs, one document a line.")
    hub: str | None = Field(None, description="Hub data set (needs koffkit[data]).")
    field: str = Field("text", description="Field that holds the text of a jsonl or hub document.")
    messages: str | None = Field(None, description="Field that holds a conversation, instead of field; goes through the chat template.")
    loss_on: Literal["all", "assistant"] = Field("all", description="Of conversations: learn from all tokens, or the assistant's only.")
    split: str = Field("train", description="Split of a hub data set.")
    config_name: str | None = Field(None, description="Configuration of a hub data set.")
    prompt_field: str | None = Field(None, description="With answer_field: evaluate reports recall, exact greedy completion.")
    answer_field: str | None = Field(None, description="What the prompt must be completed with.")
    max_documents: Positive | None = Field(None, description="Read at most this many documents.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [name for name in ("text", "jsonl", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, jsonl, hub (found: {', '.join(given) or 'none'})")
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("prompt_field and answer_field go together: give both or neither")
        if self.messages is not None and (self.text or "field" in self.model_fields_set or self.prompt_field is not None):
            raise ValueError("messages is a field of jsonl or hub records; leave out text, field, prompt_field and answer_field")
        if self.loss_on == "assistant" and self.messages is None:
            raise ValueError("loss_on: assistant needs messages, the field that holds the conversation")
        return self

    @property
    def record_field(self) -> str:
        """The field that every record must have."""
        return self.messages or self.field


class Anneal(Part):
    """A temperature that sinks geometrically over the steps of learn_masks."""

    start: float = Field(gt=0)
    end: float = Field(gt=0)


class Auto(Source):
    """Text without labels: its documents are grouped by the base's embeddings, and every group becomes a domain."""

    count: Annotated[int, Field(ge=2)] = Field(description="Domains to make.")
    layer: Annotated[int, Field(ge=0)] = Field(0, description="Compare means of this layer's hidden states; 0: of token embeddings.")
    max_tokens: Positive = Field(1024, description="Tokens of a document that are looked at.")
    fit_documents: Positive = Field(5000, description="Documents that the groups are made from; the others join the nearest.")


class AutoDomains(Part):
    auto: Auto


def _kind_of_domains(value: Any) -> str:
    """`domains: {auto: {..., count: N}}` or a mapping of names to sources."""
    if isinstance(value, AutoDomains):
        return "<auto>"
    alone = isinstance(value, dict) and set(value) == {"auto"}
    return "<auto>" if alone and isinstance(value["auto"], dict) and "count" in value["auto"] else "<given>"


GivenDomains = Annotated[dict[Annotated[str, Field(pattern=DOMAIN_NAME)], Source], Field(min_length=1)]
Domains = Annotated[Annotated[GivenDomains, Tag("<given>")] | Annotated[AutoDomains, Tag("<auto>")], Discriminator(_kind_of_domains)]


class Mask(Part):
    structures: Literal["paper"] | list[StructureName] = Field(
        description="Kinds of unit that may go; paper: independent gates on the outputs of k, v, gate, up and down."
    )
    global_sparsity: float = Field(gt=0, lt=1, description="Fraction of all base parameters gone after slicing.")
    layout: Literal["uniform", "ragged"] = Field(
        "uniform", description="Equal keep counts in every layer: loads in stock software. ragged: free counts, koffkit's model class."
    )
    multiple_of: Positive = Field(1, description="Kept neurons of a layer are a multiple of this.")
    init: Literal["cold", "taylor", "activation"] = Field(
        "cold", description="Gates start equal, or ranked by a saliency: first-order Taylor, or activation norm."
    )
    init_batches: Positive = Field(8, description="Batches per domain that the saliency is measured on.")
    init_spread: float = Field(1.0, gt=0, description="Standard deviation of log_alpha in a warm start.")
    init_open: float = Field(0.95, gt=0, lt=1, description="P(gate active) at the start; in a warm start, of the median gate.")
    temperature: float | Anneal = Field(2 / 3, description="Temperature of the Hard Concrete distribution, or {start, end}.")
    controller: Literal["hinge", "progressive", "lagrangian"] = Field("hinge", description="How the sparsity is brought to its target.")
    lambda_init: float = Field(1.0, gt=0, description="Weight of the sparsity hinge at the start; it grows while needed.")
    lambda_rate: float = Field(1.0, gt=0, description="Step size of the Lagrangian's multipliers.")
    reach_by: float = Field(
        0.5, gt=0, le=1, description="Share of the steps in which lambda may grow a thousandfold, or a moving target ends."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Mask:
        if isinstance(self.structures, list) and not self.structures:
            raise ValueError("structures is empty; name at least one kind of unit")
        if len(set(self.structures)) != len(self.structures) and self.structures != "paper":
            raise ValueError(f"structures lists one kind twice: {self.structures}")
        if isinstance(self.temperature, float) and self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        return self

    @property
    def placement(self) -> str:
        """Where gates act: at the consumer of a unit, or where the paper has them."""
        return "paper" if self.structures == "paper" else "consumer"

    @property
    def start_temperature(self) -> float:
        return self.temperature.start if isinstance(self.temperature, Anneal) else self.temperature

    @property
    def structure_names(self) -> list[str]:
        return list(PAPER if self.structures == "paper" else self.structures)


class Upper(Part):
    upper: Positive = Field(description="The last N layers.")


class Learned(Part):
    """Which layers carry memory is learned: as many as the bytes allow."""

    learned_bytes: Positive = Field(description="Most bytes that one memory may take (float32, at the widths of the backbone).")


class Lora(Part):
    rank: Positive
    alpha: float = Field(gt=0, description="The adapter is scaled by alpha / rank.")
    targets: list[Target] = Field(min_length=1)


class KV(Part):
    tokens: Positive = Field(description="Memory tokens per layer.")
    init_std: float = Field(0.02, gt=0)


class Memory(Part):
    layers: Literal["all"] | Upper | Learned | list[Annotated[int, Field(ge=0)]] = Field(
        "all", description="all, {upper: N}, a list, or {learned_bytes: B}."
    )
    lora: Lora | None
    kv: KV | None


class Coverage(Part):
    coverage: float = Field(gt=0, lt=1, description="As few of the teacher's tokens as cover this much of its mass ...")
    max: Positive = Field(1024, description="... but never more than this many.")


class Distill(Part):
    loss: Literal["top_k", "full", "cross_entropy", "blended"] = Field(
        "top_k", description="KL on the teacher's top tokens, full KL, the text itself (SFT), or KL and text blended."
    )
    blend: float = Field(0.5, gt=0, lt=1, description="Share of cross-entropy in the blended loss.")
    domain_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="How often each domain is drawn; a domain that is not named has weight 1."
    )
    top_k: Positive | Coverage = Field(100, description="Teacher tokens told apart; the rest is one more outcome.")
    chunk_tokens: Positive = Field(1024, description="Tokens whose logits exist at one time.")
    retention_every: Positive = Field(20, description="Every so many steps one batch of retention text updates the mask only.")


class Train(Part):
    precision: Literal["no", "bf16"] = Field("no", description="Automatic mixed precision.")
    gradient_accumulation: Positive = 1
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = Field(200, description="Steps between checkpoints.")
    trackers: list[str] = Field([], description="Trackers of accelerate: tensorboard, wandb, ...")


class Rates(Part):
    lora: Rate = 1e-5
    kv: Rate = 1e-2
    gates: Rate = 1e-2


class Training(Part):
    max_steps: Annotated[int, Field(ge=0)]
    batch_size: Positive = 2
    lr: Rates = Rates()
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = Field("linear", description="Of the memory's rates; gates stay constant.")


class LearnMasks(Training):
    """Training of gates, jointly with the memories."""

    joint: bool = Field(True, description="false: masks without memories, which then learn in recover only (prune, then recover).")


class Recover(Training):
    """Mask fixed and hard, memories only."""


ROUTER_OPTIONS = {
    "num_buckets": ("ngrams",), "encoder": ("encoder",), "lr": ("encoder",), "epochs": ("ngrams", "encoder"),
    "batch_size": ("encoder", "probe"), "max_tokens": ("encoder", "probe"), "layer": ("probe",),
}  # fmt: skip


class Route(Part):
    """Train the router of the domains and (as `none`) retention text."""

    kind: Literal["ngrams", "encoder", "probe"] = Field(
        "ngrams", description="Hashed character and word n-grams, a fine-tuned encoder, or a probe on the backbone's hidden states."
    )
    encoder: str = Field("FacebookAI/roberta-base", description="Of kind encoder: a local folder or a hub id.")
    lr: Rate = Field(2e-5, description="Of kind encoder: its learning rate.")
    batch_size: Positive = Field(16, description="Of kinds encoder and probe: documents at a time.")
    max_tokens: Positive = Field(256, description="Of kinds encoder and probe: tokens of a text that count.")
    layer: Annotated[int, Field(ge=0)] | None = Field(None, description="Of kind probe: whose hidden states; by default the middle one.")
    num_buckets: Positive = Field(65536, description="Hash buckets; the router's size is this times the number of domains.")
    epochs: Positive = Field(4, description="Passes over the documents.")
    max_documents: Annotated[int, Field(ge=2)] = Field(20000, description="Documents per domain.")
    min_confidence: float = Field(0.0, ge=0, lt=1, description="A text less likely than this to be of any domain gets no memory.")

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> Route:
        for name in sorted(self.model_fields_set & set(ROUTER_OPTIONS)):
            if self.kind not in ROUTER_OPTIONS[name]:
                kinds = " and ".join(ROUTER_OPTIONS[name])
                raise ValueError(f"{name} is an option of kind {kinds}, and this router is of kind {self.kind}")
        return self


class Evaluate(Part):
    batch_size: Positive = 8
    max_tokens: Positive | None = Field(None, description="Held-out tokens per domain.")
    swap: bool = Field(True, description="Also evaluate every memory on every other domain.")
    recall_limit: Positive | None = Field(None, description="Facts per domain, evenly spread.")
    swap_recall_limit: Positive | None = Field(None, description="Facts per domain for the memories of other domains; else recall_limit.")


STAGES: dict[str, type[Part]] = {"learn_masks": LearnMasks, "recover": Recover, "route": Route, "evaluate": Evaluate}


class Stage(Part):
    """One stage: exactly one of the keys."""

    learn_masks: LearnMasks | None = None
    recover: Recover | None = None
    route: Route | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Stage:
        given = [name for name in STAGES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a stage has exactly one of {', '.join(STAGES)} (found: {', '.join(given) or 'none'})")
        return self

    @property
    def name(self) -> str:
        return next(name for name in STAGES if getattr(self, name) is not None)

    @property
    def options(self) -> Any:
        return getattr(self, self.name)


class ExportSpec(BaseModel):
    """A format and the options of its exporter."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str


class Recipe(Part):
    koffkit: Literal[1] = Field(description="Format version.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Also the run folder's name.")
    seed: Annotated[int, Field(ge=0)] = 0
    base: Base
    domains: Domains
    retention: Source | None = None
    sequence_length: Annotated[int, Field(ge=8)] = 512
    holdout: float = Field(0.05, gt=0, lt=1, description="Share of each domain's documents held out.")
    mask: Mask
    memory: Memory
    stages: list[Stage] = Field(min_length=1)
    distill: Distill = Distill()
    train: Train = Train()
    export: list[ExportSpec] = Field([], description="What `koffkit export` writes when it is not told a format.")

    @field_validator("domains")
    @classmethod
    def _no_reserved_name(cls, domains: dict[str, Source] | AutoDomains) -> dict[str, Source] | AutoDomains:
        taken = [] if isinstance(domains, AutoDomains) else sorted(RESERVED & set(domains))
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be a domain: --memory gives the name a meaning of its own; choose another name")
        return domains

    @model_validator(mode="after")
    def _domains_exist(self) -> Recipe:
        unknown = sorted(set(self.distill.domain_weights) - set(self.domain_names))
        if unknown:
            raise ValueError(
                f"distill.domain_weights names {', '.join(unknown)}, which is no domain (there is {', '.join(self.domain_names)})"
            )
        return self

    @model_validator(mode="after")
    def _stage_order(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        order = [name for name in STAGES if name in names]
        if names != order or names[0] != "learn_masks":
            raise ValueError(f"stages must be learn_masks, then any of recover, route, evaluate, in that order (found: {names})")
        return self

    @property
    def domain_names(self) -> list[str]:
        """The domains, or names that stand for them until they are found."""
        if isinstance(self.domains, AutoDomains):
            return [f"auto-{number}" for number in range(1, self.domains.auto.count + 1)]
        return list(self.domains)

    @property
    def sources(self) -> dict[str, Source]:
        """The source of every domain, once all are known."""
        assert not isinstance(self.domains, AutoDomains), "domains are found before anything reads them"
        return self.domains

    def memory_layers(self, num_layers: int) -> list[int]:
        """The layers that carry memory in training; none when both halves are off.

        Raises:
            ValueError: a layer that the model does not have.
        """
        chosen = self.memory.layers
        if self.memory.lora is None and self.memory.kv is None:
            return []
        if chosen == "all" or isinstance(chosen, Learned):  # of all layers, learning chooses later
            return list(range(num_layers))
        wanted = range(num_layers - chosen.upper, num_layers) if isinstance(chosen, Upper) else sorted(set(chosen))
        if any(not 0 <= index < num_layers for index in wanted):
            raise ValueError(f"memory.layers: {chosen!r} does not fit a model of {num_layers} layers")
        return list(wanted)
