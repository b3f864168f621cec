"""Perplexity of a backbone, an export or any plain model on text of your own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..checkpoint.vocabulary import require_known
from ..errors import DataError
from ..progress import Progress, Silent

if TYPE_CHECKING:
    import torch

    from ..method.likelihood import TokenSums
    from ..model.batch import Batch
    from .model import KoffModel


def perplexity(
    path: Path,
    data: str,
    memory: str | None,
    *,
    sequence_length: int,
    field: str = "text",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    batch_size: int = 1,
    attend_across_documents: bool | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure perplexity on documents packed back to back and cut into sequences.

    Args:
        path: an export or a checkpoint folder.
        data: a text or jsonl file, or a glob. field: of a jsonl file, holds the text.
        memory: a domain, None for the bare backbone, or "auto": the router reads each sequence and picks.
        device: where the model runs; None: the accelerator of the machine, or the CPU without one.
        sequence_length: tokens of a sequence.
        dtype: dtype of the weights; likelihoods are always computed in float32.
        batch_size: sequences at a time.
        attend_across_documents: as in a recipe; None: as in the recipe of the export, else True.
        verify: read every byte of the backbone's weights first, not samples alone.
        progress: told of every batch; by default nobody is.

    Returns:
        `{"perplexity", "tokens"}`; the perplexity is None beyond the range of a float.

    Raises:
        DataError: the data hold fewer than two tokens, or one that the model does not know.
        UsageError, ResourceError: there is no such kind of device or dtype; it is not available here.
    """
    from ..devices import find_device
    from .model import KoffModel

    model = KoffModel.from_pretrained(path, device=find_device(device), dtype=dtype, verify=verify)
    text = packed_text(model.tokenizer, data, field, vocab_size=int(model.model.config.vocab_size))
    across = attends_across(path) if attend_across_documents is None else attend_across_documents
    batches = list(sequences(text, sequence_length, batch_size, apart=not across))
    sums = _likelihood(model, batches, memory, progress or Silent())
    value = sums.perplexity
    return {"perplexity": value if math.isfinite(value) else None, "tokens": sums.tokens}


def _likelihood(
    model: KoffModel, batches: Sequence[Batch], memory: str | None, progress: Progress
) -> TokenSums:
    from ..method.likelihood import TokenSums, add_tokens, given

    sums = TokenSums()
    progress.start("evaluate", len(batches), 0)
    for done, batch in enumerate(batches, 1):
        rows = batch.to(model.device)
        names = _memories(model, batch.ids, memory)
        logits = model.logits(rows.ids, names, position_ids=rows.positions)[:, :-1].flatten(0, 1)
        targets = rows.ids[:, 1:].flatten()
        add_tokens(sums, len(targets), given(logits), targets=targets)
        progress.advance("evaluate", done, {})
    return sums


def attends_across(path: Path) -> bool:
    """Whether tokens attend across documents, in the recipe of the export at `path`; True of any other
    model."""
    from ..artefact.export import is_export, open_export

    return not is_export(path) or open_export(path).manifest.recipe.get("attend_across_documents", True)


def sequences(text: Text, length: int, batch_size: int, *, apart: bool) -> Iterator[Batch]:
    """Sequences [B, T]; the rest at the end is a batch of its own, unless it is a single token.

    Args:
        apart: tokens do not attend across documents.
    """
    import torch

    from ..data.packing import document_positions
    from ..model.batch import Batch

    ids, count = torch.tensor(text.ids), len(text.ids)
    starts = np.asarray(text.starts)
    whole = count // length * length
    groups = [
        range(start, min(start + length * batch_size, whole), length)
        for start in range(0, whole, length * batch_size)
    ]
    for rows in [*groups, *([range(whole, count, length)] if count - whole > 1 else [])]:
        width = min(length, count - rows[0])
        positions = None
        if apart:
            positions = torch.from_numpy(np.stack([document_positions(starts, row, width) for row in rows]))
        yield Batch(torch.stack([ids[row : row + width] for row in rows]), None, positions)


def _memories(model: KoffModel, batch: torch.Tensor, memory: str | None) -> list[str | None]:
    """The memory of each sequence."""
    if memory != "auto":
        return [memory] * len(batch)
    return [name for name, _ in model.route([str(model.tokenizer.decode(row)) for row in batch])]


class Text(NamedTuple):
    """Documents back to back.

    Args:
        ids: their token ids, each document's with its end token.
        starts: index of the first token of every document.
    """

    ids: list[int]
    starts: list[int]


def packed_text(
    tokenizer: Any, data: str, field: str = "text", limit: int | None = None, *, vocab_size: int | None = None
) -> Text:
    """The token ids of documents back to back; at most `limit` tokens.

    Args:
        tokenizer: the model's.
        data: a text or jsonl file, or a glob. field: of a jsonl file, holds the text.
        limit: the most tokens; None: no limit.
        vocab_size: rows of the model's embedding, which no token may exceed.

    Raises:
        DataError: the data hold fewer than two tokens, or one that the model does not know.
    """
    from ..data.sources import documents, file_source
    from ..data.vocabulary import end_of_document

    end, _ = end_of_document(tokenizer, None, "--data", vocab_size=vocab_size)
    text = Text([], [])
    for number, document in enumerate(documents(file_source(data, field), Path.cwd(), "--data"), 1):
        ids = tokenizer(document, verbose=False)["input_ids"]
        require_known(ids, vocab_size, tokenizer, f"--data {data}: document {number}")
        text.starts.append(len(text.ids))
        text.ids.extend([*ids, *([end] if end is not None else [])])
        if limit is not None and len(text.ids) >= limit:
            break
    if len(text.ids) < 2:
        raise DataError(f"--data {data}: {len(text.ids)} tokens; at least 2 are needed.")
    return Text(text.ids[:limit], text.starts)
