"""`domains: {auto: ...}`: grouping documents before anything else happens, so that the run continues as if
the recipe named the domains.

Legend: N documents of a batch, T tokens, D hidden.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..arch.weights import vocab_size
from ..checkpoint.files import load_tokenizer
from ..checkpoint.spec import ModelSpec
from ..checkpoint.vocabulary import require_known
from ..errors import DataError, UsageError
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..recipe.schema import RESERVED, Auto, AutoDomains, Recipe, Source
from ..run.folder import RunFolder
from ..storage.files import fsync_folder, make_folder, replacing_file, write_json
from ..storage.read_json import read_json
from .clusters import Array, Words, fit_clusters, name_clusters
from .sources import documents

AT_ONCE = 64
WHERE = "domains.auto"


def resolve_domains(
    loaded: LoadedRecipe, run: RunFolder, base: ModelSpec, progress: Progress
) -> LoadedRecipe:
    """Replace `domains: {auto: ...}` by the domains of a clustering, which a resumed run reads from its
    folder.

    Args:
        loaded: the recipe.
        run: the run folder.
        base: the base, whose embeddings are clustered.
        progress: where to report.

    Returns:
        The recipe with its domains; unchanged if it names them itself.

    Raises:
        DataError: there are fewer documents than domains requested, or none.
        IntegrityError: the clustering in the run folder is damaged.
        UsageError: the model has no such layer.
    """
    requested = loaded.recipe.domains
    if not isinstance(requested, AutoDomains):
        return loaded
    if not run.domains_file.is_file():
        _find(loaded, requested.auto, run, base, progress)
    entries = read_json(run.domains_file, remedy="start a new run with another --output")["domains"]
    sources = {name: Source(jsonl=str(run.domain_text(name).resolve())) for name in entries}
    progress.message(
        "domains: " + ", ".join(f"{name} ({entry['documents']:,})" for name, entry in entries.items())
    )
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"domains": sources}))


def _find(loaded: LoadedRecipe, auto: Auto, run: RunFolder, base: ModelSpec, progress: Progress) -> None:
    """Group, name and write; the index comes last, so that an interrupted attempt starts again."""
    embedder = Embedder(base, loaded.recipe, auto)
    first = list(islice(documents(auto, loaded.root, WHERE), auto.fit_documents))
    if len(first) < auto.count:
        raise DataError(
            f"{WHERE}.count: {auto.count} domains of {len(first)} documents; lower count, or add text."
        )
    progress.message(f"grouping documents into {auto.count} domains")
    embedded = np.concatenate([embedder(part) for part in _batches(iter(first))])
    clusters = fit_clusters(embedded, auto.count, loaded.recipe.seed)
    words = Words(auto.count)
    folder = run.domains_file.parent
    make_folder(folder)
    groups = [folder / f"{index}.jsonl" for index in range(auto.count)]
    with ExitStack() as stack:
        files = [stack.enter_context(replacing_file(path)) for path in groups]
        for part in _batches(documents(auto, loaded.root, WHERE)):
            for text, cluster in zip(part, clusters.assign(embedder(part)).tolist(), strict=True):
                files[cluster].write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
                words.add(text, cluster)
        _require_documents(words)
    _publish(run, groups, words)


def _require_documents(words: Words) -> None:
    small = [index for index, count in enumerate(words.documents) if count < 2]
    if small:
        raise DataError(
            f"{WHERE}.count: a domain would have {words.documents[small[0]]} document(s); lower count, or "
            "add text."
        )


def _publish(run: RunFolder, groups: list[Path], words: Words) -> None:
    """Rename the numbered groups to their domains, then write the index that makes them valid."""
    typical = [words.typical(index) for index in range(len(groups))]
    names = name_clusters(typical, taken=RESERVED)
    for name, path in zip(names, groups, strict=True):
        os.replace(path, run.domain_text(name))
    fsync_folder(run.domains_file.parent)
    entries = {
        name: {"documents": words.documents[index], "words": typical[index]}
        for index, name in enumerate(names)
    }
    write_json(run.domains_file, {"domains": entries})


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(texts, AT_ONCE)):
        yield part


class Embedder:
    """Documents as vectors: the mean of their tokens' embeddings, or of a layer's hidden states.

    Raises:
        UsageError: the model has no such layer.
    """

    def __init__(self, base: ModelSpec, recipe: Recipe, auto: Auto) -> None:
        if auto.layer > base.num_layers:
            raise UsageError(
                f"{WHERE}.layer: {auto.layer} is not a layer of this model; use 0 (token embeddings) to "
                f"{base.num_layers}."
            )
        trusted = recipe.base.trust_remote_code
        self._tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        self._auto, self._recipe = auto, recipe
        self._vocab_size = vocab_size(base.config)
        self._table: Array | None = None
        self._model: Any = None
        if auto.layer == 0:
            self._table = base.reader().read(f"{base.arch.embeddings}.weight").numpy()
        else:
            from ..model.student import load_frozen

            self._model = load_frozen(str(base.folder), recipe.base.dtype, trust_remote_code=trusted)

    def __call__(self, texts: list[str]) -> Array:
        """Embed documents; [N, D] in float32."""
        encoded = self._tokenizer(texts, verbose=False)["input_ids"]
        rows = [ids[: self._auto.max_tokens] or [0] for ids in encoded]
        for ids in rows:
            require_known(ids, self._vocab_size, self._tokenizer, WHERE)
        if self._table is not None:
            return np.stack([self._table[ids].mean(0) for ids in rows])
        return self._hidden(rows)

    def _hidden(self, rows: list[list[int]]) -> Array:
        import torch

        from ..model.pooling import mean_over_tokens, pad

        with torch.no_grad():
            states = self._model.model(
                input_ids=pad(rows), use_cache=False, output_hidden_states=True
            ).hidden_states[self._auto.layer]
        means: Array = mean_over_tokens(states, [len(row) for row in rows]).numpy()
        return means
