from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.checkpoint.spec import ModelSpec
from koffkit.progress import Silent
from koffkit.recipe.learning import KV
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.training.build import build_context
from koffkit.training.context import Context
from koffkit.training.loop import DistillationLoop

from ...common import make_checkpoint, recipe_dict, stage_options, write_recipe

LORA = {"rank": 4, "alpha": 4, "targets": ["k_proj", "v_proj", "up_proj"]}


def context_for(base: Path, root: Path, kv: dict[str, Any], backbone: Path | None = None) -> Context:
    root.mkdir(parents=True, exist_ok=True)
    memory = {"layers": "all", "lora": LORA, "kv": kv}
    loaded = load_recipe(write_recipe(root / "r.yaml", recipe_dict(base, root / "data", memory=memory)))
    return build_context(loaded, RunFolder(root / "run"), ModelSpec.open(base), Silent(), backbone)


def loop_of(context: Context) -> DistillationLoop:
    return DistillationLoop(context, "learn_masks", stage_options(context, "learn_masks"), train_gates=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_a_memory_begins_as_keys_and_values_of_the_domains_own_text(family: str, tmp_path: Path) -> None:
    more = {"head_dim": 8} if family in ("qwen3", "gemma3_text") else {}
    context = context_for(make_checkpoint(tmp_path / "base", family, **more), tmp_path, {"tokens": 5})
    model = context.student.model
    attention, shape = model.model.layers[0].self_attn, (1, 5, 2, 8)
    for domain in ("north", "south"):
        ids = torch.tensor(context.corpus.train[domain].tokens[:5].astype("int64"))[None]
        context.student.memories.attach(None)
        with torch.no_grad():
            states = model.model.layers[0].input_layernorm(model.get_input_embeddings()(ids))
            key, value = attention.k_proj(states).view(shape), attention.v_proj(states).view(shape)
            key = attention.k_norm(key) if hasattr(attention, "k_norm") else key
        tensors = context.student.memories.kv_tensors(domain)
        assert torch.allclose(tensors["layers.0.key"], key[0].transpose(0, 1), atol=1e-6)
        assert torch.allclose(tensors["layers.0.value"], value[0].transpose(0, 1), atol=1e-6)


def test_only_kv_memories_depend_on_how_they_begin(llama: Path, tmp_path: Path) -> None:
    text, random = (
        context_for(llama, tmp_path / init, {"tokens": 4, "init": init}) for init in ("text", "random")
    )
    adapters = [context.student.memories.adapter("north") for context in (text, random)]
    assert adapters[0][0] == adapters[1][0]
    assert all(value.equal(adapters[1][1][name]) for name, value in adapters[0][1].items())
    for name, alpha in text.student.gates.log_alpha.items():
        assert alpha.equal(random.student.gates.log_alpha[name])
    halves = [context.student.memories.kv_tensors("north") for context in (text, random)]
    assert {n: v.shape for n, v in halves[0].items()} == {n: v.shape for n, v in halves[1].items()}
    assert not any(value.equal(halves[1][name]) for name, value in halves[0].items())


def test_kl_before_training_can_be_had_for_both(llama: Path, tmp_path: Path) -> None:
    losses = {}
    for init in ("text", "random"):
        loop = loop_of(context_for(llama, tmp_path / init, {"tokens": 4, "init": init}))
        batch = loop.batch_of("north", 0)
        losses[init] = loop.distillation(batch, "north", None)[1]["kl"]
        assert loop.distillation(batch, None, None)[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < losses["text"] < 10
    assert 0 < losses["random"] < 10
    assert losses["text"] != losses["random"]


@pytest.mark.parametrize(
    ("kv", "frozen"),
    [
        ({}, True),
        ({"freeze_first": False}, False),
        ({"init": "random"}, False),
        ({"init": "random", "freeze_first": True}, True),
    ],
)
def test_the_first_token_stays_where_that_is_asked_for(
    llama: Path, tmp_path: Path, kv: dict[str, Any], frozen: bool
) -> None:
    assert KV(tokens=4, **kv).freezes_first == frozen
    loop = loop_of(context_for(llama, tmp_path, {"tokens": 4, **kv}))
    memories = loop.student.memories
    domain, _ = loop.schedule.step(0)
    before = {name: value.clone() for name, value in memories.kv_tensors(domain).items()}
    for step in (0, 1, 3):
        loop._step(step)
    for name, value in memories.kv_tensors(domain).items():
        assert value[:, 0].equal(before[name][:, 0]) == frozen
        assert not value[:, 1:].equal(before[name][:, 1:])


def test_a_text_shorter_than_the_memory_is_repeated(llama: Path, tmp_path: Path) -> None:
    from koffkit.model.text_memory import start_from_text

    context = context_for(llama, tmp_path, {"tokens": 6})
    memories = context.student.memories
    start_from_text(memories, context.student.model, "north", [5, 6])
    first = memories.kv_tensors("north")["layers.0.key"]
    assert first[:, 0].allclose(first[:, 2], atol=1e-6)
    assert first[:, 1].allclose(first[:, 5], atol=1e-6)


def test_memories_of_a_sliced_backbone_begin_with_its_own_keys(
    shipped: Any, llama: Path, tmp_path: Path
) -> None:
    context = context_for(llama, tmp_path, {"tokens": 3}, shipped.export / "backbone")
    sliced = context.student.memories.kv_tensors("north")
    whole = context_for(llama, tmp_path / "whole", {"tokens": 3}).student.memories.kv_tensors("north")
    assert sliced["layers.0.key"].allclose(whole["layers.0.key"], atol=1e-6)  # neurons of layer 0 come later
    assert not sliced["layers.2.key"].allclose(whole["layers.2.key"], atol=1e-3)
