from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from koffkit.errors import UsageError
from koffkit.runtime.prompts import chat_prompts, encode_prompts

from ...common import make_tokenizer

CONFIG = SimpleNamespace(vocab_size=300, max_position_embeddings=16, eos_token_id=None)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def test_padding_is_what_the_tokenizer_does(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["river", "seven green rivers", "x"]
    batch, padding = encode_prompts(tokenizer, texts, CONFIG)
    expected = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert padding == tokenizer.pad_token_id


def test_no_padding_token_is_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    assert encode_prompts(tokenizer, ["river", "seven green"], CONFIG)[1] == tokenizer.eos_token_id
    tokenizer.eos_token = None
    batch, padding = encode_prompts(tokenizer, ["river", "seven green"], CONFIG)
    assert padding == 0
    assert batch["attention_mask"][0, 0] == 0
    with_end = SimpleNamespace(vocab_size=300, max_position_embeddings=16, eos_token_id=[7, 8])
    assert encode_prompts(tokenizer, ["river"], with_end)[1] == 7
    assert tokenizer.pad_token is None


def test_an_empty_prompt_begins_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    batch, _ = encode_prompts(tokenizer, ["river", ""], CONFIG)
    assert batch["input_ids"][1, -1] == tokenizer.bos_token_id
    assert batch["attention_mask"][1].sum() == 1
    tokenizer.bos_token = None
    with pytest.raises(UsageError, match="prompt 2 is empty, and the tokenizer has no token to begin"):
        encode_prompts(tokenizer, ["river", ""], CONFIG)


def test_a_prompt_beyond_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"prompt 1 has 16 tokens, and the model reads 16 \(max_pos"):
        encode_prompts(tokenizer, ["<s>" * 16], CONFIG)
    assert encode_prompts(tokenizer, ["<s>" * 15], CONFIG)[0]["input_ids"].shape == (1, 15)


def test_a_prompt_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        chat_prompts(tokenizer, ["river"])
    tokenizer.chat_template = TEMPLATE
    assert chat_prompts(tokenizer, ["river", "x"]) == ["<s>river</s>>", "<s>x</s>>"]
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(UsageError, match=r"refuses \(no users\)"):
        chat_prompts(tokenizer, ["river"])
