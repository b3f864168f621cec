"""The stage that trains the router, on the documents of the domains; held-out documents stay held out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..data.corpus import held_out
from ..data.sources import documents
from ..errors import DataError
from ..recipe.schema import Route, Source
from ..router.classifier import NONE
from ..router.training import assess, fit
from .base import Context, stage_options
from .checkpoint import Checkpoint


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
        router = fit(train, num_buckets=options.num_buckets, epochs=options.epochs, min_confidence=options.min_confidence, seed=recipe.seed)
        router.save(context.run.router_dir)
        figures = assess(router, test)
        context.results["router"] = figures
        context.progress.advance(self.name, len(sources) + 1, {"accuracy": figures["accuracy"]})


def _split(context: Context, label: str, source: Source, limit: int) -> tuple[list[str], list[str]]:
    """The same documents are held out as for perplexity; at least one on either side."""
    recipe = context.loaded.recipe
    where = "retention" if label == NONE else f"domains.{label}"
    train: list[str] = []
    test: list[str] = []
    for number, text in enumerate(_texts(source, context, where, limit)):
        (test if held_out(recipe.seed, number, recipe.holdout) else train).append(text)
    if not test and len(train) > 1:
        test.append(train.pop())
    if not train or not test:
        raise DataError(f"{where}: the router needs at least 2 documents, found {len(train) + len(test)}; add text or remove stage route.")
    return train, test


def _texts(source: Source, context: Context, where: str, limit: int) -> Iterator[str]:
    return islice(documents(source, context.loaded.root, where), limit)
