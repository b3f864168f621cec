"""The `config.json` of a sliced backbone: the family's own class where it can hold it, else a stock class that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...arch import Architecture, Shape
from ...errors import UsageError

CLASSES = {
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
STALE = (
    "_name_or_path", "auto_map", "transformers_version", "rope_scaling", "rope_theta", "torch_dtype",
    "id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "is_encoder_decoder",
)  # fmt: skip


def complete_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config with every default spelled out, so that another class cannot fill in its own."""
    from transformers import AutoConfig

    return dict(AutoConfig.from_pretrained(folder).to_dict())


def sliced_config(arch: Architecture, shape: Shape, config: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """The config after slicing.

    Args:
        config: complete (see `complete_config`).
        counts: units kept in every layer, by structure.

    Raises:
        UsageError: no stock class can hold the result.
    """
    result = {key: value for key, value in config.items() if key not in STALE}
    for name, kept in counts.items():
        for key, factor in arch.structures[name].config:
            result[key] = kept * (1 if factor == "1" else int(getattr(shape, factor)))
    result["head_dim"] = shape.head_dim
    result["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", arch.ties_by_default))
    container = _container(arch, shape, int(result["num_attention_heads"]))
    if container != arch.model_type:
        result = _rehouse(arch, container, result)
    result["architectures"] = [CLASSES[container]]
    return _readable_by_older(result)


def _container(arch: Architecture, shape: Shape, heads: int) -> str:
    if heads == shape.query_heads:
        return arch.model_type
    holds = shape.hidden % heads == 0 if arch.reads_head_dim else heads * shape.head_dim == shape.hidden
    return arch.model_type if holds or arch.head_pruned_container is None else arch.head_pruned_container


def _rehouse(arch: Architecture, container: str, config: dict[str, Any]) -> dict[str, Any]:
    for key, harmless in arch.container_drops.items():
        value = config.pop(key, None)
        if value is not None and harmless is not ... and value != harmless:
            raise UsageError(
                f"config.json: {key}: {value!r} has no counterpart in {container}, the stock class for a "
                f"{arch.model_type} with fewer heads; "
                "leave kv_group out of mask.structures."
            )
    return config | dict(arch.container_sets) | {"model_type": container}


def _readable_by_older(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters` only; 4.x silently falls back to theta 10000 without the old keys."""
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        config["rope_scaling"] = scaling
    if config.get("dtype"):
        config["torch_dtype"] = config["dtype"]
    return dict(sorted(config.items()))
