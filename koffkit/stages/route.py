"""Stage `route`: trains the router on the documents of the domains, except for held-out ones."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from .. import plugins
from ..errors import Interrupted
from ..parallel import ranks
from ..recipe.sources import Source
from ..router.options import RouterKind, require_options_of_kind, with_kind_options
from ..strict import StrictModel
from .stage import StageKind

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..router import Features, Router
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context


@with_kind_options
class RouteOptions(StrictModel):
    """Train the router of the domains and (as `none`) retention text."""

    kind: RouterKind = Field(
        "ngrams",
        description="Hashed character and word n-grams, a fine-tuned encoder, or a probe on the backbone's "
        "hidden states.",
    )
    max_documents: Annotated[int, Field(ge=2, le=10**9)] = Field(20000, description="Documents per domain.")
    min_confidence: float = Field(
        0.0, ge=0, lt=1, description="A text less likely than this to be of any domain gets no memory."
    )

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> RouteOptions:
        require_options_of_kind(self)
        return self

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # what the kinds bring along


class Route(StageKind):
    """Fits the router, measures it, and writes it into the run folder."""

    name = "route"
    options = RouteOptions
    after = ("learn_masks", "recover")

    def check(self, options: RouteOptions, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse a missing encoder or layer.

        Raises:
            DataError: the encoder cannot be located, or does not fit the options.
            UsageError: the model has no such layer.
        """
        from ..router import Setting

        setting = Setting(
            root=loaded.root, seed=0, device="cpu", num_layers=base.num_layers, features=_no_features
        )
        _kind(options).check(options, setting)

    def run(self, context: Context, options: RouteOptions, resume: Checkpoint | None) -> None:
        from ..router.assess import assess
        from ..router.base import NONE

        memories = context.student.memories
        if memories is None or not memories.exist:
            return  # pruning only: there are no memories to choose from
        recipe = context.loaded.recipe
        sources = dict(recipe.sources) | ({NONE: recipe.retention} if recipe.retention is not None else {})
        train: dict[str, list[str]] = {}
        test: dict[str, list[str]] = {}
        context.progress.start(self.name, len(sources) + 1, 0)
        for done, (label, source) in enumerate(sources.items(), 1):
            train[label], test[label] = _split(context, label, source, options.max_documents)
            context.progress.advance(self.name, done, {})
        router = _fit(context, options, train)
        with ranks.leader_first():
            if ranks.leads():
                router.save(context.run.router_dir)
        figures = assess(router, test)
        context.results["router"] = figures
        context.progress.advance(self.name, len(sources) + 1, {"accuracy": figures["accuracy"]})


def _kind(options: RouteOptions) -> type[Router]:
    kind: type[Router] = plugins.load(plugins.ROUTERS, options.kind, "stages.route.kind")
    return kind


def _no_features(layer: int, max_tokens: int, batch_size: int) -> Features:
    raise AssertionError("there is no backbone yet")


def _fit(context: Context, options: RouteOptions, texts: dict[str, list[str]]) -> Router:
    from ..arch.weights import vocab_size
    from ..model.pooling import pooled_features
    from ..router import Setting

    def check_interrupt() -> None:
        if context.stop():
            raise Interrupted("interrupted in route; continue with the same command and --resume.")

    def features(layer: int, max_tokens: int, batch_size: int) -> Features:
        hidden = partial(context.student.hidden_states, layer=layer, gate_values=context.masks)
        return pooled_features(
            hidden,
            context.tokenizer,
            max_tokens,
            batch_size,
            setting.device,
            vocab_size=vocab_size(context.student.spec.config),
        )

    setting = Setting(
        root=context.loaded.root,
        seed=context.loaded.recipe.seed,
        device=context.accelerator.device,
        num_layers=context.student.spec.num_layers,
        features=features,
        check_interrupt=check_interrupt,
    )
    return _kind(options).fit(texts, options, setting)


def _split(context: Context, label: str, source: Source, limit: int) -> tuple[list[str], list[str]]:
    from ..data.holdout import split_documents
    from ..data.sources import documents
    from ..router.base import NONE

    recipe = context.loaded.recipe
    where = "retention" if label == NONE else f"domains.{label}"
    return split_documents(
        islice(documents(source, context.loaded.root, where), limit), recipe.split_seed, recipe.holdout, where
    )
