"""Calls of a `KoffModel`: as a block, as a model of transformers, and with everything `generate` takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import utils

from koffkit import KoffModel
from koffkit.errors import UsageError

from ...conftest import Shipped

PROMPTS = ["river stone", "quiet house sings over"]


@pytest.fixture
def model(shipped: Shipped) -> KoffModel:
    return KoffModel.from_pretrained(shipped.export)


def test_a_block_has_a_memory_and_gives_it_back(model: KoffModel) -> None:
    ids = torch.arange(20).reshape(2, 10) + 4
    bare, north, south = (model.logits(ids, name) for name in (None, "north", "south"))
    with model.attached("north"):
        assert torch.equal(model.logits(ids), north)
        assert torch.equal(model(ids, use_cache=False).logits, north)
        assert torch.equal(model.model(ids, use_cache=False).logits, north)
        with model.attached(["south", None]):
            mixed = model.logits(ids)
            torch.testing.assert_close(mixed[0], south[0], atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(mixed[1], bare[1], atol=2e-5, rtol=1e-5)
        assert torch.equal(model.logits(ids), north)
    assert torch.equal(model.logits(ids), bare) and torch.equal(
        model.model(ids, use_cache=False).logits, bare
    )
    with pytest.raises(UsageError, match="memory 'nrth': not loaded"), model.attached("nrth"):
        pass


def test_a_call_with_a_cache_and_padding_continues_the_text(model: KoffModel) -> None:
    ids = torch.arange(8).reshape(1, 8) + 5
    padded = torch.cat([torch.full((1, 3), 2), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)], dim=1)
    first = model(padded[:, :-2], memory="north", attention_mask=mask[:, :-2], use_cache=True)
    last = model(
        padded[:, -2:], memory="north", attention_mask=mask, past_key_values=first.past_key_values
    ).logits
    torch.testing.assert_close(last, model.logits(ids, "north")[:, -2:], atol=2e-5, rtol=1e-4)


def test_generate_takes_and_returns_what_a_transformers_user_expects(model: KoffModel) -> None:
    texts = model.generate(PROMPTS[:2], memory="north", max_new_tokens=4)
    assert isinstance(texts, list) and model.generate(PROMPTS[0], "north", 4) == texts[:1]
    ids = model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    found = model.generate(input_ids=ids, memory="north", max_new_tokens=4)
    assert torch.equal(found[:, : ids.shape[1]], ids)
    assert model.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True) == texts[0]
    details = model.generate(
        PROMPTS[0], "north", 4, return_dict_in_generate=True, output_scores=True, num_return_sequences=1
    )
    assert torch.equal(details.sequences, found) and len(details.scores) == found.shape[1] - ids.shape[1]
    config = GenerationConfig(max_new_tokens=2, do_sample=False)
    assert (
        model.generate(input_ids=ids, memory="north", generation_config=config).shape[1] == ids.shape[1] + 2
    )
    samples = model.generate(PROMPTS[0], "north", 4, do_sample=True, top_k=1, num_return_sequences=3)
    assert samples == [texts[0]] * 3
    assert model.complete(PROMPTS[0], "north", 4) == texts[0]
    for option in ({"num_return_sequences": 2, "num_beams": 2}, {"return_dict_in_generate": True}):
        with pytest.raises(UsageError, match="complete: it gives one text"):
            model.complete(PROMPTS[0], "north", 4, **option)
    with pytest.raises(UsageError, match="either prompts or input_ids"):
        model.generate()
    with pytest.raises(UsageError, match=r"attention_mask: shape \[1, 1\]"):
        model.generate(input_ids=ids, attention_mask=torch.ones(1, 1))
    beyond = torch.full((1, 4), model.config.vocab_size)
    with pytest.raises(UsageError, match="beyond the model's embedding"):
        model.generate(input_ids=beyond)


def test_a_generation_config_and_what_is_said_beside_it(
    model: KoffModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(utils.logger, "warning_once", said.append)
    config = GenerationConfig(max_new_tokens=2, do_sample=False)
    before = config.to_dict()
    expected = model.generate(PROMPTS[:2], "north", 2)
    assert model.generate(PROMPTS[:2], "north", generation_config=config) == expected
    assert model.generate(PROMPTS[:2], "north", 2, generation_config=None) == expected
    longer = model.generate(PROMPTS[0], "north", 4, generation_config=config, stop_strings=["#"])
    assert longer == model.generate(PROMPTS[0], "north", 4)
    config.return_dict_in_generate = True
    assert model.generate(PROMPTS[0], "north", generation_config=config).sequences.shape[0] == 1
    config.return_dict_in_generate = before["return_dict_in_generate"]
    assert config.to_dict() == before and said == []


def test_generate_stops_at_a_text(model: KoffModel) -> None:
    text = model.complete(PROMPTS[1], "north", 12)
    assert len(text) > 2
    stop = text[1:3]
    stopped = model.complete(PROMPTS[1], "north", 12, stop_strings=[stop])
    assert stopped == text[: len(stopped)] and stop in stopped and len(stopped) < len(text)


def test_conversations_go_through_the_chat_template(model: KoffModel) -> None:
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    talk = [{"role": "user", "content": "river stone"}, {"role": "assistant", "content": "lamp"}]
    talk += [{"role": "user", "content": "seven"}]
    answer = model.complete(talk, "north", 4)
    plain = "user: river stone\nassistant: lamp\nuser: seven\n"
    ids = model.tokenizer(plain, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = model.generate(input_ids=ids, memory="north", max_new_tokens=4)[0, ids.shape[1] :]
    assert answer == model.tokenizer.decode(expected, skip_special_tokens=True)
    both = model.generate([talk, "seven"], "north", 4)
    assert both[0] == answer and both[1] == model.complete("seven", "north", 4, chat=True)


def test_a_merged_model_computes_what_the_memory_does(
    restored: Shipped, shipped: Shipped, tmp_path: Path
) -> None:
    ids = torch.arange(10).reshape(1, 10) + 4
    for made in (restored, shipped):
        model = KoffModel.from_pretrained(made.export)
        memory = model.store._loaded["north"]
        if memory.kv:
            with pytest.raises(UsageError, match="it has a KV memory, which is no part of any weight"):
                model.merge("north")
        louder = {name: replace(pair, scaling=1.5 * pair.scaling) for name, pair in memory.lora.items()}
        model.store._loaded["north"] = replace(memory, lora=louder, kv={})
        expected, bare = model.logits(ids, "north"), model.logits(ids, None)
        merged = model.merge("north")
        torch.testing.assert_close(merged(ids, use_cache=False).logits, expected, atol=2e-5, rtol=1e-4)
        assert (expected - bare).abs().max() > 1e-3 and torch.equal(model.logits(ids, None), bare)
        merged.save_pretrained(tmp_path / made.export.parent.name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / made.export.parent.name)
        assert torch.equal(again(ids, use_cache=False).logits, merged(ids, use_cache=False).logits)


def test_a_model_moves_to_another_type(model: KoffModel) -> None:
    ids = torch.arange(10).reshape(1, 10) + 4
    exact = model.logits(ids, "north")
    assert model.to(dtype="bfloat16") is model and model.dtype == torch.bfloat16
    found = model.logits(ids, "north")
    assert found.dtype == torch.bfloat16 and model.store._loaded["north"].kv[0].key.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.2, rtol=0.1)
