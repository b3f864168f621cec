"""Tokens that a tokenizer has and the model does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import DataError


def require_known(ids: Sequence[int], vocab_size: int | None, tokenizer: Any, spot: str) -> None:
    """Refuse tokens that the model has no embedding for.

    Args:
        ids: token ids.
        vocab_size: rows of the model's embedding; None: not known, nothing is checked.
        tokenizer: the model's.
        spot: the text's file and line, for the error.

    Raises:
        DataError: there is one.
    """
    if vocab_size is None or not ids:
        return
    largest = max(ids)
    if largest >= vocab_size:
        raise DataError(
            f"{spot}: token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) is beyond the model's "
            f"embedding (vocab_size {vocab_size}); resize the embedding to the tokenizer, or take the "
            "token out of the text."
        )
