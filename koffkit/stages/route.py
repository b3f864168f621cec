"""The stage that trains the router, on the documents of the domains; held-out documents stay held out."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

from ..data.corpus import split_documents
from ..data.sources import documents
from ..errors import Interrupted, UsageError
from ..model.pooling import pooled_features
from ..recipe.schema import Route, Source
from ..router import Router
from ..router.assess import assess
from ..router.base import NONE
from ..router.encoder import find_encoder, fit_encoder, open_encoder
from ..router.ngrams import fit
from ..router.probe import fit_probe
from ..router.training import beginning
from ..training.checkpoint import Checkpoint
from ..training.context import Context, stage_options


class RouteStage:
    """Fit the router, report how good it is, write it into the run folder."""

    name = "route"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        memories = context.student.memories
        if memories is None or not memories.exist:
            return  # pruning only: there is nothing to choose
        options: Route = stage_options(context, self.name)
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


def check_route(options: Route, root: Path, num_layers: int) -> None:
    """What would fail only after everything else is learned.

    Raises:
        DataError: the encoder is nowhere to be found, or not what is asked of it.
        UsageError: the model has no such layer.
    """
    if options.kind == "encoder":
        open_encoder(find_encoder(options.encoder, root), 2, options.max_tokens)
    if options.layer is not None and options.layer > num_layers:
        raise UsageError(
            f"stages.route.layer: {options.layer} is not a layer of this model; use 0 (embeddings) to "
            f"{num_layers}."
        )


def _fit(context: Context, options: Route, texts: dict[str, list[str]]) -> Router:
    seed, least = context.loaded.recipe.seed, options.min_confidence

    def pulse() -> None:
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
            pulse=pulse,
        )
    if options.kind == "probe":
        layer = context.student.spec.num_layers // 2 if options.layer is None else options.layer
        hidden = partial(context.student.hidden_states, layer=layer, gate_values=context.masks)
        features = pooled_features(
            hidden, context.tokenizer, options.max_tokens, options.batch_size, context.accelerator.device
        )
        return fit_probe(
            texts, features, layer=layer, max_tokens=options.max_tokens, min_confidence=least, pulse=pulse
        )
    return fit(
        texts,
        num_buckets=options.num_buckets,
        epochs=options.epochs,
        min_confidence=least,
        seed=seed,
        pulse=pulse,
    )


def _split(context: Context, label: str, source: Source, limit: int) -> tuple[list[str], list[str]]:
    recipe = context.loaded.recipe
    where = "retention" if label == NONE else f"domains.{label}"
    return split_documents(
        islice(documents(source, context.loaded.root, where), limit), recipe.seed, recipe.holdout, where
    )
