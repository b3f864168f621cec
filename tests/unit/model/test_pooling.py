from __future__ import annotations

import pytest
import torch

from koffkit.errors import DataError
from koffkit.model.pooling import pooled_features

from ...common import make_tokenizer


def test_text_with_a_token_that_the_model_does_not_know_is_named() -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    table = torch.randn(size + 1, 4)
    texts = ["river stone", "river <|new|>"]
    for known in (size, size + 1):
        features = pooled_features(lambda ids: table[ids], tokenizer, 8, 2, "cpu", vocab_size=known)
        assert features(texts[:1]).shape == (1, 4)
        if known > size:
            assert features(texts).shape == (2, 4)
            continue
        message = rf"router's text 'river <\|new\|>': token {size} \('<\|new\|>'\)"
        with pytest.raises(DataError, match=message):
            features(texts)
