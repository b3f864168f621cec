"""The stage that trains the router, on the documents of the domains; held-out documents stay held out."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ..errors import Interrupted, UsageError
from ..recipe.sources import Positive, Rate, Source
from ..strict import StrictModel
from .stage import StageKind

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..router import Router
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context

ROUTER_OPTIONS = {
    "num_buckets": ("ngrams",),
    "encoder": ("encoder",),
    "lr": ("encoder",),
    "epochs": ("ngrams", "encoder"),
    "batch_size": ("encoder", "probe"),
    "max_tokens": ("encoder", "probe"),
    "layer": ("probe",),
}


class RouteOptions(StrictModel):
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
    layer: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Of kind probe: whose hidden states; by default the middle one."
    )
    num_buckets: Positive = Field(
        65536, description="Hash buckets; the router's size is this times the number of domains."
    )
    epochs: Positive = Field(4, description="Passes over the documents.")
    max_documents: Annotated[int, Field(ge=2)] = Field(20000, description="Documents per domain.")
    min_confidence: float = Field(
        0.0, ge=0, lt=1, description="A text less likely than this to be of any domain gets no memory."
    )

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> RouteOptions:
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


class Route(StageKind):
    """Fit the router, report how good it is, write it into the run folder."""

    name = "route"
    options = RouteOptions
    after = ("learn_masks", "recover")

    def check(self, options: RouteOptions, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse an encoder or a layer that is not there.

        Raises:
            DataError: the encoder is nowhere to be found, or not what is asked of it.
            UsageError: the model has no such layer.
        """
        from ..router.encoder import find_encoder, open_encoder

        if options.kind == "encoder":
            open_encoder(find_encoder(options.encoder, loaded.root), 2, options.max_tokens)
        if options.layer is not None and options.layer > base.num_layers:
            raise UsageError(
                f"stages.route.layer: {options.layer} is not a layer of this model; use 0 (embeddings) to "
                f"{base.num_layers}."
            )

    def run(self, context: Context, options: RouteOptions, resume: Checkpoint | None) -> None:
        from ..router.assess import assess
        from ..router.base import NONE

        memories = context.student.memories
        if memories is None or not memories.exist:
            return  # pruning only: there is nothing to choose
        recipe = context.loaded.recipe
        sources = dict(recipe.sources) | ({NONE: recipe.retention} if recipe.retention is not None else {})
        train: dict[str, list[str]] = {}
        test: dict[str, list[str]] = {}
        context.progress.start(self.name, len(sources) + 1, 0)
        for done, (label, source) in enumerate(sources.items(), 1):
            train[label], test[label] = _split(context, label, source, options.max_documents)
            context.progress.advance(self.name, done, {})
        router = _fit(context, options, train)
        router.save(context.run.router_dir)
        figures = assess(router, test)
        context.results["router"] = figures
        context.progress.advance(self.name, len(sources) + 1, {"accuracy": figures["accuracy"]})


def _fit(context: Context, options: RouteOptions, texts: dict[str, list[str]]) -> Router:
    from ..model.pooling import pooled_features
    from ..router.encoder import find_encoder, fit_encoder
    from ..router.ngrams import fit
    from ..router.probe import fit_probe
    from ..router.training import beginning

    seed, least = context.loaded.recipe.seed, options.min_confidence

    def check_interrupt() -> None:
        if context.stop():
            raise Interrupted("interrupted in route; continue with the same command and --resume.")

    if options.kind == "encoder":
        folder = find_encoder(options.encoder, context.loaded.root)
        return fit_encoder(
            texts,
            folder,
            epochs=options.epochs,
            rate=options.lr,
            batch_size=options.batch_size,
            max_tokens=options.max_tokens,
            min_confidence=least,
            seed=seed,
            device=context.accelerator.device,
            beginning=beginning,
            pulse=check_interrupt,
        )
    if options.kind == "probe":
        layer = context.student.spec.num_layers // 2 if options.layer is None else options.layer
        hidden = partial(context.student.hidden_states, layer=layer, gate_values=context.masks)
        features = pooled_features(
            hidden, context.tokenizer, options.max_tokens, options.batch_size, context.accelerator.device
        )
        return fit_probe(
            texts,
            features,
            layer=layer,
            max_tokens=options.max_tokens,
            min_confidence=least,
            pulse=check_interrupt,
        )
    return fit(
        texts,
        num_buckets=options.num_buckets,
        epochs=options.epochs,
        min_confidence=least,
        seed=seed,
        pulse=check_interrupt,
    )


def _split(context: Context, label: str, source: Source, limit: int) -> tuple[list[str], list[str]]:
    from ..data.corpus import split_documents
    from ..data.sources import documents
    from ..router.base import NONE

    recipe = context.loaded.recipe
    where = "retention" if label == NONE else f"domains.{label}"
    return split_documents(
        islice(documents(source, context.loaded.root, where), limit), recipe.seed, recipe.holdout, where
    )
