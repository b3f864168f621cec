"""Teaching an export's router about a memory that was added later, without touching the router's files.

What it learns is stored with the memory (`koffkit.router.column`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..artefact.bundle_info import Routing
from ..artefact.export import Export
from ..data.holdout import split_documents
from ..data.sources import documents, file_source
from ..errors import DataError
from ..progress import Progress
from ..recipe.schema import Source
from ..router import Router
from ..router.column import Column, extended, fit_column, weights_digest
from ..router.ngrams import TextRouter
from ..router.routed import routed
from ..stages.route import RouteOptions

AGAINST = "--against"
Texts = dict[str, list[str]]


def teach_router(
    export: Export,
    name: str,
    source: Source,
    against: Sequence[str],
    seed: int,
    holdout: float,
    progress: Progress,
) -> tuple[Column, Routing] | None:
    """Fit a router column for the memory `name`, and measure it on held-out text.

    Args:
        export: whose router learns.
        name: the memory's domain.
        source: the memory's text.
        against: files of other text; without any, the sources of the other memories and of retention text,
            as far as they are still where the recipes say.
        seed: of the split and the fit.
        holdout: share of the documents to measure on, in (0, 1).
        progress: gets a warning if the router cannot learn the memory.

    Returns:
        The column and its figures; None if the router knows the name already or cannot learn it.

    Raises:
        DataError: a file of `against` is missing or damaged.
    """
    router = routed(export, [bundle for bundle in export.bundles() if bundle.domain != name])
    if router is None or export.router is None or name in router.labels:
        return None
    if not isinstance(router, TextRouter):
        progress.warn(
            f"a router of kind {router.kind} learns no label later: --memory auto will not pick {name}."
        )
        return None
    options = _route_options(export)
    others = _other_texts(export, name, against, options, progress)
    if not others:
        return None
    progress.message(f"teaching the router {name}, against {', '.join(others)}")
    texts = {name: _read(source, options, f"memory {name}"), **others}
    splits = {label: split_documents(documents, seed, holdout, label) for label, documents in texts.items()}
    train = {label: train for label, (train, _) in splits.items()}
    column = fit_column(
        router, weights_digest(export.router), train.pop(name), train, epochs=options.epochs, seed=seed
    )
    held_out = {label: test for label, (_, test) in splits.items()}
    return column, _assess(extended(router, name, column, column.router), name, held_out)


def _other_texts(
    export: Export, name: str, against: Sequence[str], options: RouteOptions, progress: Progress
) -> Texts:
    """Text that is not the memory's, by label; a warning names what is missing."""
    if against:
        return _given(against, options)
    others, missing = _known_sources(export, name, options)
    if not others:
        progress.warn(
            f"the text of the other memories is not where the recipes say, so the router cannot learn {name} "
            f"from it; give text of other kinds with {AGAINST} GLOB."
        )
    elif missing:
        progress.warn(
            f"the router learns {name} without text of {', '.join(missing)}, which is not where the recipes "
            f"say; see {AGAINST}."
        )
    return others


def _route_options(export: Export) -> RouteOptions:
    stages = export.manifest.recipe["stages"]
    return next(
        (RouteOptions.model_validate(stage["route"]) for stage in stages if stage.get("route")),
        RouteOptions(),
    )


def require_text(against: Sequence[str]) -> None:
    """Check the files of other text before a memory is learned, not after.

    Args:
        against: globs.

    Raises:
        DataError: no file matches a glob, or those that do hold fewer than two documents.
    """
    for pattern in against:
        split_documents(
            islice(documents(file_source(pattern), Path.cwd(), AGAINST), 2), 0, 0.5, f"{AGAINST} {pattern}"
        )


def _given(patterns: Sequence[str], options: RouteOptions) -> Texts:
    return {pattern: _read(file_source(pattern), options, AGAINST) for pattern in patterns}


def _known_sources(export: Export, name: str, options: RouteOptions) -> tuple[Texts, list[str]]:
    """Text of the other memories and of retention by label, and the labels whose text is missing. The recipe
    a memory was added with takes precedence over that of the export."""
    recipe = export.manifest.recipe
    sources = dict(recipe["domains"]) | ({"none": recipe["retention"]} if recipe.get("retention") else {})
    for bundle in export.bundles():
        sources |= {} if bundle.info.added is None else bundle.info.added.recipe.get("domains", {})
    others, missing = {}, []
    for label, fields in sources.items():
        if label == name:
            continue
        try:
            texts = _read(Source.model_validate(fields), options, f"memory {label}")
        except DataError:
            texts = []
        if len(texts) < 2:
            missing.append(label)
        else:
            others[label] = texts
    return others, missing


def _read(source: Source, options: RouteOptions, where: str) -> list[str]:
    return list(islice(documents(source, Path.cwd(), where), options.max_documents))


def _assess(router: Router, name: str, texts: Mapping[str, Sequence[str]]) -> Routing:
    """How well the router knows the memory. `recognised`: share of its own held-out documents that the router
    gives to it. `mistaken`: share of all other documents that the router gives to it."""
    taken = {
        label: [chosen == name for chosen, _ in router.route(documents)] for label, documents in texts.items()
    }
    own, rest = taken.pop(name), [hit for hits in taken.values() for hit in hits]
    return Routing(
        recognised=sum(own) / len(own),
        mistaken=sum(rest) / len(rest),
        documents=len(own),
        other_documents=len(rest),
        against=list(taken),
    )
