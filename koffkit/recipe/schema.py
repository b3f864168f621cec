"""The recipe format, version 1. Every field has a meaning and a limit; unknown keys are errors.

The keys under `stages` are the installed stages, whose options come from `stages.py`. The loader (`load.py`)
turns pydantic's findings into lines a user can act on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from ..strict import StrictModel
from .distill import Distill
from .learning import KV, Anneal, Learned, Lora, Mask, Memory, StructureName, Upper, layers_of
from .servable import contradictions, with_defaults
from .sources import DOMAIN_NAME, RESERVED, Auto, AutoDomains, Base, Domains, Source
from .stages import KINDS, STAGES, order_error
from .training import LearningRates, Train, Training


class StageEntry(StrictModel):
    """One stage: exactly one of the keys."""

    @model_validator(mode="after")
    def _exactly_one(self) -> StageEntry:
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
        """The options that the recipe gives for the stage, as its options class."""
        return getattr(self, self.name)


def _stage_model() -> type[StageEntry]:
    """`StageEntry` with one optional field for every stage that is installed."""
    fields: dict[str, Any] = {
        name: (options | None, Field(None, description=(options.__doc__ or "").strip()))
        for name, options in STAGES.items()
    }
    return create_model(
        "Stage", __base__=StageEntry, __module__=__name__, __doc__=StageEntry.__doc__, **fields
    )


if TYPE_CHECKING:
    Stage: TypeAlias = StageEntry
else:
    Stage = _stage_model()


class ExportSpec(BaseModel):
    """A format and the options of its exporter."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str = Field(description="Name of an exporter; the other keys are its options.")


class Recipe(StrictModel):
    koffkit: Literal[1] = Field(description="Format version.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Also the run folder's name.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Noise and data order follow from it.")
    base: Base = Field(description="The model to compress, which is also the teacher.")
    domains: Domains = Field(description="Text by domain; each domain gets a memory.")
    retention: Source | None = Field(
        None, description="General text that the backbone must still model; it trains the mask only."
    )
    sequence_length: Annotated[int, Field(ge=8, le=2**20)] = Field(
        512, description="Tokens in a training sequence."
    )
    begin_sequences: bool = Field(
        True,
        description="Every sequence begins with the token that the tokenizer puts before a text, if it puts "
        "one; false: sequences begin wherever they are cut.",
    )
    attend_across_documents: bool = Field(
        True,
        description="Tokens attend to earlier documents of their sequence; false: to their own document and "
        "the KV memory only, with positions that begin anew in each document.",
    )
    holdout: float = Field(
        0.05, gt=0, lt=1, description="Fraction of each domain's documents that is held out of training."
    )
    holdout_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None,
        description="Which documents are held out follows from it; by default seed, and 0 with "
        "distill.cache, so that runs of every seed read the same text.",
    )
    servable: bool = Field(
        False,
        description="Refuse what stock servers cannot load: needs uniform widths, a multiple of 64 (then the "
        "default of mask.multiple_of), whole heads, KV memory in all layers, a LoRA rank of vLLM's.",
    )
    mask: Mask = Field(description="What is removed from the base, and how that is learned.")
    memory: Memory = Field(description="What each domain's memory consists of.")
    stages: list[Stage] = Field(min_length=1, description="What is done, in order.")
    distill: Distill = Field(Distill(), description="The loss, and how often each kind of text is drawn.")
    train: Train = Field(Train(), description="Precision, accumulation, checkpoints and trackers.")
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

    @model_validator(mode="before")
    @classmethod
    def _servable_defaults(cls, data: Any) -> Any:
        return with_defaults(data)

    @model_validator(mode="after")
    def _is_servable(self) -> Recipe:
        wrong = contradictions(self) if self.servable else []
        if wrong:
            raise ValueError(f"servable: true, but {'; '.join(wrong)}; change that, or remove servable")
        return self

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
        error = order_error([stage.name for stage in self.stages])
        if error is not None:
            raise ValueError(error)
        return self

    @model_validator(mode="after")
    def _stages_fit_the_rest(self) -> Recipe:
        for stage in self.stages:
            KINDS[stage.name].check_recipe(stage.options, self)
        return self

    @model_validator(mode="after")
    def _neurons_are_chosen(self) -> Recipe:
        if self.memory.neurons is not None and "restore" not in [stage.name for stage in self.stages]:
            raise ValueError("memory.neurons: stage restore chooses them; put `- restore: {}` into stages")
        return self

    @model_validator(mode="after")
    def _loss_fits_a_cache(self) -> Recipe:
        if self.distill.cache_dir is not None and not self.distill.cache:
            raise ValueError(
                "distill.cache_dir names a place for distill.cache, which is off; set cache: true"
            )
        if self.distill.cache and not self.distill.cacheable:
            raise ValueError(
                f"distill.cache keeps the teacher's most likely tokens, and loss {self.distill.loss} "
                "compares all; use loss top_k or blended, or set cache: false"
            )
        return self

    @property
    def split_seed(self) -> int:
        """What the split into training and held-out documents follows from."""
        if self.holdout_seed is not None:
            return self.holdout_seed
        return 0 if self.distill.cache else self.seed

    @property
    def repairs_with_neurons(self) -> bool:
        """Whether stage restore repairs the backbone together with the neurons of the memories."""
        return self.mask.repair == "least_squares" and self.memory.neurons is not None

    @property
    def domain_names(self) -> list[str]:
        """The names of the domains; placeholders before automatic domains are resolved."""
        if isinstance(self.domains, AutoDomains):
            return [f"auto-{number}" for number in range(1, self.domains.auto.count + 1)]
        return list(self.domains)

    @property
    def sources(self) -> dict[str, Source]:
        """The source of every domain, once all are known."""
        assert not isinstance(self.domains, AutoDomains), "automatic domains are resolved first"
        return self.domains

    def memory_layers(self, num_layers: int) -> list[int]:
        """The layers that carry memory in training; none when both halves are off.

        Raises:
            ValueError: a layer that the model does not have.
        """
        chosen = self.memory.layers
        if self.memory.lora is None and self.memory.kv is None:
            return []
        if isinstance(chosen, Learned):  # learning chooses among them later
            chosen = "all"
        return layers_of(chosen, num_layers, "memory.layers")


__all__ = [
    "Anneal",
    "Auto",
    "AutoDomains",
    "Base",
    "DOMAIN_NAME",
    "Distill",
    "ExportSpec",
    "KV",
    "Learned",
    "LearningRates",
    "Lora",
    "Mask",
    "Memory",
    "RESERVED",
    "Recipe",
    "Source",
    "Stage",
    "StructureName",
    "Train",
    "Training",
    "Upper",
]
