"""Tokens between documents, and before a text."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any

from ..errors import DataError
from .chat import Conversation, render

# Tokens that pretraining put between documents, in the tokenizers of the supported families.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")


def end_of_document(tokenizer: Any, requested: str | None, where: str) -> tuple[int | None, str | None]:
    """Choose the token that ends a document.

    The end-of-sequence token of a chat model ends a turn. Between documents it would teach that a turn ends
    where a text does, so the end-of-text token of pretraining is used if the vocabulary has one.

    Args:
        tokenizer: the base's.
        requested: the token that the recipe names; None: choose one.
        where: the recipe field of the source, for messages.

    Returns:
        The token's id, None if there is none; and a warning for the user, or None.

    Raises:
        DataError: the requested token is not in the vocabulary.
    """
    if requested is not None:
        vocabulary = tokenizer.get_vocab()
        if requested not in vocabulary:
            near = difflib.get_close_matches(requested, tokenizer.all_special_tokens, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(f"{where}.end_of_document: {requested!r} is not a token of this tokenizer.{hint}")
        return int(vocabulary[requested]), None
    end = tokenizer.eos_token_id
    if end is None or not _ends_turns(tokenizer):
        return end, None
    vocabulary = tokenizer.get_vocab()
    others = [name for name in END_OF_TEXT if name in vocabulary and vocabulary[name] != end]
    if others:
        return int(vocabulary[others[0]]), None
    return end, (
        f"{where}: documents end with {tokenizer.eos_token}, which also ends the turns of this chat model; "
        "name another token with end_of_document if that is not meant."
    )


def vocabulary_digest(tokenizer: Any) -> str:
    """sha256 of all tokens with their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def beginning_of_text(tokenizer: Any) -> int | None:
    """The token that this tokenizer puts before every text; None if it puts none."""
    begin = tokenizer.bos_token_id
    ids = tokenizer("a", verbose=False)["input_ids"]
    return int(begin) if begin is not None and ids and ids[0] == begin else None


def _ends_turns(tokenizer: Any) -> bool:
    if not getattr(tokenizer, "chat_template", None):
        return False
    said = "koffkit"
    try:
        text = render(
            tokenizer,
            Conversation(
                [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}], "template"
            ),
        )
    except DataError:
        return False
    return tokenizer.eos_token in text.rpartition(said)[2]
