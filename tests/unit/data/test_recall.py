from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from koffkit.data.recall import load_facts, recall, subsample
from koffkit.embedded import path as embedded
from koffkit.errors import DataError
from koffkit.recipe.schema import Source


@pytest.fixture(scope="module")
def base():  # type: ignore[no-untyped-def]
    folder = embedded("base")
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval(), AutoTokenizer.from_pretrained(folder)


def test_one_forward_pass_says_what_greedy_decoding_does(base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """On a damaged model, so that some facts are known and some are not."""
    model, tokenizer = base
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 1::2] = 0
    source = Source(jsonl="embedded:facts/it.jsonl", prompt_field="prompt", answer_field="answer")
    facts = load_facts(source, tmp_path, "domains.it", tokenizer, 60)
    found = recall(lambda ids: model(ids).logits.argmax(-1), facts, batch_size=16)
    decoded = []
    for fact in facts:
        prompt = torch.tensor([fact.ids[: fact.answer_start]])
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(fact.ids) - fact.answer_start,
            do_sample=False,
        )
        decoded.append(tuple(out[0].tolist()) == fact.ids)
    assert found == decoded
    assert 0.1 < sum(found) / len(found) < 0.9


def test_a_record_without_the_answer_is_named(base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.jsonl").write_text(json.dumps({"text": "a b", "prompt": "a"}) + "\n")
    source = Source(jsonl="f.jsonl", prompt_field="prompt", answer_field="answer")
    with pytest.raises(DataError, match=r"domains\.x: record 1 has no field 'answer'; found: text, prompt"):
        load_facts(source, tmp_path, "domains.x", base[1])


def test_answers_that_begin_inside_a_token_are_refused(base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.jsonl").write_text(
        json.dumps({"text": "", "prompt": "The country with the co", "answer": "de"}) + "\n"
    )
    source = Source(jsonl="f.jsonl", prompt_field="prompt", answer_field="answer")
    with pytest.raises(
        DataError, match=r"domains\.x: no prompt is followed by its answer at a token's boundary"
    ):
        load_facts(source, tmp_path, "domains.x", base[1])


def test_a_token_that_the_model_does_not_know_is_named(base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    facts = [{"text": "", "prompt": "The river", "answer": f" {number}"} for number in (1, 2)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    source = Source(jsonl="f.jsonl", prompt_field="prompt", answer_field="answer")
    tokenizer = base[1]
    (ids,) = tokenizer(["The river 2"])["input_ids"]
    load_facts(source, tmp_path, "domains.x", tokenizer, vocab_size=max(ids) + 1)
    with pytest.raises(DataError, match=rf"f\.jsonl:[12]: token {max(ids)} .* beyond the model's embedding"):
        load_facts(source, tmp_path, "domains.x", tokenizer, vocab_size=max(ids))


def test_spread_takes_evenly() -> None:
    assert subsample(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert subsample([1, 2], 5) == subsample([1, 2], None) == [1, 2]
