"""The stage that trains the router, on the documents of the domains; held-out documents stay held out."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

from .. import plugins
from ..data.corpus import split_documents
from ..data.sources import documents
from ..errors import Interrupted
from ..model.pooling import pooled_features
from ..recipe.schema import Route, Source
from ..router import Features, Router, Setting
from ..router.assess import assess
from ..router.base import NONE
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
    setting = Setting(root=root, seed=0, device="cpu", num_layers=num_layers, features=_no_features)
    _kind(options).check(options, setting)


def _kind(options: Route) -> type[Router]:
    kind: type[Router] = plugins.load(plugins.ROUTERS, options.kind, "stages.route.kind")
    return kind


def _no_features(layer: int, max_tokens: int, batch_size: int) -> Features:
    raise AssertionError("there is no backbone yet")


def _fit(context: Context, options: Route, texts: dict[str, list[str]]) -> Router:
    def check_interrupt() -> None:
        if context.stop():
            raise Interrupted("interrupted in route; continue with the same command and --resume.")

    def features(layer: int, max_tokens: int, batch_size: int) -> Features:
        hidden = partial(context.student.hidden_states, layer=layer, gate_values=context.masks)
        return pooled_features(hidden, context.tokenizer, max_tokens, batch_size, setting.device)

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
    recipe = context.loaded.recipe
    where = "retention" if label == NONE else f"domains.{label}"
    return split_documents(
        islice(documents(source, context.loaded.root, where), limit), recipe.seed, recipe.holdout, where
    )
