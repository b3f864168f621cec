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


def end_of_document(
    tokenizer: Any, requested: str | None, where: str, *, vocab_size: int | None = None
) -> tuple[int | None, str | None]:
    """Choose the token that ends a document.

    The end-of-sequence token of a chat model ends a turn. Between documents it would teach that a turn ends
    where a text does, so the end-of-text token of pretraining is used if the vocabulary has one.

    Args:
        tokenizer: the base's.
        requested: the token that the recipe names; None: choose one.
        where: the recipe field of the source, for messages.
        vocab_size: rows of the model's embedding, beyond which no token is chosen; None: not known.

    Returns:
        The token's id, None if there is none; and a warning for the user, or None.

    Raises:
        DataError: the token is not in the vocabulary, or the model has no embedding for it.
    """
    if requested is not None:
        vocabulary = tokenizer.get_vocab()
        if requested not in vocabulary:
            near = difflib.get_close_matches(requested, tokenizer.all_special_tokens, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(f"{where}.end_of_document: {requested!r} is not a token of this tokenizer.{hint}")
        return _embedded(int(vocabulary[requested]), requested, vocab_size, where), None
    end = tokenizer.eos_token_id
    if end is None or not _ends_turns(tokenizer):
        return _embedded(end, tokenizer.eos_token, vocab_size, where), None
    vocabulary = {
        name: number
        for name, number in tokenizer.get_vocab().items()
        if vocab_size is None or number < vocab_size
    }
    others = [name for name in END_OF_TEXT if name in vocabulary and vocabulary[name] != end]
    if others:
        return int(vocabulary[others[0]]), None
    return _embedded(end, tokenizer.eos_token, vocab_size, where), (
        f"{where}: documents end with {tokenizer.eos_token}, which also ends the turns of this chat model; "
        "name another token with end_of_document if that is not meant."
    )


def _embedded(token: int | None, name: str, vocab_size: int | None, where: str) -> int | None:
    if token is not None and vocab_size is not None and token >= vocab_size:
        raise DataError(
            f"{where}.end_of_document: token {token} ({name!r}) is beyond the model's embedding (vocab_size "
            f"{vocab_size}); name another token."
        )
    return token


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
