"""Perplexity of a backbone, an export or any plain model on text of your own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..progress import Progress, Silent

if TYPE_CHECKING:
    import torch

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
        verify: read every byte of the backbone's weights first, not samples alone.
        progress: told of every batch; by default nobody is.

    Returns:
        `{"perplexity", "tokens"}`; the perplexity is None beyond the range of a float.

    Raises:
        DataError: the data hold fewer than two tokens.
        UsageError, ResourceError: there is no such kind of device or dtype; it is not available here.
    """
    from ..devices import find_device
    from ..method.likelihood import TokenSums, add_tokens, given
    from .model import KoffModel

    model = KoffModel.from_pretrained(path, device=find_device(device), dtype=dtype, verify=verify)
    ids = token_ids(model.tokenizer, data, field)
    sums, progress = TokenSums(), progress or Silent()
    batches = list(_sequences(ids, sequence_length, batch_size))
    progress.start("evaluate", len(batches), 0)
    for done, batch in enumerate(batches, 1):
        rows = batch.to(model.device)
        logits = model.logits(rows, _memories(model, batch, memory))[:, :-1].flatten(0, 1)
        targets = rows[:, 1:].flatten()
        add_tokens(sums, len(targets), given(logits), targets=targets)
        progress.advance("evaluate", done, {})
    value = sums.perplexity
    return {"perplexity": value if math.isfinite(value) else None, "tokens": sums.tokens}


def _sequences(ids: list[int], length: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Token ids [B, T]; the rest at the end is a batch of its own, unless it is a single token."""
    import torch

    whole = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    yield from (whole[first : first + batch_size] for first in range(0, len(whole), batch_size))
    rest = ids[whole.numel() :]
    if len(rest) > 1:
        yield torch.tensor([rest])


def _memories(model: KoffModel, batch: torch.Tensor, memory: str | None) -> list[str | None]:
    """The memory of each sequence."""
    if memory != "auto":
        return [memory] * len(batch)
    return [name for name, _ in model.route([str(model.tokenizer.decode(row)) for row in batch])]


def token_ids(tokenizer: Any, data: str, field: str = "text", limit: int | None = None) -> list[int]:
    """The token ids of documents back to back, each with its end token; at most `limit` tokens.

    Args:
        tokenizer: the model's.
        data: a text or jsonl file, or a glob. field: of a jsonl file, holds the text.
        limit: the most tokens; None: no limit.

    Raises:
        DataError: the data hold fewer than two tokens.
    """
    from ..data.sources import documents, file_source

    end = tokenizer.eos_token_id
    ids: list[int] = []
    for text in documents(file_source(data, field), Path.cwd(), "--data"):
        ids += [*tokenizer(text)["input_ids"], *([end] if end is not None else [])]
        if limit is not None and len(ids) >= limit:
            break
    if len(ids) < 2:
        raise DataError(f"--data {data}: {len(ids)} tokens; at least 2 are needed.")
    return ids[:limit]
