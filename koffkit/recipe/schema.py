"""The recipe format, version 1. Every field has a meaning and a limit; unknown keys are errors.

The loader (`load.py`) turns pydantic's findings into lines a user can act on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .learning import KV, Anneal, Coverage, Distill, Learned, Lora, Mask, Memory, StructureName, Upper
from .sources import DOMAIN_NAME, RESERVED, Auto, AutoDomains, Base, Domains, Part, Positive, Rate, Source


class Train(Part):
    precision: Literal["no", "bf16"] = Field("no", description="Automatic mixed precision.")
    gradient_accumulation: Positive = 1
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = Field(200, description="Steps between checkpoints.")
    trackers: list[str] = Field([], description="Trackers of accelerate: tensorboard, wandb, ...")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # what YAML makes of a bare `no`


class Rates(Part):
    lora: Rate = 1e-5
    kv: Rate = 1e-2
    gates: Rate = 1e-2


class Training(Part):
    max_steps: Annotated[int, Field(ge=0, le=10**9)]
    batch_size: Positive = 2
    lr: Rates = Rates()
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    decay: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Of the memory's rates; gates stay constant."
    )


class LearnMasks(Training):
    """Training of gates, jointly with the memories."""

    joint: bool = Field(
        True,
        description="false: masks without memories, which then learn in recover only (prune, then recover).",
    )


class Recover(Training):
    """Mask fixed and hard, memories only."""


ROUTER_OPTIONS = {
    "num_buckets": ("ngrams",),
    "encoder": ("encoder",),
    "lr": ("encoder",),
    "epochs": ("ngrams", "encoder"),
    "batch_size": ("encoder", "probe"),
    "max_tokens": ("encoder", "probe"),
    "layer": ("probe",),
}


class Route(Part):
    """Train the router of the domains and (as `none`) retention text."""

    kind: Literal["ngrams", "encoder", "probe"] = Field(
        "ngrams",
        description="Hashed character and word n-grams, a fine-tuned encoder, or a probe on the backbone's "
        "hidden states.",
    )
    encoder: str = Field(
        "FacebookAI/roberta-base", description="Of kind encoder: a local folder or a hub id."
    )
    lr: Rate = Field(2e-5, description="Of kind encoder: its learning rate.")
    batch_size: Positive = Field(16, description="Of kinds encoder and probe: documents at a time.")
    max_tokens: Positive = Field(256, description="Of kinds encoder and probe: tokens of a text that count.")
    layer: Annotated[int, Field(ge=0, le=10**4)] | None = Field(
        None, description="Of kind probe: whose hidden states; by default the middle one."
    )
    num_buckets: Annotated[int, Field(ge=1, le=2**26)] = Field(
        65536, description="Hash buckets; the router's size is this times the number of domains."
    )
    epochs: Positive = Field(4, description="Passes over the documents.")
    max_documents: Annotated[int, Field(ge=2, le=10**9)] = Field(20000, description="Documents per domain.")
    min_confidence: float = Field(
        0.0, ge=0, lt=1, description="A text less likely than this to be of any domain gets no memory."
    )

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> Route:
        for name in sorted(
            ROUTER_OPTIONS
        ):  # by value, so that a recipe written out in full can be read again
            if (
                self.kind not in ROUTER_OPTIONS[name]
                and getattr(self, name) != type(self).model_fields[name].default
            ):
                kinds = " and ".join(ROUTER_OPTIONS[name])
                raise ValueError(
                    f"{name} is an option of kind {kinds}, and this router is of kind {self.kind}"
                )
        return self


class Evaluate(Part):
    batch_size: Positive = 8
    max_tokens: Positive | None = Field(None, description="Held-out tokens per domain.")
    swap: bool = Field(True, description="Also evaluate every memory on every other domain.")
    recall_limit: Positive | None = Field(None, description="Facts per domain, evenly spread.")
    swap_recall_limit: Positive | None = Field(
        None, description="Facts per domain for the memories of other domains; else recall_limit."
    )


STAGES: dict[str, type[Part]] = {
    "learn_masks": LearnMasks,
    "recover": Recover,
    "route": Route,
    "evaluate": Evaluate,
}


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
            raise ValueError(
                f"a stage has exactly one of {', '.join(STAGES)} (found: {', '.join(given) or 'none'})"
            )
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
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Also the run folder's name.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: Base
    domains: Domains
    retention: Source | None = None
    sequence_length: Annotated[int, Field(ge=8, le=2**20)] = 512
    holdout: float = Field(0.05, gt=0, lt=1, description="Share of each domain's documents held out.")
    mask: Mask
    memory: Memory
    stages: list[Stage] = Field(min_length=1)
    distill: Distill = Distill()
    train: Train = Train()
    export: list[ExportSpec] = Field(
        [], description="What `koffkit export` writes when it is not told a format."
    )

    @field_validator("domains")
    @classmethod
    def _no_reserved_name(cls, domains: dict[str, Source] | AutoDomains) -> dict[str, Source] | AutoDomains:
        taken = [] if isinstance(domains, AutoDomains) else sorted(RESERVED & set(domains))
        if taken:
            raise ValueError(
                f"{', '.join(taken)} cannot be a domain: --memory gives the name a meaning of its own; "
                "choose another name"
            )
        return domains

    @model_validator(mode="after")
    def _domains_exist(self) -> Recipe:
        unknown = sorted(set(self.distill.domain_weights) - set(self.domain_names))
        if unknown:
            raise ValueError(
                f"distill.domain_weights names {', '.join(unknown)}, which is no domain (there is "
                f"{', '.join(self.domain_names)})"
            )
        return self

    @model_validator(mode="after")
    def _stage_order(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        order = [name for name in STAGES if name in names]
        if names != order or names[0] != "learn_masks":
            raise ValueError(
                "stages must be learn_masks, then any of recover, route, evaluate, in that order (found: "
                f"{names})"
            )
        return self

    @model_validator(mode="after")
    def _placement_has_memories(self) -> Recipe:
        first = self.stages[0].learn_masks
        if isinstance(self.memory.layers, Learned) and first is not None and not first.joint:
            raise ValueError(
                "memory.layers.learned_bytes chooses by the memories of stage learn_masks, which has none "
                "with joint: false; "
                "leave joint out, or name the layers"
            )
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
        wanted = (
            range(num_layers - chosen.upper, num_layers) if isinstance(chosen, Upper) else sorted(set(chosen))
        )
        if any(not 0 <= index < num_layers for index in wanted):
            raise ValueError(f"memory.layers: {chosen!r} does not fit a model of {num_layers} layers")
        return list(wanted)


__all__ = [
    "Anneal",
    "Auto",
    "AutoDomains",
    "Base",
    "Coverage",
    "DOMAIN_NAME",
    "Distill",
    "Evaluate",
    "ExportSpec",
    "KV",
    "LearnMasks",
    "Learned",
    "Lora",
    "Mask",
    "Memory",
    "RESERVED",
    "Rates",
    "Recipe",
    "Recover",
    "Route",
    "STAGES",
    "Source",
    "Stage",
    "StructureName",
    "Train",
    "Training",
    "Upper",
]
