from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from koffkit.checkpoint.spec import ModelSpec
from koffkit.model.bundles import mixed_kv
from koffkit.model.kv_attention import KVMemory, koffkit_attention, set_kv_memory, use_koffkit_attention

from ...common import make_checkpoint

B, T, N, K, H, P = 2, 5, 4, 2, 8, 3


@pytest.fixture
def model(llama):  # type: ignore[no-untyped-def]
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()


def memory_for(model, seed: int, layers: list[int], tokens: int = P) -> dict[int, KVMemory]:  # type: ignore[no-untyped-def]
    shape, generator = ModelSpec(config=model.config.to_dict()).shape, torch.Generator().manual_seed(seed)
    size = (shape.kv_heads, tokens, shape.head_dim)
    return {
        i: KVMemory(torch.randn(size, generator=generator), torch.randn(size, generator=generator))
        for i in layers
    }


class Module(torch.nn.Module):
    num_key_value_groups = N // K
    is_causal = True


def by_hand(query: Tensor, key: Tensor, value: Tensor, memory: KVMemory) -> Tensor:
    """Softmax over [memory; visible text], one query position at a time."""
    out = torch.zeros(B, T, N, H)
    for b in range(B):
        for n in range(N):
            k = n // (N // K)
            for t in range(T):
                keys = torch.cat([memory.key[k], key[b, k, : t + 1]])
                values = torch.cat([memory.value[k], value[b, k, : t + 1]])
                out[b, t, n] = ((keys @ query[b, n, t]) / math.sqrt(H)).softmax(0) @ values
    return out


def test_every_position_sees_all_memory_and_the_text_before_it() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(B, N, T, H), torch.randn(B, K, T, H), torch.randn(B, K, T, H)
    memory = KVMemory(torch.randn(K, P, H), torch.randn(K, P, H))
    module = Module()
    module.koffkit_kv = memory
    found, _ = koffkit_attention(module, query, key, value, None, dropout=0.0, scaling=H**-0.5)
    torch.testing.assert_close(found, by_hand(query, key, value, memory), atol=1e-5, rtol=1e-5)


def test_without_memory_the_model_is_unchanged(model, llama) -> None:  # type: ignore[no-untyped-def]
    ids = torch.arange(20).reshape(2, 10) + 5
    stock = model(ids).logits
    use_koffkit_attention(model)
    assert torch.equal(model(ids).logits, stock)


def test_padding_on_the_left_changes_nothing(model) -> None:  # type: ignore[no-untyped-def]
    use_koffkit_attention(model)
    set_kv_memory(model, memory_for(model, 1, [0, 2]))
    ids = torch.arange(6).unsqueeze(0) + 7
    plain = model(ids).logits[0, -1]
    padded = torch.cat([torch.full((1, 3), 2), ids], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_equals_recomputing(model, cache: str) -> None:  # type: ignore[no-untyped-def]
    use_koffkit_attention(model)
    set_kv_memory(model, memory_for(model, 2, [0, 1, 2]))
    ids = torch.tensor([[5, 9, 30, 12]])
    fast = model.generate(
        ids, max_new_tokens=8, do_sample=False, cache_implementation=cache, eos_token_id=None, pad_token_id=2
    )
    slow = ids
    for _ in range(8):
        slow = torch.cat([slow, model(slow, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert fast.tolist() == slow.tolist()


def test_a_mixed_batch_gives_each_row_what_it_gets_alone(model) -> None:  # type: ignore[no-untyped-def]
    use_koffkit_attention(model)
    memories = {"one": memory_for(model, 3, [0, 1, 2]), "two": memory_for(model, 4, [1, 2], tokens=5)}
    rows = ["one", None, "two", "one"]
    ids = torch.arange(24).reshape(4, 6) + 4
    set_kv_memory(model, mixed_kv(memories, rows))
    together = model(ids).logits
    for row, name in enumerate(rows):
        set_kv_memory(model, None if name is None else memories[name])
        torch.testing.assert_close(together[row], model(ids[row : row + 1]).logits[0], atol=2e-5, rtol=1e-4)


def test_qwen2_biases_do_not_reach_the_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Memory keys and values are final: neither projected, nor biased, nor rotated."""
    model = AutoModelForCausalLM.from_pretrained(
        make_checkpoint(tmp_path, "qwen2"), dtype=torch.float32
    ).eval()
    use_koffkit_attention(model)
    shape = ModelSpec(config=model.config.to_dict()).shape
    value = torch.zeros(shape.kv_heads, 1, shape.head_dim)
    overwhelming = {i: KVMemory(torch.zeros_like(value), value) for i in range(shape.num_layers)}
    set_kv_memory(model, overwhelming)
    seen = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.tensor([[7]]))
    query_free_value = model.model.layers[0].self_attn.v_proj(
        model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor([[7]])))
    )
    ratio = seen[0].reshape(shape.kv_heads, shape.queries_per_kv, shape.head_dim) / query_free_value.reshape(
        shape.kv_heads, 1, shape.head_dim
    )
    assert bool((ratio > 0).all()) and bool(
        (ratio < 1).all()
    )  # a share of the softmax went to the memory's zeros
