"""Perplexity of a backbone, an export or any plain model on text of your own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import DataError


def perplexity(
    path: Path, data: str, memory: str | None, *, sequence_length: int, field: str = "text"
) -> dict[str, Any]:
    """`{"perplexity", "tokens"}`, documents packed back to back and cut into sequences.

    Args:
        path: an export or a checkpoint folder.
        data: a text or jsonl file, or a glob.
        memory: a domain, None for the bare backbone, or "auto": the router reads each sequence and picks.

    Raises:
        DataError: the data hold less than two tokens.
    """
    import torch
    from torch.nn import functional as F

    from .model import KoffModel

    model = KoffModel.from_pretrained(path, dtype=torch.float32)
    ids = token_ids(model.tokenizer, data, field)
    total, count = 0.0, 0
    for start in range(0, len(ids), sequence_length):
        part = torch.tensor([ids[start : start + sequence_length]])
        if part.shape[1] > 1:
            chosen = model.route([str(model.tokenizer.decode(part[0]))])[0][0] if memory == "auto" else memory
            logits = model.logits(part, chosen)[0, :-1]
            total += F.cross_entropy(logits.float(), part[0, 1:], reduction="sum").item()
            count += part.shape[1] - 1
    return {"perplexity": math.exp(total / count), "tokens": count}


def token_ids(tokenizer: Any, data: str, field: str = "text", limit: int | None = None) -> list[int]:
    """Documents back to back, each with its end token; at most `limit` tokens.

    Raises:
        DataError: the data hold less than two tokens.
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
