"""Tokenizers in GGUF files: how they split text is recognised, and scores follow merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from koffkit.errors import UsageError

from ...common import sentences

gguf = pytest.importorskip("gguf")
from koffkit.exporters.gguf.tokenizer import SPLITS, read_vocabulary  # noqa: E402

BYTES = pre_tokenizers.ByteLevel
ROWS = 320


def saved(folder: Path, pre: Any, model: Any = None, **special: str) -> Path:
    core = Tokenizer(model or models.BPE())
    core.pre_tokenizer = pre
    if model is None:
        alphabet = sorted(BYTES.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
        core.train_from_iterator(sentences(0, 50), trainer)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", **special
    ).save_pretrained(folder)
    return folder


def split(pattern: str) -> Any:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


DIGITS = [pre_tokenizers.Digits(individual_digits=True), BYTES(add_prefix_space=False)]


@pytest.mark.parametrize(
    ("pre", "name", "recognised"),
    [
        (BYTES(add_prefix_space=False), "gpt-2", True),
        (pre_tokenizers.Sequence(DIGITS), "smollm", True),
        *((split(pattern), name, True) for pattern, name in SPLITS.items()),
        (split(r"\d+"), "gpt-2", False),
        (BYTES(add_prefix_space=True), "gpt-2", False),
    ],
)
def test_how_text_is_split(tmp_path: Path, pre: Any, name: str, recognised: bool) -> None:
    found = read_vocabulary(saved(tmp_path, pre), ROWS, "auto")
    assert (found.model, found.pre, found.recognised) == ("gpt2", name, recognised)
    given = read_vocabulary(tmp_path, ROWS, "qwen2")
    assert (given.pre, given.recognised) == ("qwen2", True)


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    found = read_vocabulary(saved(tmp_path, BYTES(add_prefix_space=False)), ROWS, "auto")
    kinds = gguf.TokenType
    assert len(found.tokens) == len(found.types) == ROWS
    assert found.types[:3] == [kinds.CONTROL, kinds.CONTROL, kinds.NORMAL]
    assert found.types[-1] == kinds.UNUSED and len(set(found.tokens)) == ROWS
    assert found.sentinels(2) == [300, 301]
    assert found.special["bos"] == 0 and found.special["eos"] == 1
    assert not found.adds_bos
    with pytest.raises(UsageError, match=r"1000 KV memories need a token each, .* -o kv=false"):
        found.sentinels(1000)


def test_bpe_with_bytes_gets_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8}
    model = models.BPE(vocab, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{{ messages[0].content }}"
    fast.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, 9, "auto")
    kinds = gguf.TokenType
    assert (found.model, found.pre, found.recognised, found.add_space) == ("llama", "default", True, True)
    assert found.types[:4] == [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.BYTE]
    assert found.scores[7] > found.scores[8] > found.scores[5]
    assert found.chat_template == "{{ messages[0].content }}"


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    folder = saved(
        tmp_path, pre_tokenizers.Whitespace(), models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")
    )
    with pytest.raises(
        UsageError, match=r"of kind WordLevel; format gguf writes BPE. Export with --format hf"
    ):
        read_vocabulary(folder, ROWS, "auto")
