"""The recipe format, version 1. Every field has a meaning and a limit; unknown keys are errors.

The loader (`load.py`) turns pydantic's findings into lines a user can act on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
RESERVED = {"auto", "none", "attached"}
DOMAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


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
        return self


class Mask(Part):
    structures: list[Literal["mlp_neuron", "kv_group"]] = Field(min_length=1, description="Kinds of unit that may go.")
    global_sparsity: float = Field(gt=0, lt=1, description="Fraction of all base parameters gone after slicing.")
    layout: Literal["uniform"] = Field("uniform", description="Equal keep counts in every layer: loads in stock software.")
    multiple_of: Positive = Field(1, description="Kept neurons of a layer are a multiple of this.")
    init_open: float = Field(0.95, gt=0, lt=1, description="P(gate active) at the start.")
    temperature: float = Field(2 / 3, gt=0, description="Temperature of the Hard Concrete distribution.")
    lambda_init: float = Field(1.0, gt=0, description="Weight of the sparsity hinge at the start; it grows while needed.")
    reach_by: float = Field(0.5, gt=0, le=1, description="Share of the steps in which lambda may grow a thousandfold.")

    @model_validator(mode="after")
    def _distinct(self) -> Mask:
        if len(set(self.structures)) != len(self.structures):
            raise ValueError(f"structures lists one kind twice: {self.structures}")
        return self


class Upper(Part):
    upper: Positive = Field(description="The last N layers.")


class Lora(Part):
    rank: Positive
    alpha: float = Field(gt=0, description="The adapter is scaled by alpha / rank.")
    targets: list[Target] = Field(min_length=1)


class KV(Part):
    tokens: Positive = Field(description="Memory tokens per layer.")
    init_std: float = Field(0.02, gt=0)


class Memory(Part):
    layers: Literal["all"] | Upper | list[Annotated[int, Field(ge=0)]] = Field("all", description="all, {upper: N} or a list.")
    lora: Lora | None
    kv: KV | None


class Coverage(Part):
    coverage: float = Field(gt=0, lt=1, description="As few of the teacher's tokens as cover this much of its mass ...")
    max: Positive = Field(1024, description="... but never more than this many.")


class Distill(Part):
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
    """Joint training of gates and memories."""


class Recover(Training):
    """Mask fixed and hard, memories only."""


class Route(Part):
    """Train the router: a linear classifier on hashed character and word n-grams, of the domains and (as `none`) retention text."""

    num_buckets: Positive = Field(65536, description="Hash buckets; the router's size is this times the number of domains.")
    epochs: Positive = Field(4, description="Passes over the documents.")
    max_documents: Annotated[int, Field(ge=2)] = Field(20000, description="Documents per domain.")
    min_confidence: float = Field(0.0, ge=0, lt=1, description="A text less likely than this to be of any domain gets no memory.")


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
    domains: dict[Annotated[str, Field(pattern=DOMAIN_NAME)], Source] = Field(min_length=1)
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
    def _no_reserved_name(cls, domains: dict[str, Source]) -> dict[str, Source]:
        taken = sorted(RESERVED & set(domains))
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be a domain: --memory gives the name a meaning of its own; choose another name")
        return domains

    @model_validator(mode="after")
    def _stage_order(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        order = [name for name in STAGES if name in names]
        if names != order or names[0] != "learn_masks":
            raise ValueError(f"stages must be learn_masks, then any of recover, route, evaluate, in that order (found: {names})")
        return self

    def memory_layers(self, num_layers: int) -> list[int]:
        """The layers that carry memory; none when both halves are off.

        Raises:
            ValueError: a layer that the model does not have.
        """
        chosen = self.memory.layers
        if self.memory.lora is None and self.memory.kv is None:
            return []
        if chosen == "all":
            return list(range(num_layers))
        wanted = range(num_layers - chosen.upper, num_layers) if isinstance(chosen, Upper) else sorted(set(chosen))
        if any(not 0 <= index < num_layers for index in wanted):
            raise ValueError(f"memory.layers: {chosen!r} does not fit a model of {num_layers} layers")
        return list(wanted)
