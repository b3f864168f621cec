from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from koffkit.training.context import Context
from koffkit.training.layerwise import Passage, Walk, walking

from ...common import make_checkpoint
from .test_repair import context_of

MASK = {"structures": ["mlp_neuron", "kv_group"], "repair_tokens": 96}


def hidden_after(context: Context, batch: Tensor, values: Any) -> tuple[Tensor, ...]:
    return context.student.every_hidden_state(batch, values)


@pytest.fixture(params=["llama", "qwen3", "gemma3_text"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Context:
    base = make_checkpoint(tmp_path / "base", request.param)
    context = context_of(base, tmp_path, "least_squares", mask=MASK)
    context.project_masks()
    return context


def first(walk: Walk) -> tuple[Passage, Tensor]:
    passage = walk.passages[0]
    stream = walk.context.corpus.train[passage.stream]
    recipe = walk.context.loaded.recipe
    return passage, stream.batch(0, 1, recipe.sequence_length, recipe.seed).ids


def test_layer_by_layer_is_what_the_models_compute(context: Context) -> None:
    with walking(context, {}) as walk:
        passage, ids = first(walk)
        unpruned, pruned = (hidden_after(context, ids, values) for values in (None, context.masks))
        last = context.student.spec.num_layers - 1
        for layer in range(last):  # after the last one transformers gives normalised states
            walk.unpruned(layer)
            walk.pruned(layer)
            torch.testing.assert_close(passage.unpruned, unpruned[layer + 1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(passage.pruned, pruned[layer + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_module_that_writes_what_is_wanted_restores_the_unpruned_stream(
    context: Context, part: str
) -> None:
    """In families that add modules' outputs as they are; in others the module's own output is wanted."""
    student, layer = context.student, 1
    name = student.spec.arch.layer(layer) + part
    with walking(context, {}) as walk:
        walk.unpruned(0)
        walk.pruned(0)
        walk.unpruned(layer)
        passage, _ = first(walk)
        seen: list[tuple[Tensor, Tensor]] = []
        add = _recorder(seen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("koffkit.training.layerwise.ReadAndWanted.add", add)
            walk.moments(layer, name)
        read, wanted = seen[0]
        module = student.model.get_submodule(name)
        assert read.shape[-1] == module.in_features
        handle = module.register_forward_hook(lambda *_: wanted)
        after = student.run_layer(layer, passage.pruned, passage.calls, context.masks)
        handle.remove()
    if student.spec.arch.model_type == "gemma3_text":
        assert wanted.equal(passage.written[part.removesuffix(".down_proj")])
    elif part == "mlp.down_proj":
        torch.testing.assert_close(after, passage.unpruned, rtol=1e-4, atol=1e-5)
    else:
        lost = passage.pruned + wanted - passage.entered - passage.written[part]
        assert lost.abs().max() < 1e-5


def _recorder(seen: list[tuple[Tensor, Tensor]]) -> Any:
    def add(self: Any, check: bool, read: Tensor, wanted: Tensor) -> None:
        seen.append((read, wanted))

    return add


def test_errors_of_earlier_layers_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same repair whose targets are the modules' own outputs leaves more of the error."""
    base, errors = make_checkpoint(tmp_path / "base"), {}
    for name, lost in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        context = context_of(base, tmp_path / name, "least_squares", mask={"repair_tokens": 4096})
        if not lost:
            monkeypatch.setattr("koffkit.training.layerwise._adds_up", lambda passage: False)
        context.set_masks()
        stream, recipe = context.corpus.heldout["north"], context.loaded.recipe
        with torch.no_grad():
            errors[name] = sum(
                float(
                    (context.student(batch.ids, context.masks) - context.unpruned(batch.ids)).square().sum()
                )
                for batch in stream.sequences(recipe.sequence_length, 4, 512)
            )
    assert errors["with"] < errors["without"]
